package org.coda.core;

import org.coda.core.CodaError.InputError;
import org.coda.core.Model.Weights;
import org.coda.core.Tables.Shard;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** Scores for the app, by the weights that serve. */
public final class Ranker {
    private Ranker() {}

    /** An item and the probability that the user likes it. */
    public static final class Ranked {
        public final String item;
        public final double score;

        Ranked(String item, double score) {
            this.item = item;
            this.score = score;
        }
    }

    /**
     * The best of all items whose rows are on the device and that the user has no event of.
     *
     * @throws InputError there is none.
     */
    public static List<Ranked> rank(DeviceHome home, Model model, int top) {
        Local local = new Local(home.store, model, Long.MAX_VALUE);
        Set<String> seen = new HashSet<>(home.store.items());
        List<String> keys = new ArrayList<>();
        List<Integer> found = new ArrayList<>();
        for (int number : model.held()) {
            Shard shard = model.shard(number);
            for (int i = 0; i < shard.ids.length; i++) {
                if (!seen.contains(shard.keys[i])) {
                    keys.add(shard.keys[i]);
                    found.add(shard.ids[i]);
                }
            }
        }
        if (keys.isEmpty()) {
            throw new InputError("there is nothing to rank: none of the items has its row on this device");
        }
        int n = keys.size();
        int[] items = new int[n];
        Integer[] order = new Integer[n];
        for (int i = 0; i < n; i++) {
            items[i] = found.get(i);
            order[i] = i;
        }
        int bound = Math.min(local.liked.length, model.manifest.schema.feature("history").bound);
        int[] history = Arrays.copyOfRange(local.liked, local.liked.length - bound, local.liked.length);
        Map<String, Object> columns = new LinkedHashMap<>();
        columns.put("item", items);
        columns.put("history", new Ragged(history, new int[n], Ints.filled(n, bound)));
        SampleBatch batch = new SampleBatch(model.manifest.schema, columns, new float[n]);
        Weights weights = home.activeWeights(model);
        final float[] logits = model.logits(batch, model.table(batch.ids(Model.VOCABULARY), weights, null), weights);
        Arrays.sort(order, new Comparator<Integer>() {
            @Override
            public int compare(Integer a, Integer b) {
                return Float.compare(logits[b], logits[a]);
            }
        });
        List<Ranked> ranked = new ArrayList<>();
        for (int i = 0; i < Math.min(top, n); i++) {
            ranked.add(new Ranked(keys.get(order[i]), 1 / (1 + Math.exp(-logits[order[i]]))));
        }
        return ranked;
    }
}
