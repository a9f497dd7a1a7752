package org.coda.core;

import org.coda.core.CodaError.WireError;

import java.io.ByteArrayOutputStream;
import java.util.Arrays;

/** Integer columns in few bytes; {@code docs/wire.md} has the layouts, {@code device_runtime/packing.py} is its twin. */
public final class Packing {
    private static final int FIXED = 0;
    private static final int SPLIT = 2;
    private static final int BYTES = 4;
    private static final int DELTA = 1;
    static final int MOST = 1 << 24;
    private static final int LEVEL = 12;
    private static final int QUICK = 1;
    private static final int FEW = 16;
    private static final byte[] NOTHING = {};

    private Packing() {}

    /** One way to write a column: about how long it is, and what makes it. */
    private static final class Option {
        final int layout;
        final int size;
        final byte[] head;
        final byte[] body;

        Option(int layout, int size, byte[] head, byte[] body) {
            this.layout = layout;
            this.size = size;
            this.head = head;
            this.body = body;
        }
    }

    /** The shortest layout by a quick try of the compressor, the plainer one where two are as short. */
    public static byte[] pack(long[] column, Compressor compressor) {
        if (column.length == 0) {
            return new byte[] {FIXED, 0};
        }
        Option best = best(0, column, NOTHING, compressor);
        if (column.length > 1) {
            long[] steps = new long[column.length - 1];
            for (int i = 0; i < steps.length; i++) {
                steps[i] = column[i + 1] - column[i];
            }
            Option other = best(DELTA, steps, zigzag(column[0]), compressor);
            best = other.size < best.size ? other : best;
        }
        byte[] body = best.body;
        int layout = best.layout & ~DELTA;
        if (layout != FIXED) {
            int packed = layout == SPLIT ? Bytes.int32(body, 0) : body.length;
            byte[] squeezed = compressor.compress(
                    layout == SPLIT ? Arrays.copyOfRange(body, 4, 4 + packed) : body, LEVEL, NOTHING);
            body = layout == SPLIT
                    ? Bytes.join(varint(squeezed.length), squeezed, Arrays.copyOfRange(body, 4 + packed, body.length))
                    : squeezed;
        }
        return Bytes.join(new byte[] {(byte) best.layout}, best.head, body);
    }

    public static byte[] pack(int[] column, Compressor compressor) {
        long[] wide = new long[column.length];
        for (int i = 0; i < wide.length; i++) {
            wide[i] = column[i];
        }
        return pack(wide, compressor);
    }

    private static Option best(int delta, long[] column, byte[] first, Compressor compressor) {
        long base = column[0];
        for (long value : column) {
            base = Math.min(base, value);
        }
        long largest = 0; // of what is left over the base, as unsigned: it wraps where the range exceeds 63 bits
        for (long value : column) {
            if (Bytes.isLess(largest, value - base)) {
                largest = value - base;
            }
        }
        byte[] head = Bytes.join(varint(column.length + delta), first, zigzag(base));
        int width = 64 - Long.numberOfLeadingZeros(largest);
        Bits bits = new Bits();
        for (long value : column) {
            bits.put(value - base, width);
        }
        byte[] plain = Bytes.join(new byte[] {(byte) width}, bits.bytes());
        Option best = new Option(FIXED | delta, plain.length, head, plain);
        if (column.length >= FEW && largest != 0 && largest != -1) {
            byte[] classes = new byte[column.length];
            Bits rests = new Bits();
            for (int i = 0; i < column.length; i++) {
                long raised = column[i] - base + 1;
                classes[i] = (byte) (63 - Long.numberOfLeadingZeros(raised));
                rests.put(raised, classes[i]);
            }
            byte[] tried = compressor.compress(classes, QUICK, NOTHING);
            byte[] rest = rests.bytes();
            if (tried != null && tried.length + varint(tried.length).length + rest.length < best.size) {
                byte[] count = new byte[4];
                Bytes.putInt32(count, 0, classes.length);
                best = new Option(SPLIT | delta, tried.length + varint(tried.length).length + rest.length, head,
                        Bytes.join(count, classes, rest));
            }
        }
        if (column.length >= FEW && largest > 0 && largest < 256) {
            byte[] numbers = new byte[column.length];
            for (int i = 0; i < numbers.length; i++) {
                numbers[i] = (byte) (column[i] - base);
            }
            byte[] tried = compressor.compress(numbers, QUICK, NOTHING);
            if (tried != null && tried.length < best.size) {
                best = new Option(BYTES | delta, tried.length, head, numbers);
            }
        }
        return new Option(best.layout, 1 + head.length + best.size, head, best.body);
    }

    /** @throws WireError the bytes are truncated, longer than they should be, or claim too many values. */
    public static long[] unpack(byte[] data) {
        try {
            return new Reader(data).column();
        } catch (IndexOutOfBoundsException error) {
            throw new WireError("a packed column is truncated");
        }
    }

    /** @throws WireError as for {@link #unpack}, or a number beyond 32 bits. */
    public static int[] unpack32(byte[] data) {
        long[] wide = unpack(data);
        int[] column = new int[wide.length];
        for (int i = 0; i < wide.length; i++) {
            column[i] = (int) wide[i];
            if (column[i] != wide[i]) {
                throw new WireError("a column holds numbers beyond 32 bits");
            }
        }
        return column;
    }

