package org.coda.core;

import org.coda.core.CodaError.InputError;
import org.coda.core.CodaError.StoreError;
import org.coda.core.CodaError.TrustError;
import org.coda.core.CodaError.WireError;
import org.coda.core.Manifest.FileRef;
import org.coda.core.Model.Weights;
import org.coda.core.Store.Serving;

import java.io.Closeable;
import java.io.File;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.channels.FileLock;
import java.nio.channels.OverlappingFileLockException;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;

/** A device's folder: who it is, and what it holds; laid out as {@code device_runtime/home.py} lays it out. */
public final class DeviceHome implements Closeable {
    public final File path;
    public final Store store;
    final Blobs blobs;
    private final String os;
    final File rounds;

    /** @param os as the device tells it of itself, by which releases may be aimed: "android". */
    public DeviceHome(File path, Store store, String os) {
        this.path = path;
        this.os = os;
        this.store = store;
        this.blobs = new Blobs(new File(path, "blobs"));
        this.rounds = new File(path, "rounds");
    }

    @Override
    public void close() {
        store.close();
    }

    /** The device's key, made when first asked for. */
    Signer signer() {
        return Signer.openOrCreate(new File(path, "device.key"));
    }

    private String enrolled(String name) {
        String value = store.setting(name);
        if (value == null) {
            throw new InputError("this device is not enrolled yet: give the server's address and the release key");
        }
        return value;
    }

    /** @throws InputError it is not enrolled. */
    public String server() {
        return enrolled("server");
    }

    String trusted() {
        return enrolled("trusted");
    }

    /** The id that the server knows this device by. */
    String device() {
        return enrolled("device");
    }

    /** What the device tells of itself with every question for a bundle: {@code messages.Profile}. */
    Map<String, Object> profile(String engine) {
        Map<String, Object> found = new LinkedHashMap<>();
        found.put("os", os);
        found.put("engine", engine);
        return found;
    }

    /** 8 hex digits, by which both sides see whether the server knows this profile: {@code messages.profile_digest}. */
    String profileDigest(String engine, TrustedSet trusted) {
        byte[] text = Json.bytes(Arrays.<Object>asList(profile(engine), trusted == null ? 0 : trusted.rootVersion(),
                trusted == null ? 0 : trusted.listingVersion()));
        return Bytes.hex(Bytes.sha256(text)).substring(0, 8);
    }

    /**
     * Turn what the user did since the last time into samples, by {@code HOME/triggers.json} or the usual triggers.
     *
     * @return names of the triggers that want a round.
     */
    public Set<String> digest() {
        ActivityLog log = new ActivityLog(store);
        Set<String> wanted = log.digest(Trigger.load(new File(path, "triggers.json")));
        log.retain(System.currentTimeMillis());
        return wanted;
    }

    /** Calls to the server that this device is enrolled at. */
    public Transport transport(ByteCounter counter) {
        Signer signer = signer();
        return new Transport(server(), counter, signer, idOf(signer, server()), authorities());
    }

    /** Certificates to trust instead of the system's, where the server's authority is private; null if there are none. */
    private File authorities() {
        File file = new File(path, "ca.pem");
        return file.exists() ? file : null;
    }

    /** Trust the certificates of this PEM text, and no others, from now on; an empty one: the system's. */
    public void trustAuthorities(byte[] pem) {
        File file = new File(path, "ca.pem");
        if (pem.length == 0) {
            Files.delete(file);
        } else {
            Files.writeAtomically(file, pem, false);
        }
    }

    /** The id that a server knows a key by: that of the device's first key there, or else the key's own. */
    private String idOf(Signer signer, String server) {
        String keys = store.setting("keys");
        boolean known = keys != null && Arrays.asList(keys.split(",")).contains(signer.publicKey)
                && server.equals(store.setting("server"));
        return known ? device() : Signer.deviceId(signer.publicKey);
    }

    /** Something done by one process and one thread at a time. */
    interface Work<T> {
        T run();
    }

    /** @throws StoreError another one holds this home. */
    <T> T locked(Work<T> work) {
        Files.makeFolder(path);
        try (RandomAccessFile file = new RandomAccessFile(new File(path, "lock"), "rw");
                FileLock lock = file.getChannel().tryLock()) {
            if (lock == null) {
                throw new StoreError("another process runs a round here; wait for it, or stop it");
            }
            return work.run();
        } catch (OverlappingFileLockException error) {
            throw new StoreError("a round is running already; wait for it, or stop it");
        } catch (IOException error) {
            throw new StoreError("cannot lock " + path + ": " + error.getMessage());
        }
    }

