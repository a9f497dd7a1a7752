package org.coda.core;

import org.coda.core.GraphSpec.TensorSpec;
import org.coda.core.Tables.LocalTable;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Moves the rows of items by secant steps so that the model's logits become those asked for. The twin of
 * {@code device_runtime/reach.py}, which says why.
 */
final class Reach {
    private static final double STILL = 1e-12;
    private static final double PUSH = 2;
    private static final double FAR = 3;
    /** How often a direction is asked for, at most: again only where more is left than this share, and than that. */
    private static final int DIRECTIONS = 3;
    private static final double NEAR = 0.1;
    private static final double SLIGHT = 0.01;

    private final Model model;
    private final Map<String, Tensor> values;
    private final Map<String, Tensor> columns;
    private final int[] past;
    private final List<String> moving;

    /** values: cut to the rows of the table, as histories see them. */
    private Reach(Model model, Map<String, Tensor> values, LocalTable table, SampleBatch samples) {
        this.model = model;
        this.values = values;
        columns = Tables.features(samples, table);
        past = apart(model, columns, table.ids.length);
        moving = moving(model);
    }

    private static List<String> moving(Model model) {
        GraphSpec spec = model.spec("step");
        List<String> found = new ArrayList<>();
        for (TensorSpec tensor : spec.of("param")) {
            if (!tensor.table.isEmpty() && spec.carry.containsValue(tensor.name)) {
                found.add(tensor.name);
            }
        }
        return found;
    }

    /**
     * Let histories point to rows of their own, which may train and are thrown away: copies of those rows of a table that
     * are returned, ascending; see {@link #withPast}.
     */
    static int[] apart(Model model, Map<String, Tensor> columns, int rows) {
        int[] moved = new int[rows];
        List<String> histories = new ArrayList<>();
        for (Schema.Feature feature : model.manifest.schema.features) {
            if (feature.kind.equals("ids") && feature.vocabulary.equals(Model.VOCABULARY)) {
                histories.add(feature.name);
                for (long row : columns.get(feature.name).longs) {
                    moved[(int) row] = 1;
                }
            }
        }
        int[] past = new int[rows];
        int count = 0;
        for (int row = 1; row < rows; row++) {
            if (moved[row] > 0) {
                past[count] = row;
                moved[row] = rows + count++;
            }
        }
        moved[0] = 0; // padding
        for (String name : histories) {
            Tensor shifted = columns.get(name).copy();
            for (int i = 0; i < shifted.longs.length; i++) {
                shifted.longs[i] = moved[(int) shifted.longs[i]];
            }
            columns.put(name, shifted);
        }
        return Arrays.copyOf(past, count);
    }

    /** The values, with these rows of {@code copied} under their own. */
    static Map<String, Tensor> withPast(Model model, Map<String, Tensor> values, Map<String, Tensor> copied, int[] past) {
        Map<String, Tensor> found = new LinkedHashMap<>(values);
        for (String name : sliced(model)) {
            found.put(name, Tensor.join(values.get(name), copied.get(name).take(past)));
        }
        return found;
    }

    /** The step's params and attributes that are cut to the rows at hand. */
    static List<String> sliced(Model model) {
        List<String> found = new ArrayList<>();
        for (TensorSpec tensor : model.spec("step").of("param", "attribute")) {
            if (tensor.table.equals(Model.VOCABULARY)) {
                found.add(tensor.name);
            }
        }
        return found;
    }

