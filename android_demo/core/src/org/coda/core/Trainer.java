package org.coda.core;

import org.coda.core.CodaError.EngineError;
import org.coda.core.CodaError.InputError;

import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.Map;

/**
 * Epochs over a step graph, and scores from an inference graph, for any number of samples. A graph takes batches of up to
 * a number of samples; the last batch is what is left. Values given are never written to.
 */
final class Trainer {
    private Trainer() {}

    /** Zeros for each state tensor of a graph; dimensions that vary are taken from the values. */
    static Map<String, Tensor> initialState(GraphSpec spec, Map<String, Tensor> values) {
        Map<String, Integer> sizes = new HashMap<>();
        for (GraphSpec.TensorSpec tensor : spec.inputs) {
            Tensor given = values.get(tensor.name);
            for (int i = 0; given != null && i < Math.min(tensor.sizes.length, given.shape.length); i++) {
                if (tensor.names[i] != null) {
                    sizes.put(tensor.names[i], given.shape[i]);
                }
            }
        }
        Map<String, Tensor> state = new LinkedHashMap<>();
        for (GraphSpec.TensorSpec tensor : spec.of("state")) {
            int[] shape = tensor.sizes.clone();
            for (int i = 0; i < shape.length; i++) {
                if (tensor.names[i] != null) {
                    if (!sizes.containsKey(tensor.names[i])) {
                        throw new EngineError("tensor '" + tensor.name + "': no given tensor says how large '"
                                + tensor.names[i] + "' is");
                    }
                    shape[i] = sizes.get(tensor.names[i]);
                }
            }
            state.put(tensor.name, Tensor.zeros(tensor.dtype, shape));
        }
        return state;
    }

    /** One step on a batch: updates the carried tensors in {@code values}, and returns the loss. */
    static float step(Engine.Graph graph, Map<String, Tensor> values, Map<String, Tensor> batch, double rate,
            double tableRate) {
        Map<String, Tensor> given = new LinkedHashMap<>();
        for (Map.Entry<String, Tensor> column : batch.entrySet()) {
            given.put(column.getKey(), graph.spec().steps() > 0 ? stacked(column.getValue(), 1) : column.getValue());
        }
        return advance(graph, values, given, rate, tableRate)[0];
    }

    /** Rows as so many batches. */
    private static Tensor stacked(Tensor rows, int count) {
        int[] shape = new int[rows.shape.length + 1];
        System.arraycopy(rows.shape, 0, shape, 1, rows.shape.length);
        shape[0] = count;
        shape[1] = rows.rows() / count;
        return rows.shaped(shape);
    }

    /** As many steps as the batch is for: updates the carried tensors in {@code values}, and returns the losses. */
    private static float[] advance(Engine.Graph graph, Map<String, Tensor> values, Map<String, Tensor> batch, double rate,
            double tableRate) {
        GraphSpec spec = graph.spec();
        Map<String, Tensor> given = new LinkedHashMap<>();
        for (GraphSpec.TensorSpec tensor : spec.inputs) {
            Tensor held = tensor.role.equals("hyper")
                    ? Tensor.scalar((float) (tensor.name.equals("table_rate") ? tableRate : rate))
                    : batch.containsKey(tensor.name) ? batch.get(tensor.name) : values.get(tensor.name);
            if (held != null) {
                given.put(tensor.name, held);
            }
        }
        Map<String, Tensor> results = graph.run(given);
        for (Map.Entry<String, String> pair : spec.carry.entrySet()) {
            values.put(pair.getValue(), results.get(pair.getKey()));
        }
        return results.get("loss").floats;
    }

