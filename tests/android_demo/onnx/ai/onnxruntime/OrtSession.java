package ai.onnxruntime;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** Runs a graph; see {@link OrtEnvironment}. */
public class OrtSession implements AutoCloseable {
    private final byte[] graph;
    private final SessionOptions options;
    private boolean closed;

    OrtSession(byte[] graph, SessionOptions options) {
        this.graph = graph;
        this.options = options;
    }

    public Result run(Map<String, ? extends OnnxTensor> inputs, Set<String> requestedOutputs) throws OrtException {
        if (closed || options.closed) {
            throw new IllegalStateException("Trying to score a closed OrtSession.");
        }
        Map<String, Object[]> given = new LinkedHashMap<>();
        for (Map.Entry<String, ? extends OnnxTensor> each : inputs.entrySet()) {
            OnnxTensor tensor = each.getValue();
            given.put(each.getKey(), new Object[] {tensor.floats == null ? tensor.longs : tensor.floats,
                tensor.getInfo().getShape()});
        }
        Map<String, Object[]> made = backend().run(graph, given);
        List<OnnxValue> values = new ArrayList<>();
        for (String name : requestedOutputs) {
            Object[] each = made.get(name);
            if (each == null) {
                throw new OrtException("Unknown output name " + name);
            }
            values.add(new OnnxTensor(each[0] instanceof float[] ? (float[]) each[0] : null,
                    each[0] instanceof long[] ? (long[]) each[0] : null, (long[]) each[1]));
        }
        return new Result(values);
    }

    private static OrtEnvironment.Backend backend() {
        return OrtEnvironment.backend;
    }

    @Override
    public void close() throws OrtException {
        if (closed) {
            throw new IllegalStateException("Trying to close an already closed OrtSession.");
        }
        closed = true;
    }

    /** As in the library, where these must outlive the session. */
    public static class SessionOptions implements AutoCloseable {
        private boolean closed;

        public void setIntraOpNumThreads(int numThreads) throws OrtException {
            if (numThreads < 0) {
                throw new OrtException("no such number of threads");
            }
        }

        @Override
        public void close() {
            closed = true;
        }
    }

    /** As in the library: closing it closes its values. */
    public static class Result implements AutoCloseable {
        private final List<OnnxValue> values;

        Result(List<OnnxValue> values) {
            this.values = values;
        }

        public OnnxValue get(int index) {
            return values.get(index);
        }

        @Override
        public void close() {
            for (OnnxValue value : values) {
                value.close();
            }
        }
    }
}