    /**
     * The values, with rows such that the logit of each sample has changed as asked.
     *
     * @param samples one an item, at most.
     * @param change of logits, for each sample.
     * @param still rows of the table that stay.
     */
    static Map<String, Tensor> reach(Model model, RoundSettings settings, Map<String, Tensor> values, LocalTable table,
            SampleBatch samples, double[] change, long[] still, Pcg64 random) {
        Map<String, Tensor> found = new LinkedHashMap<>(values);
        List<String> moving = moving(model);
        for (String name : moving) {
            found.put(name, values.get(name).copy());
        }
        double far = FAR * rootMeanSquare(values, moving, table.ids.length);
        boolean[] stays = new boolean[table.ids.length];
        for (long row : still) {
            stays[(int) row] = true;
        }
        double[] left = change.clone();
        int[] who = moving.isEmpty() ? new int[0] : Ints.range(0, samples.size());
        for (int asked = 0; asked < DIRECTIONS; asked++) {
            for (int start = 0; start < who.length; start += LocalTable.TOGETHER) {
                int[] some = Arrays.copyOfRange(who, start, Math.min(start + LocalTable.TOGETHER, who.length));
                part(model, settings, values, found, table, samples.take(some), some, left, stays, far, random);
            }
            who = lacking(who, left, change);
        }
        return found;
    }

    /** Move the rows of some samples in {@code found}, and say in {@code left} how much of their change is left. */
    private static void part(Model model, RoundSettings settings, Map<String, Tensor> values, Map<String, Tensor> found,
            LocalTable table, SampleBatch samples, int[] some, double[] left, boolean[] stays, double far,
            Pcg64 random) {
        LocalTable rows = table.of(samples.ids(Model.VOCABULARY));
        int[] at = Ints.of(table.local(rows.ids));
        Map<String, Tensor> cut = new LinkedHashMap<>(values);
        for (String name : sliced(model)) {
            cut.put(name, values.get(name).take(at));
        }
        boolean[] free = new boolean[at.length];
        for (int i = 0; i < at.length; i++) {
            free[i] = !stays[at[i]];
        }
        Reach part = new Reach(model, cut, rows, samples);
        Map<String, Tensor> now = new LinkedHashMap<>();
        for (String name : part.moving) {
            now.put(name, found.get(name).take(at));
        }
        double[] change = new double[some.length];
        for (int i = 0; i < some.length; i++) {
            change[i] = left[some[i]];
        }
        Map<String, Tensor> moved = part.rows(settings, now, change, free, far, random);
        for (String name : part.moving) {
            Tensor whole = found.get(name);
            for (int i = 0; i < at.length; i++) {
                whole.put(at[i], moved.get(name), i, whole.width());
            }
        }
        for (int i = 0; i < some.length; i++) {
            left[some[i]] = change[i];
        }
    }

    /** Those of these samples that lack more of their change than is worth leaving. */
    private static int[] lacking(int[] who, double[] left, double[] change) {
        int[] found = new int[who.length];
        int count = 0;
        for (int one : who) {
            if (Math.abs(left[one]) > Math.max(NEAR * Math.abs(change[one]), SLIGHT)) {
                found[count++] = one;
            }
        }
        return Arrays.copyOf(found, count);
    }

    /** The rows, moved along one direction each. change: of logits; what is left of it where a row may move, else 0. */
    private Map<String, Tensor> rows(RoundSettings settings, Map<String, Tensor> rows, double[] change, boolean[] free,
            double far, Pcg64 random) {
        long[] at = columns.get(item()).longs;
        int n = at.length;
        double[] now = logits(rows);
        double[] goal = new double[n];
        for (int i = 0; i < n; i++) {
            goal[i] = now[i] + change[i];
        }
        Map<String, Tensor> direction = direction(settings, rows, now, change, free.length, random);
        double[] all = new double[n];
        Arrays.fill(all, 1);
        double[] slope = logits(stepped(rows, direction, at, all));
        boolean[] may = new boolean[n];
        double[] most = new double[n];
        for (int i = 0; i < n; i++) {
            slope[i] -= now[i];
            may[i] = free[(int) at[i]] && slope[i] * change[i] > 0;
            most[i] = far / Math.max(length(direction, (int) at[i]), 1e-12);
        }
        for (int step = 0; step < settings.rowSteps; step++) {
            double[] times = new double[n];
            for (int i = 0; i < n; i++) {
                double wanted = may[i] && slope[i] != 0 ? (goal[i] - now[i]) / slope[i] : 0;
                times[i] = Math.max(-most[i], Math.min(most[i], wanted));
            }
            double[] then = logits(stepped(rows, direction, at, times));
            for (int i = 0; i < n; i++) {
                slope[i] = times[i] != 0 ? (then[i] - now[i]) / times[i] : slope[i];
                times[i] = Math.abs(goal[i] - then[i]) > Math.abs(goal[i] - now[i]) ? 0 : times[i];
                now[i] = times[i] != 0 ? then[i] : now[i];
            }
            rows = stepped(rows, direction, at, times);
        }
        for (int i = 0; i < n; i++) {
            change[i] = free[(int) at[i]] ? goal[i] - now[i] : 0;
        }
        return rows;
    }

