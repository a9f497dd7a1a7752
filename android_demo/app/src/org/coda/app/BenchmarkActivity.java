package org.coda.app;

import android.app.Activity;
import android.os.Bundle;
import android.util.Log;
import android.view.WindowManager;
import android.widget.TextView;

import org.coda.core.ByteCounter;
import org.coda.core.CodaError;
import org.coda.core.DeviceHome;
import org.coda.core.Files;
import org.coda.core.MadeUpHistory;
import org.coda.core.Round;
import org.coda.core.Story;
import org.coda.core.Transport;

import java.io.File;
import java.nio.charset.StandardCharsets;
import java.text.SimpleDateFormat;
import java.util.ArrayList;
import java.util.Date;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TimeZone;

/**
 * Started over adb with extras `server`, `trust`, `rounds`, `seed`, `events`: enrols, makes up a history, runs rounds and
 * writes their overhead record to `benchmark.json` in the app's external folder, which adb may read. `benchmark.error`
 * is there instead where it failed. Only the shell may start it: the manifest asks for a permission that apps do not get.
 */
public final class BenchmarkActivity extends Activity {
    private static final String TAG = "coda-benchmark";

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        getWindow().addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON);
        final TextView view = new TextView(this);
        view.setText("benchmark");
        setContentView(view);
        if (state != null) {
            return; // the screen was turned; the thread of before goes on
        }
        new Thread("benchmark") {
            @Override
            public void run() {
                final String told = measure();
                Log.i(TAG, told);
                runOnUiThread(new Runnable() {
                    @Override
                    public void run() {
                        view.setText(told);
                    }
                });
            }
        }.start();
    }

    private String measure() {
        File out = new File(getExternalFilesDir(null), "benchmark.json");
        File failed = new File(getExternalFilesDir(null), "benchmark.error");
        Files.delete(out);
        Files.delete(failed);
        try {
            Files.writeAtomically(out, record(), false);
            return "done: " + out;
        } catch (CodaError error) {
            Files.writeAtomically(failed, error.getMessage().getBytes(StandardCharsets.UTF_8), false);
            return error.getMessage();
        }
    }

    private byte[] record() {
        SimpleDateFormat format = new SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ss'Z'", Locale.ROOT);
        format.setTimeZone(TimeZone.getTimeZone("UTC"));
        String started = format.format(new Date());
        Device device = new Device(this);
        device.enrol(extra("server"), extra("trust"));
        try (DeviceHome home = device.open(); Transport transport = home.transport(new ByteCounter(Long.MAX_VALUE))) {
            MadeUpHistory.add(home, transport, device.engine().name(), number("seed", 0), number("events", 100));
        }
        List<Map<String, Object>> rows = new ArrayList<>();
        for (int i = 0; i < number("rounds", 3); i++) {
            rows.add(device.round(number("seed", 0), new Round.Watcher() {
                @Override
                public void phase(String name) {
                    Log.i(TAG, "phase " + name);
                }

                @Override
                public void pulse() {
                    // a benchmark gives way to nothing
                }
            }));
        }
        return Story.record(Device.VERSION, device.capability(), started, rows);
    }

    private String extra(String name) {
        String value = getIntent().getStringExtra(name);
        if (value == null) {
            throw new CodaError.InputError("the benchmark needs --es " + name);
        }
        return value;
    }

    private int number(String name, int otherwise) {
        return getIntent().getIntExtra(name, otherwise);
    }
}
