package org.coda.core;

/**
 * The random numbers that NumPy's {@code default_rng(seed)} draws: PCG-XSL-RR-128/64 (O'Neill, 2014) seeded by a
 * SeedSequence, so that a round on the phone draws what the Python runtime draws with the same seed.
 */
public final class Pcg64 {
    private static final long MULTIPLIER_HIGH = 0x2360ED051FC65DA4L;
    private static final long MULTIPLIER_LOW = 0x4385DF649FCCF645L;
    private static final int POOL = 4;
    private static final int INIT_A = 0x43b0d7e5;
    private static final int MULT_A = 0x931e8875;
    private static final int INIT_B = 0x8b51f9dd;
    private static final int MULT_B = 0x58f38ded;
    private static final int MIX_LEFT = 0xca01f9dd;
    private static final int MIX_RIGHT = 0x4973f715;

    private long high;
    private long low;
    private final long stepHigh;
    private final long stepLow;
    private boolean hasHalf;
    private int half;
    private int hash;

    /** @param entropy whole numbers of at least 0. */
    public Pcg64(long... entropy) {
        long[] words = state(entropy);
        stepHigh = words[2] << 1 | words[3] >>> 63;
        stepLow = words[3] << 1 | 1;
        step();
        add(words[0], words[1]);
        step();
    }

    private long[] state(long[] entropy) {
        int count = 0;
        int[] given = new int[2 * entropy.length];
        for (long number : entropy) {
            given[count++] = (int) number;
            if (number >>> 32 != 0) {
                given[count++] = (int) (number >>> 32);
            }
        }
        hash = INIT_A;
        int[] pool = new int[POOL];
        for (int i = 0; i < POOL; i++) {
            pool[i] = hashed(i < count ? given[i] : 0);
        }
        for (int from = 0; from < POOL; from++) {
            for (int to = 0; to < POOL; to++) {
                if (from != to) {
                    pool[to] = mixed(pool[to], hashed(pool[from]));
                }
            }
        }
        for (int from = POOL; from < count; from++) {
            for (int to = 0; to < POOL; to++) {
                pool[to] = mixed(pool[to], hashed(given[from]));
            }
        }
        int[] words = new int[8];
        int constant = INIT_B;
        for (int i = 0; i < words.length; i++) {
            int value = pool[i % POOL] ^ constant;
            constant *= MULT_B;
            value *= constant;
            words[i] = value ^ value >>> 16;
        }
        long[] found = new long[4];
        for (int i = 0; i < 4; i++) {
            found[i] = words[2 * i] & 0xFFFFFFFFL | (long) words[2 * i + 1] << 32;
        }
        return found;
    }

    private int hashed(int value) {
        value ^= hash;
        hash *= MULT_A;
        value *= hash;
        return value ^ value >>> 16;
    }

    private static int mixed(int x, int y) {
        int found = MIX_LEFT * x - MIX_RIGHT * y;
        return found ^ found >>> 16;
    }

    private void step() {
        long carried = high(low, MULTIPLIER_LOW) + high * MULTIPLIER_LOW + low * MULTIPLIER_HIGH;
        low *= MULTIPLIER_LOW;
        high = carried;
        add(stepHigh, stepLow);
    }

    private void add(long otherHigh, long otherLow) {
        long sum = low + otherLow;
        high += otherHigh + (Bytes.isLess(sum, low) ? 1 : 0);
        low = sum;
    }

    /** The upper half of an unsigned product. */
    private static long high(long a, long b) {
        long lowA = a & 0xFFFFFFFFL;
        long highA = a >>> 32;
        long lowB = b & 0xFFFFFFFFL;
        long highB = b >>> 32;
        long middle = highA * lowB + (lowA * lowB >>> 32);
        long other = lowA * highB + (middle & 0xFFFFFFFFL);
        return highA * highB + (middle >>> 32) + (other >>> 32);
    }

    long next64() {
        step();
        return Long.rotateRight(high ^ low, (int) (high >>> 58));
    }

    private int next32() {
        if (hasHalf) {
            hasHalf = false;
            return half;
        }
        long both = next64();
        hasHalf = true;
        half = (int) (both >>> 32);
        return (int) both;
    }

    /** {@code Generator.random()}. */
    public double uniform() {
        return (next64() >>> 11) * 0x1p-53;
    }

    /** {@code Generator.integers(bound)} (Lemire, 2019). */
    public int below(int bound) {
        if (bound == 1) {
            return 0;
        }
        long product = (next32() & 0xFFFFFFFFL) * bound;
        if ((product & 0xFFFFFFFFL) < bound) {
            long threshold = (0xFFFFFFFFL - (bound - 1)) % bound;
            while ((product & 0xFFFFFFFFL) < threshold) {
                product = (next32() & 0xFFFFFFFFL) * bound;
            }
        }
        return (int) (product >>> 32);
    }

    /** {@code Generator.permutation(count)}, which draws by masks and rejection. */
    public int[] permutation(int count) {
        int[] found = Ints.range(0, count);
        for (int i = count - 1; i > 0; i--) {
            int mask = -1 >>> Integer.numberOfLeadingZeros(i);
            int j = next32() & mask;
            while (j > i) {
                j = next32() & mask;
            }
            int held = found[j];
            found[j] = found[i];
            found[i] = held;
        }
        return found;
    }

    /** {@code Generator.choice(len(p), p=p)}. */
    public int choice(double[] p) {
        double[] cumulated = new double[p.length];
        double sum = 0;
        for (int i = 0; i < p.length; i++) {
            sum += p[i];
            cumulated[i] = sum;
        }
        double drawn = uniform();
        for (int i = 0; i < p.length; i++) {
            if (cumulated[i] / sum > drawn) {
                return i;
            }
        }
        return p.length - 1;
    }
}
