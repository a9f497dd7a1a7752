package org.coda.core;

import org.coda.core.CodaError.WireError;

import java.io.ByteArrayOutputStream;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** The part of MessagePack that bodies consist of: nil, integers, strings, bytes, arrays, and maps with string keys. */
final class Msgpack {
    private static final int DEEPEST = 20;

    private final byte[] data;
    private int at;

    private Msgpack(byte[] data) {
        this.data = data;
    }

    static byte[] encode(Object value) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        write(value, out);
        return out.toByteArray();
    }

    private static void write(Object value, ByteArrayOutputStream out) {
        if (value instanceof Integer || value instanceof Long) {
            integer(((Number) value).longValue(), out);
        } else if (value instanceof String) {
            byte[] text = Bytes.utf8((String) value);
            if (text.length < 32) {
                out.write(0xA0 | text.length);
            } else {
                head(out, text.length, 0xD9, 0xDA, 0xDB);
            }
            out.write(text, 0, text.length);
        } else if (value instanceof byte[]) {
            byte[] plain = (byte[]) value;
            head(out, plain.length, 0xC4, 0xC5, 0xC6);
            out.write(plain, 0, plain.length);
        } else if (value instanceof List) {
            List<?> items = (List<?>) value;
            if (items.size() < 16) {
                out.write(0x90 | items.size());
            } else {
                head(out, items.size(), -1, 0xDC, 0xDD);
            }
            for (Object item : items) {
                write(item, out);
            }
        } else if (value instanceof Map) {
            Map<?, ?> members = (Map<?, ?>) value;
            if (members.size() < 16) {
                out.write(0x80 | members.size());
            } else {
                head(out, members.size(), -1, 0xDE, 0xDF);
            }
            for (Map.Entry<?, ?> member : members.entrySet()) {
                write(member.getKey(), out);
                write(member.getValue(), out);
            }
        } else {
            throw new IllegalArgumentException("no MessagePack for " + value);
        }
    }

    private static void head(ByteArrayOutputStream out, int size, int one, int two, int four) {
        if (one >= 0 && size < 256) {
            out.write(one);
            big(out, size, 1);
        } else if (size < 65536) {
            out.write(two);
            big(out, size, 2);
        } else {
            out.write(four);
            big(out, size, 4);
        }
    }

    private static void big(ByteArrayOutputStream out, long value, int width) {
        for (int i = width - 1; i >= 0; i--) {
            out.write((int) (value >> 8 * i));
        }
    }

    private static void integer(long value, ByteArrayOutputStream out) {
        if (value >= -32 && value < 128) {
            out.write((int) value);
            return;
        }
        int width = 8;
        for (int fit : new int[] {4, 2, 1}) {
            boolean fits = value >= 0 ? value < 1L << 8 * fit : value >= -(1L << 8 * fit - 1);
            width = fits ? fit : width;
        }
        out.write((value >= 0 ? 0xCC : 0xD0) + Integer.numberOfTrailingZeros(width));
        big(out, value, width);
    }

    /** @throws WireError not MessagePack of this kind, or more than one value. */
    static Object decode(byte[] data) {
        try {
            Msgpack reader = new Msgpack(data);
            Object value = reader.value(0);
            if (reader.at != data.length) {
                throw new WireError("the frame's body does not decode: something follows its end");
            }
            return value;
        } catch (IndexOutOfBoundsException error) {
            throw new WireError("the frame's body does not decode: it is truncated");
        }
    }

    private Object value(int depth) {
        if (depth > DEEPEST) {
            throw new WireError("the frame's body does not decode: it is nested too deeply");
        }
        int kind = data[at++] & 255;
        if (kind < 0x80 || kind >= 0xE0) {
            return (long) (byte) kind;
        }
        if (kind < 0x90) {
            return map(kind & 15, depth);
        }
        if (kind < 0xA0) {
            return list(kind & 15, depth);
        }
        if (kind < 0xC0) {
            return Bytes.text(take(kind & 31));
        }
        switch (kind) {
            case 0xC0:
                return null;
            case 0xC4:
            case 0xC5:
            case 0xC6:
                return take(big(1 << kind - 0xC4));
            case 0xCC:
            case 0xCD:
            case 0xCE:
            case 0xCF:
                return big(1 << kind - 0xCC);
            case 0xD0:
                return (long) (byte) big(1);
            case 0xD1:
                return (long) (short) big(2);
            case 0xD2:
                return (long) (int) big(4);
            case 0xD3:
                return big(8);
            case 0xD9:
            case 0xDA:
            case 0xDB:
                return Bytes.text(take(big(1 << kind - 0xD9)));
            case 0xDC:
            case 0xDD:
                return list(big(kind == 0xDC ? 2 : 4), depth);
            case 0xDE:
            case 0xDF:
                return map(big(kind == 0xDE ? 2 : 4), depth);
            default:
                throw new WireError("the frame's body does not decode: it has a value of kind " + kind);
        }
    }

    private long big(int width) {
        long value = 0;
        for (int i = 0; i < width; i++) {
            value = value << 8 | data[at++] & 255;
        }
        return value;
    }

    private byte[] take(long size) {
        if (size > data.length - at) {
            throw new WireError("the frame's body does not decode: it is truncated");
        }
        byte[] found = Arrays.copyOfRange(data, at, at + (int) size);
        at += (int) size;
        return found;
    }

    private List<Object> list(long size, int depth) {
        List<Object> items = new ArrayList<>();
        for (long i = 0; i < size; i++) {
            items.add(value(depth + 1));
        }
        return items;
    }

    private Map<String, Object> map(long size, int depth) {
        Map<String, Object> members = new LinkedHashMap<>();
        for (long i = 0; i < size; i++) {
            Object name = value(depth + 1);
            if (!(name instanceof String)) {
                throw new WireError("the frame's body does not decode: a name is not a string");
            }
            members.put((String) name, value(depth + 1));
        }
        return members;
    }
}