    /** By how much each row moves when its sample's label asks for the change. */
    private Map<String, Tensor> direction(RoundSettings settings, Map<String, Tensor> rows, double[] now, double[] change,
            int height, Pcg64 random) {
        float[] labels = new float[now.length];
        for (int i = 0; i < labels.length; i++) {
            labels[i] = (float) Metrics.sigmoid(now[i] + Math.signum(change[i]) * PUSH);
        }
        Map<String, Tensor> trained = Trainer.train(model.graph("step"), placed(rows), columns, labels,
                Floats.filled(labels.length, 1), STILL, settings.tableRate, 1, random, null);
        Map<String, Tensor> found = new LinkedHashMap<>();
        for (String name : moving) {
            Tensor difference = trained.get(name).take(Ints.range(0, height));
            for (int i = 0; i < difference.size(); i++) {
                difference.floats[i] -= rows.get(name).floats[i];
            }
            found.put(name, difference);
        }
        return found;
    }

    private String item() {
        for (Schema.Feature feature : model.manifest.schema.features) {
            if (feature.kind.equals("id") && feature.vocabulary.equals(Model.VOCABULARY)) {
                return feature.name;
            }
        }
        throw new CodaError.InputError("the bundle's model takes no item");
    }

    private Map<String, Tensor> placed(Map<String, Tensor> rows) {
        Map<String, Tensor> whole = new LinkedHashMap<>(values);
        whole.putAll(rows);
        return withPast(model, whole, values, past);
    }

    private double[] logits(Map<String, Tensor> rows) {
        float[] found = Trainer.scores(model.graph("score"), placed(rows), columns).floats;
        double[] wide = new double[found.length];
        for (int i = 0; i < wide.length; i++) {
            wide[i] = found[i];
        }
        return wide;
    }

    private static Map<String, Tensor> stepped(Map<String, Tensor> rows, Map<String, Tensor> direction, long[] at,
            double[] times) {
        Map<String, Tensor> found = new LinkedHashMap<>();
        for (Map.Entry<String, Tensor> each : rows.entrySet()) {
            Tensor part = each.getValue().copy();
            float[] way = direction.get(each.getKey()).floats;
            int width = part.width();
            for (int i = 0; i < at.length; i++) {
                for (int j = (int) at[i] * width; j < ((int) at[i] + 1) * width; j++) {
                    part.floats[j] += (float) times[i] * way[j];
                }
            }
            found.put(each.getKey(), part);
        }
        return found;
    }

    private static double square(Map<String, Tensor> parts, int row) {
        double sum = 0;
        for (Tensor part : parts.values()) {
            int width = part.width();
            for (int j = row * width; j < (row + 1) * width; j++) {
                sum += (double) part.floats[j] * part.floats[j];
            }
        }
        return sum;
    }

    private static double length(Map<String, Tensor> parts, int row) {
        return Math.sqrt(square(parts, row));
    }

    /** Of the lengths of all rows but padding. */
    private static double rootMeanSquare(Map<String, Tensor> values, List<String> names, int height) {
        Map<String, Tensor> parts = new LinkedHashMap<>();
        for (String name : names) {
            parts.put(name, values.get(name));
        }
        double sum = 0;
        for (int row = 1; row < height; row++) {
            sum += square(parts, row);
        }
        return height > 1 ? Math.sqrt(sum / (height - 1)) : 0;
    }
}
