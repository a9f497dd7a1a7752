package ai.onnxruntime;

import java.nio.FloatBuffer;
import java.nio.LongBuffer;

/** Of float32 or int64, on the heap. Counts those that are open, so that a leak is seen. */
public class OnnxTensor implements OnnxValue {
    static int open;

    final float[] floats;
    final long[] longs;
    private final long[] shape;
    private boolean closed;

    OnnxTensor(float[] floats, long[] longs, long[] shape) {
        this.floats = floats;
        this.longs = longs;
        this.shape = shape;
        open++;
    }

    public static OnnxTensor createTensor(OrtEnvironment env, FloatBuffer data, long[] shape) throws OrtException {
        float[] copy = new float[data.remaining()];
        data.duplicate().get(copy);
        check(copy.length, shape);
        return new OnnxTensor(copy, null, shape);
    }

    public static OnnxTensor createTensor(OrtEnvironment env, LongBuffer data, long[] shape) throws OrtException {
        long[] copy = new long[data.remaining()];
        data.duplicate().get(copy);
        check(copy.length, shape);
        return new OnnxTensor(null, copy, shape);
    }

    private static void check(int given, long[] shape) throws OrtException {
        long size = 1;
        for (long d : shape) {
            size *= d;
        }
        if (size != given) {
            throw new OrtException("Shape does not fit the data");
        }
    }

    public TensorInfo getInfo() {
        return new TensorInfo(shape);
    }

    public FloatBuffer getFloatBuffer() {
        return closed || floats == null ? null : FloatBuffer.wrap(floats.clone());
    }

    public LongBuffer getLongBuffer() {
        return closed || longs == null ? null : LongBuffer.wrap(longs.clone());
    }

    @Override
    public void close() {
        open -= closed ? 0 : 1;
        closed = true;
    }
}
