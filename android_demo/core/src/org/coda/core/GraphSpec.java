package org.coda.core;

import org.coda.core.CodaError.EngineError;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** What a graph takes and gives, in its own order; see {@code device_runtime/engines/spec.py}. */
public final class GraphSpec {
    private static final String STEPS = "steps";
    /** The dimension of the samples in a batch: any number of them up to a bound. */
    static final String BATCH = "batch";

    public final List<TensorSpec> inputs;
    public final List<TensorSpec> outputs;
    /** Output -> the input that it feeds on the next call. */
    public final Map<String, String> carry;
    private final Map<String, int[]> bounds;
    /** What is given anew with each call. */
    private final List<TensorSpec> fed;

    /** One tensor. A dimension that may vary has a name, and -1 in {@link #sizes}. */
    public static final class TensorSpec {
        public final String name;
        public final String dtype;
        public final int[] sizes;
        public final String[] names;
        public final String role;
        public final String table;

        /** Another one with a leading dimension for training steps. */
        private TensorSpec(TensorSpec one) {
            name = one.name;
            dtype = one.dtype;
            role = one.role;
            table = one.table;
            sizes = new int[one.sizes.length + 1];
            names = new String[sizes.length];
            sizes[0] = -1;
            names[0] = STEPS;
            System.arraycopy(one.sizes, 0, sizes, 1, one.sizes.length);
            System.arraycopy(one.names, 0, names, 1, one.names.length);
        }

        TensorSpec(Fields fields) {
            name = fields.string("name");
            dtype = fields.string("dtype");
            List<?> shape = fields.list("shape");
            sizes = new int[shape.size()];
            names = new String[sizes.length];
            for (int i = 0; i < sizes.length; i++) {
                Object d = shape.get(i);
                sizes[i] = d instanceof Long ? ((Long) d).intValue() : -1;
                names[i] = d instanceof String ? (String) d : null;
            }
            role = fields.string("role");
            table = fields.string("table", "");
            fields.nothingElse();
        }
    }

    GraphSpec(Fields fields) {
        inputs = tensors(fields.objects("inputs"));
        fed = of("feature", "label", "weight", "hyper");
        outputs = tensors(fields.objects("outputs"));
        carry = new LinkedHashMap<>();
        if (fields.has("carry")) {
            for (Map.Entry<String, Object> pair : fields.map("carry").entrySet()) {
                carry.put(pair.getKey(), String.valueOf(pair.getValue()));
            }
        }
        bounds = new HashMap<>();
        if (fields.has("bounds")) {
            for (Map.Entry<String, Object> each : fields.map("bounds").entrySet()) {
                List<?> pair = (List<?>) each.getValue();
                bounds.put(each.getKey(), new int[] {((Long) pair.get(0)).intValue(), ((Long) pair.get(1)).intValue()});
            }
        }
        fields.nothingElse();
    }

    private GraphSpec(List<TensorSpec> inputs, List<TensorSpec> outputs, Map<String, String> carry,
            Map<String, int[]> bounds) {
        this.inputs = inputs;
        this.outputs = outputs;
        this.carry = carry;
        this.bounds = bounds;
        fed = of("feature", "label", "weight", "hyper");
    }

    /**
     * The same step, taken up to so many times in a call: batches, and outputs that are not carried, have a leading
     * dimension for it.
     */
    GraphSpec stacked(int most) {
        List<TensorSpec> given = new ArrayList<>();
        for (TensorSpec tensor : inputs) {
            boolean ofBatch = tensor.role.equals("feature") || tensor.role.equals("label")
                    || tensor.role.equals("weight");
            given.add(ofBatch ? new TensorSpec(tensor) : tensor);
        }
        List<TensorSpec> found = new ArrayList<>();
        for (TensorSpec tensor : outputs) {
            found.add(carry.containsKey(tensor.name) ? tensor : new TensorSpec(tensor));
        }
        Map<String, int[]> bounded = new HashMap<>(bounds);
        bounded.put(STEPS, new int[] {1, most});
        return new GraphSpec(given, found, carry, bounded);
    }

