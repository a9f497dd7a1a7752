package org.coda.core;

import org.coda.core.CodaError.WireError;

import java.util.Arrays;

/**
 * Reads zstd frames (RFC 8878). Android has no zstd, and what Debian packages for Java is a binding of a library that
 * is built for desktops; a reader in Java takes 12 kB. Frames must state their size, as all of ours do.
 */
public final class Zstd {
    static final int MAGIC = 0xFD2FB528;
    static final int BLOCK = 128 << 10;
    static final int[] LENGTH_BASE = {
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22, 24, 28, 32, 40, 48, 64, 128, 256, 512,
        1024, 2048, 4096, 8192, 16384, 32768, 65536,
    };
    static final int[] LENGTH_BITS = {
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
        16,
    };
    static final int[] MATCH_BASE = {
        3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32,
        33, 34, 35, 37, 39, 41, 43, 47, 51, 59, 67, 83, 99, 131, 259, 515, 1027, 2051, 4099, 8195, 16387, 32771, 65539,
    };
    static final int[] MATCH_BITS = {
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2,
        2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
    };
    private static final short[] LENGTH_DEFAULT = {
        4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1,
    };
    private static final short[] MATCH_DEFAULT = {
        1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
    };
    private static final short[] OFFSET_DEFAULT = {
        1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1,
    };

    /** The format's predefined tables: of lengths of literals, of matches, and of offsets. */
    static final Fse LENGTHS = new Fse(LENGTH_DEFAULT, LENGTH_DEFAULT.length, 6);
    static final Fse MATCHES = new Fse(MATCH_DEFAULT, MATCH_DEFAULT.length, 6);
    static final Fse PLACES = new Fse(OFFSET_DEFAULT, OFFSET_DEFAULT.length, 5);

    private final byte[] in;
    private final byte[] out;
    private final int dictionary;
    private int at;
    private int done;
    private int[] offsets = {1, 4, 8};
    private Fse lengths;
    private Fse matches;
    private Fse places;
    private Huffman huffman;

    private Zstd(byte[] in, int at, int size, byte[] dictionary) {
        this.in = in;
        this.at = at;
        this.dictionary = dictionary.length;
        this.out = Arrays.copyOf(dictionary, dictionary.length + size);
        this.done = dictionary.length;
    }

    /**
     * @param most bytes of the result, at most.
     * @param dictionary what matches may reach back into; empty for none.
     * @throws WireError not one whole zstd frame that states its size, or a larger one.
     */
    public static byte[] decompress(byte[] data, int most, byte[] dictionary) {
        try {
            if (data.length < 6 || Bytes.int32(data, 0) != MAGIC) {
                throw new WireError("these are not bytes of zstd");
            }
            int head = data[4] & 255;
            boolean single = (head & 32) != 0;
            int at = 5 + (single ? 0 : 1) + (new int[] {0, 1, 2, 4})[head & 3];
            int width = (new int[] {single ? 1 : 0, 2, 4, 8})[head >> 6];
            if (width == 0 || (head & 8) != 0) {
                throw new WireError("the zstd frame does not state its size");
            }
            long size = little(data, at, width) + (width == 2 ? 256 : 0);
            if (size < 0 || size > most) {
                throw new WireError("the zstd frame's content would take more than the " + most
                        + " bytes that are allowed");
            }
            Zstd frame = new Zstd(data, at + width, (int) size, dictionary);
            frame.blocks();
            int checksum = (head & 4) != 0 ? 4 : 0; // an xxHash, which nothing of ours writes: our frames carry BLAKE2b
            if (frame.at + checksum != data.length || frame.done != frame.out.length) {
                throw new WireError("the zstd frame is not of the size that it states");
            }
            return Arrays.copyOfRange(frame.out, dictionary.length, frame.out.length);
        } catch (IndexOutOfBoundsException error) {
            throw new WireError("the zstd frame is damaged or truncated");
        }
    }

    private static long little(byte[] data, int at, int width) {
        long value = 0;
        for (int i = 0; i < width; i++) {
            value |= (data[at + i] & 255L) << 8 * i;
        }
        return value;
    }

    private static WireError damaged(String what) {
        return new WireError("the zstd frame is damaged: " + what);
    }

