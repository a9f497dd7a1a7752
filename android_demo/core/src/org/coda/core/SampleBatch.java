package org.coda.core;

import org.coda.core.CodaError.InputError;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;

/** Labelled samples as columns: {@code id} int[n], {@code ids} {@link Ragged}, {@code float} float[n * bound]. */
public final class SampleBatch {
    public final Schema schema;
    public final Map<String, Object> columns;
    public final float[] labels;

    /** @throws InputError a column is missing, of another length or kind, or a label is not from 0 to 1. */
    public SampleBatch(Schema schema, Map<String, Object> columns, float[] labels) {
        for (Schema.Feature feature : schema.features) {
            Object column = columns.get(feature.name);
            if (column == null) {
                throw new InputError("samples lack the column '" + feature.name + "'");
            }
            int rows = column instanceof Ragged ? ((Ragged) column).starts.length
                    : column instanceof int[] ? ((int[]) column).length : ((float[]) column).length / feature.bound;
            if (rows != labels.length) {
                throw new InputError("column '" + feature.name + "' has " + rows + " rows, the labels have "
                        + labels.length);
            }
            if (column instanceof Ragged != feature.kind.equals("ids")
                    || column instanceof int[] != feature.kind.equals("id")) {
                throw new InputError("column '" + feature.name + "' does not fit its kind " + feature.kind);
            }
        }
        if (columns.size() != schema.features.size()) {
            throw new InputError("samples have columns that the schema does not know");
        }
        for (float label : labels) {
            if (!(label >= 0 && label <= 1)) {
                throw new InputError("labels must be finite numbers from 0 to 1");
            }
        }
        this.schema = schema;
        this.columns = columns;
        this.labels = labels;
    }

    public int size() {
        return labels.length;
    }

    public SampleBatch take(int[] at) {
        Map<String, Object> taken = new LinkedHashMap<>();
        for (Schema.Feature feature : schema.features) {
            Object column = columns.get(feature.name);
            if (column instanceof Ragged) {
                taken.put(feature.name, ((Ragged) column).take(at));
            } else if (column instanceof int[]) {
                int[] ids = new int[at.length];
                for (int i = 0; i < at.length; i++) {
                    ids[i] = ((int[]) column)[at[i]];
                }
                taken.put(feature.name, ids);
            } else {
                float[] numbers = new float[at.length * feature.bound];
                for (int i = 0; i < at.length; i++) {
                    System.arraycopy(column, at[i] * feature.bound, numbers, i * feature.bound, feature.bound);
                }
                taken.put(feature.name, numbers);
            }
        }
        return new SampleBatch(schema, taken, Floats.take(labels, at));
    }

    SampleBatch labelled(float[] other) {
        return new SampleBatch(schema, columns, other);
    }

    /** The distinct ids of a vocabulary that these samples mention, ascending, without 0. */
    int[] ids(String vocabulary) {
        int[] found = mentioned(vocabulary);
        return found.length > 0 && found[0] == 0 ? Arrays.copyOfRange(found, 1, found.length) : found;
    }

    /** As {@link #ids}, with 0 where that is mentioned. */
    int[] mentioned(String vocabulary) {
        int[] found = {};
        for (Schema.Feature feature : schema.features) {
            if (feature.vocabulary.equals(vocabulary) && !feature.kind.equals("float")) {
                Object column = columns.get(feature.name);
                found = Ints.join(found, column instanceof Ragged
                        ? ((Ragged) column).newest(feature.bound).compact().values : (int[]) column);
            }
        }
        return Ints.distinct(found);
    }

    static SampleBatch join(SampleBatch first, SampleBatch second) {
        Map<String, Object> columns = new LinkedHashMap<>();
        for (Schema.Feature feature : first.schema.features) {
            Object a = first.columns.get(feature.name);
            Object b = second.columns.get(feature.name);
            columns.put(feature.name, a instanceof Ragged ? Ragged.join((Ragged) a, (Ragged) b)
                    : a instanceof int[] ? Ints.join((int[]) a, (int[]) b) : Floats.join((float[]) a, (float[]) b));
        }
        return new SampleBatch(first.schema, columns, Floats.join(first.labels, second.labels));
    }
}
