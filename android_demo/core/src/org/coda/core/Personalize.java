package org.coda.core;

import org.coda.core.Model.Weights;
import org.coda.core.Report.Verdict;
import org.coda.core.Tables.LocalTable;
import org.coda.core.Wire.Rows;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/** Fine-tune the recommender on local and kept samples, and judge whether the result may serve. */
final class Personalize {
    private static final double ROUNDING = 1e-6;
    /** The exponential of this is a number yet. */
    private static final double RARE = 700;

    /** Weights, and the passes over samples that led to them. */
    static final class Tuned {
        final Weights weights;
        final int passes;

        Tuned(Weights weights, int passes) {
            this.weights = weights;
            this.passes = passes;
        }
    }

    /** Values after so many passes. */
    private static final class Passed {
        final Map<String, Tensor> values;
        final int passes;

        Passed(Map<String, Tensor> values, int passes) {
            this.values = values;
            this.passes = passes;
        }
    }

    private Personalize() {}

    /** How many of n time-ordered samples, the newest, only the judge sees. */
    static int judged(int n, double holdout) {
        return Math.min(Math.max((int) Math.rint(n * holdout), 1), Math.max(n - 1, 0));
    }

    /** Whether so many local samples are worth a round: one to train on and one to judge by, at the very least. */
    static boolean enough(int n, RoundSettings settings) {
        return n >= Math.max(settings.minLocal, 2);
    }

    /** Labels whose mean is the prior: ones give way, or zeros do. */
    static float[] corrected(float[] labels, double prior) {
        double mean = labels.length > 0 ? Floats.mean(labels) : prior;
        if (mean <= 0 || mean >= 1) {
            return labels; // one class only: there is nothing to rank, and all would become the prior
        }
        float[] found = new float[labels.length];
        for (int i = 0; i < found.length; i++) {
            found[i] = mean > prior ? labels[i] * (float) (prior / mean)
                    : labels[i] + (1 - labels[i]) * (float) ((prior - mean) / (1 - mean));
        }
        return found;
    }

    /**
     * New weights after the settings' passes over local samples, and what kept ones say: by secant steps of their rows
     * where the settings have {@code row_steps}, else by joining the passes.
     *
     * @param table the rows of both.
     * @param found null where nothing was filtered. Its change, where it has one, is from the given weights.
     * @param heldOut says when passes end, where the settings have {@code patience}; null where none are held out.
     */
    static Tuned tune(Model model, RoundSettings settings, Weights weights, LocalTable table, SampleBatch local,
            Augmentation found, Pcg64 random, SampleBatch heldOut) {
        SampleBatch kept = found == null ? null : found.kept;
        float[] keptWeights = found == null ? null : found.weights;
        Map<String, Tensor> values = model.values("step", weights, table);
        boolean augmented = kept != null && kept.size() > 0;
        SampleBatch watched = settings.patience > 0 && heldOut != null && heldOut.size() >= EarlyStop.FEWEST ? heldOut
                : null;
        Passed passed = new Passed(new LinkedHashMap<>(values), 0);
        if (augmented && settings.rowSteps == 0) {
            float[] outside = new float[kept.size()];
            for (int i = 0; i < outside.length; i++) {
                outside[i] = (float) settings.outsideWeight * keptWeights[i];
            }
            passed = passes(model, settings, weights, table, values, local, kept, outside, random, watched);
        } else if (!augmented || local.size() > 0) {
            passed = passes(model, settings, weights, table, values, local, null, null, random, watched);
        }
        Map<String, Tensor> trained = passed.values;
        if (augmented && settings.rowSteps > 0) {
            double[] change = change(model, settings, weights, table, found);
            trained = Reach.reach(model, settings, trained, table, kept, change,
                    table.local(Ints.join(local.ids(Model.VOCABULARY), past(kept))), random);
        }
        if (settings.interpolation < 1) {
            interpolate(model.spec("step"), trained, values, settings.interpolation);
        }
        return new Tuned(personal(model, trained, values, table), passed.passes);
    }

