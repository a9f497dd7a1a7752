package org.coda.core;

import org.coda.core.CodaError.InputError;
import org.coda.core.CodaError.TrustError;
import org.coda.core.CodaError.WireError;

import java.util.Collection;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;

/**
 * What a device that was given a root trusts at a moment: the root, and the newest list of bundles that it has seen.
 * The twin of {@code device_runtime/trust.py}, which says what is refused, and by what. Every method raises TrustError
 * only, and then nothing has changed.
 */
final class TrustedSet {
    private static final int MOST = 1 << 20;
    private static final long LONGEST_S = 31 * 86_400L;
    static final int MOST_ROOTS = 64;

    /** What the server's online key states for one request of one device. */
    static final class Announcement {
        final String device;
        final long expires;
        final long root;
        final long listingVersion;
        final String listing;

        Announcement(byte[] json) {
            Fields fields = Fields.parse(json, "the announced bundle");
            device = fields.string("device", "");
            expires = fields.has("expires") ? fields.integer("expires") : 0;
            root = fields.has("root") ? fields.integer("root") : 0;
            listingVersion = fields.has("listing_version") ? fields.integer("listing_version") : 0;
            listing = fields.string("listing", "");
        }
    }

    /** A document: its content, the bytes that are signed, and who signed them. */
    private static final class Signed {
        final Fields content;
        final byte[] text;
        final Map<String, Object> signatures;

        Signed(byte[] data, String role) {
            if (data.length > MOST) {
                throw new TrustError("a " + role + " document has at most " + MOST + " bytes; this one has "
                        + data.length);
            }
            try {
                Fields whole = Fields.parse(data, "the " + role + " document");
                byte[] plain = Json.member(data, "signed");
                content = whole.object("signed");
                signatures = whole.has("signatures") ? whole.map("signatures") : new LinkedHashMap<String, Object>();
                whole.nothingElse();
                text = Bytes.join(Bytes.utf8("coda-" + role + "\n"), plain);
                if (content.integer("format") != 1 || content.integer("version") < 1) {
                    throw new TrustError("the " + role + " document has another format; update this program");
                }
            } catch (WireError error) {
                throw new TrustError("this is no signed " + role + " document: " + error.getMessage());
            }
        }

        int signedBy(Map<String, String> keys) {
            int good = 0;
            for (Map.Entry<String, String> key : keys.entrySet()) {
                try {
                    Signer.verify(key.getValue(), text, String.valueOf(signatures.get(key.getKey())));
                    good++;
                } catch (TrustError error) {
                    continue;
                }
            }
            return good;
        }
    }

    private static final class Root {
        final long version;
        final long expires;
        final Map<String, Map<String, String>> keys = new LinkedHashMap<>();
        final Map<String, Long> thresholds = new LinkedHashMap<>();

        Root(Fields content) {
            try {
                content.integer("format");
                version = content.integer("version");
                expires = content.integer("expires");
                Map<String, Object> known = content.map("keys");
                for (Map.Entry<String, Object> key : known.entrySet()) {
                    String publicKey = String.valueOf(key.getValue());
                    if (!Signer.checkPublicKey(publicKey).equals(publicKey)
                            || !Signer.keyId(publicKey).equals(key.getKey())) {
                        throw new TrustError("the root names a key by " + key.getKey() + ", which is not its id");
                    }
                }
                for (String name : new String[] {"root", "bundles", "online"}) {
                    Fields role = content.object("roles").object(name);
                    Map<String, String> mine = new LinkedHashMap<>();
                    for (String id : role.strings("keys")) {
                        mine.put(id, (String) known.get(id));
                    }
                    long threshold = role.has("threshold") ? role.integer("threshold") : 1;
                    if (mine.containsValue(null) || threshold < 1 || threshold > mine.size()) {
                        throw new TrustError("the root gives the role '" + name
                                + "' no keys, unknown ones, or a threshold they cannot reach");
                    }
                    keys.put(name, mine);
                    thresholds.put(name, threshold);
                }
                content.map("roles");
                content.nothingElse();
            } catch (WireError | InputError error) {
                throw new TrustError("the root document does not decode: " + error.getMessage());
            }
        }

        void require(Signed document, String role) {
            int good = document.signedBy(keys.get(role));
            if (good < thresholds.get(role)) {
                throw new TrustError(good + " of the keys that root " + version + " names for " + role
                        + " have signed; it takes " + thresholds.get(role));
            }
        }
    }

    private static final class Listing {
        final long version;
        final long expires;
        final Map<String, Object> bundles;

        Listing(Fields content) {
            try {
                content.integer("format");
                version = content.integer("version");
                expires = content.integer("expires");
                bundles = content.map("bundles");
                content.nothingElse();
            } catch (WireError error) {
                throw new TrustError("the list of bundles does not decode: " + error.getMessage());
            }
        }

