package org.coda.core;

import org.coda.core.Model.Weights;
import org.coda.core.Report.Verdict;
import org.coda.core.Tables.LocalTable;
import org.coda.core.Wire.Rows;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/** Fine-tune the recommender on local and kept samples, and judge whether the result may serve. */
final class Personalize {
    private static final double ROUNDING = 1e-6;

    private Personalize() {}

    /** How many of n time-ordered samples, the newest, only the judge sees. */
    static int judged(int n, double holdout) {
        return Math.min(Math.max((int) Math.rint(n * holdout), 1), Math.max(n - 1, 0));
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
     * New weights after the settings' passes over local and kept samples.
     *
     * @param table the rows of both.
     * @param kept null where nothing was kept; likewise keptWeights.
     */
    static Weights tune(Model model, Weights weights, LocalTable table, SampleBatch local, SampleBatch kept,
            float[] keptWeights, Pcg64 random) {
        RoundSettings settings = model.manifest.settings;
        Engine.Graph step = model.graph("step");
        Map<String, Tensor> values = model.values("step", weights, table);
        SampleBatch samples = local;
        float[] weight = Floats.filled(local.size(), 1);
        float[] labels = labels(model, weights, table, local);
        if (kept != null && kept.size() > 0) {
            samples = SampleBatch.join(local, kept);
            float[] outside = new float[kept.size()];
            for (int i = 0; i < outside.length; i++) {
                outside[i] = (float) settings.outsideWeight * keptWeights[i];
            }
            weight = Floats.join(weight, outside);
            labels = Floats.join(labels, labels(model, weights, table, kept));
        }
        Map<String, Tensor> columns = Tables.features(samples, table);
        Map<String, Tensor> start = new LinkedHashMap<>(values);
        List<String> sliced = sliced(model);
        int rows = table.ids.length;
        if (settings.freezeHistories) {
            apart(model, columns, start, sliced, rows);
        }
        Map<String, Tensor> trained = Trainer.train(step, start, columns, labels, weight, settings.rate,
                settings.tableRate, settings.epochs, random);
        if (settings.freezeHistories) {
            long[] own = table.local(local.ids(Model.VOCABULARY));
            for (String name : sliced) {
                Tensor first = trained.get(name).take(Ints.range(0, rows));
                for (long row : own) { // what histories are made of, now or at the next like
                    first.put((int) row, values.get(name), (int) row, first.width());
                }
                trained.put(name, first);
            }
        }
        if (settings.interpolation < 1) {
            interpolate(step.spec(), trained, values, (float) settings.interpolation);
        }
        return personal(model, trained, values, table);
    }

    /** A second copy of every row, which histories point to: it trains, and is thrown away. */
    private static void apart(Model model, Map<String, Tensor> columns, Map<String, Tensor> start, List<String> sliced,
            int rows) {
        for (Schema.Feature feature : model.manifest.schema.features) {
            if (feature.kind.equals("ids") && feature.vocabulary.equals(Model.VOCABULARY)) {
                Tensor shifted = columns.get(feature.name).copy();
                for (int i = 0; i < shifted.longs.length; i++) {
                    shifted.longs[i] += shifted.longs[i] > 0 ? rows : 0;
                }
                columns.put(feature.name, shifted);
            }
        }
        for (String name : sliced) {
            start.put(name, Tensor.join(start.get(name), start.get(name)));
        }
    }

    private static List<String> sliced(Model model) {
        List<String> found = new ArrayList<>();
        for (GraphSpec.TensorSpec tensor : model.spec("step").of("param", "attribute")) {
            if (tensor.table.equals(Model.VOCABULARY)) {
                found.add(tensor.name);
            }
        }
        return found;
    }

    private static void interpolate(GraphSpec spec, Map<String, Tensor> trained, Map<String, Tensor> values,
            float share) {
        for (String name : spec.carry.values()) {
            if (values.containsKey(name)) {
                Tensor before = values.get(name);
                Tensor after = trained.get(name).copy();
                for (int i = 0; i < after.size(); i++) {
                    after.floats[i] = before.floats[i] + share * (after.floats[i] - before.floats[i]);
                }
                trained.put(name, after);
            }
        }
    }

    private static float[] labels(Model model, Weights weights, LocalTable table, SampleBatch samples) {
        if (!model.manifest.settings.labelCorrection || samples.size() == 0) {
            return samples.labels;
        }
        float[] logits = model.logits(samples, table, weights);
        double[] probability = new double[logits.length];
        for (int i = 0; i < logits.length; i++) {
            probability[i] = 1 / (1 + Math.exp(-Math.max(-30.0, Math.min(30.0, logits[i]))));
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

    /** Whether new weights may serve, on held-out local samples; {@code personalize.judge} says by which rule. */
    static Verdict judge(float[] labels, float[] before, float[] after, RoundSettings settings) {
        boolean finite = Floats.areFinite(after);
        int n = after.length;
        float[] level = after.clone();
        if (finite && n > 0) {
            float was = Floats.mean(before);
            float is = Floats.mean(after);
            for (int i = 0; i < n; i++) {
                level[i] = after[i] - is + was;
            }
        }
        double[] harm = Metrics.losses(labels, level);
        double[] without = Metrics.losses(labels, before);
        for (int i = 0; i < n; i++) {
            harm[i] -= without[i];
        }
        double mean = Floats.mean(harm);
        double[] squares = new double[n];
        for (int i = 0; i < n; i++) {
            squares[i] = (harm[i] - mean) * (harm[i] - mean);
        }
        double error = n > 1 ? Math.sqrt(Floats.sum(squares) / (n - 1)) / Math.sqrt(n) : 0;
        boolean activate = true;
        String reason;
        if (!finite) {
            activate = false;
            reason = "the new weights give scores that are not finite";
        } else if (!settings.judge) {
            reason = "the judge is off";
        } else if (mean > settings.tolerance * error + ROUNDING) {
            activate = false;
            reason = String.format(Locale.ROOT, "held-out log loss rose by %.4f, its standard error being %.4f", mean,
                    error);
        } else {
            reason = String.format(Locale.ROOT,
                    "held-out log loss changed by %+.4f, no evidence of harm (standard error %.4f)", mean, error);
        }
        return new Verdict(activate, reason, labels.length, Metrics.logLoss(labels, before),
                Metrics.logLoss(labels, after), Metrics.auc(labels, before), Metrics.auc(labels, after));
    }
}