    /**
     * What serves in place of tuned weights that may: tuned anew, from the bundle's weights, on all local samples in
     * as many passes. Rows that were moved for kept samples by secant steps stay as they are.
     *
     * @param table base rows of all local samples and of the kept ones.
     * @param found what the filter kept; null where nothing was filtered.
     */
    static Weights learnHeldOut(Model model, Tuned tuned, LocalTable table, SampleBatch everything,
            Augmentation found, Pcg64 random) {
        RoundSettings settings = model.manifest.settings.with(
                Collections.<String, Object>singletonMap("epochs", (long) tuned.passes));
        if (settings.rowSteps > 0) {
            return tuned.weights.followedBy(
                    tune(model, settings, model.base, table, everything, null, random, null).weights);
        }
        return tune(model, settings, model.base, table, everything, found, random, null).weights;
    }

    /** By how much the logits of kept samples should change: a share of the way to their soft labels. */
    private static double[] change(Model model, RoundSettings settings, Weights weights, LocalTable table,
            Augmentation found) {
        float[] logits = found.change == null ? model.logits(found.kept, table, weights) : null;
        double[] change = new double[found.kept.size()];
        for (int i = 0; i < change.length; i++) {
            double p = Math.max(1e-6, Math.min(1 - 1e-6, found.kept.labels[i]));
            double whole = logits == null ? found.change[i] : Math.log(p / (1 - p)) - logits[i];
            change[i] = settings.rowShare * Math.max(0, Math.min(1, 2 * (double) found.weights[i])) * whole;
        }
        return change;
    }

    /** The items of these samples' histories. */
    private static int[] past(SampleBatch samples) {
        int[] found = {};
        for (Object column : samples.columns.values()) {
            found = column instanceof Ragged ? Ints.join(found, ((Ragged) column).compact().values) : found;
        }
        return found;
    }

    /**
     * Values after passes over local samples, and over others where there are any. Steps see the rows of these only: the
     * table may hold thousands of candidates'.
     */
    private static Passed passes(final Model model, final RoundSettings settings, Weights weights, LocalTable table,
            Map<String, Tensor> values, SampleBatch local, SampleBatch others, float[] othersWeights, Pcg64 random,
            SampleBatch watched) {
        SampleBatch samples = local;
        float[] weight = Floats.filled(local.size(), 1);
        float[] labels = labels(model, settings, weights, table, local);
        if (others != null) {
            samples = SampleBatch.join(local, others);
            weight = Floats.join(weight, othersWeights);
            labels = Floats.join(labels, labels(model, settings, weights, table, others));
        }
        SampleBatch seen = watched == null ? samples : SampleBatch.join(samples, watched);
        final LocalTable near = table.of(seen.ids(Model.VOCABULARY));
        int[] at = Ints.of(table.local(near.ids));
        final Map<String, Tensor> before = new LinkedHashMap<>(values);
        for (String name : Reach.sliced(model)) {
            before.put(name, values.get(name).take(at));
        }
        Map<String, Tensor> columns = Tables.features(samples, near);
        Map<String, Tensor> start = before;
        final int rows = near.ids.length;
        if (settings.freezeHistories) {
            start = Reach.withPast(model, before, before, Reach.apart(model, columns, rows));
        }
        final long[] own = near.local(local.ids(Model.VOCABULARY));
        EarlyStop stop = null;
        if (watched != null) {
            final Map<String, Tensor> asked = Tables.features(watched, near);
            stop = new EarlyStop(new EarlyStop.Logits() {
                @Override
                public float[] of(Map<String, Tensor> trained) {
                    return Trainer.scores(model.graph("score"), cut(model, settings, trained, before, rows, own), asked)
                            .floats;
                }
            }, watched.labels, start, settings.patience);
        }
        Map<String, Tensor> trained = Trainer.train(model.graph("step"), start, columns, labels, weight, settings.rate,
                settings.tableRate, settings.epochs, random, stop);
        Map<String, Tensor> best = cut(model, settings, stop == null ? trained : stop.best, before, rows, own);
        for (String name : Reach.sliced(model)) {
            Tensor whole = values.get(name).copy();
            Tensor moved = best.get(name);
            for (int i = 0; i < at.length; i++) {
                whole.put(at[i], moved, i, whole.width());
            }
            best.put(name, whole);
        }
        return new Passed(best, stop == null ? settings.epochs : stop.passes);
    }

