package org.coda.core;

import org.coda.core.CodaError.WireError;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;

/**
 * Numbers in a shape, row by row. dtype has NumPy's names: float16 and float32 are held as floats, whole numbers as
 * longs. Not changed once made, unless its maker says so.
 */
public final class Tensor {
    public final String dtype;
    public final int[] shape;
    /** Null of whole numbers. */
    public final float[] floats;
    /** Null of floats. */
    public final long[] longs;

    private Tensor(String dtype, int[] shape, float[] floats, long[] longs) {
        this.dtype = dtype;
        this.shape = shape;
        this.floats = floats;
        this.longs = longs;
        if (size(shape) != (floats == null ? longs.length : floats.length)) {
            throw new IllegalArgumentException("numbers do not fill the shape " + Arrays.toString(shape));
        }
    }

    public static Tensor of(float[] values, int... shape) {
        return new Tensor("float32", shape, values, null);
    }

    public static Tensor of(long[] values, int... shape) {
        return new Tensor("int64", shape, null, values);
    }

    public static Tensor scalar(float value) {
        return of(new float[] {value});
    }

    public static Tensor zeros(String dtype, int... shape) {
        boolean real = dtype.startsWith("float");
        return new Tensor(dtype, shape, real ? new float[size(shape)] : null, real ? null : new long[size(shape)]);
    }

    /** The same numbers under another name of whole numbers' or floats' width. */
    Tensor as(String other) {
        return new Tensor(other, shape, floats, longs);
    }

    /** The same numbers in another shape of the same size. */
    Tensor shaped(int... other) {
        return new Tensor(dtype, other, floats, longs);
    }

    public boolean isReal() {
        return floats != null;
    }

    /** Numbers in all. */
    public int size() {
        return floats == null ? longs.length : floats.length;
    }

    /** Of the first dimension; 1 of a scalar. */
    public int rows() {
        return shape.length == 0 ? 1 : shape[0];
    }

    /** Numbers in one row. */
    public int width() {
        return shape.length < 2 ? 1 : size(Arrays.copyOfRange(shape, 1, shape.length));
    }

    static int size(int[] shape) {
        long size = 1;
        for (int d : shape) {
            size *= d;
            if (d < 0 || size > Integer.MAX_VALUE) {
                throw new WireError("a tensor claims the shape " + Arrays.toString(shape));
            }
        }
        return (int) size;
    }

    int[] shapeOf(int rows) {
        int[] found = shape.clone();
        found[0] = rows;
        return found;
    }

    /** The rows at these positions, in that order. */
    public Tensor take(int[] at) {
        int width = width();
        Tensor found = zeros(dtype, shapeOf(at.length));
        for (int i = 0; i < at.length; i++) {
            found.put(i, this, at[i], width);
        }
        return found;
    }

    /** A row of another tensor over one of this; for makers only. */
    void put(int row, Tensor from, int at, int width) {
        if (floats != null) {
            System.arraycopy(from.floats, at * width, floats, row * width, width);
        } else {
            System.arraycopy(from.longs, at * width, longs, row * width, width);
        }
    }

    /** Rows one under the other. */
    static Tensor join(Tensor first, Tensor second) {
        Tensor found = zeros(first.dtype, first.shapeOf(first.rows() + second.rows()));
        Object into = found.floats == null ? found.longs : found.floats;
        System.arraycopy(first.floats == null ? first.longs : first.floats, 0, into, 0, first.size());
        System.arraycopy(second.floats == null ? second.longs : second.floats, 0, into, first.size(), second.size());
        return found;
    }

    Tensor copy() {
        return new Tensor(dtype, shape, floats == null ? null : floats.clone(), longs == null ? null : longs.clone());
    }

    boolean isFinite() {
        return floats == null || Floats.areFinite(floats);
    }

    // -- as little-endian bytes --------------------------------------------------------------------------------------

    /** Bytes of one number; 0 for a dtype that is not known here. */
    static int bytes(String dtype) {
        switch (dtype) {
            case "int8":
            case "uint8":
            case "bool":
                return 1;
            case "float16":
            case "int16":
                return 2;
            case "float32":
            case "int32":
                return 4;
            case "int64":
                return 8;
            default:
                return 0;
        }
    }

    /** @throws WireError an unknown dtype, or bytes that do not fill the shape. */
    public static Tensor read(String dtype, int[] shape, byte[] data) {
        int width = bytes(dtype);
        if (width == 0) {
            throw new WireError("a tensor has the unknown dtype '" + dtype + "'");
        }
        int size = size(shape);
        if (data.length != (long) size * width) {
            throw new WireError("a tensor's bytes do not fill its shape " + Arrays.toString(shape));
        }
        Tensor found = zeros(dtype, shape);
        if (dtype.equals("float32") || dtype.equals("int64")) { // most of all numbers
            ByteBuffer bytes = ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN);
            if (found.floats != null) {
                bytes.asFloatBuffer().get(found.floats);
            } else {
                bytes.asLongBuffer().get(found.longs);
            }
            return found;
        }
        for (int i = 0; i < size; i++) {
            if (width == 4) {
                found.longs[i] = Bytes.int32(data, 4 * i);
            } else if (width == 2) {
                int bits = data[2 * i] & 255 | data[2 * i + 1] << 8;
                if (found.floats != null) {
                    found.floats[i] = Half.widen(bits & 0xFFFF);
                } else {
                    found.longs[i] = bits;
                }
            } else {
                found.longs[i] = dtype.equals("int8") ? data[i] : data[i] & 255;
            }
        }
        return found;
    }

    public byte[] data() {
        int width = bytes(dtype);
        byte[] found = new byte[size() * width];
        if (dtype.equals("float32") || dtype.equals("int64")) {
            ByteBuffer bytes = ByteBuffer.wrap(found).order(ByteOrder.LITTLE_ENDIAN);
            if (floats != null) {
                bytes.asFloatBuffer().put(floats);
            } else {
                bytes.asLongBuffer().put(longs);
            }
            return found;
        }
        for (int i = 0; i < size(); i++) {
            long bits = floats == null ? longs[i] : Half.narrow(floats[i]);
            for (int k = 0; k < width; k++) {
                found[width * i + k] = (byte) (bits >> 8 * k);
            }
        }
        return found;
    }
}
