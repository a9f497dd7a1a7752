package org.coda.core;

import java.util.Arrays;

/** Columns of whole numbers. */
final class Ints {
    private Ints() {}

    static int[] join(int[] first, int[] second) {
        int[] found = Arrays.copyOf(first, first.length + second.length);
        System.arraycopy(second, 0, found, first.length, second.length);
        return found;
    }

    /** The distinct numbers, ascending. */
    static int[] distinct(int[] numbers) {
        int[] sorted = numbers.clone();
        Arrays.sort(sorted);
        int count = 0;
        for (int i = 0; i < sorted.length; i++) {
            if (i == 0 || sorted[i] != sorted[i - 1]) {
                sorted[count++] = sorted[i];
            }
        }
        return Arrays.copyOf(sorted, count);
    }

    /** Where each number stands in an ascending list that has them all. */
    static int[] positions(int[] numbers, int[] ascending) {
        int[] found = new int[numbers.length];
        for (int i = 0; i < found.length; i++) {
            found[i] = Arrays.binarySearch(ascending, numbers[i]);
        }
        return found;
    }

    static boolean has(int[] ascending, int number) {
        return Arrays.binarySearch(ascending, number) >= 0;
    }

    static int[] range(int from, int to) {
        int[] found = new int[to - from];
        for (int i = 0; i < found.length; i++) {
            found[i] = from + i;
        }
        return found;
    }

    static int[] of(long[] wide) {
        int[] found = new int[wide.length];
        for (int i = 0; i < found.length; i++) {
            found[i] = (int) wide[i];
        }
        return found;
    }

    static long[] wide(int[] numbers) {
        long[] found = new long[numbers.length];
        for (int i = 0; i < found.length; i++) {
            found[i] = numbers[i];
        }
        return found;
    }

    static int[] filled(int count, int number) {
        int[] found = new int[count];
        Arrays.fill(found, number);
        return found;
    }
}
