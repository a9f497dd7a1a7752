package org.coda.core;

import org.coda.core.CodaError.EngineError;
import org.coda.core.CodaError.InputError;
import org.coda.core.CodaError.StoreError;
import org.coda.core.Manifest.FileRef;
import org.coda.core.Tables.LocalTable;
import org.coda.core.Tables.Shard;
import org.coda.core.Wire.Rows;

import java.io.Closeable;
import java.io.File;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;

/** A bundle opened on an engine: graphs, base weights, and the rows at hand. */
public final class Model implements Closeable {
    /** The vocabulary whose rows are sliced and sent in shards. */
    static final String VOCABULARY = "item";

    public final Manifest manifest;
    final Weights base;
    final Map<String, Tensor> classifier;
    /** Null where the bundle has none. */
    final Directory directory;
    final Engine engine;
    private final Blobs blobs;
    private final Rows padding;
    private final Map<String, Engine.Graph> graphs = new HashMap<>();
    private final Map<Integer, Shard> shards = new HashMap<>();

    /** Recommender weights: the bundle's own, or a personal version; see {@code model.Weights}. */
    static final class Weights {
        final Map<String, Tensor> dense;
        /** Null but of a personal version: rows of sliced parameters that differ from the bundle's. */
        final Rows rows;

        Weights(Map<String, Tensor> dense, Rows rows) {
            this.dense = dense;
            this.rows = rows;
        }

        Map<String, Tensor> tensors() {
            Map<String, Tensor> flat = new LinkedHashMap<>(dense);
            if (rows != null) {
                for (Map.Entry<String, Tensor> each : rows.tensors.entrySet()) {
                    flat.put("rows:" + each.getKey(), each.getValue());
                }
                flat.put("rows", Tensor.of(Ints.wide(rows.ids), rows.ids.length).as("int32"));
            }
            return flat;
        }

        /** What these have become: the later ones, and those personal rows that they did not move again. */
        Weights followedBy(Weights later) {
            if (rows == null || later.rows == null) {
                return new Weights(later.dense, later.rows == null ? rows : later.rows);
            }
            int[] ids = Ints.distinct(Ints.join(rows.ids, later.rows.ids));
            int[] at = new int[ids.length]; // where an id stands in the rows joined below, the later one first
            for (int i = 0; i < ids.length; i++) {
                int again = Arrays.binarySearch(later.rows.ids, ids[i]);
                at[i] = again >= 0 ? again : later.rows.ids.length + Arrays.binarySearch(rows.ids, ids[i]);
            }
            Map<String, Tensor> joined = new LinkedHashMap<>();
            for (Map.Entry<String, Tensor> each : later.rows.tensors.entrySet()) {
                joined.put(each.getKey(), Tensor.join(each.getValue(), rows.tensors.get(each.getKey())).take(at));
            }
            return new Weights(later.dense, new Rows(ids, joined));
        }

        static Weights of(Map<String, Tensor> flat) {
            Map<String, Tensor> dense = new LinkedHashMap<>();
            Map<String, Tensor> sliced = new LinkedHashMap<>();
            for (Map.Entry<String, Tensor> each : flat.entrySet()) {
                if (each.getKey().startsWith("rows:")) {
                    sliced.put(each.getKey().substring(5), each.getValue());
                } else if (!each.getKey().equals("rows")) {
                    dense.put(each.getKey(), each.getValue());
                }
            }
            Tensor ids = flat.get("rows");
            return new Weights(dense, ids == null ? null : new Rows(Ints.of(ids.longs), sliced));
        }
    }

