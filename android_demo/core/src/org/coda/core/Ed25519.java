package org.coda.core;

import java.math.BigInteger;
import java.util.Arrays;

/**
 * Ed25519 (RFC 8032, section 5.1): Android has it from API 33 on, and this app starts at 26.
 *
 * <p>A number modulo p = 2^255 - 19 is ten limbs of 26 and 25 bits in turn, with signs, so that a product's columns fit
 * a long. The product is written out, without loops: a round makes so few signatures that most of their cost is that of
 * code which no compiler has seen yet. Which point is added never depends on a secret by a branch or an index, but
 * numbers modulo the group's order are BigIntegers, whose time depends on their size: nobody who can time a phone's
 * signatures to nanoseconds is assumed.
 */
public final class Ed25519 {
    private static final BigInteger P = BigInteger.ONE.shiftLeft(255).subtract(BigInteger.valueOf(19));
    private static final BigInteger ORDER =
            BigInteger.ONE.shiftLeft(252).add(new BigInteger("27742317777372353535851937790883648493"));
    private static final int LIMBS = 10;
    private static final int WINDOW = 16;
    private static final long[] ZERO = new long[LIMBS];
    private static final long[] ONE = limbs(BigInteger.ONE);
    private static final BigInteger D_NUMBER =
            new BigInteger("52036cee2b6ffe738cc740797779e89800700a4d4141d8ab75eb4dca135978a3", 16);
    private static final long[] D = limbs(D_NUMBER);
    private static final long[] D2 = limbs(D_NUMBER.shiftLeft(1).mod(P));
    private static final long[] ROOT_OF_MINUS_ONE =
            limbs(new BigInteger("2b8324804fc1df0b2b4d00993dfbd7a72f431806ad2fe478c4ee1b274a0ea0b0", 16));
    private static final long[][][] BASE = multiples(
            limbs(new BigInteger("216936d3cd6e53fec0a4e231fdd6dc5c692cc7609525a7b2c9562d608f25d51a", 16)),
            limbs(new BigInteger("6666666666666666666666666666666666666666666666666666666666666658", 16)));

    private Ed25519() {}

    /** The public key of a 32-byte private one. */
    public static byte[] publicKey(byte[] secret) {
        return encode(multiplyBase(clamped(Bytes.sha512(secret))));
    }

    /**
     * 64 bytes.
     *
     * @param key the public key of the secret: given, because to find it again takes as long as half a signature.
     */
    public static byte[] sign(byte[] secret, byte[] key, byte[] data) {
        byte[] expanded = Bytes.sha512(secret);
        byte[] scalar = clamped(expanded);
        byte[] prefix = Arrays.copyOfRange(expanded, 32, 64);
        BigInteger nonce = number(Bytes.sha512(prefix, data)).mod(ORDER);
        byte[] point = encode(multiplyBase(littleEndian(nonce)));
        BigInteger challenge = number(Bytes.sha512(point, key, data)).mod(ORDER);
        BigInteger answer = challenge.multiply(number(scalar)).add(nonce).mod(ORDER);
        return Bytes.join(point, littleEndian(answer));
    }

    /** Whether the key made this signature over the data; false too for a key or signature of another length. */
    public static boolean verify(byte[] key, byte[] data, byte[] signature) {
        if (key.length != 32 || signature.length != 64) {
            return false;
        }
        byte[] point = Arrays.copyOf(signature, 32);
        byte[] scalar = Arrays.copyOfRange(signature, 32, 64);
        long[][] negated = decodeNegated(key);
        if (number(scalar).compareTo(ORDER) >= 0 || negated == null || isSmall(negated)) {
            return false;
        }
        BigInteger challenge = number(Bytes.sha512(point, key, data)).mod(ORDER);
        long[][][] multiples = multiples(negated[0], negated[1]);
        byte[] times = littleEndian(challenge);
        long[][] found = neutral();
        for (int digit = 63; digit >= 0; digit--) {
            found = twice(twice(twice(twice(found))));
            found = add(found, multiples[digit(times, digit)]);
            found = add(found, BASE[digit(scalar, digit)]);
        }
        return Arrays.equals(encode(found), point);
    }