        void checkUnexpired(double now) {
            if (now > expires) {
                throw new TrustError("the publisher's list of bundles, version " + version
                        + ", has expired: nothing new is taken. Tell the publisher, and check this device's clock");
            }
        }
    }

    private Root root;
    private Listing listing;
    byte[] rootData;
    /** Empty where no list was seen. */
    byte[] listingData;

    /** @param listing that an earlier set accepted; empty for none. */
    TrustedSet(byte[] root, byte[] listing) {
        this.root = new Root(new Signed(root, "root").content);
        this.listing = listing.length == 0 ? null : new Listing(new Signed(listing, "bundles").content);
        rootData = root;
        listingData = listing;
    }

    long rootVersion() {
        return root.version;
    }

    /** 0 where no list was seen. */
    long listingVersion() {
        return listing == null ? 0 : listing.version;
    }

    /** That the root's own keys have signed it. */
    void checkSelfSigned() {
        root.require(new Signed(rootData, "root"), "root");
    }

    /** Take the root that follows; its expiry is checked when it is used. */
    void updateRoot(byte[] data) {
        Signed signed = new Signed(data, "root");
        Root following = new Root(signed.content);
        if (following.version != root.version + 1) {
            throw new TrustError("root " + following.version + " does not follow root " + root.version
                    + ", which is trusted here");
        }
        root.require(signed, "root");
        following.require(signed, "root");
        if (!set(following.keys.get("bundles").values()).equals(set(root.keys.get("bundles").values()))) {
            listing = null; // whoever held a key that was dropped may have made lists of any version
            listingData = new byte[0];
        }
        root = following;
        rootData = data;
    }

    private static Set<String> set(Collection<String> values) {
        return new HashSet<>(values);
    }

    private void checkRoot(double now) {
        if (now > root.expires) {
            throw new TrustError("root " + root.version + " has expired, and its successor did not come: nothing new is "
                    + "taken. Tell the publisher, and check this device's clock");
        }
    }

    /** Whether the list that the online key names is at hand. */
    boolean hasListing(Announcement announced) {
        return listingData.length > 0 && Bytes.hex(Bytes.sha256(listingData)).equals(announced.listing);
    }

    /** Take the list that the online key names. */
    void updateListing(byte[] data, Announcement announced, double now) {
        checkRoot(now);
        if (!Bytes.hex(Bytes.sha256(data)).equals(announced.listing)) {
            throw new TrustError("the list of bundles is another one than the server's statement names");
        }
        Signed signed = new Signed(data, "bundles");
        root.require(signed, "bundles");
        Listing found = new Listing(signed.content);
        found.checkUnexpired(now);
        if (listing != null && found.version < listing.version) {
            throw new TrustError("the list of bundles has version " + found.version + "; this device has seen "
                    + listing.version);
        }
        boolean differs = listing != null
                && (found.expires != listing.expires || !found.bundles.equals(listing.bundles));
        if (differs && found.version == listing.version) {
            throw new TrustError("there are two lists of bundles of version " + found.version);
        }
        listing = found;
        listingData = data;
    }

    /** That an online key made a statement, for this device, and that it holds now. */
    void checkStatement(byte[] text, String signature, Announcement announced, String device, double now) {
        boolean signed = false;
        for (String key : root.keys.get("online").values()) {
            try {
                Signer.verify(key, text, signature);
                signed = true;
            } catch (TrustError error) {
                continue;
            }
        }
        if (!signed) {
            throw new TrustError("the server's statement is not signed by a key that the root names for it");
        }
        checkRoot(now);
        if (!announced.device.equals(device)) {
            throw new TrustError("the server's statement is for another device");
        }
        if (announced.root < root.version) {
            throw new TrustError("the server knows root " + announced.root + "; this device has seen " + root.version);
        }
        if (!(now < announced.expires && announced.expires <= now + LONGEST_S)) {
            throw new TrustError("the server's statement has expired, or holds for longer than any may");
        }
    }

    /** That a bundle may be run. Returns the public key that its manifest must be signed with. */
    String checkBundle(Manifest.Ref ref, double now) {
        checkRoot(now);
        if (listing != null) {
            listing.checkUnexpired(now);
        }
        if (listing == null || !ref.manifest.equals(listing.bundles.get(String.valueOf(ref.version)))) {
            throw new TrustError("bundle " + ref.version
                    + " is not on the publisher's list, or another one of this version is");
        }
        String key = root.keys.get("bundles").get(ref.key);
        if (key == null) {
            throw new TrustError("bundle " + ref.version + " is signed by key " + ref.key
                    + ", which the root does not name for that");
        }
        return key;
    }
}
