package org.coda.core;

import org.coda.core.CodaError.InputError;

import java.util.Arrays;

/** Rows of ids that may overlap: row i is {@code values[starts[i] .. starts[i] + lengths[i])}, oldest first. */
public final class Ragged {
    public final int[] values;
    public final int[] starts;
    public final int[] lengths;

    /** @throws InputError a row points outside. */
    public Ragged(int[] values, int[] starts, int[] lengths) {
        if (starts.length != lengths.length) {
            throw new InputError("a ragged column has " + starts.length + " starts but " + lengths.length + " lengths");
        }
        for (int i = 0; i < starts.length; i++) {
            if (starts[i] < 0 || lengths[i] < 0 || (long) starts[i] + lengths[i] > values.length) {
                throw new InputError("a ragged column points outside its " + values.length + " values");
            }
        }
        this.values = values;
        this.starts = starts;
        this.lengths = lengths;
    }

    public int[] row(int i) {
        return Arrays.copyOfRange(values, starts[i], starts[i] + lengths[i]);
    }

    /** The same rows, each cut to its newest values. */
    Ragged newest(int bound) {
        int[] from = new int[starts.length];
        int[] count = new int[starts.length];
        for (int i = 0; i < from.length; i++) {
            count[i] = Math.min(lengths[i], bound);
            from[i] = starts[i] + lengths[i] - count[i];
        }
        return new Ragged(values, from, count);
    }

    /** The same rows over only those values that some row uses. */
    Ragged compact() {
        int[] edges = new int[values.length + 1];
        for (int i = 0; i < starts.length; i++) {
            edges[starts[i]]++;
            edges[starts[i] + lengths[i]]--;
        }
        int[] moved = new int[values.length + 1];
        int[] used = new int[values.length];
        int depth = 0;
        for (int i = 0; i < values.length; i++) {
            depth += edges[i];
            moved[i + 1] = moved[i];
            if (depth > 0) {
                used[moved[i + 1]++] = values[i];
            }
        }
        int[] from = new int[starts.length];
        for (int i = 0; i < from.length; i++) {
            from[i] = values.length == 0 ? starts[i] : moved[starts[i]];
        }
        return new Ragged(Arrays.copyOf(used, moved[values.length]), from, lengths);
    }

    Ragged take(int[] at) {
        int[] from = new int[at.length];
        int[] count = new int[at.length];
        for (int i = 0; i < at.length; i++) {
            from[i] = starts[at[i]];
            count[i] = lengths[at[i]];
        }
        return new Ragged(values, from, count);
    }

    static Ragged join(Ragged first, Ragged second) {
        int[] all = Ints.join(first.values, second.values);
        int[] from = Ints.join(first.starts, second.starts);
        for (int i = first.starts.length; i < from.length; i++) {
            from[i] += first.values.length;
        }
        return new Ragged(all, from, Ints.join(first.lengths, second.lengths));
    }
}
