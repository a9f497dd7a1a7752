package org.coda.core;

import org.coda.core.CodaError.Refused;
import org.coda.core.CodaError.StoreError;
import org.coda.core.CodaError.TransportError;
import org.coda.core.CodaError.TrustError;
import org.coda.core.CodaError.Unreachable;
import org.coda.core.CodaError.WireError;
import org.coda.core.Connection.Head;
import org.coda.core.Connection.MayPass;
import org.coda.core.Manifest.FileRef;

import java.io.ByteArrayOutputStream;
import java.io.Closeable;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.text.ParseException;
import java.text.SimpleDateFormat;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Locale;
import java.util.Map;

/**
 * Calls to one server: signed, tried again where that may help, and every byte counted. The twin of
 * {@code device_runtime/transport.py}; its calls are the same bytes. One thread at a time.
 */
public final class Transport implements Closeable {
    static final int MOST = 64 << 20;
    private static final int ATTEMPTS = 4;
    private static final double BACKOFF_S = 0.5;
    private static final double MOST_BACKOFF_S = 30;
    private static final double SKEW_S = 60;
    private static final byte[] NOTHING = {};

    final ByteCounter counter;
    private final Connection connection;
    private final Signer signer;
    private final String device;
    private double offsetS;
    /** The version that the device runs, told on signed requests; 0 if it has none. */
    int bundle;
    /** What answers have said to be stale, such as "bundle" or "evaluation"; "" if nothing was. */
    String stale = "";

    /** An answer; nonce: of the request that it answers. */
    static final class Answer {
        final Head head;
        final byte[] body;
        final String nonce;

        Answer(Head head, byte[] body, String nonce) {
            this.head = head;
            this.body = body;
            this.nonce = nonce;
        }
    }

    /**
     * @param authorities certificates (PEM) to trust instead of the system's; null for the system's.
     * @throws CodaError.InputError the address cannot be used.
     */
    public Transport(String url, ByteCounter counter, Signer signer, String device, File authorities) {
        this.counter = counter;
        this.signer = signer;
        this.device = device;
        connection = new Connection(url, counter, authorities);
    }

    String url() {
        return connection.url;
    }

    @Override
    public void close() {
        connection.close();
    }

    private interface Attempt<T> {
        T make() throws MayPass;
    }

    private <T> T persist(Attempt<T> attempt) {
        for (int number = 1; ; number++) {
            counter.check();
            MayPass failure;
            try {
                return attempt.make();
            } catch (MayPass passing) {
                failure = passing;
            }
            if (number >= ATTEMPTS || failure.waitS > MOST_BACKOFF_S) {
                throw failure.error;
            }
            double backoff = Math.min(BACKOFF_S * (1 << number - 1), MOST_BACKOFF_S) * (1 - Math.random() / 2);
            try {
                Thread.sleep((long) (1000 * (failure.waitS + backoff)));
            } catch (InterruptedException stopped) {
                Thread.currentThread().interrupt();
                throw failure.error;
            }
        }
    }

    /**
     * Make a call, as often as the limits allow, until its answer has one of the accepted statuses.
     *
     * @param label the message that the bytes count for.
     * @param type of the body.
     * @param accept the media type that the answer's body must have; "" is any but HTML.
     */
    Answer request(String method, String path, byte[] body, String label, String type, String accept,
            Map<String, String> more, int... statuses) {
        return call(true, method, path, body, label, type, accept, more, statuses);
    }

    /** The status that a question which anybody may ask is answered with. */
    int ask(String path, String label, int... statuses) {
        return call(false, "GET", path, NOTHING, label, "", "", noHeaders(), statuses).head.status;
    }

    /** The body of a JSON document that anybody may ask for. */
    byte[] document(String path, String label) {
        return call(false, "GET", path, NOTHING, label, "", "application/json", noHeaders(), 200).body;
    }

