package org.coda.core;

import org.coda.core.CodaError.SelfTestFailed;
import org.coda.core.CodaError.WireError;

import java.util.LinkedHashMap;
import java.util.Map;

/**
 * Whether an engine trains on this machine: the exporter's golden steps are taken again, on made-up rows and samples that
 * are the same everywhere. The twin of {@code device_runtime/engines/selftest.py}.
 */
final class SelfTest {
    private static final int ROWS = 17;
    private static final double LOSS_WITHIN = 1e-4;
    private static final double MOVE_WITHIN = 1e-2;
    private static final double ROUNDING = 0x1p-20;

    private SelfTest() {}

    /** Try both step graphs. Raises: SelfTestFailed, EngineError: the engine must not be used. */
    static void run(Model model) {
        RoundSettings settings = model.manifest.settings;
        run(model, "step", model.base.dense, settings.rate);
        run(model, "classifier_step", model.classifier, settings.classifierRate);
    }

    private static void run(Model model, String name, Map<String, Tensor> held, double rate) {
        Manifest.Golden golden = model.manifest.graphs.get(name).golden;
        if (golden == null) {
            throw new WireError("the bundle has no golden steps of '" + name
                    + "' to test an engine with; export it again");
        }
        GraphSpec spec = model.spec(name);
        Map<String, Tensor> values = new LinkedHashMap<>();
        for (GraphSpec.TensorSpec tensor : spec.of("param", "attribute")) {
            Double largest = golden.largest.get(tensor.name);
            values.put(tensor.name, tensor.table.isEmpty() ? held.get(tensor.name)
                    : madeUp(tensor, ROWS, largest == null ? 0 : largest.longValue()));
        }
        Map<String, Tensor> start = new LinkedHashMap<>(Trainer.initialState(spec, values));
        start.putAll(values);
        Map<String, Tensor> current = new LinkedHashMap<>(start);
        Map<String, Tensor> batch = batch(spec);
        Engine.Graph graph = model.graph(name);
        double[] losses = new double[golden.losses.length];
        for (int i = 0; i < losses.length; i++) {
            losses[i] = Trainer.step(graph, current, batch, rate, rate);
            if (Double.isNaN(losses[i]) || Double.isInfinite(losses[i])) {
                throw failed(model.engine, "the loss of step " + (i + 1) + " is " + losses[i]);
            }
        }
        if (!(losses[losses.length - 1] < losses[0])) {
            throw failed(model.engine, "the loss did not fall in " + losses.length + " steps: " + losses[0]
                    + " at first, " + losses[losses.length - 1] + " at last");
        }
        for (Map.Entry<String, Double> wanted : golden.moved.entrySet()) {
            check(model.engine, wanted.getKey(), wanted.getValue(), start.get(wanted.getKey()),
                    current.get(wanted.getKey()), values.containsKey(wanted.getKey()), losses.length);
        }
        for (int i = 0; i < losses.length; i++) {
            if (Math.abs(losses[i] - golden.losses[i]) > LOSS_WITHIN * Math.max(1, Math.abs(golden.losses[i]))) {
                throw failed(model.engine, "the loss of step " + (i + 1) + " is " + losses[i]
                        + ", where it should be " + golden.losses[i]);
            }
        }
    }

    private static void check(Engine engine, String name, double wanted, Tensor before, Tensor after, boolean isGiven,
            int steps) {
        double moved = 0;
        double largest = 0;
        for (int i = 0; i < before.size(); i++) {
            double was = before.isReal() ? before.floats[i] : before.longs[i];
            double is = after.isReal() ? after.floats[i] : after.longs[i];
            if (Double.isNaN(is) || Double.isInfinite(is)) {
                throw failed(engine, "'" + name + "' is not finite after " + steps + " steps");
            }
            moved = Math.max(moved, Math.abs(is - was));
            largest = Math.max(largest, Math.abs(was));
        }
        double size = isGiven ? largest : wanted;
        if (moved == 0 && wanted > ROUNDING * size) {
            throw failed(engine, "'" + name + "' did not move in " + steps + " steps");
        }
        if (Math.abs(moved - wanted) > MOVE_WITHIN * wanted + ROUNDING * size) {
            throw failed(engine, "'" + name + "' moved by " + moved + " in " + steps + " steps, where it should by "
                    + wanted);
        }
    }

    private static Map<String, Tensor> batch(GraphSpec spec) {
        int size = spec.batch();
        Map<String, Tensor> batch = new LinkedHashMap<>();
        for (GraphSpec.TensorSpec tensor : spec.of("feature")) {
            Tensor made = madeUp(tensor, size, ROWS - 1);
            if (!tensor.table.isEmpty()) {
                // no padding in ids as such; histories of every length, the empty one too
                int width = made.width();
                for (int i = 0; i < made.size(); i++) {
                    boolean beyond = made.shape.length == 2 && i % width >= i / width % (width + 1);
                    made.longs[i] = beyond ? 0 : made.longs[i] % (ROWS - 1) + 1;
                }
            }
            batch.put(tensor.name, made);
        }
        float[] label = new float[size];
        for (int i = 1; i < size; i += 2) {
            label[i] = 1;
        }
        batch.put("label", Tensor.of(label, size));
        batch.put("sample_weight", Tensor.of(Floats.filled(size, 1), size));
        return batch;
    }

    /** Numbers from -0.3 to 0.3, or whole ones from 0 to largest. rows: the first dimension, where that varies. */
    private static Tensor madeUp(GraphSpec.TensorSpec tensor, int rows, long largest) {
        int[] shape = tensor.sizes.clone();
        if (shape.length > 0 && shape[0] < 0) {
            shape[0] = rows;
        }
        Tensor found = Tensor.zeros(tensor.dtype, shape);
        for (int i = 0; i < found.size(); i++) {
            if (found.isReal()) {
                found.floats[i] = (float) (0.3 * Math.sin(1.0 + i));
            } else {
                found.longs[i] = i % (largest + 1);
            }
        }
        return found;
    }

    private static SelfTestFailed failed(Engine engine, String what) {
        return new SelfTestFailed("engine " + engine.name() + " " + engine.version()
                + " does not train on this machine: " + what);
    }
}