    private static byte[] clamped(byte[] expanded) {
        byte[] scalar = Arrays.copyOf(expanded, 32);
        scalar[0] &= (byte) 0xF8;
        scalar[31] = (byte) (scalar[31] & 0x7F | 0x40);
        return scalar;
    }

    // -- points, in extended coordinates (X, Y, Z, T): x = X / Z, y = Y / Z, x y = T / Z ------------------------------

    private static long[][] neutral() {
        return new long[][] {ZERO, ONE, ONE, ZERO};
    }

    /** A point as it is added: Y - X, Y + X, 2 Z, 2 d T. */
    private static long[][] addend(long[][] point) {
        return new long[][] {subtract(point[1], point[0]), sum(point[1], point[0]), sum(point[2], point[2]),
            product(point[3], D2)};
    }

    /** The multiples of a point by 0 to 15, each as it is added. */
    private static long[][][] multiples(long[] x, long[] y) {
        long[][] point = {x, y, ONE, product(x, y)};
        long[][][] found = new long[WINDOW][][];
        found[0] = addend(neutral());
        found[1] = addend(point);
        for (int i = 2; i < WINDOW; i++) {
            point = add(point, found[1]);
            found[i] = addend(point);
        }
        return found;
    }

    private static long[][] add(long[][] a, long[][] addend) {
        long[] low = product(subtract(a[1], a[0]), addend[0]);
        long[] high = product(sum(a[1], a[0]), addend[1]);
        long[] depth = product(a[2], addend[2]);
        long[] cross = product(a[3], addend[3]);
        long[] e = subtract(high, low);
        long[] f = subtract(depth, cross);
        long[] g = sum(depth, cross);
        long[] h = sum(high, low);
        return new long[][] {product(e, f), product(g, h), product(f, g), product(e, h)};
    }

    private static long[][] twice(long[][] a) {
        long[] x2 = product(a[0], a[0]);
        long[] y2 = product(a[1], a[1]);
        long[] z2 = product(a[2], a[2]);
        long[] both = sum(a[0], a[1]);
        long[] h = sum(x2, y2);
        long[] e = subtract(h, product(both, both));
        long[] g = subtract(x2, y2);
        long[] f = sum(sum(z2, z2), g);
        return new long[][] {product(e, f), product(g, h), product(f, g), product(e, h)};
    }

    /** Four bits of a little-endian number. */
    private static int digit(byte[] scalar, int at) {
        return scalar[at >> 1] >> 4 * (at & 1) & 15;
    }

    /** A multiple of the base point by a little-endian number of 32 bytes that may be secret. */
    private static long[][] multiplyBase(byte[] scalar) {
        long[][] found = neutral();
        for (int digit = 63; digit >= 0; digit--) {
            found = twice(twice(twice(twice(found))));
            found = add(found, picked(digit(scalar, digit)));
        }
        return found;
    }

    /** One of the base point's multiples, by looking at all of them. */
    private static long[][] picked(int wanted) {
        long[][] found = new long[4][LIMBS];
        for (int i = 0; i < WINDOW; i++) {
            long mask = (long) (i ^ wanted) - 1 >> 63; // all ones for the wanted one
            for (int part = 0; part < 4; part++) {
                long[] from = BASE[i][part];
                long[] into = found[part];
                for (int j = 0; j < LIMBS; j++) {
                    into[j] |= mask & from[j];
                }
            }
        }
        return found;
    }

    private static boolean isSmall(long[][] point) {
        long[][] eightfold = twice(twice(twice(point)));
        return isZero(eightfold[0]);
    }

    private static byte[] encode(long[][] point) {
        long[][] powers = powers(point[2]);
        long[] inverse = product(squared(powers[0], 5), powers[1]); // to the power of p - 2
        byte[] x = canonical(product(point[0], inverse));
        byte[] y = canonical(product(point[1], inverse));
        y[31] |= (byte) ((x[0] & 1) << 7);
        return y;
    }

