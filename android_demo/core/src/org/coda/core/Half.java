package org.coda.core;

/** IEEE 754 half precision, which neither Java nor Android 8 can convert. */
final class Half {
    private Half() {}

    static float widen(int bits) {
        int sign = (bits & 0x8000) << 16;
        int exponent = bits >> 10 & 31;
        int mantissa = bits & 0x3FF;
        if (exponent == 31) {
            return Float.intBitsToFloat(sign | 0x7F800000 | mantissa << 13);
        }
        if (exponent == 0) {
            float value = mantissa * 0x1p-24f;
            return sign == 0 ? value : -value;
        }
        return Float.intBitsToFloat(sign | exponent + 112 << 23 | mantissa << 13);
    }

    /** To the nearest, ties to even. */
    static int narrow(float value) {
        int bits = Float.floatToRawIntBits(value);
        int sign = bits >>> 16 & 0x8000;
        int size = bits & 0x7FFFFFFF;
        if (size > 0x7F800000) {
            return sign | 0x7E00;
        }
        if (size >= 0x477FF000) { // would round to more than the largest half
            return sign | 0x7C00;
        }
        if (size < 0x38800000) { // subnormal halves are multiples of 2^-24
            return sign | (int) Math.rint(Math.abs((double) value) * 0x1p24);
        }
        int rounded = size + 0xFFF + (size >> 13 & 1);
        return sign | (rounded - 0x38000000) >> 13;
    }
}
