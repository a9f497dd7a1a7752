package org.coda.core;

import java.util.Arrays;

/** BLAKE2b of eight bytes, unkeyed (RFC 7693), which frames carry as a checksum. */
final class Blake2b {
    private static final long[] IV = {
        0x6a09e667f3bcc908L, 0xbb67ae8584caa73bL, 0x3c6ef372fe94f82bL, 0xa54ff53a5f1d36f1L,
        0x510e527fade682d1L, 0x9b05688c2b3e6c1fL, 0x1f83d9abfb41bd6bL, 0x5be0cd19137e2179L,
    };
    private static final String[] SIGMA = {
        "0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8",
        "905724afe1bc683d", "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a",
        "6fe9b308c2d714a5", "a2847615fb9e3cd0",
    };
    private static final int BLOCK = 128;
    private static final int SIZE = 8;

    private Blake2b() {}

    static byte[] digest(byte[] data) {
        long[] state = IV.clone();
        state[0] ^= 0x01010000L ^ SIZE;
        int blocks = Math.max(1, (data.length + BLOCK - 1) / BLOCK);
        for (int block = 0; block < blocks; block++) {
            boolean last = block == blocks - 1;
            byte[] padded = Arrays.copyOfRange(data, block * BLOCK, (block + 1) * BLOCK);
            compress(state, padded, last ? data.length : (long) (block + 1) * BLOCK, last);
        }
        byte[] out = new byte[SIZE];
        Bytes.putInt64(out, 0, state[0]);
        return out;
    }

    private static void compress(long[] state, byte[] block, long count, boolean last) {
        long[] m = new long[16];
        for (int i = 0; i < 16; i++) {
            m[i] = Bytes.int64(block, 8 * i);
        }
        long[] v = Arrays.copyOf(state, 16);
        System.arraycopy(IV, 0, v, 8, 8);
        v[12] ^= count;
        if (last) {
            v[14] = ~v[14];
        }
        for (int round = 0; round < 12; round++) {
            String order = SIGMA[round % 10];
            for (int i = 0; i < 8; i++) {
                int a = i % 4;
                int shift = i / 4;
                int b = 4 + (i + shift) % 4;
                int c = 8 + (i + 2 * shift) % 4;
                int d = 12 + (i + 3 * shift) % 4;
                mix(v, a, b, c, d, m[Character.digit(order.charAt(2 * i), 16)],
                        m[Character.digit(order.charAt(2 * i + 1), 16)]);
            }
        }
        for (int i = 0; i < 8; i++) {
            state[i] ^= v[i] ^ v[i + 8];
        }
    }

    private static void mix(long[] v, int a, int b, int c, int d, long x, long y) {
        v[a] += v[b] + x;
        v[d] = Long.rotateRight(v[d] ^ v[a], 32);
        v[c] += v[d];
        v[b] = Long.rotateRight(v[b] ^ v[c], 24);
        v[a] += v[b] + y;
        v[d] = Long.rotateRight(v[d] ^ v[a], 16);
        v[c] += v[d];
        v[b] = Long.rotateRight(v[b] ^ v[c], 63);
    }
}
