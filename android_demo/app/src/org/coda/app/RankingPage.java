package org.coda.app;

import android.content.Context;
import android.view.View;
import android.widget.LinearLayout;
import android.widget.TextView;

import org.coda.core.Activity;
import org.coda.core.Ranker;

import java.util.ArrayList;
import java.util.List;
import java.util.Locale;

/** The ranking as a page of an app: what is shown was seen, what is tapped was clicked, what is not was passed over. */
final class RankingPage extends LinearLayout {
    private static final String PAGE = "ranking";

    private final List<Activity> happened = new ArrayList<>();

    RankingPage(Context context) {
        super(context);
        setOrientation(VERTICAL);
    }

    void show(List<Ranker.Ranked> best) {
        int margin = (int) (8 * getResources().getDisplayMetrics().density);
        for (final Ranker.Ranked each : best) {
            TextView line = new TextView(getContext());
            line.setText(String.format(Locale.ROOT, "%.4f  %s", each.score, each.item));
            line.setPadding(0, margin, 0, margin);
            line.setOnClickListener(new View.OnClickListener() {
                @Override
                public void onClick(View view) {
                    view.setAlpha(0.5f);
                    note("click", each.item);
                }
            });
            addView(line);
            note("exposure", each.item);
        }
    }

    private void note(String kind, String item) {
        happened.add(new Activity(kind, System.currentTimeMillis(), item, PAGE, 0));
    }

    /** Empty the page. Returns what happened on it, to be stored. */
    List<Activity> leave() {
        removeAllViews();
        if (!happened.isEmpty()) {
            note("page_exit", "");
        }
        List<Activity> found = new ArrayList<>(happened);
        happened.clear();
        return found;
    }
}
