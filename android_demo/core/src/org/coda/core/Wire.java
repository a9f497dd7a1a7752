package org.coda.core;

import org.coda.core.CodaError.InputError;
import org.coda.core.CodaError.WireError;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.TreeSet;

/** What a device sends and receives in binary; {@code docs/wire.md} has every byte. */
public final class Wire {
    /** The media type of frames. */
    public static final String FRAME = "application/vnd.coda.frame";

    static final int QUERY = 1;
    static final int ANSWER = 2;
    static final int CONTRIBUTION = 3;
    static final int REPORT = 4;
    static final int DIRECTORY_QUERY = 7;
    private static final int STEPS = 255;
    private static final byte[] NOTHING = {};
    /** Part of the format: {@code wire.REPORT_DICTIONARY} in Python. */
    private static final byte[] REPORT_DICTIONARY = Bytes.utf8(
            "\"error\":\"\",\"auc_before\":null,\"auc_after\":null,\"verdict\":null,"
            + "[\"pull\",\"self-test\",\"encode\",\"match\",\"filter\",\"tune\",\"judge\",\"activate\",\"contribute\","
            + "\"clean\"]executorch too few "
            + "samples failed held-out log loss rose by 0.0, its standard error being 0.0"
            + "held-out log loss changed by -0.0, no evidence of harm (standard error 0.0)"
            + "{\"round\":\"\",\"bundle\":1,\"engine\":\"onnx\",\"outcome\":\"kept\",\"outcome\":\"activated\","
            + "\"local\":100,\"candidates\":500,"
            + "\"kept\":100,\"verdict\":{\"activate\":false,\"activate\":true,\"reason\":\"\",\"samples\":20,"
            + "\"loss_before\":0.,\"loss_after\":0.,"
            + "\"auc_before\":0.,\"auc_after\":0.},\"phases\":{\"phase\":[\"pull\",\"encode\",\"match\",\"filter\","
            + "\"tune\",\"judge\",\"activate\","
            + "\"clean\"],\"cpu_user_s\":[0.0],\"cpu_system_s\":[0.0],\"wall_s\":[0.0],\"peak_mib\":[],"
            + "\"peak_source\":[\"phase\",\"phase\","
            + "\"phase\",\"phase\",\"phase\",\"phase\",\"phase\",\"phase\"],\"bytes_stored\":[0,0,0,0,0,0],"
            + "\"bytes_up\":[0,0,0,0],"
            + "\"bytes_down\":[0,0,0,0]},\"error\":\"\"}");

    private Wire() {}

    /** Rows of the sliced tensors of one vocabulary: ids ascending, tensors aligned with them. */
    public static final class Rows {
        public final int[] ids;
        public final Map<String, Tensor> tensors;

        Rows(int[] ids, Map<String, Tensor> tensors) {
            this.ids = ids;
            this.tensors = tensors;
        }
    }

    /** Candidates, and the rows that the device lacks to use them, by vocabulary. */
    public static final class Answer {
        public final SampleBatch candidates;
        public final Map<String, Rows> rows;
        public final String shortfall;

        Answer(SampleBatch candidates, Map<String, Rows> rows, String shortfall) {
            this.candidates = candidates;
            this.rows = rows;
            this.shortfall = shortfall;
        }
    }

    /**
     * @param centroids float32 [k, width].
     * @param held shards of item rows that the device has.
     */
    public static byte[] encodeQuery(String encoder, Tensor centroids, int limit, int[] held, Compressor compressor) {
        Object body = Arrays.asList(encoder, scaled(centroids), limit, Packing.pack(held, compressor));
        return Framing.seal(QUERY, Msgpack.encode(body), NOTHING, compressor);
    }

    /**
     * @param weights how much of the device's samples is near each of the directory's centroids.
     * @param held shards of item rows that the device has.
     */
    public static byte[] encodeDirectoryQuery(String encoder, String directory, byte[] weights, int limit, int[] held,
            Compressor compressor) {
        Object body = Arrays.asList(encoder, directory, weights, limit, Packing.pack(held, compressor));
        return Framing.seal(DIRECTORY_QUERY, Msgpack.encode(body), NOTHING, compressor);
    }

    public static byte[] encodeContribution(SampleBatch samples, Compressor compressor) {
        return Framing.seal(CONTRIBUTION, Msgpack.encode(batch(samples, compressor)), NOTHING, compressor);
    }

