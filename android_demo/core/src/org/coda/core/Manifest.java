package org.coda.core;

import org.coda.core.CodaError.TrustError;
import org.coda.core.CodaError.WireError;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Everything a device needs to know about a model; {@code device_runtime/bundle.py} says what each field means. Reading
 * is pure: bytes in, verdict out.
 */
public final class Manifest {
    public static final int FORMAT = 3;
    private static final int MOST = 16 << 20;
    private static final int MOST_FILE = 256 << 20;
    private static final byte[] NOTHING = {};

    public final String name;
    public final int version;
    public final Schema schema;
    public final String encoder;
    public final int width;
    public final int filterFrom;
    public final Map<String, GraphEntry> graphs = new LinkedHashMap<>();
    public final FileRef weights;
    public final FileRef classifier;
    public final Map<String, TableEntry> tables = new LinkedHashMap<>();
    public final RoundSettings settings;
    public final String answerKey;
    /** NaN where events do not carry ratings. */
    public final double positiveAt;

    /** A blob: hash and size of its stored form, and the size of the file itself. */
    public static final class FileRef {
        public final String sha256;
        public final int size;
        public final long rawSize;
        public final boolean squeezed;

        FileRef(String sha256, int size, long rawSize, boolean squeezed) {
            this.sha256 = sha256;
            this.size = size;
            this.rawSize = rawSize;
            this.squeezed = squeezed;
        }

        FileRef(Fields fields) {
            this(fields.string("sha256"), fields.int32("size"), fields.integer("raw_size"),
                    fields.oneOf("codec", "zstd", "none").equals("zstd"));
            fields.string("raw_sha256", ""); // of deltas, which this core does not fetch: it takes whole files
            fields.nothingElse();
            checkName();
        }

        private void checkName() {
            if (!sha256.matches("[0-9a-f]{64}") || size < 0 || size > MOST_FILE) {
                throw new WireError("a blob is named by 64 hex digits and has at most " + MOST_FILE + " bytes");
            }
        }

        /** @throws TrustError this blob is not the one named. */
        void check(byte[] stored) {
            if (stored.length != size || !Bytes.hex(Bytes.sha256(stored)).equals(sha256)) {
                throw new TrustError("blob " + sha256.substring(0, 12) + "… is damaged or is another file: "
                        + stored.length + " bytes, " + size + " expected");
            }
        }

        /** The file itself, of a blob that was checked. Raises: TrustError. */
        byte[] unpack(byte[] stored) {
            if (!squeezed) {
                return stored;
            }
            if (rawSize < 0 || rawSize > MOST_FILE) {
                throw new TrustError("blob " + sha256.substring(0, 12) + "… claims " + rawSize + " bytes; at most "
                        + MOST_FILE + " are allowed");
            }
            byte[] data;
            try {
                data = Zstd.decompress(stored, (int) rawSize, NOTHING);
            } catch (WireError error) {
                throw new TrustError("blob " + sha256.substring(0, 12) + "… does not decompress: " + error.getMessage());
            }
            if (data.length != rawSize) {
                throw new TrustError("blob " + sha256.substring(0, 12) + "… holds " + data.length
                        + " bytes; the manifest says " + rawSize);
            }
            return data;
        }
    }

    /** What the exporter saw of a step graph in a self-test. */
    public static final class Golden {
        public final double[] losses;
        public final Map<String, Double> moved;
        public final Map<String, Double> largest;

        Golden(Fields fields) {
            List<?> given = fields.list("losses");
            losses = new double[given.size()];
            for (int i = 0; i < losses.length; i++) {
                losses[i] = ((Number) given.get(i)).doubleValue();
            }
            moved = fields.numbers("moved");
            largest = fields.numbers("largest");
            fields.nothingElse();
        }
    }

    /** One graph, lowered for several engines. */
    public static final class GraphEntry {
        public final GraphSpec spec;
        /** By an engine's format. */
        public final Map<String, FileRef> files = new LinkedHashMap<>();
        /** Training steps that one call of a file takes, at most; 0 where it takes one batch. By format. */
        private final Map<String, Integer> steps = new LinkedHashMap<>();
        /** Version of the engine that the exporter lowered and checked the file with, by format. */
        public final Map<String, String> madeFor = new LinkedHashMap<>();
        /** Null but of step graphs. */
        public final Golden golden;

        GraphEntry(Fields fields) {
            spec = new GraphSpec(fields.object("spec"));
            Fields given = fields.object("files");
            for (String format : fields.map("files").keySet()) {
                Fields made = given.object(format);
                files.put(format, new FileRef(made.object("file")));
                steps.put(format, made.int32("steps", 0));
                madeFor.put(format, made.object("parity").string("engine_version"));
            }
            golden = fields.has("golden") ? new Golden(fields.object("golden")) : null;
            fields.nothingElse();
        }

        /** What the file for an engine takes and gives. */
        GraphSpec specOf(String format) {
            int most = steps.containsKey(format) ? steps.get(format) : 0;
            return most > 0 ? spec.stacked(most) : spec;
        }
    }