    private Answer call(final boolean signed, final String method, final String path, final byte[] body,
            final String label, String type, final String accept, Map<String, String> more, final int... statuses) {
        final Map<String, String> fixed = new LinkedHashMap<>(more);
        if (body.length > 0) {
            fixed.put("Content-Type", type);
        }
        if (!accept.isEmpty()) {
            fixed.put("Accept", accept);
        }
        if (signed && bundle > 0) {
            fixed.put("CoDA-Bundle", String.valueOf(bundle));
        }
        return persist(new Attempt<Answer>() {
            @Override
            public Answer make() throws MayPass {
                String nonce = Signer.nonce();
                Map<String, String> headers = new LinkedHashMap<>(fixed);
                long at = (long) (System.currentTimeMillis() / 1000.0 + offsetS);
                if (signed) {
                    headers.put("Authorization", signer.authorization(device, method, path, body, at, nonce));
                }
                Head head = connection.send(method, path, body, headers, label);
                byte[] content = content(head);
                if (!accepted(head.status, statuses)) {
                    TransportError refusal = refusal(method + " " + path, head, content);
                    if (head.status == 401 && refusal instanceof Refused && learnTime(head)) {
                        throw new MayPass(refusal, 0);
                    }
                    throw refusal;
                }
                stale = head.headers.containsKey("coda-stale") ? head.header("coda-stale") : stale;
                boolean fits = accept.isEmpty() ? !head.mediaType().equals("text/html")
                        : content.length == 0 || head.mediaType().equals(accept);
                if (!fits) {
                    throw notOurs(head, accept);
                }
                return new Answer(head, content, nonce);
            }
        });
    }

    private static boolean accepted(int status, int... statuses) {
        for (int each : statuses) {
            if (each == status) {
                return true;
            }
        }
        return false;
    }

    private byte[] content(Head head) throws MayPass {
        final ByteArrayOutputStream content = new ByteArrayOutputStream();
        connection.body(head, MOST, new Connection.Sink() {
            @Override
            public void take(byte[] data, int count) {
                content.write(data, 0, count);
            }
        });
        return content.toByteArray();
    }

    /**
     * See to it that the store holds a blob; bytes that an earlier, cut transfer left there are not sent again.
     *
     * @throws TrustError the server's blob has another size or hash than the reference; nothing of it is kept.
     * @throws StoreError the disk is full or refuses.
     */
    void fetchBlob(final FileRef ref, final Blobs blobs, final String label) {
        if (blobs.has(ref)) {
            return;
        }
        final File part = blobs.part(ref);
        Files.makeFolder(blobs.folder);
        for (int tries = part.length() > 0 ? 2 : 1; tries > 0; tries--) { // bytes left by a power cut may be bad
            persist(new Attempt<Void>() {
                @Override
                public Void make() throws MayPass {
                    fetch(ref, blobs, part, label);
                    return null;
                }
            });
            if (blobs.accept(ref)) {
                return;
            }
        }
        throw new TrustError(connection.url + " has a damaged blob " + ref.sha256.substring(0, 12)
                + "…; it was not kept. Tell its operator");
    }

