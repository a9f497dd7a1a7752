package org.coda.core;

import org.coda.core.Tables.LocalTable;

import java.util.LinkedHashMap;
import java.util.Map;

/** Candidates as this user would meet them; {@code device_runtime/candidates.py} says why. */
final class Candidates {
    private static final String TASTE = "taste";
    private static final double LARGEST_OFFSET = 4;
    private static final int NEWTON = 5;

    private Candidates() {}

    /** Candidates as the user would meet them. */
    static final class Own {
        final SampleBatch samples;
        /** By how much the logits of their labels differ from the model's; null where they were not pooled. */
        final double[] change;

        private Own(SampleBatch samples, double[] change) {
            this.samples = samples;
            this.change = change;
        }
    }

    /**
     * Candidates with soft labels and the history of the newest local sample; those not pooled as they are.
     *
     * @param local local samples, oldest first.
     * @param known those of them whose labels may be looked at.
     * @param table base rows of all.
     */
    static Own asOwn(SampleBatch candidates, SampleBatch local, SampleBatch known, Model model, LocalTable table) {
        if (!model.manifest.settings.pooled || candidates.size() == 0) {
            return new Own(candidates, null);
        }
        SampleBatch own = withHistoryOf(candidates, local);
        double[] offset = new double[table.ids.length];
        long[] at = table.local(items(candidates));
        for (int i = 0; i < at.length; i++) {
            offset[(int) at[i]] = (2 * (double) candidates.labels[i] - 1) * LARGEST_OFFSET;
        }
        Tensor taste = table.tensors.get(TASTE);
        if (model.manifest.settings.tastes && taste != null && known.size() > 0) {
            addOwnTaste(offset, taste, table.local(items(known)), model.logits(known, table, model.base), known.labels);
        }
        float[] logits = model.logits(own, table, model.base);
        float[] labels = new float[logits.length];
        double[] change = new double[logits.length];
        for (int i = 0; i < labels.length; i++) {
            change[i] = offset[(int) at[i]];
            labels[i] = (float) Metrics.sigmoid(logits[i] + change[i]);
        }
        return new Own(own.labelled(labels), change);
    }

    private static void addOwnTaste(double[] offset, Tensor taste, long[] mine, float[] logits, float[] labels) {
        int k = taste.width();
        double[][] x = new double[mine.length][k + 1];
        double[] logit = new double[mine.length];
        for (int i = 0; i < mine.length; i++) {
            for (int j = 0; j < k; j++) {
                x[i][j] = taste.floats[(int) mine[i] * k + j];
            }
            x[i][k] = 1;
            logit[i] = logits[i] + offset[(int) mine[i]];
        }
        double[] w = ownTaste(x, logit, labels);
        for (int row = 0; row < offset.length; row++) {
            for (int j = 0; j < k; j++) {
                offset[row] += taste.floats[row * k + j] * w[j];
            }
        }
    }

    /**
     * The user's vector, and a constant after it: the mode of a logistic regression with standard normal priors, by
     * steps of Newton's method.
     *
     * @param x [n][k + 1], the last column being ones.
     * @param logit [n], to which the products are added.
     */
    static double[] ownTaste(double[][] x, double[] logit, float[] labels) {
        int width = x[0].length;
        double[] w = new double[width];
        for (int step = 0; step < NEWTON; step++) {
            double[] slope = new double[width];
            double[][] curvature = new double[width][width];
            for (int j = 0; j < width; j++) {
                slope[j] = -w[j];
                curvature[j][j] = 1;
            }
            for (int i = 0; i < x.length; i++) {
                double sum = logit[i];
                for (int j = 0; j < width; j++) {
                    sum += x[i][j] * w[j];
                }
                double p = Metrics.sigmoid(sum);
                for (int j = 0; j < width; j++) {
                    slope[j] += x[i][j] * (labels[i] - p);
                    for (int l = 0; l < width; l++) {
                        curvature[j][l] += x[i][j] * p * (1 - p) * x[i][l];
                    }
                }
            }
            double[] change = solved(curvature, slope);
            for (int j = 0; j < width; j++) {
                w[j] += change[j];
            }
        }
        return w;
    }

    /** The solution of a symmetric positive definite system, by elimination; both arguments are used up. */
    private static double[] solved(double[][] a, double[] b) {
        int n = b.length;
        for (int i = 0; i < n; i++) {
            for (int row = i + 1; row < n; row++) {
                double times = a[row][i] / a[i][i];
                for (int j = i; j < n; j++) {
                    a[row][j] -= times * a[i][j];
                }
                b[row] -= times * b[i];
            }
        }
        for (int i = n - 1; i >= 0; i--) {
            for (int j = i + 1; j < n; j++) {
                b[i] -= a[i][j] * b[j];
            }
            b[i] /= a[i][i];
        }
        return b;
    }

    /** The candidates, each with the histories of the last local sample. */
    static SampleBatch withHistoryOf(SampleBatch candidates, SampleBatch local) {
        Map<String, Object> columns = new LinkedHashMap<>();
        for (Schema.Feature feature : candidates.schema.features) {
            Object column = candidates.columns.get(feature.name);
            if (column instanceof Ragged) {
                int[] mine = ((Ragged) local.columns.get(feature.name)).row(local.size() - 1);
                int n = candidates.size();
                column = new Ragged(mine, new int[n], Ints.filled(n, mine.length));
            }
            columns.put(feature.name, column);
        }
        return new SampleBatch(candidates.schema, columns, candidates.labels);
    }

    private static int[] items(SampleBatch samples) {
        return (int[]) samples.columns.get("item");
    }
}