    /** Rows of a vocabulary, in shards by hash of the external key. */
    public static final class TableEntry {
        public final List<String> tensors;
        public final List<FileRef> shards = new ArrayList<>();

        TableEntry(Fields fields) {
            fields.int32("rows");
            tensors = fields.strings("tensors");
            for (Fields shard : fields.objects("shards")) {
                shards.add(new FileRef(shard));
            }
            fields.nothingElse();
        }
    }

    private Manifest(Fields fields) {
        fields.integer("format");
        name = fields.string("name");
        version = fields.int32("version");
        fields.string("created");
        fields.string("model");
        schema = new Schema(fields.object("schema"));
        encoder = fields.string("encoder");
        width = fields.int32("width");
        filterFrom = fields.int32("filter_from");
        Fields given = fields.object("graphs");
        for (String each : fields.map("graphs").keySet()) {
            graphs.put(each, new GraphEntry(given.object(each)));
        }
        weights = new FileRef(fields.object("weights"));
        classifier = new FileRef(fields.object("classifier"));
        Fields rows = fields.object("tables");
        for (String each : fields.map("tables").keySet()) {
            tables.put(each, new TableEntry(rows.object(each)));
        }
        settings = new RoundSettings(fields.object("settings"));
        answerKey = fields.string("answer_key");
        positiveAt = fields.number("positive_at", Double.NaN);
        for (String about : new String[] {"found", "training", "rank_weights", "metrics"}) { // for the cloud and people
            fields.has(about);
        }
        fields.nothingElse();
        for (String needed : new String[] {"encode", "score", "step", "classifier_score", "classifier_step"}) {
            if (!graphs.containsKey(needed)) {
                throw new WireError("the manifest has no graph '" + needed + "'");
            }
        }
        if (!tables.containsKey(Model.VOCABULARY)) {
            throw new WireError("the manifest has no table of items");
        }
    }

    /** Points to a signed manifest, as a server announces it. */
    public static final class Ref {
        public final int version;
        public final String manifest;
        public final int size;
        public final String key;
        public final String signature;

        private Ref(Fields fields) {
            version = fields.int32("version");
            manifest = fields.string("manifest");
            size = fields.int32("size");
            key = fields.string("key");
            signature = fields.string("signature");
            file().checkName();
        }

        public static Ref parse(byte[] json, String what) {
            return new Ref(Fields.parse(json, what));
        }

        public byte[] json() {
            Map<String, Object> found = new LinkedHashMap<>();
            found.put("version", version);
            found.put("manifest", manifest);
            found.put("size", size);
            found.put("key", key);
            found.put("signature", signature);
            return Json.bytes(found);
        }

        FileRef file() {
            return new FileRef(manifest, size, size, false);
        }
    }

    /**
     * Decode a manifest after verifying that the trusted key signed it.
     *
     * @param stored the manifest's blob.
     * @param trusted the public key that this device was given, hex.
     * @throws TrustError another key, another blob, a bad signature, or not what the reference says.
     * @throws WireError a signed manifest in a format that this program does not read.
     */
    public static Manifest open(Ref ref, byte[] stored, String trusted) {
        if (!ref.key.equals(Signer.keyId(trusted))) {
            throw new TrustError("the bundle is signed by key " + ref.key + ", but this device trusts "
                    + Signer.keyId(trusted)
                    + "; if the publisher changed keys, enrol the device again with the new one");
        }
        if (!Bytes.hex(Bytes.sha256(stored)).equals(ref.manifest)) {
            throw new TrustError("the manifest is damaged, or is not the one that was announced");
        }
        byte[] data;
        try {
            data = Zstd.decompress(stored, MOST, NOTHING);
        } catch (WireError error) {
            throw new TrustError("the manifest does not decompress: " + error.getMessage());
        }
        Signer.verify(trusted, data, ref.signature);
        Fields fields = Fields.parse(data, "the manifest");
        long format = fields.has("format") ? fields.integer("format") : 0;
        if (format != FORMAT) {
            throw new WireError("the bundle has format " + format + "; this program reads format " + FORMAT
                    + ": update the older side");
        }
        Manifest manifest;
        try {
            manifest = new Manifest(fields);
        } catch (ClassCastException | IndexOutOfBoundsException error) {
            throw new WireError("the manifest does not decode: a field has another type than it should");
        }
        if (manifest.version != ref.version) {
            throw new TrustError("the manifest says version " + manifest.version + ", its announcement " + ref.version);
        }
        return manifest;
    }

    /** What a device with this engine must hold, by what it is for; shards come later, as needed. */
    Map<String, FileRef> files(String format) {
        Map<String, FileRef> needed = new LinkedHashMap<>();
        needed.put("weights", weights);
        needed.put("classifier", classifier);
        for (Map.Entry<String, GraphEntry> graph : graphs.entrySet()) {
            FileRef file = graph.getValue().files.get(format);
            if (file == null) {
                throw new WireError("the bundle has no " + format + " file for the graph '" + graph.getKey()
                        + "': this app runs " + format + " only; export the bundle for it");
            }
            needed.put("graph " + graph.getKey(), file);
        }
        return needed;
    }
}