    /**
     * @throws CodaError.TrustError a blob is not the one that the manifest names.
     * @throws StoreError a blob is missing.
     */
    Model(Manifest manifest, Engine engine, Blobs blobs) {
        this.manifest = manifest;
        this.engine = engine;
        this.blobs = blobs;
        Map<String, Tensor> weights = Safetensors.read(blobs.read(manifest.weights), "the bundle's weights");
        Map<String, Tensor> row = new LinkedHashMap<>();
        for (String name : manifest.tables.get(VOCABULARY).tensors) {
            Tensor held = weights.remove("padding:" + name);
            if (held == null) {
                throw new InputError("the bundle's weights lack the padding row of " + name);
            }
            row.put(name, held);
        }
        padding = new Rows(new int[1], row);
        Tensor stored = weights.remove(Directory.TENSOR);
        if (stored == null && manifest.settings.matching.equals("directory")) {
            throw new InputError("the bundle asks for matching by directory, and has none; it must be exported again");
        }
        directory = stored == null ? null : new Directory(stored, manifest.width);
        base = new Weights(Tables.widened(weights), null);
        classifier = Safetensors.read(blobs.read(manifest.classifier), "the bundle's classifier");
    }

    @Override
    public void close() {
        for (Engine.Graph graph : graphs.values()) {
            graph.close();
        }
        graphs.clear();
    }

    /** A graph, loaded at first use. */
    Engine.Graph graph(String name) {
        Engine.Graph found = graphs.get(name);
        if (found == null) {
            FileRef ref = manifest.graphs.get(name).files.get(engine.format());
            if (ref == null) {
                throw new EngineError("the bundle has no " + engine.format() + " file for the graph '" + name + "'");
            }
            GraphSpec taken = engine.loops() ? manifest.graphs.get(name).specOf(engine.format()) : spec(name);
            found = engine.load(blobs.unpacked(ref), taken);
            graphs.put(name, found);
        }
        return found;
    }

    GraphSpec spec(String name) {
        return manifest.graphs.get(name).spec;
    }

    // -- rows --------------------------------------------------------------------------------------------------------

    private List<FileRef> shardFiles() {
        return manifest.tables.get(VOCABULARY).shards;
    }

    /** The shards that would hold these external keys, ascending. */
    Collection<Integer> shardsFor(Collection<String> keys) {
        TreeSet<Integer> found = new TreeSet<>();
        for (String key : keys) {
            found.add(Tables.shardOf(key, shardFiles().size()));
        }
        return found;
    }

    /** The shards that are on this device. */
    int[] held() {
        int[] found = new int[shardFiles().size()];
        int count = 0;
        for (int i = 0; i < found.length; i++) {
            if (blobs.has(shardFiles().get(i))) {
                found[count++] = i;
            }
        }
        return Arrays.copyOf(found, count);
    }

    /** @throws StoreError it has not been pulled. */
    Shard shard(int number) {
        Shard found = shards.get(number);
        if (found == null) {
            FileRef ref = shardFiles().get(number);
            if (!blobs.has(ref)) {
                throw new StoreError("shard " + number
                        + " of the item rows is not on this device; run a round to pull it");
            }
            found = new Shard(blobs.read(ref), manifest.tables.get(VOCABULARY).tensors);
            shards.put(number, found);
        }
        return found;
    }

    /** External key -> global id, for those keys that the catalogue knows; their shards must be held. */
    Map<String, Integer> idsOf(Collection<String> keys) {
        Map<String, Integer> found = new HashMap<>();
        Set<String> wanted = new HashSet<>(keys);
        for (int number : shardsFor(wanted)) {
            Shard shard = shard(number);
            for (int i = 0; i < shard.keys.length; i++) {
                if (wanted.contains(shard.keys[i])) {
                    found.put(shard.keys[i], shard.ids[i]);
                }
            }
        }
        return found;
    }

    /**
     * The local table for these global ids: personal rows first, then those of an answer, then shards.
     *
     * @param extra null where no answer brought rows.
     * @throws InputError an id has no row at hand.
     */
    LocalTable table(int[] ids, Weights weights, Rows extra) {
        List<Rows> parts = new ArrayList<>();
        if (weights.rows != null) {
            parts.add(withAttributes(weights.rows, extra));
        }
        if (extra != null) {
            parts.add(extra);
        }
        for (int number : held()) {
            parts.add(shard(number).rows(ids));
        }
        return LocalTable.build(ids, parts, padding);
    }