    private void fetch(FileRef ref, Blobs blobs, final File part, String label) throws MayPass {
        if (part.length() > ref.size) {
            Files.delete(part);
        }
        final long have = part.length();
        if (have > 0 && have == ref.size) {
            return;
        }
        if (blobs.folder.getUsableSpace() < ref.size - have) {
            throw new StoreError(blobs.folder + " has too little room: " + (ref.size - have)
                    + " bytes are needed; free some space");
        }
        Map<String, String> headers = new LinkedHashMap<>();
        if (have > 0) {
            headers.put("Range", "bytes=" + have + "-");
            headers.put("If-Range", "\"" + ref.sha256 + "\"");
        }
        String path = "/v1/blobs/" + ref.sha256;
        Head head = connection.send("GET", path, NOTHING, headers, label);
        if (head.status == 416) {
            connection.close();
            Files.delete(part);
            throw anotherBlob(ref);
        }
        if (head.status != 200 && head.status != 206) {
            throw refusal("GET " + path, head, content(head));
        }
        if (head.mediaType().equals("text/html")) {
            connection.close();
            throw notOurs(head, "");
        }
        boolean goesOn = head.status == 206;
        if (goesOn && !head.header("content-range").startsWith("bytes " + have + "-")) {
            connection.close();
            throw new Unreachable(connection.url + " sent other bytes of " + path + " than asked for");
        }
        try (final FileOutputStream file = new FileOutputStream(part, goesOn)) {
            connection.body(head, ref.size - (goesOn ? have : 0), new Connection.Sink() {
                @Override
                public void take(byte[] data, int count) {
                    try {
                        file.write(data, 0, count);
                    } catch (IOException error) {
                        Files.delete(part); // so that the device can go on writing its journal
                        throw new StoreError("cannot keep a blob: " + error.getMessage() + "; free some space");
                    }
                }
            });
            file.getFD().sync();
        } catch (WireError error) {
            Files.delete(part);
            throw anotherBlob(ref);
        } catch (IOException error) {
            throw new StoreError("cannot keep a blob: " + error.getMessage() + "; free some space");
        }
    }

    private TrustError anotherBlob(FileRef ref) {
        return new TrustError(connection.url + " has another file as blob " + ref.sha256.substring(0, 12)
                + "…: not the " + ref.size + " bytes expected. It was not kept. Tell its operator");
    }

    /** Sign by the server's clock from now on, if this device's is far from it. */
    private boolean learnTime(Head head) {
        Double stated = date(head.header("date"));
        double now = System.currentTimeMillis() / 1000.0;
        if (stated == null || Math.abs(stated - now - offsetS) <= SKEW_S) {
            return false;
        }
        offsetS = stated - now;
        return true;
    }

    private TransportError refusal(String call, Head head, byte[] content) throws MayPass {
        if (head.status >= 300 && head.status < 400) {
            return new Unreachable(connection.url + " redirects " + call + "; redirects are not followed: sign in to "
                    + "this network if it asks for that, or correct the server's address");
        }
        String words;
        try {
            Fields problem = Fields.parse(content, "a problem");
            String detail = problem.string("detail", "");
            words = Connection.clip(problem.string("title") + (detail.isEmpty() ? "" : ": " + detail));
        } catch (WireError error) {
            words = "no reason; perhaps something in between answered, or it is another server";
        }
        Refused refused = new Refused(head.status,
                connection.url + " refused " + call + " with status " + head.status + ": " + words);
        if (head.status == 429 || head.status >= 502 && head.status <= 504) {
            throw new MayPass(refused, askedWaitS(head));
        }
        return refused;
    }

    private Unreachable notOurs(Head head, String accept) {
        String kind = head.mediaType().equals("text/html") ? "a web page" : Connection.clip(head.mediaType());
        return new Unreachable(connection.url + " answers with " + kind + " instead of "
                + (accept.isEmpty() ? "data" : accept)
                + ": this network may want a log-in first (captive portal), or the address is another server's");
    }

    private static double askedWaitS(Head head) {
        String stated = head.header("retry-after");
        if (stated.matches("\\d{1,9}")) {
            return Double.parseDouble(stated);
        }
        Double until = date(stated);
        Double now = date(head.header("date"));
        return until == null ? 0 : Math.max(0, until - (now == null ? System.currentTimeMillis() / 1000.0 : now));
    }

    private static Double date(String text) {
        try {
            return new SimpleDateFormat("EEE, dd MMM yyyy HH:mm:ss zzz", Locale.US).parse(text).getTime() / 1000.0;
        } catch (ParseException error) {
            return null;
        }
    }

    static Map<String, String> noHeaders() {
        return Collections.emptyMap();
    }
}
