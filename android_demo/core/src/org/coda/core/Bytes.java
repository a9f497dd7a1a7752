package org.coda.core;

import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Comparator;

/** Bytes as text and numbers. Multi-byte numbers are little-endian. */
public final class Bytes {
    private static final char[] HEX = "0123456789abcdef".toCharArray();

    /** Texts by their characters, as Python and Rust order them; Java's own order is by halves of surrogate pairs. */
    static final Comparator<String> BY_CHARACTER = new Comparator<String>() {
        @Override
        public int compare(String a, String b) {
            byte[] one = utf8(a);
            byte[] other = utf8(b);
            for (int i = 0; i < Math.min(one.length, other.length); i++) {
                if (one[i] != other[i]) {
                    return (one[i] & 255) - (other[i] & 255);
                }
            }
            return one.length - other.length;
        }
    };

    private Bytes() {}

    public static byte[] utf8(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    public static String text(byte[] utf8) {
        return new String(utf8, StandardCharsets.UTF_8);
    }

    public static String hex(byte[] data) {
        char[] out = new char[2 * data.length];
        for (int i = 0; i < data.length; i++) {
            out[2 * i] = HEX[data[i] >> 4 & 15];
            out[2 * i + 1] = HEX[data[i] & 15];
        }
        return new String(out);
    }

    /** Null where the text is not an even number of hex digits. */
    public static byte[] unhex(String text) {
        if (text.length() % 2 != 0) {
            return null;
        }
        byte[] out = new byte[text.length() / 2];
        for (int i = 0; i < out.length; i++) {
            int high = digit(text.charAt(2 * i));
            int low = digit(text.charAt(2 * i + 1));
            if (high < 0 || low < 0) {
                return null;
            }
            out[i] = (byte) (high << 4 | low);
        }
        return out;
    }

    private static int digit(char c) {
        return c < 128 ? Character.digit(c, 16) : -1;
    }

    public static byte[] sha256(byte[]... parts) {
        return digest("SHA-256", parts);
    }

    public static byte[] sha512(byte[]... parts) {
        return digest("SHA-512", parts);
    }

    private static byte[] digest(String algorithm, byte[]... parts) {
        try {
            MessageDigest digest = MessageDigest.getInstance(algorithm);
            for (byte[] part : parts) {
                digest.update(part);
            }
            return digest.digest();
        } catch (NoSuchAlgorithmException error) {
            throw new AssertionError(error); // every Java platform and every Android has both
        }
    }

    public static byte[] join(byte[]... parts) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        for (byte[] part : parts) {
            out.write(part, 0, part.length);
        }
        return out.toByteArray();
    }

    /** Whether a is less than b, both without a sign; Long.compareUnsigned is not in the API that the app is built on. */
    static boolean isLess(long a, long b) {
        return a + Long.MIN_VALUE < b + Long.MIN_VALUE;
    }

    public static int int32(byte[] data, int at) {
        return data[at] & 255 | (data[at + 1] & 255) << 8 | (data[at + 2] & 255) << 16 | data[at + 3] << 24;
    }

    public static long int64(byte[] data, int at) {
        return int32(data, at) & 0xFFFFFFFFL | (long) int32(data, at + 4) << 32;
    }

    public static void putInt32(byte[] data, int at, int value) {
        for (int i = 0; i < 4; i++) {
            data[at + i] = (byte) (value >>> 8 * i);
        }
    }

    public static void putInt64(byte[] data, int at, long value) {
        for (int i = 0; i < 8; i++) {
            data[at + i] = (byte) (value >>> 8 * i);
        }
    }

    public static byte[] of(float[] values) {
        byte[] data = new byte[4 * values.length];
        ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().put(values);
        return data;
    }

    /** The float32 numbers that fill these bytes, whose count must be a multiple of four. */
    public static float[] floats(byte[] data) {
        float[] values = new float[data.length / 4];
        ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(values);
        return values;
    }
}
