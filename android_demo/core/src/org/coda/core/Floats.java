package org.coda.core;

import java.util.Arrays;

/** Columns of float32, summed in the order in which NumPy sums, so that both sides come to the same bits. */
final class Floats {
    private static final int PAIRWISE = 128;

    private Floats() {}

    static float[] take(float[] numbers, int[] at) {
        float[] found = new float[at.length];
        for (int i = 0; i < at.length; i++) {
            found[i] = numbers[at[i]];
        }
        return found;
    }

    static float[] join(float[] first, float[] second) {
        float[] found = Arrays.copyOf(first, first.length + second.length);
        System.arraycopy(second, 0, found, first.length, second.length);
        return found;
    }

    static float[] filled(int count, float number) {
        float[] found = new float[count];
        Arrays.fill(found, number);
        return found;
    }

    static float sum(float[] numbers) {
        return sum(numbers, 0, numbers.length);
    }

    /** NumPy's pairwise summation. */
    static float sum(float[] numbers, int from, int count) {
        if (count < 8) {
            float sum = 0;
            for (int i = 0; i < count; i++) {
                sum += numbers[from + i];
            }
            return sum;
        }
        if (count > PAIRWISE) {
            int half = count / 2;
            half -= half % 8;
            return sum(numbers, from, half) + sum(numbers, from + half, count - half);
        }
        float[] lanes = Arrays.copyOfRange(numbers, from, from + 8);
        int i = 8;
        for (; i < count - count % 8; i += 8) {
            for (int k = 0; k < 8; k++) {
                lanes[k] += numbers[from + i + k];
            }
        }
        float sum = (lanes[0] + lanes[1] + (lanes[2] + lanes[3])) + (lanes[4] + lanes[5] + (lanes[6] + lanes[7]));
        for (; i < count; i++) {
            sum += numbers[from + i];
        }
        return sum;
    }

    static float mean(float[] numbers) {
        return sum(numbers) / numbers.length;
    }

    static double sum(double[] numbers) {
        return sum(numbers, 0, numbers.length);
    }

    static double sum(double[] numbers, int from, int count) {
        if (count < 8) {
            double sum = 0;
            for (int i = 0; i < count; i++) {
                sum += numbers[from + i];
            }
            return sum;
        }
        if (count > PAIRWISE) {
            int half = count / 2;
            half -= half % 8;
            return sum(numbers, from, half) + sum(numbers, from + half, count - half);
        }
        double[] lanes = Arrays.copyOfRange(numbers, from, from + 8);
        int i = 8;
        for (; i < count - count % 8; i += 8) {
            for (int k = 0; k < 8; k++) {
                lanes[k] += numbers[from + i + k];
            }
        }
        double sum = (lanes[0] + lanes[1] + (lanes[2] + lanes[3])) + (lanes[4] + lanes[5] + (lanes[6] + lanes[7]));
        for (; i < count; i++) {
            sum += numbers[from + i];
        }
        return sum;
    }

    static double mean(double[] numbers) {
        return sum(numbers) / numbers.length;
    }

    static boolean areFinite(float[] numbers) {
        float sum = 0;
        for (float number : numbers) {
            sum += number * 0; // which is 0, or NaN where the number is not finite
        }
        return sum == 0;
    }
}
