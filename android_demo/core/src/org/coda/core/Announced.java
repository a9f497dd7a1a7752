package org.coda.core;

import org.coda.core.CodaError.TrustError;
import org.coda.core.Store.Serving;
import org.coda.core.Transport.Answer;

import java.util.LinkedHashMap;
import java.util.Map;

/** The bundle that a device should have, found out by as few bytes as it takes; the twin of {@code pull.announced}. */
final class Announced {
    private static final byte[] NOTHING = {};

    final Manifest.Ref ref;
    final String etag;
    /** That its manifest must be signed with. */
    final String key;

    private Announced(Manifest.Ref ref, String etag, String key) {
        this.ref = ref;
        this.etag = etag;
        this.key = key;
    }

    /** What this device has, if a small question says that nothing is new; else what a signed call says. */
    static Announced find(DeviceHome home, Transport transport, String engine) {
        Serving serving = home.store.bundle();
        TrustedSet trusted = home.trustedSet();
        double now = System.currentTimeMillis() / 1000.0;
        Map<String, String> headers = new LinkedHashMap<>();
        headers.put("CoDA-Profile", Bytes.text(Json.bytes(home.profile(engine))));
        if (serving != null) {
            String question = "/v1/stale/" + home.device() + "/" + serving.ref.version + "/"
                    + home.profileDigest(engine, trusted);
            String fresh = home.store.setting("fresh_until");
            // for as long as the server's last statement holds: who keeps news away could answer the question, too
            boolean asks = trusted == null || fresh != null && now < Double.parseDouble(fresh);
            if (asks && transport.ask(question, "bundle", 200, 204, 404) == 204) {
                return new Announced(serving.ref, serving.etag, home.trusted());
            }
            if (trusted == null) {
                headers.put("If-None-Match", serving.etag);
            }
        }
        Answer found = transport.request("GET", "/v1/bundle", NOTHING, "bundle", "", "application/json", headers,
                trusted == null ? new int[] {200, 304} : new int[] {200});
        if (!found.head.header("coda-rotate-key").isEmpty()) {
            home.store.set("rotation", "due");
        }
        if (found.head.status == 304 && serving != null) {
            return new Announced(serving.ref, serving.etag, home.trusted());
        }
        Manifest.Ref ref = Manifest.Ref.parse(found.body, "the announced bundle");
        String etag = found.head.header("etag");
        if (trusted != null) {
            return new Announced(ref, etag, byThePublisher(home, transport, trusted, found, ref, now));
        }
        if (serving != null && ref.version < serving.ref.version) {
            checkRolledBack(home, transport, found, ref, serving.ref);
        }
        return new Announced(ref, etag, home.trusted());
    }

    /** Follow the publisher's documents to the bundle that is announced, and keep what was accepted on the way. */
    private static String byThePublisher(DeviceHome home, Transport transport, TrustedSet trusted, Answer found,
            Manifest.Ref ref, double now) {
        TrustedSet.Announcement said = new TrustedSet.Announcement(found.body);
        for (long n = Math.min(said.root - trusted.rootVersion(), TrustedSet.MOST_ROOTS); n > 0; n--) {
            trusted.updateRoot(transport.document("/v1/metadata/root/" + (trusted.rootVersion() + 1), "metadata"));
            home.keepTrusted(trusted);
        }
        trusted.checkStatement(Signer.answerText(found.nonce, found.body), found.head.header("coda-signature"), said,
                home.device(), now);
        if (!trusted.hasListing(said)) {
            byte[] listing = transport.document("/v1/metadata/bundles/" + said.listingVersion, "metadata");
            trusted.updateListing(listing, said, now);
            home.keepTrusted(trusted);
        }
        String key = trusted.checkBundle(ref, now);
        home.store.set("fresh_until", String.valueOf(said.expires));
        return key;
    }

    /** An older bundle is taken only from the server that this device trusts, in an answer to this very request. */
    private static void checkRolledBack(DeviceHome home, Transport transport, Answer found, Manifest.Ref announced,
            Manifest.Ref serving) {
        try {
            Signer.verify(home.manifest(serving, home.trusted()).answerKey, Signer.answerText(found.nonce, found.body),
                    found.head.header("coda-signature"));
        } catch (TrustError error) {
            throw new TrustError(transport.url() + " announces bundle " + announced.version
                    + ", but this device already has " + serving.version
                    + "; an older one is refused unless the server signs that it was rolled back (a replay, or an old "
                    + "server)");
        }
    }
}
