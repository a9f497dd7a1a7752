package org.coda.app;

import android.content.Context;
import android.graphics.Canvas;
import android.graphics.Color;
import android.graphics.Paint;
import android.view.View;

import java.util.ArrayList;
import java.util.List;
import java.util.Locale;

/** The CPU seconds of a round's phases as bars. */
final class CostPlot extends View {
    private final Paint bar = new Paint();
    private final Paint text = new Paint(Paint.ANTI_ALIAS_FLAG);
    private final List<String> names = new ArrayList<>();
    private final List<Double> seconds = new ArrayList<>();
    private final float line;

    CostPlot(Context context) {
        super(context);
        float density = getResources().getDisplayMetrics().density;
        line = 22 * density;
        bar.setColor(Color.rgb(0x2A, 0x6F, 0x97));
        text.setTextSize(13 * density);
        text.setColor(Color.GRAY);
    }

    void show(List<String> phases, List<Double> cpuSeconds) {
        names.clear();
        names.addAll(phases);
        seconds.clear();
        seconds.addAll(cpuSeconds);
        requestLayout();
        invalidate();
    }

    @Override
    protected void onMeasure(int width, int height) {
        setMeasuredDimension(MeasureSpec.getSize(width), (int) (line * names.size()));
    }

    @Override
    protected void onDraw(Canvas canvas) {
        double most = 1e-9;
        for (double value : seconds) {
            most = Math.max(most, value);
        }
        float left = text.measureText("self-test  ");
        float right = text.measureText("  00.00 s");
        for (int i = 0; i < names.size(); i++) {
            float base = line * (i + 0.75f);
            float length = (float) (seconds.get(i) / most * (getWidth() - left - right));
            canvas.drawText(names.get(i), 0, base, text);
            canvas.drawRect(left, line * (i + 0.2f), left + length, line * (i + 0.85f), bar);
            canvas.drawText(String.format(Locale.ROOT, " %.2f s", seconds.get(i)), left + length, base, text);
        }
    }
}