    /** How many training steps a call takes, at most; 0 where batches have no dimension for them. */
    public int steps() {
        return bounds.containsKey(STEPS) ? bounds.get(STEPS)[1] : 0;
    }

    private static List<TensorSpec> tensors(List<Fields> given) {
        List<TensorSpec> found = new ArrayList<>();
        for (Fields each : given) {
            found.add(new TensorSpec(each));
        }
        return found;
    }

    /** The inputs that play one of these roles. */
    public List<TensorSpec> of(String... roles) {
        List<TensorSpec> found = new ArrayList<>();
        for (TensorSpec tensor : inputs) {
            if (Arrays.asList(roles).contains(tensor.role)) {
                found.add(tensor);
            }
        }
        return found;
    }

    /** How many samples a batch has, at most. */
    public int batch() {
        int[] bound = bounds.get(BATCH);
        if (bound == null) {
            throw new EngineError("this graph takes no batch of samples");
        }
        return bound[1];
    }

    /**
     * Refuse tensors that do not fit: a name, dtype or shape, an index outside its table, which not every engine looks
     * at, or a number of a batch that is not finite.
     *
     * @throws EngineError names the tensor.
     */
    public void check(Map<String, Tensor> given) {
        Map<String, Integer> sizes = new HashMap<>();
        Map<String, Integer> rows = new HashMap<>();
        for (TensorSpec spec : inputs) {
            Tensor tensor = given.get(spec.name);
            if (tensor == null) {
                throw new EngineError("missing tensors: " + spec.name);
            }
            if (!tensor.dtype.equals(spec.dtype) || !fits(spec, tensor.shape, sizes)) {
                throw new EngineError("tensor '" + spec.name + "': expected " + spec.dtype + " " + describe(spec)
                        + ", given " + tensor.dtype + " " + Arrays.toString(tensor.shape));
            }
            if (!spec.table.isEmpty() && !spec.role.equals("feature")) {
                rows.put(spec.table, tensor.rows());
            }
        }
        for (TensorSpec spec : fed) {
            Tensor tensor = given.get(spec.name);
            if (!tensor.isFinite()) {
                throw new EngineError("tensor '" + spec.name + "': expected finite numbers");
            }
            if (tensor.longs != null && rows.containsKey(spec.table)) {
                for (long id : tensor.longs) {
                    if (id < 0 || id >= rows.get(spec.table)) {
                        throw new EngineError("tensor '" + spec.name + "': expected rows of '" + spec.table
                                + "' from 0 to " + (rows.get(spec.table) - 1) + ", given " + id);
                    }
                }
            }
        }
        if (given.size() != inputs.size()) {
            throw new EngineError("there are tensors that the graph does not take");
        }
    }

    private boolean fits(TensorSpec spec, int[] shape, Map<String, Integer> sizes) {
        if (shape.length != spec.sizes.length) {
            return false;
        }
        for (int i = 0; i < shape.length; i++) {
            if (spec.names[i] == null) {
                if (spec.sizes[i] != shape[i]) {
                    return false;
                }
                continue;
            }
            int[] bound = bounds.get(spec.names[i]);
            Integer known = sizes.get(spec.names[i]);
            if (bound == null || shape[i] < bound[0] || shape[i] > bound[1] || known != null && known != shape[i]) {
                return false;
            }
            sizes.put(spec.names[i], shape[i]);
        }
        return true;
    }

    private String describe(TensorSpec spec) {
        StringBuilder out = new StringBuilder("[");
        for (int i = 0; i < spec.sizes.length; i++) {
            out.append(i > 0 ? ", " : "").append(spec.names[i] == null ? String.valueOf(spec.sizes[i])
                    : spec.names[i] + " " + Arrays.toString(bounds.get(spec.names[i])));
        }
        return out.append(']').toString();
    }
}
