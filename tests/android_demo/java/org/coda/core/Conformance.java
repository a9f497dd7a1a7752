package org.coda.core;

import java.io.BufferedInputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.EOFException;
import java.io.File;
import java.io.IOException;
import java.io.BufferedOutputStream;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeSet;

/**
 * Answers calls of the core over standard input and output, so that hypothesis can look for vectors on which the two
 * sides differ. A call: count of byte strings, then each with its length; the first names the call. An answer: 0 and
 * one byte string, or 1 and an error's name and text; 2 asks the caller to compress (level, dictionary, bytes) first.
 */
public final class Conformance {
    private static final DataInputStream IN = new DataInputStream(new BufferedInputStream(System.in));
    private static final DataOutputStream OUT = new DataOutputStream(new BufferedOutputStream(System.out));
    private static final Compressor CALLER = new Compressor() {
        @Override
        public byte[] compress(byte[] plain, int level, byte[] dictionary) {
            try {
                OUT.writeByte(2);
                OUT.writeInt(level);
                write(dictionary);
                write(plain);
                OUT.flush();
                return read();
            } catch (IOException error) {
                throw new IllegalStateException(error);
            }
        }
    };

    private Conformance() {}

    private static byte[] read() throws IOException {
        byte[] data = new byte[IN.readInt()];
        IN.readFully(data);
        return data;
    }

    private static void write(byte[] data) throws IOException {
        OUT.writeInt(data.length);
        OUT.write(data);
    }

    public static void main(String[] args) throws IOException {
        while (true) {
            byte[][] call;
            try {
                call = new byte[IN.readInt()][];
            } catch (EOFException end) {
                return;
            }
            for (int i = 0; i < call.length; i++) {
                call[i] = read();
            }
            try {
                byte[] answer = answer(Bytes.text(call[0]), call);
                OUT.writeByte(0);
                write(answer);
            } catch (CodaError error) {
                OUT.writeByte(1);
                write(Bytes.utf8(error.name() + ": " + error.getMessage()));
            } catch (RuntimeException error) {
                OUT.writeByte(1);
                write(Bytes.utf8(error.toString()));
            }
            OUT.flush();
        }
    }

