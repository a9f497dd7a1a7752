package org.coda.core;

import java.util.LinkedHashMap;
import java.util.Map;

/** How many passes over local samples are enough, by the held-out ones: the twin of {@code device_runtime/stopping.py}. */
final class EarlyStop {
    /** Held-out samples that say anything. */
    static final int FEWEST = 3;

    /** The logits of held-out samples under some values. */
    interface Logits {
        float[] of(Map<String, Tensor> values);
    }

    private final Logits logits;
    private final float[] labels;
    private final int patience;
    private final float[] before;
    private double lowest;
    private int made;
    /** The values after {@code passes} passes, 0 of which are those before the first. */
    Map<String, Tensor> best;
    int passes;

    EarlyStop(Logits logits, float[] labels, Map<String, Tensor> start, int patience) {
        this.logits = logits;
        this.labels = labels;
        this.patience = patience;
        before = logits.of(start);
        lowest = Metrics.logLoss(labels, before);
        best = start;
    }

    /** Told the values after a pass, which may change later: whether it was the last one. */
    boolean ends(Map<String, Tensor> values) {
        made++;
        double loss = Metrics.logLoss(labels, Metrics.atLevel(logits.of(values), before));
        if (loss < lowest) {
            lowest = loss;
            best = new LinkedHashMap<>(values);
            passes = made;
        }
        return made - passes >= patience;
    }
}
