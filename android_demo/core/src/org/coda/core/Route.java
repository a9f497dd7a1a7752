package org.coda.core;

import org.coda.core.CodaError.InputError;
import org.coda.core.CodaError.TrustError;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.EOFException;
import java.io.File;
import java.io.IOException;
import java.lang.reflect.InvocationTargetException;
import java.net.InetSocketAddress;
import java.net.Proxy;
import java.net.ProxySelector;
import java.net.Socket;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.KeyStore;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;

import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.SSLSocketFactory;
import javax.net.ssl.TrustManagerFactory;

/**
 * The way to a server: through the system's proxy, if it has one for this address, and inside TLS. Plain http goes
 * through a proxy as requests for absolute addresses, https as a tunnel that it cannot look into.
 */
final class Route {
    private static final int MOST = 16 << 10;

    private final String host;
    private final int port;
    private final boolean tls;
    private final Proxy proxy;
    private final File authorities;

    /** @param authorities certificates (PEM) to trust instead of the system's; null for the system's. */
    Route(URI url, String host, int port, boolean tls, File authorities) {
        this.host = host;
        this.port = port;
        this.tls = tls;
        this.authorities = authorities;
        Proxy found = Proxy.NO_PROXY;
        ProxySelector selector = ProxySelector.getDefault();
        if (selector != null) {
            for (Proxy each : selector.select(url)) {
                found = found == Proxy.NO_PROXY && each.type() == Proxy.Type.HTTP ? each : found;
            }
        }
        proxy = found;
    }

    /** Whether requests must name the whole address. */
    boolean isRelayed() {
        return !tls && proxy != Proxy.NO_PROXY;
    }

    /** A connection to the server. The socket is given, so that its owner can close it meanwhile. */
    Socket connect(Socket plain, int connectMs, int readMs) throws IOException {
        InetSocketAddress next = new InetSocketAddress(host, port);
        if (proxy != Proxy.NO_PROXY) {
            InetSocketAddress named = (InetSocketAddress) proxy.address(); // which Java leaves unresolved
            next = new InetSocketAddress(named.getHostString(), named.getPort());
        }
        plain.connect(next, connectMs);
        plain.setSoTimeout(readMs);
        if (!tls) {
            return plain;
        }
        if (proxy != Proxy.NO_PROXY) {
            openTunnel(plain);
        }
        SSLSocket secure = (SSLSocket) factory().createSocket(plain, host, port, true);
        SSLParameters parameters = secure.getSSLParameters();
        checkHostName(parameters);
        secure.setSSLParameters(parameters);
        secure.startHandshake();
        return secure;
    }

    private void openTunnel(Socket socket) throws IOException {
        String target = host + ":" + port;
        socket.getOutputStream().write(Bytes.utf8("CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n\r\n"));
        ByteArrayOutputStream answer = new ByteArrayOutputStream();
        String text = "";
        while (!text.endsWith("\r\n\r\n")) { // byte by byte: what follows belongs to the server
            int one = socket.getInputStream().read();
            if (one < 0 || answer.size() > MOST) {
                throw new EOFException();
            }
            answer.write(one);
            text = one == '\n' ? new String(answer.toByteArray(), StandardCharsets.ISO_8859_1) : "";
        }
        if (!text.matches("(?s)HTTP/1\\.[01] 2\\d\\d.*")) {
            throw new IOException("is behind a proxy that refuses a tunnel (" + Connection.clip(text.split("\r\n")[0])
                    + ")");
        }
    }

    private SSLSocketFactory factory() {
        if (authorities == null) {
            return (SSLSocketFactory) SSLSocketFactory.getDefault();
        }
        try {
            KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
            store.load(null, null);
            int count = 0;
            for (Certificate each : CertificateFactory.getInstance("X.509")
                    .generateCertificates(new ByteArrayInputStream(Files.read(authorities)))) {
                store.setCertificateEntry("authority " + count++, each);
            }
            if (count == 0) {
                throw new InputError(authorities + " holds no certificates");
            }
            TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
            trust.init(store);
            SSLContext context = SSLContext.getInstance("TLS");
            context.init(null, trust.getTrustManagers(), null);
            return context.getSocketFactory();
        } catch (GeneralSecurityException | IOException error) {
            throw new InputError(authorities + " holds no certificates that can be read: "
                    + Connection.clip(String.valueOf(error.getMessage())));
        }
    }

    /** By name: every Android that this app runs on has the method, but not the API that it is compiled against. */
    private static void checkHostName(SSLParameters parameters) {
        try {
            SSLParameters.class.getMethod("setEndpointIdentificationAlgorithm", String.class)
                    .invoke(parameters, "HTTPS");
        } catch (NoSuchMethodException | IllegalAccessException | InvocationTargetException error) {
            throw new TrustError("this system cannot check whose certificate a server shows; use another system");
        }
    }
}
