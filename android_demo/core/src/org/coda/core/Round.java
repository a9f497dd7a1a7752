package org.coda.core;

import org.coda.core.CodaError.EngineError;
import org.coda.core.CodaError.InputError;
import org.coda.core.CodaError.Refused;
import org.coda.core.CodaError.StoreError;
import org.coda.core.CodaError.TransportError;
import org.coda.core.CodaError.WireError;
import org.coda.core.CodaError.Yielded;
import org.coda.core.Model.Weights;
import org.coda.core.Store.RoundRow;
import org.coda.core.Store.Serving;
import org.coda.core.Tables.LocalTable;
import org.coda.core.Transport.Answer;
import org.coda.core.Wire.Rows;

import java.io.File;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * One personalization: pull, match, filter, tune, judge, activate or keep, report; metered and journalled. The twin of
 * {@code device_runtime/round.py}: with the same seed, data and engine it ends with the same weights. A round that was
 * cut off goes on after the last step that was committed. Whatever goes wrong, the weights that served before still do.
 */
public final class Round {
    private static final int BINS = 20;
    private static final int OUTBOX = 20;
    private static final byte[] NOTHING = {};

    /** Sees a round go on, and may put it aside. */
    public interface Watcher {
        /** A phase has begun. */
        void phase(String name);

        /** Asked before each run of a graph. Raises {@link Yielded} to have the round put aside. */
        void pulse();
    }

    private final DeviceHome home;
    private final Transport transport;
    private final Engine engine;
    private final Watcher watcher;
    private final Compressor compressor;
    private final Options options;
    private final RoundCost cost;

    private String id;
    private String state;
    private Progress progress;
    private File files;
    private Model model;
    private Local local;
    private Wire.Answer answer;

    /** What a round is asked to do. */
    public static final class Options {
        /** Of everything random on the device. */
        public long seed;
        /** False trains on local samples alone. */
        public boolean match = true;
        /** Hand the training samples to the pool afterwards; only ever by the user's choice. */
        public boolean contribute;
        /** Try configurations that the cloud wants compared, of which only figures leave the device. */
        public boolean evaluate = true;
    }

    public Round(DeviceHome home, Transport transport, Engine engine, Meter meter, Watcher watcher,
            Compressor compressor, Options options) {
        this.home = home;
        this.transport = transport;
        this.engine = new AskingEngine(engine, watcher);
        this.watcher = watcher;
        this.compressor = compressor;
        this.options = options;
        this.cost = new RoundCost(meter, transport.counter, home.path);
    }

    /**
     * Run the round and report it.
     *
     * @throws Yielded asked to put it aside, or a budget is used up; the next call goes on.
     * @throws StoreError nothing could be stored; the next call goes on.
     * @throws CodaError the round failed; it is recorded and reported as failed, and the old weights still serve.
     */
    public Report run() {
        try {
            return home.locked(new DeviceHome.Work<Report>() {
                @Override
                public Report run() {
                    return locked();
                }
            });
        } finally {
            if (model != null) {
                model.close();
            }
        }
    }

    private Report locked() {
        open(System.currentTimeMillis() / 1000.0);
        Serving serving = home.store.bundle();
        transport.bundle = serving == null ? 0 : serving.ref.version;
        cost.startsAfter(progress);
        files = new File(home.rounds, id);
        for (File other : Files.list(home.rounds)) {
            if (!other.equals(files)) {
                Files.delete(other);
            }
        }
        try {
            String onward;
            while (!Progress.isFinal(onward = step())) {
                if (!onward.equals("activated")) { // which that step has committed with what it activates
                    cost.note(progress);
                    home.store.advanceRound(id, onward, progress);
                }
                state = onward;
            }
        } catch (Yielded | StoreError reason) { // it stays, to be taken up again: when the disk has room, say
            progress.stumbles += reason instanceof StoreError ? 1 : 0;
            cost.note(progress);
            try {
                home.store.noteProgress(id, progress);
            } catch (StoreError unwritten) {
                reason.addSuppressed(unwritten);
            }
            throw reason;
        } catch (CodaError error) {
            progress.outcome = "failed";
            finish("failed", error.name());
            throw error;
        }
        return finish("done", "");
    }