    /** @throws WireError. */
    public static SampleBatch decodeContribution(byte[] data, Schema schema) {
        return samples(list(open(data, CONTRIBUTION), 4), schema);
    }

    /** @throws WireError. */
    public static Answer decodeAnswer(byte[] data, Schema schema) {
        List<?> body = list(open(data, ANSWER), 3);
        Map<String, Rows> rows = new LinkedHashMap<>();
        for (Map.Entry<?, ?> each : map(body.get(1)).entrySet()) {
            List<?> part = list(each.getValue(), 2);
            int[] ids = Packing.unpack32(bytes(part.get(0)));
            Map<String, Tensor> tensors = new LinkedHashMap<>();
            for (Map.Entry<?, ?> named : map(part.get(1)).entrySet()) {
                Tensor tensor = tensor(list(named.getValue(), 3));
                if (tensor.shape.length == 0 || tensor.rows() != ids.length) {
                    throw new WireError("rows of '" + named.getKey() + "': " + tensor.rows() + " for " + ids.length
                            + " ids");
                }
                if (!tensor.isFinite()) {
                    throw new WireError("rows of '" + named.getKey() + "' hold numbers that are not finite");
                }
                tensors.put((String) named.getKey(), tensor);
            }
            rows.put((String) each.getKey(), new Rows(ids, tensors));
        }
        return new Answer(samples(list(body.get(0), 4), schema), rows, string(body.get(2)));
    }

    /** A report's JSON, its phases as columns, their seconds and MiB to four digits. */
    public static byte[] encodeReport(Report report, Compressor compressor) {
        Map<String, Object> plain = report.fields();
        Map<String, Object> columns = new LinkedHashMap<>();
        for (Object phase : (List<?>) plain.get("phases")) {
            for (Map.Entry<?, ?> field : ((Map<?, ?>) phase).entrySet()) {
                List<Object> column = new ArrayList<>();
                for (Object other : (List<?>) plain.get("phases")) {
                    column.add(rounded(((Map<?, ?>) other).get(field.getKey())));
                }
                columns.put((String) field.getKey(), column);
            }
            break;
        }
        plain.put("phases", columns);
        return Framing.seal(REPORT, Json.bytes(plain), REPORT_DICTIONARY, compressor);
    }

    /** The JSON of a report's frame. */
    public static byte[] reportBody(byte[] data) {
        return Framing.unseal(data, REPORT, 1 << 20, REPORT_DICTIONARY);
    }

    private static Object rounded(Object value) {
        if (!(value instanceof Double)) {
            return value;
        }
        double number = (Double) value;
        return number == 0 || Double.isNaN(number) || Double.isInfinite(number) ? (Object) number
                : (Object) new java.math.BigDecimal(number).round(
                        new java.math.MathContext(4, java.math.RoundingMode.HALF_EVEN)).doubleValue();
    }

    // -- arrays ------------------------------------------------------------------------------------------------------

    private static List<Object> scaled(Tensor rows) {
        int count = rows.shape[0];
        int width = rows.shape[1];
        float[] scales = new float[count];
        byte[] steps = new byte[count * width];
        for (int i = 0; i < count; i++) {
            float most = 0;
            for (int j = 0; j < width; j++) {
                float value = rows.floats[i * width + j];
                if (Float.isNaN(value) || Float.isInfinite(value)) {
                    throw new InputError("numbers that are not finite cannot be sent");
                }
                most = Math.max(most, Math.abs(value));
            }
            scales[i] = most / 127;
            float used = scales[i] > 0 ? scales[i] : 1;
            for (int j = 0; j < width; j++) {
                double step = Math.rint(rows.floats[i * width + j] / used);
                steps[i * width + j] = (byte) Math.max(-127, Math.min(127, step));
            }
        }
        return Arrays.<Object>asList(Arrays.asList(count, width), Bytes.of(scales), steps);
    }

    private static Tensor tensor(List<?> part) {
        List<?> stated = list(part.get(1), -1);
        int[] shape = new int[stated.size()];
        for (int i = 0; i < shape.length; i++) {
            shape[i] = int32(stated.get(i));
        }
        String dtype = string(part.get(0));
        byte[] data = bytes(part.get(2));
        if (dtype.equals("int")) {
            int[] numbers = Packing.unpack32(data);
            if (numbers.length != Tensor.size(shape)) {
                throw new WireError("a tensor's bytes do not fill its shape " + Arrays.toString(shape));
            }
            return Tensor.of(Ints.wide(numbers), shape).as("int32");
        }
        if (!dtype.equals("float16") && !dtype.equals("float32")) {
            throw new WireError("a tensor has the unknown dtype '" + dtype + "'");
        }
        return Tensor.read(dtype, shape, data);
    }