    /** Trained values without the rows that histories had of their own, and own items as they were. */
    private static Map<String, Tensor> cut(Model model, RoundSettings settings, Map<String, Tensor> trained,
            Map<String, Tensor> values, int rows, long[] own) {
        Map<String, Tensor> found = new LinkedHashMap<>(trained);
        if (settings.freezeHistories) {
            for (String name : Reach.sliced(model)) {
                Tensor first = trained.get(name).take(Ints.range(0, rows));
                for (long row : own) { // what histories are made of, now or at the next like
                    first.put((int) row, values.get(name), (int) row, first.width());
                }
                found.put(name, first);
            }
        }
        return found;
    }

    private static void interpolate(GraphSpec spec, Map<String, Tensor> trained, Map<String, Tensor> values,
            double share) {
        for (String name : spec.carry.values()) {
            if (values.containsKey(name)) {
                trained.put(name, between(values.get(name), trained.get(name), share));
            }
        }
    }

    private static float[] labels(Model model, RoundSettings settings, Weights weights, LocalTable table,
            SampleBatch samples) {
        if (!settings.labelCorrection || samples.size() == 0) {
            return samples.labels;
        }
        float[] logits = model.logits(samples, table, weights);
        double[] probability = new double[logits.length];
        for (int i = 0; i < logits.length; i++) {
            probability[i] = Metrics.sigmoid(logits[i]);
        }
        return corrected(samples.labels, Floats.mean(probability));
    }

    /** Only tensors that train, and rows that moved, are kept: the rest stays the bundle's. */
    private static Weights personal(Model model, Map<String, Tensor> trained, Map<String, Tensor> before,
            LocalTable table) {
        Map<String, Tensor> dense = new LinkedHashMap<>();
        List<String> sliced = new ArrayList<>();
        GraphSpec spec = model.spec("step");
        for (GraphSpec.TensorSpec tensor : spec.of("param")) {
            if (spec.carry.containsValue(tensor.name)) {
                if (tensor.table.isEmpty()) {
                    dense.put(tensor.name, trained.get(tensor.name));
                } else if (tensor.table.equals(Model.VOCABULARY)) {
                    sliced.add(tensor.name);
                }
            }
        }
        if (sliced.isEmpty()) {
            return new Weights(dense, null);
        }
        int[] moved = new int[table.ids.length];
        int count = 0;
        for (int row = 1; row < table.ids.length; row++) {
            boolean differs = false;
            for (String name : sliced) {
                int width = before.get(name).width();
                for (int i = row * width; i < (row + 1) * width; i++) {
                    differs |= trained.get(name).floats[i] != before.get(name).floats[i];
                }
            }
            if (differs) {
                moved[count++] = row;
            }
        }
        moved = Arrays.copyOf(moved, count);
        int[] ids = new int[count];
        Map<String, Tensor> tensors = new LinkedHashMap<>();
        for (int i = 0; i < count; i++) {
            ids[i] = table.ids[moved[i]];
        }
        for (String name : sliced) {
            tensors.put(name, trained.get(name).take(moved));
        }
        return new Weights(dense, new Rows(ids, tensors));
    }

    /** The logits of held-out samples under the weights at a share of the way from the bundle's to the tuned ones. */
    interface Logits {
        float[] at(double share);
    }

