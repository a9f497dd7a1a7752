package org.coda.core;

import org.coda.core.CodaError.WireError;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Files of named tensors, as the safetensors library reads and writes them. */
public final class Safetensors {
    private static final String[][] NAMES = {
        {"F16", "float16"}, {"F32", "float32"}, {"I8", "int8"}, {"U8", "uint8"}, {"I16", "int16"}, {"I32", "int32"},
        {"I64", "int64"}, {"BOOL", "bool"},
    };
    /** The library's own order of dtypes: tensors are laid out from the last of these to the first. */
    private static final List<String> ORDER =
            Arrays.asList("bool", "uint8", "int8", "int16", "float16", "int32", "float32", "int64");

    private Safetensors() {}

    /**
     * @param what what is being read, for the error.
     * @throws WireError not a whole file of tensors of these dtypes.
     */
    public static Map<String, Tensor> read(byte[] data, String what) {
        long size = data.length < 8 ? -1 : Bytes.int64(data, 0);
        if (size < 0 || size > data.length - 8) {
            throw new WireError(what + " is not a readable safetensors file: it is truncated");
        }
        int start = 8 + (int) size;
        Fields head = Fields.parse(Arrays.copyOfRange(data, 8, start), what + ", its header");
        Map<String, Tensor> found = new LinkedHashMap<>();
        for (String name : names(data, start, what)) {
            if (name.equals("__metadata__")) {
                continue;
            }
            Fields entry = head.object(name);
            List<?> shape = entry.list("shape");
            List<?> ends = entry.list("data_offsets");
            int[] sizes = new int[shape.size()];
            for (int i = 0; i < sizes.length; i++) {
                sizes[i] = whole(shape.get(i), Integer.MAX_VALUE, what);
            }
            if (ends.size() != 2) {
                throw new WireError(what + " is not a readable safetensors file: a tensor has no two ends");
            }
            int from = whole(ends.get(0), data.length - start, what);
            int to = whole(ends.get(1), data.length - start, what);
            if (from > to) {
                throw new WireError(what + " is not a readable safetensors file: a tensor ends before it begins");
            }
            byte[] part = Arrays.copyOfRange(data, start + from, start + to);
            found.put(name, Tensor.read(dtype(entry.string("dtype"), what), sizes, part));
        }
        return found;
    }

    private static Iterable<String> names(byte[] data, int start, String what) {
        List<String> names = new ArrayList<>();
        for (Object name : ((Map<?, ?>) Json.parse(Arrays.copyOfRange(data, 8, start), what)).keySet()) {
            names.add((String) name);
        }
        return names;
    }

    private static int whole(Object value, int most, String what) {
        if (!(value instanceof Long) || (Long) value < 0 || (Long) value > most) {
            throw new WireError(what + " is not a readable safetensors file: a size is out of bounds");
        }
        return ((Long) value).intValue();
    }

    private static String dtype(String name, String what) {
        for (String[] pair : NAMES) {
            if (pair[0].equals(name)) {
                return pair[1];
            }
        }
        throw new WireError(what + " holds a tensor of dtype " + name + ", which this program does not read");
    }

    /** The bytes that the library would write: widest dtypes first, then by name; the header is filled up to eight. */
    public static byte[] write(final Map<String, Tensor> tensors) {
        List<String> names = new ArrayList<>(tensors.keySet());
        Collections.sort(names, new Comparator<String>() {
            @Override
            public int compare(String a, String b) {
                int order = ORDER.indexOf(tensors.get(b).dtype) - ORDER.indexOf(tensors.get(a).dtype);
                return order != 0 ? order : Bytes.BY_CHARACTER.compare(a, b);
            }
        });
        Map<String, Object> head = new LinkedHashMap<>();
        List<byte[]> parts = new ArrayList<>();
        long at = 0;
        for (String name : names) {
            Tensor tensor = tensors.get(name);
            byte[] data = tensor.data();
            List<Object> shape = new ArrayList<>();
            for (int d : tensor.shape) {
                shape.add(d);
            }
            Map<String, Object> entry = new LinkedHashMap<>();
            for (String[] pair : NAMES) {
                if (pair[1].equals(tensor.dtype)) {
                    entry.put("dtype", pair[0]);
                }
            }
            entry.put("shape", shape);
            entry.put("data_offsets", Arrays.<Object>asList(at, at + data.length));
            head.put(name, entry);
            parts.add(data);
            at += data.length;
        }
        byte[] text = Json.bytes(head);
        byte[] padded = Arrays.copyOf(text, (text.length + 7) / 8 * 8);
        Arrays.fill(padded, text.length, padded.length, (byte) ' ');
        byte[] size = new byte[8];
        Bytes.putInt64(size, 0, padded.length);
        parts.add(0, Bytes.join(size, padded));
        return Bytes.join(parts.toArray(new byte[0][]));
    }
}