    private static final class Reader {
        private final byte[] data;
        private int at;

        Reader(byte[] data) {
            this.data = data;
        }

        long[] column() {
            int mode = data[at++] & 255;
            long stated = varint();
            if (Bytes.isLess(MOST, stated)) {
                throw new WireError("a column claims more values than the " + MOST + " that are allowed");
            }
            int count = (int) stated;
            if (mode > (BYTES | DELTA)) {
                throw new WireError("a column has the unknown packing mode " + mode);
            }
            if (count == 0) {
                end(at);
                return new long[0];
            }
            boolean steps = (mode & DELTA) != 0;
            long first = steps ? unzigzag(varint()) : 0;
            count -= steps ? 1 : 0;
            long base = unzigzag(varint());
            long[] column = offsets(mode & ~DELTA, count);
            for (int i = 0; i < count; i++) {
                column[i] += base;
            }
            if (!steps) {
                return column;
            }
            long[] sums = new long[count + 1];
            sums[0] = first;
            for (int i = 0; i < count; i++) {
                sums[i + 1] = sums[i] + column[i];
            }
            return sums;
        }

        private long[] offsets(int layout, int count) {
            if (layout == FIXED) {
                int width = data[at++] & 255;
                if (width > 64) {
                    throw new WireError("a packed column claims " + width + " bits a value");
                }
                end(at + ((long) count * width + 7) / 8);
                return bits(count, null, width);
            }
            if (layout == SPLIT) {
                long size = varint();
                if (Bytes.isLess(data.length - at, size)) {
                    throw new WireError("a packed column is truncated");
                }
                byte[] widths = unsqueezed(Arrays.copyOfRange(data, at, at + (int) size), count);
                at += (int) size;
                long total = 0;
                for (byte width : widths) {
                    if (width < 0 || width > 63) {
                        throw new WireError("a packed column claims " + ((width & 255) + 1) + " bits a value");
                    }
                    total += width;
                }
                end(at + (total + 7) / 8);
                long[] found = bits(count, widths, 0);
                for (int i = 0; i < count; i++) {
                    found[i] += (1L << widths[i]) - 1;
                }
                return found;
            }
            byte[] numbers = unsqueezed(Arrays.copyOfRange(data, at, data.length), count);
            long[] found = new long[count];
            for (int i = 0; i < count; i++) {
                found[i] = numbers[i] & 255;
            }
            return found;
        }

        private byte[] unsqueezed(byte[] frame, int count) {
            byte[] whole = Zstd.decompress(frame, count, NOTHING);
            if (whole.length != count) {
                throw new WireError("a packed column's bytes are not those of " + count + " values");
            }
            return whole;
        }

        private long[] bits(int count, byte[] widths, int width) {
            long[] found = new long[count];
            long bit = 8L * at;
            for (int i = 0; i < count; i++) {
                int wide = widths == null ? width : widths[i];
                for (int got = 0; got < wide; ) {
                    int skip = (int) (bit & 7);
                    int take = Math.min(8 - skip, wide - got);
                    found[i] |= (data[(int) (bit >> 3)] & 255L) >> skip << got & (take + got == 64 ? -1L : (1L << got + take) - 1);
                    got += take;
                    bit += take;
                }
            }
            return found;
        }

        private void end(long end) {
            if (data.length < end) {
                throw new WireError("a packed column is truncated");
            }
            if (data.length > end) {
                throw new WireError("a packed column is followed by " + (data.length - end) + " stray bytes");
            }
        }

        private long varint() {
            long value = 0;
            for (int shift = 0; ; shift += 7) {
                if (shift > 63) {
                    throw new WireError("a varint is longer than 64 bits");
                }
                byte next = data[at++];
                value |= (next & 0x7FL) << shift;
                if (next >= 0) {
                    return value;
                }
            }
        }
    }

    private static long unzigzag(long value) {
        return (value & 1) == 0 ? value >>> 1 : -(value >>> 1) - 1;
    }

    private static byte[] zigzag(long value) {
        return varint(value >= 0 ? value << 1 : (-value << 1) - 1);
    }

    private static byte[] varint(long value) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        while ((value & ~0x7FL) != 0) {
            out.write((int) (value & 0x7F | 0x80));
            value >>>= 7;
        }
        out.write((int) value);
        return out.toByteArray();
    }

    /** Numbers one after another, each in so many bits, least significant first. */
    private static final class Bits {
        private final ByteArrayOutputStream out = new ByteArrayOutputStream();
        private int pending;
        private int held;

        void put(long value, int width) {
            for (int done = 0; done < width; ) {
                int take = Math.min(8 - held, width - done);
                pending |= (int) (value >>> done & (1 << take) - 1) << held;
                held += take;
                done += take;
                if (held == 8) {
                    out.write(pending);
                    pending = held = 0;
                }
            }
        }

        byte[] bytes() {
            if (held > 0) {
                out.write(pending);
                pending = held = 0;
            }
            return out.toByteArray();
        }
    }
}
