package org.coda.core;

import java.math.BigInteger;
import java.util.Arrays;

/**
 * Ed25519 (RFC 8032, section 5.1): Android has it from API 33 on, and this app starts at 26.
 *
 * <p>Coordinates are numbers modulo p = 2^255 - 19 in sixteen limbs of 16 bits, so that a product's columns fit a long.
 * Which point is added never depends on a secret by a branch, but numbers modulo the group's order are BigIntegers,
 * whose time depends on their size: nobody who can time a phone's signatures to nanoseconds is assumed.
 */
public final class Ed25519 {
    private static final BigInteger P = BigInteger.ONE.shiftLeft(255).subtract(BigInteger.valueOf(19));
    private static final BigInteger ORDER =
            BigInteger.ONE.shiftLeft(252).add(new BigInteger("27742317777372353535851937790883648493"));
    private static final int LIMBS = 16;
    private static final long[] ONE = limbs(BigInteger.ONE);
    /** Negated, because enjarify, which the tests read the dex with, takes a negative constant of 32 bits for another. */
    private static final BigInteger D_NUMBER =
            BigInteger.valueOf(121665).negate().multiply(BigInteger.valueOf(121666).modInverse(P)).mod(P);
    private static final long[] D = limbs(D_NUMBER);
    private static final long[] D2 = limbs(D_NUMBER.shiftLeft(1).mod(P));
    private static final long[] ROOT_OF_MINUS_ONE =
            limbs(BigInteger.valueOf(2).modPow(P.subtract(BigInteger.ONE).shiftRight(2), P));
    private static final long[][] BASE = base();

    private Ed25519() {}

    /** The public key of a 32-byte private one. */
    public static byte[] publicKey(byte[] secret) {
        return encode(multiply(BASE, clamped(Bytes.sha512(secret))));
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
        byte[] point = encode(multiply(BASE, littleEndian(nonce)));
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
        long[][] found = add(multiply(negated, littleEndian(challenge)), multiply(BASE, scalar));
        return Arrays.equals(encode(found), point);
    }

    private static byte[] clamped(byte[] expanded) {
        byte[] scalar = Arrays.copyOf(expanded, 32);
        scalar[0] &= (byte) 0xF8;
        scalar[31] = (byte) (scalar[31] & 0x7F | 0x40);
        return scalar;
    }

    // -- points, in extended coordinates (X, Y, Z, T): x = X / Z, y = Y / Z, x y = T / Z ------------------------------

    private static long[][] base() {
        byte[] encoded = new byte[32];
        Arrays.fill(encoded, (byte) 0x66);
        encoded[0] = 0x58; // y = 4 / 5, and x is even
        long[][] found = decodeNegated(encoded);
        return new long[][] {subtract(new long[LIMBS], found[0]), found[1], found[2], subtract(new long[LIMBS], found[3])};
    }

    private static long[][] add(long[][] a, long[][] b) {
        long[] low = product(subtract(a[1], a[0]), subtract(b[1], b[0]));
        long[] high = product(sum(a[1], a[0]), sum(b[1], b[0]));
        long[] cross = product(product(a[3], b[3]), D2);
        long[] depth = product(a[2], b[2]);
        depth = sum(depth, depth);
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

    /** A multiple by a little-endian number of 32 bytes: every bit doubles and adds, and picks what it needs. */
    private static long[][] multiply(long[][] point, byte[] scalar) {
        long[][] found = {new long[LIMBS], ONE.clone(), ONE.clone(), new long[LIMBS]};
        for (int bit = 255; bit >= 0; bit--) {
            found = twice(found);
            long[][] added = add(found, point);
            long mask = -(long) (scalar[bit >> 3] >> (bit & 7) & 1);
            for (int i = 0; i < 4; i++) {
                for (int j = 0; j < LIMBS; j++) {
                    found[i][j] ^= mask & (found[i][j] ^ added[i][j]);
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
        long[] inverse = power(point[2], P.subtract(BigInteger.valueOf(2)));
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
        long[] root = power(product(numerator, d7), P.subtract(BigInteger.valueOf(5)).shiftRight(3));
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
            x = subtract(new long[LIMBS], x);
        }
        return new long[][] {x, y, ONE.clone(), product(x, y)};
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

    private static long[] product(long[] a, long[] b) {
        long[] columns = new long[2 * LIMBS - 1];
        for (int i = 0; i < LIMBS; i++) {
            long factor = a[i];
            for (int j = 0; j < LIMBS; j++) {
                columns[i + j] += factor * b[j];
            }
        }
        long[] found = Arrays.copyOf(columns, LIMBS);
        for (int i = LIMBS; i < columns.length; i++) {
            found[i - LIMBS] += 38 * columns[i]; // 2^256 = 38 modulo p
        }
        carry(found);
        carry(found);
        return found;
    }

    private static void carry(long[] a) {
        for (int i = 0; i < LIMBS; i++) {
            long over = a[i] >> 16;
            a[i] -= over << 16;
            if (i + 1 < LIMBS) {
                a[i + 1] += over;
            } else {
                a[0] += 38 * over;
            }
        }
    }

    /** Left to right; the exponents are public. */
    private static long[] power(long[] base, BigInteger exponent) {
        long[] found = ONE.clone();
        for (int bit = exponent.bitLength() - 1; bit >= 0; bit--) {
            found = product(found, found);
            if (exponent.testBit(bit)) {
                found = product(found, base);
            }
        }
        return found;
    }

    private static boolean isZero(long[] a) {
        for (byte b : canonical(a)) {
            if (b != 0) {
                return false;
            }
        }
        return true;
    }

    private static byte[] canonical(long[] a) {
        BigInteger value = BigInteger.ZERO;
        for (int i = LIMBS - 1; i >= 0; i--) {
            value = value.shiftLeft(16).add(BigInteger.valueOf(a[i]));
        }
        return littleEndian(value.mod(P));
    }

    private static long[] limbs(BigInteger value) {
        long[] found = new long[LIMBS];
        for (int i = 0; i < LIMBS; i++) {
            found[i] = value.shiftRight(16 * i).intValue() & 0xFFFF;
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