    /** The round that was cut off, if it can go on; else a new one. */
    private void open(double now) {
        RoundRow found = home.store.unfinished();
        if (found != null && found.progress != null) {
            Progress was = found.progress;
            Serving serving = home.store.bundle();
            List<String> whole = new ArrayList<>();
            for (Map.Entry<String, String> file : was.files.entrySet()) {
                File path = new File(new File(home.rounds, found.id), file.getKey());
                if (path.isFile() && Bytes.hex(Bytes.sha256(Files.read(path))).equals(file.getValue())) {
                    whole.add(file.getKey());
                }
            }
            String obstacle = was.obstacle(found.state, inputs(was.inputs.until, was.inputs.ordinal),
                    now - found.started, serving == null ? "" : serving.ref.manifest, whole);
            if (obstacle.isEmpty()) {
                was.resumed++;
                id = found.id;
                state = found.state;
                progress = was;
                return;
            }
        }
        id = Signer.nonce();
        state = "started";
        progress = new Progress(inputs(home.store.lastEvent(), home.store.countRounds()));
        home.store.startRound(id, now, progress);
    }

    private Progress.Inputs inputs(long until, long ordinal) {
        return new Progress.Inputs(options.seed, options.match, engine.name() + " " + engine.version(), until,
                home.store.countEvents(until), ordinal);
    }

    private String step() {
        switch (state) {
            case "started":
                return pull();
            case "pulled":
                return encode();
            case "encoded":
                return options.match ? match() : tune();
            case "matched":
                return filter();
            case "filtered":
                return tune();
            case "tuned":
                return judge();
            case "judged":
                return activate();
            default:
                return conclude();
        }
    }

    /** Of the step that follows the present state. */
    private Pcg64 random() {
        return new Pcg64(progress.streamOf(state));
    }

    /** Parts of a round whose cost is told apart. */
    interface Phases {
        void run(String name, Runnable work);
    }

    private final Phases phases = new Phases() {
        @Override
        public void run(String name, Runnable work) {
            watcher.phase(name);
            cost.phase(name, work);
        }
    };

    private void phase(String name, Runnable work) {
        phases.run(name, work);
    }

    // -- what steps hand on, from memory or from the working files -----------------------------------------------------

    private Model model() {
        if (model == null) {
            model = home.model(engine);
        }
        return model;
    }

    private Local local() {
        if (local == null) {
            local = new Local(home.store, model(), progress.inputs.until);
        }
        return local;
    }

    /** Null where nothing was asked for. */
    private Wire.Answer answer() {
        if (answer == null && progress.files.containsKey("answer")) {
            answer = Wire.decodeAnswer(Files.read(new File(files, "answer")), model().manifest.schema);
        }
        return answer;
    }

    /** The item rows that came with the candidates; null where none did. */
    private Rows rows() {
        return answer() == null ? null : answer().rows.get(Model.VOCABULARY);
    }

    private int[] ids() {
        int[] own = local().everything.ids(Model.VOCABULARY);
        return answer() == null ? own : Ints.distinct(Ints.join(own, answer().candidates.ids(Model.VOCABULARY)));
    }

    private void keep(String name, byte[] data) {
        Files.writeAtomically(new File(files, name), data, false);
        progress.files.put(name, Bytes.hex(Bytes.sha256(data)));
    }

    private Map<String, Tensor> tensors(String name) {
        return Safetensors.read(Files.read(new File(files, name)), "the working file '" + name + "'");
    }

    // -- the steps: each returns the state that it leads to ------------------------------------------------------------

    private String pull() {
        if (model != null) {
            model.close();
        }
        model = null;
        local = null;
        Serving before = home.store.bundle();
        String key = before == null ? "" : home.trusted();
        Pull pulled = new Pull(home, transport, engine, phases);
        model = pulled.model;
        Manifest.Ref ref = pulled.ref;
        if (before != null && !before.ref.manifest.equals(ref.manifest)) {
            compare(before.ref, key);
        }
        transport.bundle = ref.version;
        progress.bundle = ref.version;
        progress.manifest = ref.manifest;
        return "pulled";
    }

    /** How a release compares with the one before: by the AUC, on what this round holds out, of what served until now. */
    private void compare(final Manifest.Ref served, final String key) {
        progress.moved = true;
        phase("compare", new Runnable() {
            @Override
            public void run() {
                try (Model before = new Model(home.manifest(served, key), engine, home.blobs)) {
                    Local mine = new Local(home.store, before, progress.inputs.until);
                    Weights weights = home.judgedWeights(before);
                    LocalTable table = before.table(mine.everything.ids(Model.VOCABULARY), weights, null);
                    progress.aucPrevious = mine.heldOut.size() == 0 ? null
                            : Metrics.auc(mine.heldOut.labels, before.logits(mine.heldOut, table, weights));
                } catch (InputError | EngineError | StoreError error) {
                    progress.aucPrevious = null; // it may lack rows of new items, or be damaged: why it is left
                }
            }
        });
    }