    private void blocks() {
        boolean last = false;
        while (!last) {
            int head = (int) little(in, at, 3);
            at += 3;
            last = (head & 1) != 0;
            int size = head >> 3;
            if (size > BLOCK) {
                throw damaged("a block is too large");
            }
            switch (head >> 1 & 3) {
                case 0:
                    System.arraycopy(in, at, out, done, size);
                    at += size;
                    done += size;
                    break;
                case 1:
                    Arrays.fill(out, done, done + size, in[at++]);
                    done += size;
                    break;
                case 2:
                    if (size > in.length - at) {
                        throw damaged("a block ends too early");
                    }
                    compressed(at + size);
                    break;
                default:
                    throw damaged("a block of unknown type");
            }
        }
    }

    private void compressed(int end) {
        byte[] literals = literals(end);
        int first = in[at++] & 255;
        int count = first;
        if (first > 127) {
            count = first < 255 ? (first - 128 << 8) + (in[at] & 255) : (int) little(in, at, 2) + 0x7F00;
            at += first < 255 ? 1 : 2;
        }
        int from = 0;
        if (count > 0) {
            int modes = in[at++] & 255;
            if ((modes & 3) != 0) {
                throw damaged("reserved bits are set");
            }
            lengths = table(modes >> 6, lengths, LENGTHS, 9, 35);
            places = table(modes >> 4 & 3, places, PLACES, 8, 31);
            matches = table(modes >> 2 & 3, matches, MATCHES, 9, 52);
            from = sequences(literals, count, end);
        }
        System.arraycopy(literals, from, out, done, literals.length - from);
        done += literals.length - from;
        at = end;
    }

    private int sequences(byte[] literals, int count, int end) {
        Bits bits = new Bits(in, at, end);
        int length = bits.read(lengths.log);
        int place = bits.read(places.log);
        int match = bits.read(matches.log);
        int from = 0;
        for (int i = 0; i < count; i++) {
            int placeCode = places.symbol[place];
            int matchCode = matches.symbol[match];
            int lengthCode = lengths.symbol[length];
            if (placeCode > 30) {
                throw damaged("an offset is too large");
            }
            int stated = (1 << placeCode) + bits.read(placeCode);
            int copied = MATCH_BASE[matchCode] + bits.read(MATCH_BITS[matchCode]);
            int literal = LENGTH_BASE[lengthCode] + bits.read(LENGTH_BITS[lengthCode]);
            int offset = offset(stated, literal);
            System.arraycopy(literals, from, out, done, literal);
            from += literal;
            done += literal;
            if (offset <= 0 || offset > done || done + copied > out.length) {
                throw damaged("a match reaches out of the content");
            }
            for (int k = 0; k < copied; k++, done++) {
                out[done] = out[done - offset];
            }
            if (i + 1 < count) {
                length = lengths.next(length, bits);
                match = matches.next(match, bits);
                place = places.next(place, bits);
            }
        }
        if (bits.left != 0) {
            throw damaged("sequences do not end where they should");
        }
        return from;
    }

    private int offset(int stated, int literal) {
        int found;
        if (stated > 3) {
            found = stated - 3;
            offsets = new int[] {found, offsets[0], offsets[1]};
            return found;
        }
        int which = stated - 1 + (literal == 0 ? 1 : 0);
        found = which == 3 ? offsets[0] - 1 : offsets[which];
        if (which == 1) {
            offsets = new int[] {found, offsets[0], offsets[2]};
        } else if (which > 1) {
            offsets = new int[] {found, offsets[0], offsets[1]};
        }
        return found;
    }

    private Fse table(int mode, Fse before, Fse usual, int mostLog, int mostSymbol) {
        switch (mode) {
            case 0:
                return usual;
            case 1:
                int symbol = in[at++] & 255;
                if (symbol > mostSymbol) {
                    throw damaged("an unknown code");
                }
                return new Fse(symbol);
            case 2:
                Counts counts = new Counts(in, at, mostLog, mostSymbol);
                at = counts.end;
                return new Fse(counts.of, counts.symbols, counts.log);
            default:
                if (before == null) {
                    throw damaged("it repeats a table that was never given");
                }
                return before;
        }
    }

