package ai.onnxruntime;

/** As in the library. */
public interface OnnxValue extends AutoCloseable {
    @Override
    void close();
}