    private static byte[] answer(String name, byte[][] of) {
        byte[] one = of.length > 1 ? of[1] : null;
        switch (name) {
            case "blake2b":
                return Blake2b.digest(one);
            case "unzstd":
                return Zstd.decompress(one, 1 << 26, of[2]);
            case "zstd":
                return new ZstdWriter().compress(one, 0, of[2]);
            case "report squeezed":
                return Wire.encodeReport(Report.parse(one, "a report"), new ZstdWriter());
            case "public key":
                return Ed25519.publicKey(one);
            case "sign":
                return Ed25519.sign(one, Ed25519.publicKey(one), of[2]);
            case "verify":
                return new byte[] {(byte) (Ed25519.verify(one, of[2], of[3]) ? 1 : 0)};
            case "authorization":
                return Bytes.utf8(new Signer(one).authorization("ab12", "POST", "/v1/match", of[2], 1_700_000_000L,
                        "0123456789abcdef"));
            case "json":
                return Json.bytes(Json.parse(one, "a value"));
            case "pack":
                return Packing.pack(longs(one), CALLER);
            case "pack squeezed":
                return Packing.pack(longs(one), new ZstdWriter());
            case "pack plain":
                return Packing.pack(longs(one), Compressor.NONE);
            case "unpack":
                return bytes(Packing.unpack(one));
            case "safetensors":
                return Safetensors.write(Safetensors.read(one, "a file"));
            case "query":
                Tensor centroids = Safetensors.read(of[2], "centroids").get("centroids");
                return Wire.encodeQuery(Bytes.text(one), centroids, Bytes.int32(of[3], 0), Ints.of(longs(of[4])), CALLER);
            case "directory query":
                Directory directory = directory(of[2]);
                Tensor samples = Safetensors.read(of[2], "a directory").get("embeddings");
                return Wire.encodeDirectoryQuery(Bytes.text(one), directory.id,
                        directory.weights(samples, Double.parseDouble(Bytes.text(of[3]))), Bytes.int32(of[4], 0),
                        Ints.of(longs(of[5])), CALLER);
            case "contribution":
                return Wire.encodeContribution(Wire.decodeContribution(of[2], Schema.parse(one)), CALLER);
            case "contribution plain":
                return Wire.encodeContribution(Wire.decodeContribution(of[2], Schema.parse(one)), Compressor.NONE);
            case "contribution squeezed":
                return Wire.encodeContribution(Wire.decodeContribution(of[2], Schema.parse(one)), new ZstdWriter());
            case "samples":
                return Safetensors.write(flat(Wire.decodeContribution(of[2], Schema.parse(one))));
            case "answer":
                return Safetensors.write(flat(Wire.decodeAnswer(of[2], Schema.parse(one))));
            case "shortfall":
                return Bytes.utf8(Wire.decodeAnswer(of[2], Schema.parse(one)).shortfall);
            case "report":
                return Wire.encodeReport(Report.parse(one, "a report"), CALLER);
            case "report json":
                return Report.parse(one, "a report").json();
            case "report body":
                return Wire.reportBody(one);
            case "manifest":
                Manifest manifest = Manifest.open(Manifest.Ref.parse(one, "a reference"), of[2], Bytes.text(of[3]));
                return Bytes.utf8(manifest.name + " " + manifest.version + " " + manifest.encoder + " "
                        + manifest.settings.rate + " " + manifest.graphs.keySet());
            case "reference":
                return Manifest.Ref.parse(one, "a reference").json();
            case "settings":
                return settings(new RoundSettings(Fields.parse(one, "settings")));
            case "random":
                return random(longs(one), Bytes.int32(of[2], 0));
            case "progress":
                return Progress.parse(one).json();
            case "digest":
                return digest(Trigger.parse(one, "triggers"), of);
            case "evaluation settings":
                return settings(Evaluating.settings(new RoundSettings(Fields.parse(one, "settings")),
                        Fields.parse(of[2], "changes").numbers("changes")));
            case "rotation":
                return Signer.rotationText(Bytes.text(one), Bytes.text(of[2]));
            case "consider":
                final float[] whole = Bytes.floats(of[4]);
                final float[] half = Bytes.floats(of[5]);
                return Json.bytes(Personalize.consider(Bytes.floats(of[2]), Bytes.floats(of[3]),
                        new Personalize.Logits() {
                            @Override
                            public float[] at(double share) {
                                return share == 1 ? whole : half;
                            }
                        }, new RoundSettings(Fields.parse(one, "settings"))).fields());
            case "calibrate":
                float[] scores = Bytes.floats(of[2]);
                Filtering.calibrate(Bytes.floats(one), scores, Bytes.floats(of[3]));
                return Bytes.of(scores);
            case "sum":
                return Bytes.of(new float[] {Floats.sum(Bytes.floats(one))});
            default:
                throw new IllegalArgumentException("no call " + name);
        }
    }

    private static Directory directory(byte[] tensors) {
        Tensor stored = Safetensors.read(tensors, "a directory").get("centroids");
        return new Directory(stored, stored.width());
    }

    /** The samples and wanted rounds that batches of events come to; a batch is a list of lists, as JSON. */
    private static byte[] digest(List<Trigger> triggers, byte[][] of) {
        try (Store store = new Store(new JdbcDatabase(new File(":memory:")))) {
            ActivityLog log = new ActivityLog(store);
            List<Object> wanted = new ArrayList<>();
            for (int i = 2; i < of.length; i++) {
                List<Activity> events = new ArrayList<>();
                for (Object each : (List<?>) Json.parse(of[i], "events")) {
                    List<?> e = (List<?>) each;
                    events.add(new Activity((String) e.get(0), (Long) e.get(1), (String) e.get(2), (String) e.get(3),
                            ((Number) e.get(4)).doubleValue()));
                }
                log.append(events);
                wanted.add(new ArrayList<>(new TreeSet<>(log.digest(triggers))));
            }
            List<Object> samples = new ArrayList<>();
            for (Store.Event e : store.events(Long.MAX_VALUE, Integer.MAX_VALUE)) {
                samples.add(Arrays.asList(e.item, e.timestamp, e.label, e.rating));
            }
            return Json.bytes(Arrays.<Object>asList(wanted, samples));
        }
    }