    private byte[] literals(int end) {
        int head = in[at] & 255;
        int type = head & 3;
        int format = head >> 2 & 3;
        if (type < 2) {
            int width = (format & 1) == 0 ? 1 : format == 1 ? 2 : 3;
            int size = (int) little(in, at, width) >> (width == 1 ? 3 : 4);
            at += width;
            check(size);
            byte[] found = new byte[size];
            if (type == 0) {
                System.arraycopy(in, at, found, 0, size);
                at += size;
            } else {
                Arrays.fill(found, in[at++]);
            }
            return found;
        }
        int width = format < 2 ? 3 : format + 2;
        int bits = format < 2 ? 10 : format == 2 ? 14 : 18;
        long sizes = little(in, at, width) >> 4;
        int size = (int) (sizes & (1 << bits) - 1);
        int packed = (int) (sizes >> bits);
        at += width;
        check(size);
        int stop = at + packed;
        if (stop > end) {
            throw damaged("literals end too late");
        }
        if (type == 2) {
            huffman = new Huffman(in, at, stop);
            at = huffman.end;
        } else if (huffman == null) {
            throw damaged("it repeats a code that was never given");
        }
        byte[] found = new byte[size];
        if (format == 0) {
            huffman.decode(in, at, stop, found, 0, size);
        } else {
            int part = (size + 3) / 4;
            int start = at + 6;
            for (int i = 0; i < 4; i++) {
                int next = i < 3 ? start + (int) little(in, at + 2 * i, 2) : stop;
                if (next > stop) {
                    throw damaged("a stream of literals ends too late");
                }
                huffman.decode(in, start, next, found, Math.min(size, i * part), Math.min(size, (i + 1) * part));
                start = next;
            }
        }
        at = stop;
        return found;
    }

    private void check(int size) {
        if (size > BLOCK) {
            throw damaged("it has too many literals");
        }
    }

    /** Bits read from the end of a range of bytes to its start; the highest bit of the last byte is a mark. */
    private static final class Bits {
        private final byte[] data;
        private final int start;
        /** Bits that have not been read; below zero where more were asked for, which read as zeros. */
        long left;

        Bits(byte[] data, int start, int end) {
            this.data = data;
            this.start = start;
            if (end <= start || data[end - 1] == 0) {
                throw damaged("a stream of bits has no end");
            }
            left = 8L * (end - start) - Integer.numberOfLeadingZeros(data[end - 1] & 255) + 23;
        }

        int read(int count) {
            left -= count;
            return peek(left, count);
        }

        int peek(long from, int count) {
            if (count == 0 || from + count <= 0) {
                return 0;
            }
            if (from < 0) {
                return peek(0, (int) (count + from)) << -from;
            }
            long value = 0;
            int low = (int) (from >> 3);
            int high = (int) (from + count - 1 >> 3);
            for (int i = high; i >= low; i--) {
                value = value << 8 | data[start + i] & 255;
            }
            return (int) (value >> (from & 7) & (1L << count) - 1);
        }
    }

    /** The counts of symbols that describe an FSE table, as the format packs them. */
    private static final class Counts {
        final short[] of = new short[256];
        int symbols;
        final int log;
        final int end;

        Counts(byte[] data, int at, int mostLog, int mostSymbol) {
            long bit = 8L * at;
            log = (int) take(data, bit, 4) + 5;
            bit += 4;
            if (log > mostLog) {
                throw damaged("a table is too large");
            }
            int remaining = 1 << log;
            while (remaining > 0 && symbols <= mostSymbol) {
                int width = 32 - Integer.numberOfLeadingZeros(remaining + 1);
                int value = (int) take(data, bit, width);
                int low = (1 << width - 1) - 1;
                int threshold = (1 << width) - 1 - (remaining + 1);
                if ((value & low) < threshold) {
                    bit += width - 1;
                    value &= low;
                } else {
                    bit += width;
                    if (value > low) {
                        value -= threshold;
                    }
                }
                short count = (short) (value - 1);
                remaining -= Math.abs(count);
                of[symbols++] = count;
                int repeat = count == 0 ? 3 : 0;
                while (repeat == 3) {
                    repeat = (int) take(data, bit, 2);
                    bit += 2;
                    symbols += repeat;
                }
            }
            if (remaining != 0 || symbols > mostSymbol + 1) {
                throw damaged("a table's counts do not add up");
            }
            end = (int) (bit + 7 >> 3);
        }

        private static long take(byte[] data, long bit, int count) {
            int low = (int) (bit >> 3);
            if (low >= data.length) {
                throw damaged("a table ends too early");
            }
            long value = 0;
            for (int i = Math.min(data.length - 1, (int) (bit + count - 1 >> 3)); i >= low; i--) {
                value = value << 8 | data[i] & 255;
            }
            return value >> (bit & 7) & (1L << count) - 1;
        }
    }