    private String encode() {
        final String[] onward = {"encoded"};
        model();
        phase("encode", new Runnable() {
            @Override
            public void run() {
                SampleBatch everything = local().everything;
                RoundSettings settings = model.manifest.settings;
                progress.local = everything.size();
                if (!Personalize.enough(progress.local, settings)) {
                    progress.outcome = "too few samples";
                    onward[0] = "done";
                    return;
                }
                LocalTable table = model.table(everything.ids(Model.VOCABULARY), model.base, null);
                Tensor embeddings = model.encode(everything, table);
                byte[] asked = Query.frame(model, embeddings, random(), compressor);
                Map<String, Tensor> held = new LinkedHashMap<>();
                held.put("embeddings", embeddings);
                held.put("query", Tensor.read("uint8", new int[] {asked.length}, asked));
                keep("encoded", Safetensors.write(held));
            }
        });
        return onward[0];
    }

    private String match() {
        model();
        try {
            phase("match", new Runnable() {
                @Override
                public void run() {
                    byte[] body = tensors("encoded").get("query").data();
                    Answer found = transport.request("POST", "/v1/match", body, "match", Wire.FRAME, Wire.FRAME,
                            Transport.noHeaders(), 200);
                    Signer.verify(model.manifest.answerKey, Signer.answerText(found.nonce, found.body),
                            found.head.header("coda-signature"));
                    answer = Wire.decodeAnswer(found.body, model.manifest.schema);
                    keep("answer", found.body);
                }
            });
        } catch (Refused refused) {
            if (refused.status != 409 || progress.repulled) {
                throw refused;
            }
            progress.repulled = true; // the server has moved on to another encoder: pull it, and ask again, once
            return "started";
        }
        progress.candidates = answer.candidates.size();
        return "matched";
    }

    private String filter() {
        if (answer() == null || answer().candidates.size() == 0) {
            return tune();
        }
        local();
        phase("filter", new Runnable() {
            @Override
            public void run() {
                int start = model.manifest.filterFrom;
                Tensor embeddings =
                        tensors("encoded").get("embeddings").take(Ints.range(0, local.train.size()));
                LocalTable table = model.table(ids(), model.base, rows());
                Candidates.Own own =
                        Candidates.asOwn(answer.candidates, local.everything, local.train, model, table);
                float[] labels = own.samples.labels;
                Filtering found = model.manifest.settings.classifierEpochs == 0
                        ? Filtering.withoutClassifier(model.manifest.settings, labels.length, own.change)
                        : Filtering.of(model, Filtering.inputs(embeddings, local.train.labels, start),
                                Filtering.inputs(model.encode(own.samples, table), labels, start), own.change,
                                random());
                progress.view = view(found, labels);
                progress.kept = found.kept.length;
                int n = found.kept.length;
                Map<String, Tensor> made = new LinkedHashMap<>();
                made.put("kept", Tensor.of(Ints.wide(found.kept), n));
                made.put("weights", Tensor.of(found.weights, n));
                made.put("labels", Tensor.of(Floats.take(labels, found.kept), n));
                if (own.change != null) {
                    float[] change = new float[n];
                    for (int i = 0; i < n; i++) {
                        change[i] = (float) own.change[found.kept[i]];
                    }
                    made.put("change", Tensor.of(change, n));
                }
                keep("filter", Safetensors.write(made));
            }
        });
        return "filtered";
    }

    private static Progress.View view(Filtering found, float[] labels) {
        double[] edges = new double[BINS + 1];
        for (int i = 0; i <= BINS; i++) {
            edges[i] = i * 0.05; // as numpy.linspace: a product, not a sum
        }
        long[] kept = new long[BINS];
        long[] dropped = new long[BINS];
        boolean[] stays = new boolean[labels.length];
        for (int i : found.kept) {
            stays[i] = true;
        }
        for (int i = 0; i < labels.length; i++) {
            int bin = BINS - 1;
            while (bin > 0 && found.scores[i] < edges[bin]) {
                bin--;
            }
            (stays[i] ? kept : dropped)[bin]++;
        }
        float[] liked = Floats.take(labels, found.kept);
        return new Progress.View(edges, kept, dropped, liked.length == 0 ? null : (Double) (double) Floats.mean(liked),
                (double) Floats.mean(labels));
    }

    /** What the filter kept; null where there was nothing to filter. */
    private Augmentation augmentation() {
        if (answer() == null || !progress.files.containsKey("filter")) {
            return null;
        }
        Map<String, Tensor> found = tensors("filter");
        SampleBatch kept = answer.candidates.take(Ints.of(found.get("kept").longs));
        if (model.manifest.settings.pooled) {
            kept = Candidates.withHistoryOf(kept, local().everything);
        }
        Tensor change = found.get("change");
        return new Augmentation(kept.labelled(found.get("labels").floats), found.get("weights").floats,
                change == null ? null : change.floats);
    }