    /**
     * The average of the bundle's weights and these, {@code share} of it being these.
     *
     * @param table base rows of all that the weights have rows of, and maybe others.
     */
    static Weights partOfTheWay(Model model, Weights weights, LocalTable table, double share) {
        if (share == 1) {
            return weights;
        }
        Map<String, Tensor> dense = new LinkedHashMap<>();
        for (Map.Entry<String, Tensor> each : weights.dense.entrySet()) {
            dense.put(each.getKey(), between(model.base.dense.get(each.getKey()), each.getValue(), share));
        }
        if (weights.rows == null) {
            return new Weights(dense, null);
        }
        int[] at = Ints.of(table.local(weights.rows.ids));
        Map<String, Tensor> rows = new LinkedHashMap<>();
        for (Map.Entry<String, Tensor> each : weights.rows.tensors.entrySet()) {
            rows.put(each.getKey(), between(table.tensors.get(each.getKey()).take(at), each.getValue(), share));
        }
        return new Weights(dense, new Rows(weights.rows.ids, rows));
    }

    private static Tensor between(Tensor before, Tensor after, double share) {
        Tensor found = after.copy();
        for (int i = 0; i < found.size(); i++) {
            found.floats[i] = before.floats[i] + (float) share * (after.floats[i] - before.floats[i]);
        }
        return found;
    }

    /** Whether tuned weights may serve, or those at a part of the way to them, if the whole shows evidence of harm. */
    static Verdict consider(float[] labels, float[] before, Logits after, RoundSettings settings) {
        Verdict whole = judge(labels, before, after.at(1), settings);
        if (whole.activate || settings.partial == 0) {
            return whole;
        }
        Verdict part = judge(labels, before, after.at(settings.partial), settings);
        return !part.activate ? whole : part.of(settings.partial, String.format(Locale.ROOT,
                "%.0f%% of the way, since of all of it %s: %s", 100 * settings.partial, whole.reason, part.reason));
    }

    /** Whether new weights may serve, on held-out local samples; {@code personalize.judge} says by which rule. */
    static Verdict judge(float[] labels, float[] before, float[] after, RoundSettings settings) {
        boolean finite = Floats.areFinite(after);
        int n = after.length;
        double[] harm = Metrics.losses(labels, finite && n > 0 ? Metrics.atLevel(after, before) : after);
        double[] without = Metrics.losses(labels, before);
        for (int i = 0; i < n; i++) {
            harm[i] -= without[i];
        }
        double mean = Floats.mean(harm);
        double[] squares = new double[n];
        for (int i = 0; i < n; i++) {
            squares[i] = (harm[i] - mean) * (harm[i] - mean);
        }
        int freedom = n - 2; // both the mean harm and the mean logit are taken from these samples
        double error = freedom > 0 ? Math.sqrt(Floats.sum(squares) / freedom) / Math.sqrt(n) : 0;
        boolean activate = true;
        String reason;
        if (!finite) {
            activate = false;
            reason = "the new weights give scores that are not finite";
        } else if (!settings.judge) {
            reason = "the judge is off";
        } else if (freedom < 1) {
            reason = "too few held-out samples to give evidence of harm: " + n;
        } else if (mean > students(settings.tolerance, freedom) * error + ROUNDING) {
            activate = false;
            reason = String.format(Locale.ROOT, "held-out log loss rose by %.4f, its standard error being %.4f", mean,
                    error);
        } else {
            reason = String.format(Locale.ROOT,
                    "held-out log loss changed by %+.4f, no evidence of harm (standard error %.4f)", mean, error);
        }
        return new Verdict(activate, reason, labels.length, Metrics.logLoss(labels, before),
                Metrics.logLoss(labels, after), Metrics.auc(labels, before), Metrics.auc(labels, after), 1);
    }

    /** The quantile of Student's t that is as rare as this one of the normal distribution: Wallace (1959). */
    static double students(double normal, int freedom) {
        double scaled = normal * (8 * freedom + 3) / (8 * freedom + 1);
        return Math.sqrt(freedom * Math.expm1(Math.min(scaled * scaled / freedom, RARE)));
    }
}