    /** The point of an encoding with its x negated; null if it is none. */
    private static long[][] decodeNegated(byte[] encoded) {
        byte[] plain = encoded.clone();
        plain[31] &= 0x7F;
        BigInteger number = number(plain);
        if (number.compareTo(P) >= 0) {
            return null;
        }
        long[] y = limbs(number);
        long[] y2 = product(y, y);
        long[] numerator = subtract(y2, ONE);
        long[] denominator = sum(product(y2, D), ONE);
        long[] d3 = product(product(denominator, denominator), denominator);
        long[] d7 = product(product(d3, d3), denominator);
        long[] part = product(numerator, d7);
        long[] root = product(squared(powers(part)[0], 2), part); // to the power of (p - 5) / 8
        long[] x = product(product(numerator, d3), root);
        long[] check = product(denominator, product(x, x));
        if (!isZero(subtract(check, numerator))) {
            x = product(x, ROOT_OF_MINUS_ONE);
            check = product(denominator, product(x, x));
            if (!isZero(subtract(check, numerator))) {
                return null;
            }
        }
        int sign = encoded[31] >> 7 & 1;
        if (isZero(x) && sign == 1) {
            return null;
        }
        if ((canonical(x)[0] & 1) == sign) {
            x = subtract(ZERO, x);
        }
        return new long[][] {x, y, ONE, product(x, y)};
    }

    // -- numbers modulo p --------------------------------------------------------------------------------------------

    private static long[] sum(long[] a, long[] b) {
        long[] found = new long[LIMBS];
        for (int i = 0; i < LIMBS; i++) {
            found[i] = a[i] + b[i];
        }
        return found;
    }

    private static long[] subtract(long[] a, long[] b) {
        long[] found = new long[LIMBS];
        for (int i = 0; i < LIMBS; i++) {
            found[i] = a[i] - b[i];
        }
        return found;
    }

