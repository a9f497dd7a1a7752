package org.coda.app;

import android.app.AlertDialog;
import android.content.DialogInterface;
import android.content.Intent;
import android.net.Uri;
import android.os.Bundle;
import android.text.InputType;
import android.text.TextUtils;
import android.view.View;
import android.view.ViewGroup;
import android.widget.Button;
import android.widget.CompoundButton;
import android.widget.EditText;
import android.widget.LinearLayout;
import android.widget.ProgressBar;
import android.widget.ScrollView;
import android.widget.Switch;
import android.widget.TextView;

import org.coda.core.Activity;
import org.coda.core.ByteCounter;
import org.coda.core.CodaError;
import org.coda.core.CodaError.Yielded;
import org.coda.core.DeviceHome;
import org.coda.core.History;
import org.coda.core.MadeUpHistory;
import org.coda.core.Model;
import org.coda.core.Ranker;
import org.coda.core.Report;
import org.coda.core.Round;
import org.coda.core.Store;
import org.coda.core.Story;
import org.coda.core.Transport;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/** The one screen. What it shows is read from the store, so it is the same after the app was killed. */
public final class MainActivity extends android.app.Activity implements Round.Watcher {
    private static final int IMPORT = 1;
    private static final int EXPORT = 2;
    private static final int AUTHORITY = 3;
    private static final int EVENTS = 100;
    private static final List<String> PHASES = Arrays.asList("pull", "self-test", "compare", "encode", "match",
            "filter", "tune", "judge", "activate", "clean", "contribute", "evaluate");
    /** Of the process, not of the screen: turning the phone does not start a second round beside the first. */
    private static final ExecutorService WORK = Executors.newSingleThreadExecutor();
    private static volatile boolean stopping;

    private Device device;
    private EditText server;
    private EditText trust;
    private TextView summary;
    private TextView status;
    private RankingPage ranking;
    private TextView log;
    private ProgressBar progress;
    private CostPlot plot;
    private LinearLayout page;

