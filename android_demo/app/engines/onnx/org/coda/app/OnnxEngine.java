package org.coda.app;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;

import org.coda.core.CodaError.EngineError;
import org.coda.core.CodaError.EngineUnavailable;
import org.coda.core.Engine;
import org.coda.core.GraphSpec;
import org.coda.core.Tensor;

import java.io.File;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.Map;
import java.util.Set;

/** Stock ONNX Runtime by its Java API, on one thread of the CPU. */
public final class OnnxEngine implements Engine {
    /** From this version on the library reports on its use to its maker, unless it is told not to in time. */
    private static final int FIRST_WITH_TELEMETRY = 29;

    private final OrtEnvironment environment;

    /** @throws EngineUnavailable the library cannot be loaded, or is of a version that is not wanted. */
    public OnnxEngine() {
        try {
            environment = OrtEnvironment.getEnvironment();
        } catch (LinkageError | RuntimeException error) { // the library's own have no common type
            throw new EngineUnavailable("the ONNX Runtime library cannot be loaded on this device: "
                    + error.getMessage() + "; install the app that was built for its processor");
        }
        String[] parts = version().split("\\.");
        if (!parts[0].equals("1") || Integer.parseInt(parts[1]) >= FIRST_WITH_TELEMETRY) {
            throw new EngineUnavailable("ONNX Runtime " + version() + " may report on its use to its maker: build the "
                    + "app with a version below 1." + FIRST_WITH_TELEMETRY);
        }
    }

    @Override
    public String name() {
        return "onnx";
    }

    @Override
    public String version() {
        return environment.getVersion();
    }

    @Override
    public String format() {
        return "onnx";
    }

    @Override
    public boolean loops() {
        return true;
    }

    @Override
    public Graph load(File path, GraphSpec spec) {
        try {
            OrtSession.SessionOptions options = new OrtSession.SessionOptions();
            options.setIntraOpNumThreads(1);
            return new Loaded(environment, options, environment.createSession(path.getPath(), options), spec);
        } catch (OrtException error) {
            throw new EngineError("ONNX Runtime (" + version() + ") cannot load the graph " + path.getName() + ": "
                    + error.getMessage() + "; export the bundle again, or update the app");
        }
    }

    private static final class Loaded implements Graph {
        private final OrtEnvironment environment;
        /** To be closed after the session that uses them. */
        private final OrtSession.SessionOptions options;
        private final OrtSession session;
        private final GraphSpec spec;
        private final Set<String> wanted = new LinkedHashSet<>();

        Loaded(OrtEnvironment environment, OrtSession.SessionOptions options, OrtSession session, GraphSpec spec) {
            this.environment = environment;
            this.options = options;
            this.session = session;
            this.spec = spec;
            for (GraphSpec.TensorSpec output : spec.outputs) {
                wanted.add(output.name);
            }
        }

        @Override
        public GraphSpec spec() {
            return spec;
        }

        @Override
        public Map<String, Tensor> run(Map<String, Tensor> inputs) {
            spec.check(inputs); // not every kernel looks at what it is given
            Map<String, OnnxTensor> given = new LinkedHashMap<>();
            try {
                for (GraphSpec.TensorSpec input : spec.inputs) {
                    given.put(input.name, outward(inputs.get(input.name)));
                }
                Map<String, Tensor> found = new LinkedHashMap<>();
                try (OrtSession.Result results = session.run(given, wanted)) {
                    for (int i = 0; i < spec.outputs.size(); i++) { // in the order in which they were asked for
                        found.put(spec.outputs.get(i).name, inward((OnnxTensor) results.get(i), spec.outputs.get(i)));
                    }
                }
                return found;
            } catch (OrtException error) {
                throw new EngineError("ONNX Runtime failed while running a graph: " + error.getMessage());
            } finally {
                for (OnnxTensor tensor : given.values()) {
                    tensor.close();
                }
            }
        }

        private OnnxTensor outward(Tensor tensor) throws OrtException {
            long[] shape = new long[tensor.shape.length];
            for (int i = 0; i < shape.length; i++) {
                shape[i] = tensor.shape[i];
            }
            switch (tensor.dtype) {
                case "float32":
                    return OnnxTensor.createTensor(environment, FloatBuffer.wrap(tensor.floats), shape);
                case "int64":
                    return OnnxTensor.createTensor(environment, LongBuffer.wrap(tensor.longs), shape);
                default:
                    throw new EngineError("this app gives graphs float32 and int64 tensors, not " + tensor.dtype);
            }
        }

        private static Tensor inward(OnnxTensor tensor, GraphSpec.TensorSpec spec) {
            long[] sizes = tensor.getInfo().getShape();
            int[] shape = new int[sizes.length];
            for (int i = 0; i < shape.length; i++) {
                shape[i] = (int) sizes[i];
            }
            FloatBuffer floats = tensor.getFloatBuffer(); // a copy; null where the tensor is of another kind
            LongBuffer longs = floats == null ? tensor.getLongBuffer() : null;
            if (spec.dtype.equals("float32") && floats != null) {
                return Tensor.of(floats.array(), shape);
            }
            if (spec.dtype.equals("int64") && longs != null) {
                return Tensor.of(longs.array(), shape);
            }
            throw new EngineError("a graph's result '" + spec.name + "' is not the " + spec.dtype
                    + " tensor that the manifest names");
        }

        @Override
        public void close() {
            try {
                session.close();
                options.close();
            } catch (OrtException error) {
                throw new EngineError("ONNX Runtime cannot let go of a graph: " + error.getMessage());
            }
        }
    }
}