    // -- batches -----------------------------------------------------------------------------------------------------

    private static List<Object> batch(SampleBatch samples, Compressor compressor) {
        Map<String, int[]> distinct = new TreeMap<>(Bytes.BY_CHARACTER);
        for (String name : vocabularies(samples.schema)) {
            distinct.put(name, samples.mentioned(name));
        }
        List<Object> columns = new ArrayList<>();
        for (Schema.Feature feature : samples.schema.features) {
            Object column = samples.columns.get(feature.name);
            List<Object> parts = new ArrayList<>();
            if (column instanceof Ragged) {
                Ragged cut = ((Ragged) column).newest(feature.bound).compact();
                int[] at = Ints.positions(cut.values, distinct.get(feature.vocabulary));
                parts.add(Packing.pack(feature.ordered ? Ints.wide(at) : gaps(at, cut), compressor));
                parts.add(Packing.pack(cut.starts, compressor));
                parts.add(Packing.pack(cut.lengths, compressor));
            } else if (column instanceof int[]) {
                parts.add(Packing.pack(Ints.positions((int[]) column, distinct.get(feature.vocabulary)), compressor));
            } else {
                parts.add(Bytes.of((float[]) column));
            }
            columns.add(Arrays.asList(feature.name, feature.kind, parts));
        }
        Map<String, Object> packed = new LinkedHashMap<>();
        for (Map.Entry<String, int[]> each : distinct.entrySet()) {
            packed.put(each.getKey(), Packing.pack(each.getValue(), compressor));
        }
        for (int steps : new int[] {1, STEPS}) {
            long[] whole = new long[samples.size()];
            boolean exact = true;
            for (int i = 0; i < whole.length; i++) {
                whole[i] = (long) Math.rint(samples.labels[i] * steps);
                exact &= (float) whole[i] / steps == samples.labels[i];
            }
            if (exact) {
                return Arrays.<Object>asList(packed, columns, Packing.pack(whole, compressor), steps);
            }
        }
        return Arrays.<Object>asList(packed, columns, Bytes.of(samples.labels), 0);
    }

    private static Iterable<String> vocabularies(Schema schema) {
        TreeSet<String> names = new TreeSet<>();
        for (Schema.Feature feature : schema.features) {
            if (!feature.kind.equals("float")) {
                names.add(feature.vocabulary);
            }
        }
        return names;
    }

    private static SampleBatch samples(List<?> body, Schema schema) {
        Map<String, int[]> vocabularies = new LinkedHashMap<>();
        for (Map.Entry<?, ?> each : map(body.get(0)).entrySet()) {
            vocabularies.put((String) each.getKey(), Packing.unpack32(bytes(each.getValue())));
        }
        int steps = int32(body.get(3));
        if (steps < 0) {
            throw new WireError("labels cannot be in steps of 1/" + steps);
        }
        float[] labels = labels(bytes(body.get(2)), steps);
        Map<String, Object> columns = new LinkedHashMap<>();
        for (Object each : list(body.get(1), -1)) {
            List<?> column = list(each, 3);
            String name = string(column.get(0));
            Schema.Feature feature = schema.feature(name);
            if (feature == null) {
                throw new WireError("the frame speaks of '" + name + "', which the schema does not know");
            }
            if (!feature.kind.equals(string(column.get(1)))) {
                throw new WireError("column '" + name + "' is of kind '" + column.get(1) + "'; expected '"
                        + feature.kind + "'");
            }
            columns.put(name, column(feature, list(column.get(2), feature.kind.equals("ids") ? 3 : 1), vocabularies,
                    labels.length));
        }
        try {
            return new SampleBatch(schema, columns, labels);
        } catch (InputError error) {
            throw new WireError("the frame holds samples that cannot be: " + error.getMessage());
        }
    }

    private static float[] labels(byte[] data, int steps) {
        if (steps == 0) {
            if (data.length % 4 != 0) {
                throw new WireError("a column's bytes do not fit its kind: labels are not whole float32 numbers");
            }
            return Bytes.floats(data);
        }
        long[] whole = Packing.unpack(data);
        float[] labels = new float[whole.length];
        for (int i = 0; i < labels.length; i++) {
            labels[i] = (float) whole[i] / steps;
        }
        return labels;
    }

