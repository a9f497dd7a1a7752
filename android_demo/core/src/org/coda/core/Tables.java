package org.coda.core;

import org.coda.core.CodaError.InputError;
import org.coda.core.CodaError.WireError;
import org.coda.core.Wire.Rows;

import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.zip.CRC32;

/** Rows of the item vocabulary on the device; {@code device_runtime/tables.py} is its twin. */
final class Tables {
    private static final String SCALE = "scale:";

    private Tables() {}

    /** The shard that holds an external key. */
    static int shardOf(String key, int shards) {
        CRC32 crc = new CRC32();
        byte[] text = Bytes.utf8(key);
        crc.update(text, 0, text.length);
        return (int) (crc.getValue() % shards);
    }

    /** One shard, decoded: ids ascending, and their external keys and rows. */
    static final class Shard {
        final int[] ids;
        final String[] keys;
        final Map<String, Tensor> tensors = new LinkedHashMap<>();

        /** @throws WireError not a shard with these tensors. */
        Shard(byte[] data, List<String> names) {
            Map<String, Tensor> held = Safetensors.read(data, "a shard of item rows");
            for (String needed : new String[] {"ids", "keys", "key_ends"}) {
                if (held.get(needed) == null || held.get(needed).isReal()) {
                    throw new WireError("a shard lacks " + needed);
                }
            }
            ids = Ints.of(held.get("ids").longs);
            keys = new String[held.get("key_ends").size()];
            byte[] text = held.get("keys").data();
            int from = 0;
            for (int i = 0; i < keys.length; i++) {
                int to = (int) held.get("key_ends").longs[i];
                if (to < from || to > text.length) {
                    throw new WireError("a shard's keys end where there are none");
                }
                keys[i] = Bytes.text(Arrays.copyOfRange(text, from, to));
                from = to;
            }
            for (String name : names) {
                Tensor tensor = held.get(name);
                if (tensor == null || tensor.rows() != ids.length || keys.length != ids.length) {
                    throw new WireError("a shard lacks " + name + ", or it is not aligned with its ids");
                }
                tensors.put(name, tensor);
            }
        }

        /** The rows of those of the given ids (ascending) that this shard holds. */
        Rows rows(int[] wanted) {
            int[] at = new int[ids.length];
            int count = 0;
            for (int i = 0; i < ids.length; i++) {
                if (Ints.has(wanted, ids[i])) {
                    at[count++] = i;
                }
            }
            return taken(new Rows(ids, tensors), Arrays.copyOf(at, count));
        }
    }

    private static Rows taken(Rows rows, int[] at) {
        Map<String, Tensor> found = new LinkedHashMap<>();
        for (Map.Entry<String, Tensor> each : rows.tensors.entrySet()) {
            found.put(each.getKey(), each.getValue().take(at));
        }
        int[] ids = new int[at.length];
        for (int i = 0; i < at.length; i++) {
            ids[i] = rows.ids[at[i]];
        }
        return new Rows(ids, found);
    }

    /**
     * Each tensor as graphs take it: weights float32, without the scales; whole numbers without a scale as they are.
     *
     * @throws WireError a scale belongs to no tensor, or does not have one number for each row of it.
     */
    static Map<String, Tensor> widened(Map<String, Tensor> tensors) {
        Map<String, Tensor> found = new LinkedHashMap<>();
        for (Map.Entry<String, Tensor> each : tensors.entrySet()) {
            String name = each.getKey();
            if (name.startsWith(SCALE)) {
                Tensor of = tensors.get(name.substring(SCALE.length()));
                if (of == null || each.getValue().shape.length != 1 || each.getValue().rows() != of.rows()) {
                    throw new WireError("'" + name + "' must have one number for each row of the tensor it scales");
                }
                continue;
            }
            found.put(name, widened(each.getValue(), tensors.get(SCALE + name)));
        }
        return found;
    }

    /** float32 of a weight in any form, int64 of an attribute. */
    private static Tensor widened(Tensor stored, Tensor scale) {
        if (scale == null) {
            return stored.as(stored.isReal() ? "float32" : "int64");
        }
        Tensor found = Tensor.zeros("float32", stored.shape);
        int width = stored.width();
        for (int i = 0; i < found.size(); i++) {
            found.floats[i] = stored.longs[i] * scale.floats[i / width];
        }
        return found;
    }

