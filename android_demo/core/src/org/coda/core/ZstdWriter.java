package org.coda.core;

import java.io.ByteArrayOutputStream;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * Writes zstd frames (RFC 8878) in the plainest way that saves something: repetitions, greedily found, with the format's
 * predefined tables; what is left is not entropy-coded. Enough for a device's few small messages.
 */
public final class ZstdWriter implements Compressor {
    private static final int LEAST = 4;
    private static final int TRIES = 32;
    private static final int HASH_BITS = 14;

    private static final class Sequence {
        final int literals;
        final int length;
        final int offset;

        Sequence(int literals, int length, int offset) {
            this.literals = literals;
            this.length = length;
            this.offset = offset;
        }
    }

    @Override
    public byte[] compress(byte[] plain, int level, byte[] dictionary) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        byte[] magic = new byte[4];
        Bytes.putInt32(magic, 0, Zstd.MAGIC);
        out.write(magic, 0, 4);
        int size = plain.length;
        int width = size < 256 ? 1 : size < 256 + 65536 ? 2 : 4;
        out.write(32 | Integer.numberOfTrailingZeros(width) << 6); // one segment, so no window is stated
        little(out, width == 2 ? size - 256 : size, width);
        byte[] whole = Bytes.join(dictionary, plain);
        int[] chain = new int[whole.length];
        int[] heads = new int[1 << HASH_BITS];
        Arrays.fill(heads, -1);
        for (int i = 0; i < dictionary.length; i++) {
            enter(whole, i, heads, chain);
        }
        int from = dictionary.length;
        do {
            int to = Math.min(whole.length, from + Zstd.BLOCK);
            byte[] block = block(whole, from, to, heads, chain);
            boolean smaller = block.length < to - from;
            little(out, (to == whole.length ? 1 : 0) | (smaller ? 2 : 0) << 1
                    | (smaller ? block.length : to - from) << 3, 3);
            out.write(smaller ? block : whole, smaller ? 0 : from, smaller ? block.length : to - from);
            from = to;
        } while (from < whole.length);
        return out.toByteArray();
    }

    private static void little(ByteArrayOutputStream out, int value, int width) {
        for (int i = 0; i < width; i++) {
            out.write(value >>> 8 * i);
        }
    }

    private static int hash(byte[] data, int at) {
        return Bytes.int32(data, at) * -1640531535 >>> 32 - HASH_BITS;
    }

    private static void enter(byte[] data, int at, int[] heads, int[] chain) {
        if (at + LEAST <= data.length) {
            int hash = hash(data, at);
            chain[at] = heads[hash];
            heads[hash] = at;
        }
    }

    private static byte[] block(byte[] data, int from, int to, int[] heads, int[] chain) {
        ByteArrayOutputStream literals = new ByteArrayOutputStream();
        List<Sequence> sequences = new ArrayList<>();
        int open = from;
        for (int at = from; at < to; ) {
            int best = 0;
            int offset = 0;
            int tries = TRIES;
            for (int candidate = at + LEAST <= to ? heads[hash(data, at)] : -1; candidate >= 0 && tries > 0; tries--) {
                int length = 0;
                while (at + length < to && data[candidate + length] == data[at + length]) {
                    length++;
                }
                if (length > best) {
                    best = length;
                    offset = at - candidate;
                }
                candidate = chain[candidate];
            }
            if (best < LEAST) {
                enter(data, at++, heads, chain);
                continue;
            }
            literals.write(data, open, at - open);
            sequences.add(new Sequence(at - open, best, offset));
            for (int i = 0; i < best; i++) {
                enter(data, at++, heads, chain);
            }
            open = at;
        }
        literals.write(data, open, to - open);
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        int size = literals.size();
        int width = size < 32 ? 1 : size < 4096 ? 2 : 3;
        little(out, width == 1 ? size << 3 : size << 4 | (width == 2 ? 1 : 3) << 2, width);
        out.write(literals.toByteArray(), 0, size);
        count(out, sequences.size());
        if (!sequences.isEmpty()) {
            out.write(0); // all three tables are the predefined ones
            byte[] bits = bits(sequences);
            out.write(bits, 0, bits.length);
        }
        return out.toByteArray();
    }

    private static void count(ByteArrayOutputStream out, int count) {
        if (count < 128) {
            out.write(count);
        } else if (count < 0x7F00) {
            out.write((count >> 8) + 128);
            out.write(count);
        } else {
            out.write(255);
            little(out, count - 0x7F00, 2);
        }
    }

    /** The sequences as a stream of bits, which is read from its end: so the last one is written first. */
    private static byte[] bits(List<Sequence> sequences) {
        Stream out = new Stream();
        Coder lengths = new Coder(Zstd.LENGTHS);
        Coder matches = new Coder(Zstd.MATCHES);
        Coder places = new Coder(Zstd.PLACES);
        for (int i = sequences.size() - 1; i >= 0; i--) {
            Sequence sequence = sequences.get(i);
            int length = code(Zstd.LENGTH_BASE, sequence.literals);
            int match = code(Zstd.MATCH_BASE, sequence.length);
            int stated = sequence.offset + 3; // 1 to 3 stand for offsets of before, which are not made use of
            int place = 31 - Integer.numberOfLeadingZeros(stated);
            places.put(place, out);
            matches.put(match, out);
            lengths.put(length, out);
            out.put(sequence.literals - Zstd.LENGTH_BASE[length], Zstd.LENGTH_BITS[length]);
            out.put(sequence.length - Zstd.MATCH_BASE[match], Zstd.MATCH_BITS[match]);
            out.put(stated - (1 << place), place);
        }
        out.put(matches.state, matches.table.log);
        out.put(places.state, places.table.log);
        out.put(lengths.state, lengths.table.log);
        return out.ended();
    }

    private static int code(int[] base, int value) {
        int at = Arrays.binarySearch(base, value);
        return at >= 0 ? at : -at - 2;
    }

    /** The state of one table, from the end to the start. */
    private static final class Coder {
        final Zstd.Fse table;
        int state = -1;

        Coder(Zstd.Fse table) {
            this.table = table;
        }

        /** Go to the state of that symbol from which the present one follows; what tells that it does is written. */
        void put(int symbol, Stream out) {
            for (int before = 0; before < table.symbol.length; before++) {
                int rest = state - table.base[before];
                boolean leads = state < 0 || rest >= 0 && rest < 1 << table.bits[before];
                if (table.symbol[before] == symbol && leads) {
                    if (state >= 0) {
                        out.put(rest, table.bits[before]);
                    }
                    state = before;
                    return;
                }
            }
            throw new IllegalStateException("no state of symbol " + symbol);
        }
    }

    private static final class Stream {
        private final ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        private long pending;
        private int held;

        void put(int value, int count) {
            pending |= (long) value << held;
            held += count;
            while (held >= 8) {
                bytes.write((int) pending);
                pending >>>= 8;
                held -= 8;
            }
        }

        /** Ends with a mark, so that the reader sees where the bits begin. */
        byte[] ended() {
            put(1, 1);
            if (held > 0) {
                bytes.write((int) pending);
            }
            return bytes.toByteArray();
        }
    }
}