    private String tune() {
        local();
        phase("tune", new Runnable() {
            @Override
            public void run() {
                LocalTable base = model.table(ids(), model.base, rows());
                Augmentation found = augmentation();
                Personalize.Tuned tuned = Personalize.tune(model, model.manifest.settings, model.base, base, local.train,
                        found, random(), local.heldOut);
                progress.passes = tuned.passes;
                keep("tuned", Safetensors.write(tuned.weights.tensors()));
            }
        });
        return "tuned";
    }

    private String judge() {
        local();
        final Weights tuned = Weights.of(tensors("tuned"));
        final LocalTable base = model.table(ids(), model.base, rows());
        phase("judge", new Runnable() {
            @Override
            public void run() {
                Weights active = home.judgedWeights(model);
                float[] was = model.logits(local.heldOut, model.table(ids(), active, rows()), active);
                progress.verdict = Personalize.consider(local.heldOut.labels, was, new Personalize.Logits() {
                    @Override
                    public float[] at(double share) {
                        Weights part = Personalize.partOfTheWay(model, tuned, base, share);
                        return model.logits(local.heldOut, Model.personal(base, part), part);
                    }
                }, model.manifest.settings);
                progress.outcome = progress.verdict.activate ? "activated" : "kept";
                if (progress.verdict.share < 1) {
                    keep("part", Safetensors.write(
                            Personalize.partOfTheWay(model, tuned, base, progress.verdict.share).tensors()));
                }
            }
        });
        if (progress.verdict.activate && model.manifest.settings.learnHeldOut) {
            phase("tune", new Runnable() {
                @Override
                public void run() {
                    int passes = progress.passes == null ? model.manifest.settings.epochs : progress.passes;
                    Weights learned = Personalize.learnHeldOut(model, new Personalize.Tuned(tuned, passes), base,
                            local.everything, augmentation(), random());
                    learned = Personalize.partOfTheWay(model, learned, base, progress.verdict.share);
                    keep("learned", Safetensors.write(learned.tensors()));
                }
            });
        }
        return "judged";
    }

    private String activate() {
        final boolean better = progress.verdict != null && progress.verdict.activate;
        phase("activate", new Runnable() {
            @Override
            public void run() {
                if (better) {
                    File judged = new File(files, progress.files.containsKey("part") ? "part" : "tuned");
                    boolean learned = progress.files.containsKey("learned");
                    home.placeWeights(id, learned ? new File(files, "learned") : judged, learned ? judged : null);
                }
            }
        });
        cost.note(progress);
        home.store.activateRound(id, progress, better ? id : "");
        return "activated";
    }

    private String conclude() {
        model();
        if (options.evaluate && transport.stale.contains("evaluation")) {
            phase("evaluate", new Runnable() {
                @Override
                public void run() {
                    evaluate(augmentation());
                }
            });
        }
        phase("clean", new Runnable() {
            @Override
            public void run() {
                home.dropSuperseded();
                Serving serving = home.store.bundle();
                if (serving != null) {
                    home.dropOtherBlobs(serving.ref, model.manifest);
                }
                Files.delete(files);
            }
        });
        if (options.contribute) {
            phase("contribute", new Runnable() {
                @Override
                public void run() {
                    Contributing.contribute(home.store, transport, local(), compressor);
                }
            });
        }
        return "done";
    }

    /** Do the evaluation that the server has for this device. If it fails, the round is none the worse. */
    private void evaluate(Augmentation found) {
        try {
            LocalTable table = model.table(ids(), model.base, rows());
            long[] seed = progress.streamOf("filtered"); // as the round itself tuned
            Evaluating.evaluate(transport, model, local(), table, found, seed);
        } catch (TransportError | WireError | EngineError | InputError failed) {
            return;
        }
    }

    // -- report ------------------------------------------------------------------------------------------------------

    /** Record the round, then deliver its report and those that could not be delivered before. */
    private Report finish(String last, String error) {
        cost.note(progress);
        Report report = new Report(id, engine.name(), progress, error);
        home.store.finishRound(id, last, report, progress);
        Files.delete(files);
        List<RoundRow> waiting = home.store.undelivered();
        try {
            for (RoundRow row : waiting.subList(Math.max(0, waiting.size() - OUTBOX), waiting.size())) {
                Report late = row.report.aged(System.currentTimeMillis() / 1000.0 - row.started);
                transport.request("POST", "/v1/reports", Wire.encodeReport(late, compressor), "report", Wire.FRAME, "",
                        Transport.noHeaders(), 204);
                home.store.markDelivered(row.id);
            }
        } catch (TransportError | Yielded undelivered) {
            // the outbox keeps them for the next round
        }
        cost.note(progress);
        home.store.noteProgress(id, progress);
        home.store.set("stale", transport.stale);
        return report;
    }
}