    /**
     * Epochs of a step graph over n samples: all values, those that train updated.
     *
     * @param weights at least 0; samples of weight 0 are left out.
     * @param stop says after each epoch whether it was the last; null where all are made.
     * @throws EngineError training diverged.
     */
    static Map<String, Tensor> train(Engine.Graph graph, Map<String, Tensor> values, Map<String, Tensor> features,
            float[] labels, float[] weights, double rate, double tableRate, int epochs, Pcg64 random,
            EarlyStop stop) {
        if (!(rate > 0) || Double.isInfinite(rate)) {
            throw new InputError("the learning rate must be a finite number above 0, not " + rate);
        }
        GraphSpec spec = graph.spec();
        Map<String, Tensor> current = new LinkedHashMap<>(initialState(spec, values));
        current.putAll(values);
        int[] used = new int[weights.length];
        int count = 0;
        for (int i = 0; i < weights.length; i++) {
            if (!(weights[i] >= 0) || Float.isInfinite(weights[i])) {
                throw new InputError("sample weights must be finite numbers of at least 0");
            }
            if (weights[i] > 0) {
                used[count++] = i;
            }
        }
        if (count == 0) {
            throw new InputError("there are no samples of weight above 0 to train on");
        }
        int size = spec.batch();
        String label = spec.of("label").get(0).name;
        String weight = spec.of("weight").get(0).name;
        boolean stacks = spec.steps() > 0;
        for (int epoch = 0; epoch < epochs; epoch++) {
            int[] order = random.permutation(count);
            for (int start = 0, rows; start < count; start += rows) {
                int whole = Math.min((count - start) / size, Math.max(1, spec.steps()));
                rows = Math.min(Math.max(1, whole) * size, count - start); // what is left is a call of its own
                int[] at = new int[rows];
                for (int i = 0; i < rows; i++) {
                    at[i] = used[order[start + i]];
                }
                Map<String, Tensor> batch = new HashMap<>();
                for (Map.Entry<String, Tensor> column : features.entrySet()) {
                    batch.put(column.getKey(), column.getValue().take(at));
                }
                batch.put(label, Tensor.of(Floats.take(labels, at), rows));
                batch.put(weight, Tensor.of(Floats.take(weights, at), rows));
                if (stacks) {
                    for (Map.Entry<String, Tensor> column : batch.entrySet()) {
                        column.setValue(stacked(column.getValue(), Math.max(1, whole)));
                    }
                }
                for (float loss : advance(graph, current, batch, rate, tableRate)) {
                    if (Float.isNaN(loss) || Float.isInfinite(loss)) {
                        throw diverged(epoch, "the loss became " + loss, rate);
                    }
                }
            }
            for (String name : spec.carry.values()) {
                if (!current.get(name).isFinite()) {
                    throw diverged(epoch, "'" + name + "' is not finite", rate);
                }
            }
            if (stop != null && stop.ends(current)) {
                break;
            }
        }
        return current;
    }

    private static EngineError diverged(int epoch, String what, double rate) {
        return new EngineError("training diverged in epoch " + (epoch + 1) + ": " + what + "; lower the rate, now "
                + rate);
    }

    /** The single output of an inference graph for n samples, float32 [n, ...]. */
    static Tensor scores(Engine.Graph graph, Map<String, Tensor> values, Map<String, Tensor> features) {
        GraphSpec spec = graph.spec();
        GraphSpec.TensorSpec output = spec.outputs.get(0);
        int count = features.values().iterator().next().rows();
        int[] shape = output.sizes.clone();
        shape[0] = count;
        Tensor found = Tensor.zeros("float32", shape);
        int size = spec.batch();
        for (int start = 0; start < count; start += size) {
            int[] at = new int[Math.min(size, count - start)];
            for (int i = 0; i < at.length; i++) {
                at[i] = start + i;
            }
            Map<String, Tensor> given = new LinkedHashMap<>();
            for (GraphSpec.TensorSpec tensor : spec.inputs) {
                Tensor column = features.get(tensor.name);
                given.put(tensor.name, column == null ? values.get(tensor.name) : column.take(at));
            }
            Tensor result = graph.run(given).get(output.name);
            System.arraycopy(result.floats, 0, found.floats, start * found.width(), result.size());
        }
        return found;
    }
}