    private static byte[] settings(RoundSettings given) {
        Map<String, Object> found = new LinkedHashMap<>();
        found.put("matching", given.matching);
        found.put("sharpness", given.sharpness);
        found.put("centroids", given.centroids);
        found.put("candidates", given.candidates);
        found.put("tastes", given.tastes);
        found.put("min_local", given.minLocal);
        found.put("holdout", given.holdout);
        found.put("classifier_epochs", given.classifierEpochs);
        found.put("classifier_rate", given.classifierRate);
        found.put("classifier_label", given.classifierLabel);
        found.put("calibration", given.calibration);
        found.put("threshold", given.threshold);
        found.put("keep", given.keep);
        found.put("ratio_bound", given.ratioBound);
        found.put("density_weights", given.densityWeights);
        found.put("outside_weight", given.outsideWeight);
        found.put("label_correction", given.labelCorrection);
        found.put("epochs", given.epochs);
        found.put("patience", given.patience);
        found.put("rate", given.rate);
        found.put("table_rate", given.tableRate);
        found.put("interpolation", given.interpolation);
        found.put("freeze_histories", given.freezeHistories);
        found.put("row_steps", given.rowSteps);
        found.put("row_share", given.rowShare);
        found.put("judge", given.judge);
        found.put("tolerance", given.tolerance);
        found.put("partial", given.partial);
        found.put("learn_held_out", given.learnHeldOut);
        return Json.bytes(found);
    }

    private static byte[] random(long[] entropy, int count) {
        Pcg64 random = new Pcg64(entropy);
        long[] found = new long[2 * count + 4];
        int[] order = random.permutation(count);
        for (int i = 0; i < count; i++) {
            found[i] = order[i];
        }
        found[count] = Double.doubleToRawLongBits(random.uniform());
        found[count + 1] = random.below(count);
        found[count + 2] = Double.doubleToRawLongBits(random.uniform());
        double[] weights = new double[count];
        for (int i = 0; i < count; i++) {
            weights[i] = (i + 1.0) / (count * (count + 1) / 2);
        }
        found[count + 3] = random.choice(weights);
        order = random.permutation(count);
        for (int i = 0; i < count; i++) {
            found[count + 4 + i] = order[i];
        }
        return bytes(found);
    }

    private static Map<String, Tensor> flat(Wire.Answer answer) {
        Map<String, Tensor> found = flat(answer.candidates);
        for (Map.Entry<String, Wire.Rows> each : answer.rows.entrySet()) {
            found.put("rows/" + each.getKey(), ints(each.getValue().ids));
            for (Map.Entry<String, Tensor> tensor : each.getValue().tensors.entrySet()) {
                found.put("rows/" + each.getKey() + "/" + tensor.getKey(), tensor.getValue());
            }
        }
        return found;
    }

    private static Map<String, Tensor> flat(SampleBatch samples) {
        Map<String, Tensor> found = new LinkedHashMap<>();
        found.put("labels", Tensor.of(samples.labels, samples.size()));
        for (Schema.Feature feature : samples.schema.features) {
            Object column = samples.columns.get(feature.name);
            if (column instanceof Ragged) {
                Ragged ragged = (Ragged) column;
                found.put(feature.name + "/values", ints(ragged.values));
                found.put(feature.name + "/starts", ints(ragged.starts));
                found.put(feature.name + "/lengths", ints(ragged.lengths));
            } else if (column instanceof int[]) {
                found.put(feature.name, ints((int[]) column));
            } else {
                found.put(feature.name, Tensor.of((float[]) column, samples.size(), feature.bound));
            }
        }
        return found;
    }

    private static Tensor ints(int[] numbers) {
        return Tensor.of(Ints.wide(numbers), numbers.length).as("int32");
    }

    private static long[] longs(byte[] data) {
        long[] found = new long[data.length / 8];
        for (int i = 0; i < found.length; i++) {
            found[i] = Bytes.int64(data, 8 * i);
        }
        return found;
    }

    private static byte[] bytes(long[] numbers) {
        byte[] found = new byte[8 * numbers.length];
        for (int i = 0; i < numbers.length; i++) {
            Bytes.putInt64(found, 8 * i, numbers[i]);
        }
        return found;
    }
}
