package ai.onnxruntime;

/** As in the library. */
public class TensorInfo {
    private final long[] shape;

    TensorInfo(long[] shape) {
        this.shape = shape;
    }

    public long[] getShape() {
        return shape.clone();
    }
}