    /** The rows in use, numbered from 1 in ascending order of their ids; row 0 is padding. */
    static final class LocalTable {
        /** Samples that are computed with at a time, with the rows that these mention. */
        static final int TOGETHER = 512;

        final int[] ids;
        /** float32 weights and int64 attributes. */
        final Map<String, Tensor> tensors;

        LocalTable(int[] ids, Map<String, Tensor> tensors) {
            this.ids = ids;
            this.tensors = tensors;
        }

        /**
         * Gather rows for the wanted ids from several sources; the first source that has an id wins.
         *
         * @throws InputError an id has no row in any part.
         */
        static LocalTable build(int[] wanted, List<Rows> parts, Rows padding) {
            int[] ids = Ints.distinct(Ints.join(new int[1], wanted));
            boolean[] found = new boolean[ids.length];
            Map<String, Tensor> tensors = new LinkedHashMap<>();
            gather(ids, found, tensors, padding);
            for (Rows part : parts) {
                gather(ids, found, tensors, part);
            }
            int lacking = 0;
            int example = 0;
            for (int i = ids.length - 1; i >= 0; i--) {
                if (!found[i]) {
                    lacking++;
                    example = ids[i];
                }
            }
            if (lacking > 0) {
                throw new InputError("no row is at hand for " + lacking + " items, among them id " + example);
            }
            return new LocalTable(ids, tensors);
        }

        private static void gather(int[] ids, boolean[] found, Map<String, Tensor> tensors, Rows part) {
            int[] into = new int[part.ids.length];
            int[] from = new int[part.ids.length];
            int count = 0;
            for (int i = 0; i < part.ids.length; i++) {
                int at = Arrays.binarySearch(ids, part.ids[i]);
                if (at >= 0 && !found[at]) {
                    into[count] = at;
                    from[count++] = i;
                }
            }
            for (Map.Entry<String, Tensor> each : widened(taken(part, Arrays.copyOf(from, count)).tensors).entrySet()) {
                Tensor rows = each.getValue();
                Tensor target = tensors.get(each.getKey());
                if (target == null) {
                    target = Tensor.zeros(rows.dtype, rows.shapeOf(ids.length));
                    tensors.put(each.getKey(), target);
                } else if (!target.dtype.equals(rows.dtype) || target.width() != rows.width()) {
                    throw new WireError("rows of '" + each.getKey() + "' differ in shape or kind by where they are from");
                }
                for (int i = 0; i < count; i++) {
                    target.put(into[i], rows, i, rows.width());
                }
            }
            for (int i = 0; i < count; i++) {
                found[into[i]] = true;
            }
        }

        /** Only these rows, and padding. Raises: InputError: an id is not in the table. */
        LocalTable of(int[] wanted) {
            int[] only = Ints.distinct(Ints.join(new int[1], wanted));
            int[] at = Ints.of(local(only));
            Map<String, Tensor> cut = new LinkedHashMap<>();
            for (Map.Entry<String, Tensor> each : tensors.entrySet()) {
                cut.put(each.getKey(), each.getValue().take(at));
            }
            return new LocalTable(only, cut);
        }

        /** Global ids -> local rows. Raises: InputError: an id is not in the table. */
        long[] local(int[] global) {
            long[] found = new long[global.length];
            for (int i = 0; i < found.length; i++) {
                int at = Arrays.binarySearch(ids, global[i]);
                if (at < 0) {
                    throw new InputError("id " + global[i] + " is not in the local table");
                }
                found[i] = at;
            }
            return found;
        }
    }

    /** A batch's feature tensors as graphs take them. */
    static Map<String, Tensor> features(SampleBatch samples, LocalTable table) {
        Map<String, Tensor> found = new HashMap<>();
        int n = samples.size();
        for (Schema.Feature feature : samples.schema.features) {
            Object column = samples.columns.get(feature.name);
            if (column instanceof Ragged) {
                Ragged cut = ((Ragged) column).newest(feature.bound);
                int[] dense = new int[n * feature.bound];
                for (int i = 0; i < n; i++) {
                    System.arraycopy(cut.values, cut.starts[i], dense, i * feature.bound, cut.lengths[i]);
                }
                found.put(feature.name, Tensor.of(table.local(dense), n, feature.bound));
            } else if (column instanceof int[]) {
                found.put(feature.name, Tensor.of(table.local((int[]) column), n));
            } else {
                found.put(feature.name, Tensor.of((float[]) column, n, feature.bound));
            }
        }
        return found;
    }
}
