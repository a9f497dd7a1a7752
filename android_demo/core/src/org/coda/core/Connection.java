package org.coda.core;

import org.coda.core.CodaError.InputError;
import org.coda.core.CodaError.TransportError;
import org.coda.core.CodaError.TrustError;
import org.coda.core.CodaError.Unreachable;
import org.coda.core.CodaError.WireError;

import java.io.BufferedInputStream;
import java.io.ByteArrayOutputStream;
import java.io.Closeable;
import java.io.EOFException;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.ConnectException;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.net.URI;
import java.net.URISyntaxException;
import java.net.UnknownHostException;
import java.nio.charset.StandardCharsets;
import java.security.cert.CertificateException;
import java.util.LinkedHashMap;
import java.util.Locale;
import java.util.Map;

import javax.net.ssl.SSLException;
import javax.net.ssl.SSLPeerUnverifiedException;

/**
 * One kept HTTP/1.1 connection to one server. Of our own and not HttpURLConnection, because every byte must be counted,
 * headers included, and because that class repeats requests and asks for gzip on its own.
 */
final class Connection implements Closeable {
    private static final int CONNECT_MS = 10_000;
    private static final int READ_MS = 30_000;
    private static final int HEAD = 64 << 10;

    final String url;
    private final String host;
    private final int port;
    private final boolean tls;
    private final String prefix;
    private final ByteCounter counter;
    private final Route route;
    private Socket socket;
    private InputStream in;
    private String label = "";

    /** Trying again may help. waitS: what the server asked for, 0 if it did not. */
    static final class MayPass extends Exception {
        private static final long serialVersionUID = 1L;
        final transient TransportError error;
        final double waitS;

        MayPass(TransportError error, double waitS) {
            super(error.getMessage());
            this.error = error;
            this.waitS = waitS;
        }
    }

    /** Takes a body as it arrives. */
    interface Sink {
        void take(byte[] data, int count) throws IOException;
    }

    /** An answer's head; names in lower case. */
    static final class Head {
        final int status;
        final Map<String, String> headers = new LinkedHashMap<>();

        Head(int status) {
            this.status = status;
        }

        String header(String name) {
            String value = headers.get(name.toLowerCase(Locale.ROOT));
            return value == null ? "" : value;
        }

        String mediaType() {
            return header("content-type").split(";", 2)[0].trim().toLowerCase(Locale.ROOT);
        }
    }

    /**
     * @param authorities certificates (PEM) to trust instead of the system's; null for the system's.
     * @throws InputError not an http or https address, or one with more in it than host, port and path.
     */
    Connection(String url, ByteCounter counter, File authorities) {
        this.counter = counter;
        String plain = address(url);
        URI parts = null;
        try {
            parts = new URI(plain);
        } catch (URISyntaxException error) {
            // below
        }
        boolean fits = parts != null && ("http".equals(parts.getScheme()) || "https".equals(parts.getScheme()))
                && parts.getHost() != null && parts.getRawQuery() == null && parts.getRawFragment() == null
                && parts.getRawUserInfo() == null && parts.getPort() != 0;
        if (!fits) {
            throw new InputError("'" + clip(url) + "' is not a server's address; write it like "
                    + "https://coda.example:8443");
        }
        this.url = plain;
        tls = parts.getScheme().equals("https");
        host = parts.getHost();
        port = parts.getPort() > 0 ? parts.getPort() : tls ? 443 : 80;
        prefix = parts.getRawPath() == null ? "" : parts.getRawPath();
        route = new Route(parts, host, port, tls, authorities);
    }

    /** A server's address as it is stored. */
    static String address(String url) {
        return url.endsWith("/") ? url.substring(0, url.length() - 1) : url;
    }

    @Override
    public void close() {
        if (socket != null) {
            try {
                socket.close();
            } catch (IOException error) {
                // it is gone either way
            }
        }
        socket = null;
        in = null;
    }

    private final class Counted extends InputStream {
        private final InputStream from;

        Counted(InputStream from) {
            this.from = from;
        }

        @Override
        public int read() throws IOException {
            byte[] one = new byte[1];
            return read(one, 0, 1) < 0 ? -1 : one[0] & 255;
        }

        @Override
        public int read(byte[] into, int at, int most) throws IOException {
            counter.check();
            int got = from.read(into, at, most);
            counter.add(label, 0, Math.max(got, 0));
            return got;
        }
    }

    /** Send a request and read the head of its answer, on a kept connection if that is still good. */
    Head send(String method, String path, byte[] body, Map<String, String> headers, String message) throws MayPass {
        label = message;
        String place = port == (tls ? 443 : 80) ? host : host + ":" + port;
        String address = (route.isRelayed() ? "http://" + place : "") + prefix + path;
        StringBuilder text = new StringBuilder(method + " " + address + " HTTP/1.1\r\nHost: " + place);
        text.append("\r\nAccept-Encoding: identity\r\n");
        if (body.length > 0) {
            text.append("Content-Length: ").append(body.length).append("\r\n");
        }
        for (Map.Entry<String, String> header : headers.entrySet()) {
            text.append(header.getKey()).append(": ").append(header.getValue()).append("\r\n");
        }
        byte[] request = Bytes.join(Bytes.utf8(text.append("\r\n").toString()), body);
        boolean kept = socket != null;
        try {
            try {
                if (!kept) {
                    open();
                }
                return exchange(request);
            } catch (IOException error) {
                close();
                if (!kept || error instanceof SocketTimeoutException) {
                    throw error;
                }
                open(); // the server closed the idle connection while the request was on its way
                return exchange(request);
            }
        } catch (IOException error) {
            throw failed(error);
        }
    }