    /** Where a rotation was cut off, or the server has asked for one: what to do before rounds and after them. */
    public void rotateKeyIfDue(ByteCounter counter) {
        if (new File(path, "device.next.key").exists() || "due".equals(store.setting("rotation"))) {
            rotateKey(counter);
        }
    }

    /**
     * Replace the device's key by a new one, at the server first; its id stays. If it is cut off, the next call ends it
     * with the same new key.
     *
     * @throws CodaError the server cannot be reached or refuses, or the disk does; the old key is still in use.
     */
    public void rotateKey(final ByteCounter counter) {
        locked(new Work<Void>() {
            @Override
            public Void run() {
                File next = new File(path, "device.next.key");
                Signer old = signer();
                Signer following = Signer.openOrCreate(next);
                String device = idOf(old, server());
                store.set("device", device, "keys", old.publicKey + "," + following.publicKey);
                Map<String, Object> message = new LinkedHashMap<>();
                message.put("public_key", following.publicKey);
                message.put("proof", following.sign(Signer.rotationText(device, following.publicKey)));
                try (Transport transport = transport(counter)) {
                    transport.request("POST", "/v1/keys", Json.bytes(message), "rotate key", "application/json",
                            "application/json", Transport.noHeaders(), 200);
                }
                Files.move(next, new File(path, "device.key"));
                store.set("rotation", "");
                return null;
            }
        });
    }

    /**
     * Announce the device's key to a server; harmless if done before. Returns the device's id.
     *
     * @param trusted the public release key, hex, which bundles must be signed with from now on; or the text of a root
     *     document, which says whose bundles are believed from now on.
     * @param capability what this device is: see {@code messages.Capability}.
     */
    public String enrol(String server, String trusted, Map<String, Object> capability, ByteCounter counter) {
        boolean isRoot = trusted.trim().startsWith("{");
        String key = isRoot ? startTrust(Bytes.utf8(trusted)) : Signer.checkPublicKey(trusted.trim());
        if (!isRoot) {
            Files.delete(trustFile("root.json"));
            Files.delete(trustFile("bundles.json"));
        }
        Signer signer = signer();
        String device = idOf(signer, Connection.address(server));
        Map<String, Object> message = new LinkedHashMap<>();
        message.put("public_key", signer.publicKey);
        message.put("capability", capability);
        try (Transport transport = new Transport(server, counter, signer, device, authorities())) {
            byte[] answer = transport.request("POST", "/v1/devices", Json.bytes(message), "enrol", "application/json",
                    "application/json", Transport.noHeaders(), 200, 201).body;
            String found = Fields.parse(answer, "the answer to the enrolment").string("device");
            if (!found.equals(device)) {
                throw new InputError("the server knows this key as device " + found + ", but it is " + device
                        + ": update the older side");
            }
            store.set("server", transport.url(), "trusted", key, "device", device);
        }
        return device;
    }

    // -- what serves -------------------------------------------------------------------------------------------------

    private File trustFile(String name) {
        return new File(new File(path, "trust"), name);
    }

    /** Begin with a root that was given by hand; the same one again changes nothing. Returns the key trusted so far. */
    private String startTrust(byte[] root) {
        String given = Bytes.hex(Bytes.sha256(root));
        if (!given.equals(store.setting("root_given")) || !trustFile("root.json").exists()) {
            TrustedSet started = new TrustedSet(root, new byte[0]);
            started.checkSelfSigned();
            keepTrusted(started);
            store.set("root_given", given, "fresh_until", "0");
        }
        String known = store.setting("trusted");
        return known == null ? "" : known;
    }

    /** The publisher's documents that this device holds; null if it was given a single key instead. */
    TrustedSet trustedSet() {
        if (!trustFile("root.json").exists()) {
            return null;
        }
        byte[] listing = trustFile("bundles.json").exists() ? Files.read(trustFile("bundles.json")) : new byte[0];
        try {
            return new TrustedSet(Files.read(trustFile("root.json")), listing);
        } catch (TrustError error) {
            throw new StoreError("the publisher's documents are damaged (" + error.getMessage()
                    + "); enrol again with the root");
        }
    }