    /** Personal rows carry weights only; the attributes of their items come from where the base rows do. */
    private Rows withAttributes(Rows rows, Rows extra) {
        List<Rows> parts = new ArrayList<>();
        for (int number : held()) {
            parts.add(shard(number).rows(rows.ids));
        }
        if (extra != null) {
            parts.add(extra);
        }
        int[] at = new int[rows.ids.length];
        int count = 0;
        for (int i = 0; i < rows.ids.length; i++) {
            for (Rows part : parts) {
                if (Ints.has(part.ids, rows.ids[i])) {
                    at[count++] = i;
                    break;
                }
            }
        }
        int[] known = Arrays.copyOf(at, count);
        int[] ids = new int[count];
        for (int i = 0; i < count; i++) {
            ids[i] = rows.ids[known[i]];
        }
        LocalTable table = LocalTable.build(ids, parts, padding);
        Map<String, Tensor> tensors = new LinkedHashMap<>();
        int[] local = Ints.of(table.local(ids));
        for (Map.Entry<String, Tensor> each : table.tensors.entrySet()) {
            tensors.put(each.getKey(), each.getValue().take(local));
        }
        for (Map.Entry<String, Tensor> each : rows.tensors.entrySet()) {
            tensors.put(each.getKey(), each.getValue().take(known));
        }
        return new Rows(ids, tensors);
    }

    /** A table of base rows with the personal rows laid over it. */
    static LocalTable personal(LocalTable table, Weights weights) {
        if (weights.rows == null) {
            return table;
        }
        long[] at = table.local(weights.rows.ids);
        Map<String, Tensor> tensors = new LinkedHashMap<>(table.tensors);
        for (Map.Entry<String, Tensor> each : weights.rows.tensors.entrySet()) {
            Tensor laid = tensors.get(each.getKey()).copy();
            for (int i = 0; i < at.length; i++) {
                laid.put((int) at[i], each.getValue(), i, laid.width());
            }
            tensors.put(each.getKey(), laid);
        }
        return new LocalTable(table.ids, tensors);
    }

    // -- computing ---------------------------------------------------------------------------------------------------

    /** The params and attributes that a graph takes. */
    Map<String, Tensor> values(String graph, Weights weights, LocalTable table) {
        Map<String, Tensor> found = new LinkedHashMap<>();
        for (GraphSpec.TensorSpec spec : spec(graph).of("param", "attribute")) {
            Tensor held = table.tensors.get(spec.name);
            held = held == null ? weights.dense.get(spec.name) : held;
            held = held == null ? base.dense.get(spec.name) : held;
            if (held == null) {
                throw new InputError("the bundle lacks the tensor '" + spec.name + "' of the graph '" + graph + "'");
            }
            found.put(spec.name, held);
        }
        return found;
    }

    /** Embeddings, float32 [n, width], by the base weights: a personal encoder would not match the pool's. */
    Tensor encode(SampleBatch samples, LocalTable table) {
        return scores("encode", samples, table, base);
    }

    /** float32 [n]. */
    float[] logits(SampleBatch samples, LocalTable table, Weights weights) {
        return scores("score", samples, table, weights).floats;
    }

    /** Graphs work out something of every row that they are given, so each part of the samples comes with its own. */
    private Tensor scores(String graph, SampleBatch samples, LocalTable table, Weights weights) {
        Tensor found = null;
        int n = samples.size();
        for (int start = 0; found == null || start < n; start += LocalTable.TOGETHER) {
            SampleBatch part = samples.take(Ints.range(start, Math.min(start + LocalTable.TOGETHER, n)));
            LocalTable rows = table.of(part.ids(VOCABULARY));
            Tensor some = Trainer.scores(graph(graph), values(graph, weights, rows), Tables.features(part, rows));
            found = found == null ? some : Tensor.join(found, some);
        }
        return found;
    }
}