    private static Object column(Schema.Feature feature, List<?> parts, Map<String, int[]> vocabularies, int rows) {
        byte[] first = bytes(parts.get(0));
        if (feature.kind.equals("float")) {
            if (first.length != 4L * rows * feature.bound) {
                throw new WireError("a column's bytes do not fit its kind: column '" + feature.name + "'");
            }
            return Bytes.floats(first);
        }
        int[] ids = vocabularies.get(feature.vocabulary);
        if (ids == null) {
            throw new WireError("the frame has no ids of '" + feature.vocabulary + "'");
        }
        long[] at = Packing.unpack(first);
        int[] starts = null;
        int[] lengths = null;
        if (feature.kind.equals("ids")) {
            starts = Packing.unpack32(bytes(parts.get(1)));
            lengths = Packing.unpack32(bytes(parts.get(2)));
            at = feature.ordered ? at : positions(at, starts, lengths);
        }
        int[] values = new int[at.length];
        for (int i = 0; i < at.length; i++) {
            if (at[i] < 0 || at[i] >= ids.length) {
                throw new WireError("column '" + feature.name + "' points outside its " + ids.length + " ids");
            }
            values[i] = ids[(int) at[i]];
        }
        try {
            return starts == null ? values : new Ragged(values, starts, lengths);
        } catch (InputError error) {
            throw new WireError("the frame holds samples that cannot be: " + error.getMessage());
        }
    }

    /** Positions as the gaps between them, each stretch between two borders of rows ascending. */
    private static long[] gaps(int[] at, Ragged rows) {
        int[] sorted = at.clone();
        boolean[] opens = borders(at.length, rows.starts, rows.lengths);
        long[] found = new long[at.length];
        for (int from = 0; from < at.length; ) {
            int to = from + 1;
            while (to < at.length && !opens[to]) {
                to++;
            }
            Arrays.sort(sorted, from, to);
            found[from] = sorted[from];
            for (int i = from + 1; i < to; i++) {
                found[i] = (long) sorted[i] - sorted[i - 1] - 1;
            }
            from = to;
        }
        return found;
    }

    private static long[] positions(long[] gaps, int[] starts, int[] lengths) {
        if (starts.length != lengths.length) {
            throw new WireError("a ragged column has " + starts.length + " starts but " + lengths.length + " lengths");
        }
        for (int i = 0; i < starts.length; i++) {
            if (starts[i] < 0 || lengths[i] < 0 || (long) starts[i] + lengths[i] > gaps.length) {
                throw new WireError("a ragged column points outside its " + gaps.length + " values");
            }
        }
        boolean[] opens = borders(gaps.length, starts, lengths);
        long[] found = new long[gaps.length];
        for (int i = 0; i < found.length; i++) {
            found[i] = i == 0 || opens[i] ? gaps[i] : found[i - 1] + gaps[i] + 1;
        }
        return found;
    }

    private static boolean[] borders(int count, int[] starts, int[] lengths) {
        boolean[] found = new boolean[count + 1];
        for (int i = 0; i < starts.length; i++) {
            found[starts[i]] = true;
            found[starts[i] + lengths[i]] = true;
        }
        return found;
    }

    // -- MessagePack's values, checked --------------------------------------------------------------------------------

    private static Object open(byte[] data, int kind) {
        return Msgpack.decode(Framing.unseal(data, kind, Framing.MOST, NOTHING));
    }

    private static WireError unfit(String expected) {
        return new WireError("the frame's body does not decode: " + expected + " is expected");
    }

    private static List<?> list(Object value, int size) {
        if (!(value instanceof List) || size >= 0 && ((List<?>) value).size() != size) {
            throw unfit(size < 0 ? "an array" : "an array of " + size);
        }
        return (List<?>) value;
    }

    private static Map<?, ?> map(Object value) {
        if (!(value instanceof Map)) {
            throw unfit("a map");
        }
        return (Map<?, ?>) value;
    }

    private static byte[] bytes(Object value) {
        if (!(value instanceof byte[])) {
            throw unfit("a byte string");
        }
        return (byte[]) value;
    }

    private static String string(Object value) {
        if (!(value instanceof String)) {
            throw unfit("a string");
        }
        return (String) value;
    }

    private static int int32(Object value) {
        if (!(value instanceof Long) || (Long) value != ((Long) value).intValue()) {
            throw unfit("a whole number of 32 bits");
        }
        return ((Long) value).intValue();
    }
}