    /** A table of finite state entropy: for each state its symbol, and what the next state is made of. */
    static final class Fse {
        final int log;
        final int[] symbol;
        final int[] bits;
        final int[] base;

        Fse(int only) {
            log = 0;
            symbol = new int[] {only};
            bits = new int[1];
            base = new int[1];
        }

        Fse(short[] counts, int symbols, int log) {
            this.log = log;
            int size = 1 << log;
            symbol = new int[size];
            bits = new int[size];
            base = new int[size];
            int[] next = new int[symbols];
            int high = size;
            for (int s = 0; s < symbols; s++) {
                next[s] = Math.abs(counts[s]);
                if (counts[s] == -1) {
                    symbol[--high] = s;
                }
            }
            int place = 0;
            int step = (size >> 1) + (size >> 3) + 3;
            for (int s = 0; s < symbols; s++) {
                for (int i = 0; i < counts[s]; i++) {
                    symbol[place] = s;
                    do {
                        place = place + step & size - 1;
                    } while (place >= high);
                }
            }
            for (int state = 0; state < size; state++) {
                int number = next[symbol[state]]++;
                bits[state] = log - (31 - Integer.numberOfLeadingZeros(number));
                base[state] = (number << bits[state]) - size;
            }
        }

        int next(int state, Bits from) {
            return base[state] + from.read(bits[state]);
        }
    }

    /** A code of literals. */
    private static final class Huffman {
        final int end;
        private final int most;
        private final byte[] symbol;
        private final byte[] bits;

        Huffman(byte[] data, int at, int stop) {
            int head = data[at++] & 255;
            int[] weights = new int[256];
            int count;
            if (head < 128) {
                end = at + head;
                if (end > stop) {
                    throw damaged("a code ends too late");
                }
                count = packedWeights(data, at, end, weights);
            } else {
                count = head - 127;
                end = at + (count + 1) / 2;
                for (int i = 0; i < count; i++) {
                    weights[i] = data[at + i / 2] >> (i % 2 == 0 ? 4 : 0) & 15;
                }
            }
            int total = 0;
            for (int i = 0; i < count; i++) {
                if (weights[i] > 11) {
                    throw damaged("a code is too long");
                }
                total += weights[i] > 0 ? 1 << weights[i] - 1 : 0;
            }
            if (total == 0) {
                throw damaged("a code has no symbols");
            }
            most = 32 - Integer.numberOfLeadingZeros(total);
            int rest = (1 << most) - total;
            if (most > 11 || Integer.bitCount(rest) != 1) {
                throw damaged("a code is not complete");
            }
            weights[count++] = 32 - Integer.numberOfLeadingZeros(rest);
            symbol = new byte[1 << most];
            bits = new byte[1 << most];
            int place = 0;
            for (int weight = 1; weight <= most; weight++) {
                for (int s = 0; s < count; s++) {
                    if (weights[s] == weight) {
                        int span = 1 << weight - 1;
                        Arrays.fill(symbol, place, place + span, (byte) s);
                        Arrays.fill(bits, place, place + span, (byte) (most + 1 - weight));
                        place += span;
                    }
                }
            }
        }

        private static int packedWeights(byte[] data, int at, int end, int[] weights) {
            Counts counts = new Counts(data, at, 6, 255);
            Fse table = new Fse(counts.of, counts.symbols, counts.log);
            Bits bits = new Bits(data, counts.end, end);
            int one = bits.read(table.log);
            int other = bits.read(table.log);
            int count = 0;
            while (true) { // two states take turns; the one whose next would read past the start is not the last
                if (count > 253) {
                    throw damaged("a code has too many symbols");
                }
                weights[count++] = table.symbol[one];
                one = table.next(one, bits);
                if (bits.left < 0) {
                    weights[count++] = table.symbol[other];
                    return count;
                }
                int swapped = one;
                one = other;
                other = swapped;
            }
        }

        void decode(byte[] data, int start, int stop, byte[] out, int from, int to) {
            Bits stream = new Bits(data, start, stop);
            for (int i = from; i < to; i++) {
                int found = stream.peek(stream.left - most, most);
                out[i] = symbol[found];
                stream.left -= bits[found];
            }
            if (stream.left != 0) {
                throw damaged("literals do not end where they should");
            }
        }
    }
}