    private Head exchange(byte[] request) throws IOException {
        counter.check();
        OutputStream out = socket.getOutputStream();
        out.write(request);
        out.flush();
        counter.add(label, request.length, 0);
        return head();
    }

    private void open() throws IOException {
        socket = new Socket();
        socket.setTcpNoDelay(true);
        socket = route.connect(socket, CONNECT_MS, READ_MS);
        in = new BufferedInputStream(new Counted(socket.getInputStream()));
    }

    private Head head() throws IOException {
        String line = line(HEAD);
        String[] words = line.split(" ", 3);
        if (words.length < 2 || !words[0].startsWith("HTTP/1.") || !words[1].matches("\\d{3}")) {
            throw new IOException("does not answer in HTTP/1.1; check the address");
        }
        Head head = new Head(Integer.parseInt(words[1]));
        int left = HEAD;
        while (!(line = line(left)).isEmpty()) {
            left -= line.length();
            int colon = line.indexOf(':');
            if (colon > 0) {
                head.headers.put(line.substring(0, colon).trim().toLowerCase(Locale.ROOT),
                        line.substring(colon + 1).trim());
            }
        }
        return head.status == 100 ? head() : head;
    }

    private String line(int most) throws IOException {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        for (int c = in.read(); c != '\n'; c = in.read()) {
            if (c < 0) {
                throw new EOFException();
            }
            if (out.size() > most) {
                throw new IOException("answers with headers without end; check the address");
            }
            if (c != '\r') {
                out.write(c);
            }
        }
        return new String(out.toByteArray(), StandardCharsets.ISO_8859_1);
    }

    /**
     * An answer's body; the connection is kept only if it was read to its end.
     *
     * @throws WireError it has, or says it has, more than so many bytes; they are not read.
     * @throws MayPass it ends before it should, or does not say where it should end.
     */
    void body(Head head, long most, Sink sink) throws MayPass {
        boolean whole = false;
        try {
            if (head.status == 204 || head.status == 304) {
                whole = true;
            } else if (head.header("transfer-encoding").equalsIgnoreCase("chunked")) {
                long size;
                while ((size = Long.parseLong(line(100).split(";", 2)[0].trim(), 16)) > 0) {
                    most -= size;
                    take(size, most, sink);
                    line(2);
                }
                while (!line(HEAD).isEmpty()) {
                    continue; // trailers
                }
                whole = true;
            } else if (head.header("content-length").matches("\\d{1,15}")) {
                long size = Long.parseLong(head.header("content-length"));
                take(size, most - size, sink);
                whole = true;
            } else {
                throw new MayPass(new Unreachable("the answer of " + url
                        + " does not state its length, so it may have been cut short; try again"), 0);
            }
        } catch (EOFException error) {
            throw new MayPass(new Unreachable("the answer of " + url + " was cut short; try again"), 0);
        } catch (IOException error) {
            throw failed(error);
        } catch (NumberFormatException error) {
            throw new MayPass(new Unreachable(url + " cut its answer short in the middle of a chunk; try again"), 0);
        } finally {
            if (!whole || head.header("connection").equalsIgnoreCase("close")) {
                close();
            }
        }
    }

    private void take(long size, long left, Sink sink) throws IOException {
        if (left < 0) {
            throw new WireError(url + " answers with more bytes than are allowed here; the rest was not read: check "
                    + "that this is the right server");
        }
        byte[] chunk = new byte[16 << 10];
        for (long got = 0; got < size; ) {
            int count = in.read(chunk, 0, (int) Math.min(chunk.length, size - got));
            if (count < 0) {
                throw new EOFException();
            }
            sink.take(chunk, count);
            got += count;
        }
    }

    /** By the causes: what the text says differs between releases of Java. */
    private static boolean isOfCertificate(Throwable error) {
        for (Throwable cause = error; cause != null; cause = cause.getCause()) {
            if (cause instanceof CertificateException || cause instanceof SSLPeerUnverifiedException) {
                return true;
            }
        }
        return false;
    }

    private MayPass failed(IOException error) {
        close();
        if (error instanceof SSLException) {
            String said = String.valueOf(error.getMessage());
            if (isOfCertificate(error) || said.toLowerCase(Locale.ROOT).contains("cert")) {
                throw new TrustError("the certificate of " + url + " does not verify: " + clip(said)
                        + "; check this device's date and the address");
            }
            return new MayPass(new Unreachable(url + " does not speak TLS as it should (" + clip(said)
                    + "); check that this is an https address"), 0);
        }
        String reason;
        if (error instanceof UnknownHostException) {
            reason = "cannot be reached: no address is known for '" + host + "'; check name and network";
        } else if (error instanceof ConnectException) {
            reason = "cannot be reached: nothing listens on port " + port + " of " + host + ", or there is no network";
        } else if (error instanceof SocketTimeoutException) {
            reason = "sent nothing for " + READ_MS / 1000 + " s; try again on a better connection";
        } else if (error instanceof EOFException) {
            reason = "broke the connection off before it had answered; try again";
        } else {
            reason = clip(String.valueOf(error.getMessage())) + "; check the network";
        }
        return new MayPass(new Unreachable(url + " " + reason), 0);
    }

    /** A peer's words, fit to stand in an error: printable and not too long. */
    static String clip(String text) {
        StringBuilder out = new StringBuilder();
        for (int i = 0; i < Math.min(300, text.length()); i++) {
            out.append(Character.isISOControl(text.charAt(i)) ? ' ' : text.charAt(i));
        }
        return out.append(text.length() > 300 ? "…" : "").toString();
    }
}
