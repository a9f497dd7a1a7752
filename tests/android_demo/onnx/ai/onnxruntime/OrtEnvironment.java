package ai.onnxruntime;

/**
 * A stand-in for ONNX Runtime's Java API, whose package is on Maven alone: those of its classes and methods that the
 * app's adapter uses, with the signatures that their documentation gives. Graphs are run by whoever sets the backend.
 */
public final class OrtEnvironment implements AutoCloseable {
    /** Runs graphs. */
    public interface Backend {
        /** A graph's number. Raises: OrtException: the file is no graph. */
        byte[] load(String path) throws OrtException;

        /** float[] or long[] and the shape of each output that is asked for, for those of each input. */
        java.util.Map<String, Object[]> run(byte[] graph, java.util.Map<String, Object[]> inputs) throws OrtException;
    }

    public static Backend backend;
    public static String version = "1.27.0";
    private static final OrtEnvironment INSTANCE = new OrtEnvironment();

    private OrtEnvironment() {}

    public static OrtEnvironment getEnvironment() {
        return INSTANCE;
    }

    public String getVersion() {
        return version;
    }

    /** Not of the library: tensors that nobody has closed. */
    public static int openTensors() {
        return OnnxTensor.open;
    }

    public OrtSession createSession(String modelPath, OrtSession.SessionOptions options) throws OrtException {
        return new OrtSession(backend.load(modelPath), options);
    }

    @Override
    public void close() {
        // as in the library
    }
}
