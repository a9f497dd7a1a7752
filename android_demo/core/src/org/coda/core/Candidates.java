package org.coda.core;

import org.coda.core.Tables.LocalTable;

import java.util.LinkedHashMap;
import java.util.Map;

/** Candidates as this user would meet them; {@code device_runtime/candidates.py} says why. */
final class Candidates {
    private Candidates() {}

    /** Candidates with soft labels and the history of the newest local sample; those not pooled as they are. */
    static SampleBatch asOwn(SampleBatch candidates, SampleBatch local, Model model, LocalTable table) {
        if (!model.manifest.settings.pooled || candidates.size() == 0) {
            return candidates;
        }
        SampleBatch own = withHistoryOf(candidates, local);
        float[] logits = model.logits(own, table, model.base);
        float[] labels = new float[logits.length];
        for (int i = 0; i < labels.length; i++) {
            float predicted = 1 / (1 + (float) Math.exp(-Math.max(-30, Math.min(30, logits[i]))));
            labels[i] = Math.max(0, Math.min(1, predicted + 2 * candidates.labels[i] - 1));
        }
        return own.labelled(labels);
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
}
