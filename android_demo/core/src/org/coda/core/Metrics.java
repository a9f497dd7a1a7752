package org.coda.core;

import java.util.Arrays;
import java.util.Comparator;

/** Ranking and probability metrics, exact. Scores are logits throughout. */
final class Metrics {
    private Metrics() {}

    /** Area under the ROC curve; ties count half. Null where one class is missing. */
    static Double auc(float[] labels, final float[] logits) {
        Integer[] order = new Integer[logits.length];
        double good = 0;
        for (int i = 0; i < order.length; i++) {
            order[i] = i;
            good += labels[i] >= 0.5f ? 1 : 0;
        }
        double bad = labels.length - good;
        if (good == 0 || bad == 0) {
            return null;
        }
        Arrays.sort(order, new Comparator<Integer>() {
            @Override
            public int compare(Integer a, Integer b) {
                return Float.compare(logits[a], logits[b]);
            }
        });
        double ranks = 0;
        for (int from = 0; from < order.length; ) {
            int to = from;
            while (to < order.length && logits[order[to]] == logits[order[from]]) {
                to++;
            }
            double mean = (from + 1 + to) / 2.0;
            for (int i = from; i < to; i++) {
                ranks += labels[order[i]] >= 0.5f ? mean : 0;
            }
            from = to;
        }
        return (ranks - good * (good + 1) / 2) / (good * bad);
    }

    /** Binary cross-entropy of each; labels may be soft. */
    static double[] losses(float[] labels, float[] logits) {
        double[] found = new double[logits.length];
        for (int i = 0; i < found.length; i++) {
            double x = logits[i];
            found[i] = Math.max(x, 0) - x * labels[i] + Math.log1p(Math.exp(-Math.abs(x)));
        }
        return found;
    }

    static double sigmoid(double logit) {
        return 1 / (1 + Math.exp(-Math.max(-30, Math.min(30, logit))));
    }

    /** The logits, shifted so that their mean is that of the others. */
    static float[] atLevel(float[] logits, float[] of) {
        float[] found = logits.clone();
        float is = Floats.mean(logits);
        float was = Floats.mean(of);
        for (int i = 0; i < found.length; i++) {
            found[i] = logits[i] - is + was;
        }
        return found;
    }

    static double logLoss(float[] labels, float[] logits) {
        return Floats.mean(losses(labels, logits));
    }
}
