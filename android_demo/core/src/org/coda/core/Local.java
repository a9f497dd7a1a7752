package org.coda.core;

import org.coda.core.Store.Event;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * What a device's own events come to: samples, oldest first, those to train on and those that only the judge sees. The
 * twin of {@code device_runtime/local.py} and {@code stream.py}.
 */
final class Local {
    static final int NEWEST = 20_000;

    final SampleBatch train;
    final SampleBatch heldOut;
    final SampleBatch everything;
    /** Seconds, of those to train on. */
    final long[] times;
    /** Events of items that the catalogue does not have. */
    final int unknown;
    /** The items that were liked, oldest first. */
    final int[] liked;

    /** @param until events that had arrived when {@link Store#lastEvent} gave this number. */
    Local(Store store, Model model, long until) {
        List<Event> events = store.events(until, NEWEST);
        List<String> keys = new ArrayList<>();
        for (Event event : events) {
            keys.add(event.item);
        }
        Map<String, Integer> known = model.idsOf(keys);
        int[] item = new int[events.size()];
        float[] label = new float[events.size()];
        long[] second = new long[events.size()];
        boolean[] seen = new boolean[events.size()];
        int count = 0;
        int missing = 0;
        for (Event event : events) {
            float labelled = label(event, model.manifest.positiveAt);
            Integer id = known.get(event.item);
            missing += id == null ? 1 : 0;
            if (id != null && id > 0 && !Float.isNaN(labelled)) {
                item[count] = id;
                label[count] = labelled;
                second[count] = event.timestamp;
                seen[count++] = event.observed;
            }
        }
        unknown = missing;
        Schema schema = model.manifest.schema;
        Map<String, Object> columns = new LinkedHashMap<>();
        columns.put("item", Arrays.copyOf(item, count));
        Ragged histories = histories(item, label, second, seen, count);
        liked = histories.values;
        columns.put("history", histories.newest(schema.feature("history").bound));
        everything = new SampleBatch(schema, columns, Arrays.copyOf(label, count));
        int judged = count == 0 ? 0 : Personalize.judged(count, model.manifest.settings.holdout);
        train = everything.take(Ints.range(0, count - judged));
        times = Arrays.copyOf(second, count - judged);
        heldOut = everything.take(Ints.range(count - judged, count));
    }

    /** NaN where neither a label nor a rating that says enough is known. */
    private static float label(Event event, double positiveAt) {
        if (event.label != null) {
            return event.label.floatValue();
        }
        return event.rating == null || Double.isNaN(positiveAt) ? Float.NaN : event.rating >= positiveAt ? 1 : 0;
    }

    /** What was liked strictly before each event; one of the same second is not yet known. */
    private static Ragged histories(int[] item, float[] label, long[] second, boolean[] seen, int count) {
        int[] values = new int[count];
        int[] ends = new int[count];
        int total = 0;
        int before = 0;
        for (int i = 0; i < count; i++) {
            if (i == 0 || second[i] != second[i - 1]) {
                before = total;
            }
            ends[i] = before;
            if (label[i] >= 0.5f && seen[i]) {
                values[total++] = item[i];
            }
        }
        return new Ragged(Arrays.copyOf(values, total), new int[count], ends);
    }
}