    /**
     * The limbs of a product are below 1.01 * 2^25 in size. Those of its factors may be m and n times as large where m n
     * is at most 40: a column adds up to 172 products of limbs, and 172 * 40 * 2^50 fits a long. Sums and differences
     * here never come to more than 16.
     */
    private static long[] product(long[] a, long[] b) {
        long a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3], a4 = a[4];
        long a5 = a[5], a6 = a[6], a7 = a[7], a8 = a[8], a9 = a[9];
        long b0 = b[0], b1 = b[1], b2 = b[2], b3 = b[3], b4 = b[4];
        long b5 = b[5], b6 = b[6], b7 = b[7], b8 = b[8], b9 = b[9];
        long d1 = 2 * a1, d3 = 2 * a3, d5 = 2 * a5, d7 = 2 * a7, d9 = 2 * a9; // two limbs of 25 bits lack a bit
        long c0 = a0 * b0
                + 19 * (d1 * b9 + a2 * b8 + d3 * b7 + a4 * b6 + d5 * b5 + a6 * b4 + d7 * b3 + a8 * b2 + d9 * b1);
        long c1 = a0 * b1 + a1 * b0
                + 19 * (a2 * b9 + a3 * b8 + a4 * b7 + a5 * b6 + a6 * b5 + a7 * b4 + a8 * b3 + a9 * b2);
        long c2 = a0 * b2 + d1 * b1 + a2 * b0
                + 19 * (d3 * b9 + a4 * b8 + d5 * b7 + a6 * b6 + d7 * b5 + a8 * b4 + d9 * b3);
        long c3 = a0 * b3 + a1 * b2 + a2 * b1 + a3 * b0
                + 19 * (a4 * b9 + a5 * b8 + a6 * b7 + a7 * b6 + a8 * b5 + a9 * b4);
        long c4 = a0 * b4 + d1 * b3 + a2 * b2 + d3 * b1 + a4 * b0
                + 19 * (d5 * b9 + a6 * b8 + d7 * b7 + a8 * b6 + d9 * b5);
        long c5 = a0 * b5 + a1 * b4 + a2 * b3 + a3 * b2 + a4 * b1 + a5 * b0
                + 19 * (a6 * b9 + a7 * b8 + a8 * b7 + a9 * b6);
        long c6 = a0 * b6 + d1 * b5 + a2 * b4 + d3 * b3 + a4 * b2 + d5 * b1 + a6 * b0
                + 19 * (d7 * b9 + a8 * b8 + d9 * b7);
        long c7 = a0 * b7 + a1 * b6 + a2 * b5 + a3 * b4 + a4 * b3 + a5 * b2 + a6 * b1 + a7 * b0
                + 19 * (a8 * b9 + a9 * b8);
        long c8 = a0 * b8 + d1 * b7 + a2 * b6 + d3 * b5 + a4 * b4 + d5 * b3 + a6 * b2 + d7 * b1 + a8 * b0
                + 19 * (d9 * b9);
        long c9 = a0 * b9 + a1 * b8 + a2 * b7 + a3 * b6 + a4 * b5 + a5 * b4 + a6 * b3 + a7 * b2 + a8 * b1 + a9 * b0;
        return carried(c0, c1, c2, c3, c4, c5, c6, c7, c8, c9);
    }

    private static long[] carried(long... c) {
        long over = 0;
        for (int i = 0; i < LIMBS; i++) {
            c[i] += over;
            over = c[i] + (1L << 25 - (i & 1)) >> 26 - (i & 1);
            c[i] -= over << 26 - (i & 1);
        }
        c[0] += 19 * over; // 2^255 = 19 modulo p
        over = c[0] + (1L << 25) >> 26;
        c[0] -= over << 26;
        c[1] += over;
        return c;
    }

    /** Squared so many times. */
    private static long[] squared(long[] a, int times) {
        long[] found = a;
        for (int i = 0; i < times; i++) {
            found = product(found, found);
        }
        return found;
    }

    /** To the powers of 2^250 - 1 and 11, by as few products as it takes. */
    private static long[][] powers(long[] z) {
        long[] z2 = squared(z, 1);
        long[] z9 = product(squared(z2, 2), z);
        long[] z11 = product(z9, z2);
        long[] z5 = product(squared(z11, 1), z9); // 2^5 - 1, and so on
        long[] z10 = product(squared(z5, 5), z5);
        long[] z20 = product(squared(z10, 10), z10);
        long[] z40 = product(squared(z20, 20), z20);
        long[] z50 = product(squared(z40, 10), z10);
        long[] z100 = product(squared(z50, 50), z50);
        long[] z200 = product(squared(z100, 100), z100);
        return new long[][] {product(squared(z200, 50), z50), z11};
    }

    private static boolean isZero(long[] a) {
        for (byte b : canonical(a)) {
            if (b != 0) {
                return false;
            }
        }
        return true;
    }

    /** The lowest bit of a limb. */
    private static int place(int limb) {
        return (51 * limb + 1) / 2;
    }

    private static byte[] canonical(long[] a) {
        BigInteger value = BigInteger.ZERO;
        for (int i = LIMBS - 1; i >= 0; i--) {
            value = value.add(BigInteger.valueOf(a[i]).shiftLeft(place(i)));
        }
        return littleEndian(value.mod(P));
    }

    private static long[] limbs(BigInteger value) {
        long[] found = new long[LIMBS];
        for (int i = 0; i < LIMBS; i++) {
            found[i] = value.shiftRight(place(i)).intValue() & (1 << 26 - (i & 1)) - 1;
        }
        return found;
    }

    private static BigInteger number(byte[] littleEndian) {
        byte[] big = new byte[littleEndian.length];
        for (int i = 0; i < big.length; i++) {
            big[i] = littleEndian[big.length - 1 - i];
        }
        return new BigInteger(1, big);
    }

    private static byte[] littleEndian(BigInteger value) {
        byte[] big = value.toByteArray();
        byte[] found = new byte[32];
        for (int i = 0; i < big.length && i < 32; i++) {
            found[i] = big[big.length - 1 - i];
        }
        return found;
    }
}