    /** Keep what a set has accepted; the list first, so that a cut never leaves a newer root with an older list. */
    void keepTrusted(TrustedSet trusted) {
        if (trusted.listingData.length > 0) {
            Files.writeAtomically(trustFile("bundles.json"), trusted.listingData, false);
        } else {
            Files.delete(trustFile("bundles.json"));
        }
        Files.writeAtomically(trustFile("root.json"), trusted.rootData, false);
    }

    /** The manifest of a bundle whose blob is held, verified anew. key: that must have signed it. */
    Manifest manifest(Manifest.Ref ref, String key) {
        return Manifest.open(ref, Files.read(blobs.path(ref.file())), key);
    }

    /** The serving bundle on an engine. Raises: InputError: none has been pulled. */
    public Model model(Engine engine) {
        Serving serving = store.bundle();
        if (serving == null) {
            throw new InputError("this device holds no bundle yet: run a round first");
        }
        return new Model(manifest(serving.ref, trusted()), engine, blobs);
    }

    /** The personal weights that serve, if they belong to this bundle; else the bundle's own. */
    Weights activeWeights(Model model) {
        String version = store.weights(model.manifest.version);
        if (version == null) {
            return model.base;
        }
        File path = weightsPath(version);
        try {
            return Weights.of(Safetensors.read(Files.read(path), "the file of weights"));
        } catch (StoreError | WireError error) {
            throw new StoreError(error.getMessage() + "; 'use the bundle's own weights' lets those serve");
        }
    }

    /**
     * What the next weights are compared with: those that serve, as they were before they learned from held-out samples,
     * which would speak for them. Where these cannot be read, those that serve; the next round mends it.
     */
    Weights judgedWeights(Model model) {
        Weights active = activeWeights(model);
        String version = store.weights(model.manifest.version);
        if (version == null) {
            return active;
        }
        try {
            return Weights.of(Safetensors.read(Files.read(judgedPath(version)), "judged weights"));
        } catch (StoreError | WireError gone) {
            return active;
        }
    }

    /** Let the bundle's own weights serve: what to do where personal ones are damaged. */
    public void useOwnWeights() {
        store.dropWeights();
        dropSuperseded();
    }

    /** Whether the personal weights that serve can be read; true where none do. */
    boolean hasReadableWeights() {
        String version = store.weights();
        try {
            return version == null || !Weights.of(Safetensors.read(Files.read(weightsPath(version)), "weights")).dense
                    .isEmpty();
        } catch (StoreError | WireError damaged) {
            return false;
        }
    }

    /**
     * Move a file of weights to where it can serve; harmless if done before.
     *
     * @param judged the same weights before they learned from held-out samples; null if they did not.
     */
    void placeWeights(String version, File source, File judged) {
        if (judged != null && !judgedPath(version).exists()) {
            Files.move(judged, judgedPath(version));
        }
        if (!weightsPath(version).exists()) {
            Files.move(source, weightsPath(version));
        }
    }

    /** Remove weights that do not serve, and never will. */
    void dropSuperseded() {
        String serving = store.weights();
        for (File file : Files.list(new File(path, "weights"))) {
            if (serving == null || !file.equals(weightsPath(serving)) && !file.equals(judgedPath(serving))) {
                Files.delete(file);
            }
        }
    }

    /** Remove the files of all bundles but this one; those that both have stay. */
    void dropOtherBlobs(Manifest.Ref ref, Manifest manifest) {
        Set<String> keep = new HashSet<>(Collections.singleton(ref.manifest));
        keep.add(manifest.weights.sha256);
        keep.add(manifest.classifier.sha256);
        for (Manifest.GraphEntry graph : manifest.graphs.values()) {
            for (FileRef file : graph.files.values()) {
                keep.add(file.sha256);
            }
        }
        for (Manifest.TableEntry table : manifest.tables.values()) {
            for (FileRef shard : table.shards) {
                keep.add(shard.sha256);
            }
        }
        for (File folder : new File[] {blobs.folder, new File(blobs.folder, "unpacked")}) {
            for (File file : Files.list(folder)) {
                String name = file.getName();
                if (file.isFile() && !keep.contains(name.startsWith(".part-") ? name.substring(6) : name)) {
                    Files.delete(file);
                }
            }
        }
    }

    private File judgedPath(String version) {
        return new File(new File(path, "weights"), version + ".judged.safetensors");
    }

    private File weightsPath(String version) {
        return new File(new File(path, "weights"), version + ".safetensors");
    }
}