    private interface Work {
        /** Returns what to say when it is done. */
        String run() throws IOException;
    }

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        device = new Device(getApplicationContext());
        page = new LinearLayout(this);
        page.setOrientation(LinearLayout.VERTICAL);
        int margin = (int) (12 * getResources().getDisplayMetrics().density);
        page.setPadding(margin, margin, margin, margin);
        server = field("server, such as https://coda.example:8470");
        trust = field("release key (64 hex digits), or the text of root.json");
        button("Enrol", new Work() {
            @Override
            public String run() {
                return "enrolled as " + device.enrol(text(server), text(trust));
            }
        });
        picker("Trust a private server's certificate (PEM)", AUTHORITY);
        picker("Import history (CSV)", IMPORT);
        button("Make up a history", new Work() {
            @Override
            public String run() {
                try (DeviceHome home = device.open();
                        Transport transport = home.transport(new ByteCounter(Long.MAX_VALUE))) {
                    return MadeUpHistory.add(home, transport, device.engine().name(), 0, EVENTS) + " events were made up";
                }
            }
        });
        button("Run a round", new Work() {
            @Override
            public String run() {
                stopping = false;
                device.round(0, MainActivity.this);
                return "the round has ended";
            }
        });
        action("Put the round aside", new View.OnClickListener() {
            @Override
            public void onClick(View view) {
                stopping = true;
            }
        });
        button("Rank", new Work() {
            @Override
            public String run() {
                return rank();
            }
        });
        button("Use the bundle's own weights", new Work() {
            @Override
            public String run() {
                try (DeviceHome home = device.open()) {
                    home.useOwnWeights();
                    return "the bundle's own weights serve";
                }
            }
        });
        button("Repair", new Work() {
            @Override
            public String run() {
                List<String> done = device.repair();
                return done.isEmpty() ? "nothing is damaged" : TextUtils.join("; ", done);
            }
        });
        daily();
        giving();
        progress = new ProgressBar(this, null, android.R.attr.progressBarStyleHorizontal);
        progress.setMax(PHASES.size());
        page.addView(progress);
        status = label();
        summary = label();
        plot = new CostPlot(this);
        page.addView(plot);
        ranking = new RankingPage(this);
        page.addView(ranking);
        log = label();
        picker("Export my data", EXPORT);
        action("Erase everything", new View.OnClickListener() {
            @Override
            public void onClick(View view) {
                confirmErasure();
            }
        });
        ScrollView scroll = new ScrollView(this);
        scroll.addView(page);
        setContentView(scroll);
    }

    @Override
    protected void onResume() {
        super.onResume();
        work("", new Work() {
            @Override
            public String run() {
                return "";
            }
        });
    }

    // -- views -------------------------------------------------------------------------------------------------------

    private EditText field(String hint) {
        EditText view = new EditText(this);
        view.setHint(hint);
        view.setInputType(InputType.TYPE_CLASS_TEXT | InputType.TYPE_TEXT_VARIATION_URI);
        page.addView(view);
        return view;
    }

    private static String text(EditText view) {
        return view.getText().toString().trim();
    }

    private TextView label() {
        TextView view = new TextView(this);
        view.setTextIsSelectable(true);
        page.addView(view, ViewGroup.LayoutParams.MATCH_PARENT, ViewGroup.LayoutParams.WRAP_CONTENT);
        return view;
    }

    private void action(String name, View.OnClickListener listener) {
        Button view = new Button(this);
        view.setText(name);
        view.setOnClickListener(listener);
        page.addView(view);
    }

    private void button(final String name, final Work work) {
        action(name, new View.OnClickListener() {
            @Override
            public void onClick(View view) {
                work(name + " …", work);
            }
        });
    }

    private void picker(String name, final int request) {
        action(name, new View.OnClickListener() {
            @Override
            public void onClick(View view) {
                Intent intent = new Intent(request == EXPORT ? Intent.ACTION_CREATE_DOCUMENT
                        : Intent.ACTION_OPEN_DOCUMENT);
                intent.addCategory(Intent.CATEGORY_OPENABLE);
                intent.setType(request == EXPORT ? "application/json" : "*/*");
                intent.putExtra(Intent.EXTRA_TITLE, "coda-export.json");
                startActivityForResult(intent, request);
            }
        });
    }

    private void toggle(String name, boolean on, final Choice choice) {
        Switch view = new Switch(this);
        view.setText(name);
        view.setChecked(on);
        view.setOnCheckedChangeListener(new CompoundButton.OnCheckedChangeListener() {
            @Override
            public void onCheckedChanged(CompoundButton button, boolean wanted) {
                choice.make(wanted);
            }
        });
        page.addView(view);
    }

    private interface Choice {
        void make(boolean wanted);
    }

    private void daily() {
        toggle("A round a day while idle, charging and on Wi-Fi", RoundJob.isScheduled(this), new Choice() {
            @Override
            public void make(boolean wanted) {
                if (wanted) {
                    RoundJob.schedule(MainActivity.this);
                } else {
                    RoundJob.cancel(MainActivity.this);
                }
            }
        });
    }

    private void giving() {
        toggle("Give my samples to the pool, without my name", device.contributes(), new Choice() {
            @Override
            public void make(final boolean wanted) {
                work("", new Work() {
                    @Override
                    public String run() {
                        device.contribute(wanted);
                        return wanted ? "rounds hand your training samples to the pool" : "your samples stay here";
                    }
                });
            }
        });
    }

    private void confirmErasure() {
        new AlertDialog.Builder(this).setMessage("Delete all events, weights and this device's key from the phone?")
                .setNegativeButton("Keep", null)
                .setPositiveButton("Erase", new DialogInterface.OnClickListener() {
                    @Override
                    public void onClick(DialogInterface dialog, int which) {
                        stopping = true;
                        work("erasing …", new Work() {
                            @Override
                            public String run() {
                                return device.erase() ? "everything is erased" : "there was nothing to erase";
                            }
                        });
                    }
                }).show();
    }

    @Override
    protected void onActivityResult(final int request, int result, Intent data) {
        if (result != RESULT_OK || data == null) {
            return;
        }
        final Uri uri = data.getData();
        work("", new Work() {
            @Override
            public String run() throws IOException {
                return request == IMPORT ? take(uri) : request == AUTHORITY ? trust(uri) : give(uri);
            }
        });
    }

    private byte[] content(Uri uri) throws IOException {
        ByteArrayOutputStream content = new ByteArrayOutputStream();
        try (InputStream in = getContentResolver().openInputStream(uri)) {
            byte[] chunk = new byte[1 << 16];
            for (int got = in.read(chunk); got >= 0; got = in.read(chunk)) {
                content.write(chunk, 0, got);
            }
        }
        return content.toByteArray();
    }

    private String trust(Uri uri) throws IOException {
        byte[] pem = content(uri);
        try (DeviceHome home = device.open()) {
            home.trustAuthorities(pem);
            return pem.length > 0 ? "servers are known by these certificates alone; an empty file undoes it"
                    : "servers are known by the system's certificates";
        }
    }

    private String take(Uri uri) throws IOException {
        History history = new History(new String(content(uri), StandardCharsets.UTF_8));
        try (DeviceHome home = device.open()) {
            int came = home.store.addEvents(history.events);
            return came + " new events, " + (history.events.size() - came) + " already known, " + history.bad
                    + " bad rows " + history.examples;
        }
    }

    private String give(Uri uri) throws IOException {
        try (DeviceHome home = device.open(); OutputStream out = getContentResolver().openOutputStream(uri)) {
            out.write(Story.export(home.store));
            return "exported";
        }
    }

    private String rank() {
        try (DeviceHome home = device.open(); Model model = home.model(device.engine())) {
            final List<Ranker.Ranked> best = Ranker.rank(home, model, 10);
            runOnUiThread(new Runnable() {
                @Override
                public void run() {
                    leaveRanking();
                    ranking.show(best);
                }
            });
            return "ranked by the weights that serve; tap what you like";
        }
    }

    /** Store what was seen and done on the ranking; the next round learns from it. */
    private void leaveRanking() {
        final List<Activity> events = ranking.leave();
        if (!events.isEmpty()) {
            work("", new Work() {
                @Override
                public String run() {
                    device.note(events);
                    return "what you saw and tapped is noted";
                }
            });
        }
    }

    @Override
    protected void onPause() {
        super.onPause();
        leaveRanking();
    }

    // -- work, one thing after another -------------------------------------------------------------------------------

    private void work(String says, final Work work) {
        status.setText(says);
        WORK.execute(new Runnable() {
            @Override
            public void run() {
                String told;
                try {
                    told = work.run();
                } catch (CodaError error) {
                    told = error.getMessage();
                } catch (IOException | SecurityException error) {
                    told = "that file cannot be used: " + error.getMessage();
                }
                refresh(told);
            }
        });
    }

    private void refresh(final String told) {
        final List<String> names = new ArrayList<>();
        final List<Double> seconds = new ArrayList<>();
        String known;
        String lines = "";
        if (!device.folder().exists()) {
            known = "Nothing is stored on this phone yet.";
        } else {
            try (DeviceHome home = device.open()) {
                known = Story.summary(home.store);
                lines = Story.log(home.store);
                List<Store.RoundRow> rounds = home.store.rounds();
                if (!rounds.isEmpty() && rounds.get(rounds.size() - 1).report != null) {
                    for (Report.Phase phase : rounds.get(rounds.size() - 1).report.phases) {
                        names.add(phase.name);
                        seconds.add(phase.cpuUser + phase.cpuSystem);
                    }
                }
            } catch (CodaError error) {
                known = error.getMessage();
            }
        }
        final String words = known;
        final String history = lines;
        runOnUiThread(new Runnable() {
            @Override
            public void run() {
                status.setText(told);
                summary.setText(words);
                log.setText(history);
                plot.show(names, seconds);
                progress.setProgress(0);
            }
        });
    }

    @Override
    public void phase(final String name) {
        runOnUiThread(new Runnable() {
            @Override
            public void run() {
                status.setText(name + " …");
                progress.setProgress(PHASES.indexOf(name) + 1);
            }
        });
    }

    @Override
    public void pulse() {
        if (stopping) {
            throw new Yielded("the round is put aside; it goes on from its last step when it is run again");
        }
    }
}
