package org.coda.core;

import org.coda.core.CodaError.InputError;
import org.coda.core.CodaError.StoreError;
import org.coda.core.CodaError.TrustError;

import java.io.File;
import java.security.SecureRandom;
import java.util.Locale;

/** Who a device is, and what a publisher vouches for. Holds a private key, which is never printed, logged or sent. */
public final class Signer {
    private static final String LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    private static final SecureRandom RANDOM = new SecureRandom();

    /** The public key, hex. */
    public final String publicKey;

    private final byte[] secret;
    private final byte[] key;

    Signer(byte[] secret) {
        this.secret = secret;
        this.key = Ed25519.publicKey(secret);
        this.publicKey = Bytes.hex(key);
    }

    /**
     * The key of a file, which is made if there is none; readable by its owner only.
     *
     * @throws StoreError it cannot be read or written, or is not a key.
     */
    public static Signer openOrCreate(File path) {
        if (!path.exists()) {
            byte[] secret = new byte[32];
            RANDOM.nextBytes(secret);
            Files.writeAtomically(path, Bytes.utf8(Bytes.hex(secret) + "\n"), true);
        }
        byte[] secret = Bytes.unhex(Bytes.text(Files.read(path)).trim());
        if (secret == null || secret.length != 32) {
            throw new StoreError(path + " does not hold an Ed25519 private key (64 hex digits)");
        }
        return new Signer(secret);
    }

    /** 128 hex digits. */
    public String sign(byte[] data) {
        return Bytes.hex(Ed25519.sign(secret, key, data));
    }

    /** The value of the Authorization header of one request. */
    String authorization(String device, String method, String path, byte[] body, long at, String nonce) {
        byte[] signature = Ed25519.sign(secret, key, requestText(method, path, at, nonce, body));
        return "CoDA " + device + ":" + at + ":" + nonce + ":" + base64(signature);
    }

    /** 16 hex digits. */
    static String nonce() {
        byte[] random = new byte[8];
        RANDOM.nextBytes(random);
        return Bytes.hex(random);
    }

    /** 16 hex digits that name a public key. Raises: InputError: not a key. */
    static String keyId(String publicKey) {
        return Bytes.hex(Bytes.sha256(Bytes.unhex(checkPublicKey(publicKey)))).substring(0, 16);
    }

    /** 32 hex digits that name a device: they follow from its key. */
    public static String deviceId(String publicKey) {
        return Bytes.hex(Bytes.sha256(Bytes.utf8("coda-device"), Bytes.unhex(publicKey))).substring(0, 32);
    }

    /** The key in lower case. Raises: InputError: not 64 hex digits. */
    public static String checkPublicKey(String publicKey) {
        if (!publicKey.matches("[0-9a-fA-F]{64}")) {
            throw new InputError("a public key is 64 hex digits; given: '"
                    + publicKey.substring(0, Math.min(80, publicKey.length())) + "'");
        }
        return publicKey.toLowerCase(Locale.ROOT);
    }

    /** @throws TrustError the signature was not made by that key over that data. */
    public static void verify(String publicKey, byte[] data, String signature) {
        byte[] key = Bytes.unhex(publicKey);
        byte[] stated = Bytes.unhex(signature);
        if (key == null || stated == null || !Ed25519.verify(key, data, stated)) {
            throw new TrustError("the signature does not verify under the key "
                    + publicKey.substring(0, Math.min(16, publicKey.length())) + "…");
        }
    }

    static byte[] requestText(String method, String path, long at, String nonce, byte[] body) {
        return Bytes.utf8("coda-request\n" + method + "\n" + path + "\n" + at + "\n" + nonce + "\n"
                + Bytes.hex(Bytes.sha256(body)));
    }

    static byte[] rotationText(String device, String publicKey) {
        return Bytes.utf8("coda-rotation\n" + device + "\n" + publicKey);
    }

    static byte[] answerText(String nonce, byte[] body) {
        return Bytes.utf8("coda-answer\n" + nonce + "\n" + Bytes.hex(Bytes.sha256(body)));
    }

    /** base64url without padding; java.util.Base64 is not in the API that the app compiles against. */
    private static String base64(byte[] data) {
        StringBuilder out = new StringBuilder();
        for (int i = 0; i < data.length; i += 3) {
            int left = Math.min(3, data.length - i);
            int bits = (data[i] & 255) << 16 | (left > 1 ? (data[i + 1] & 255) << 8 : 0) | (left > 2 ? data[i + 2] & 255 : 0);
            for (int k = 0; k <= left; k++) {
                out.append(LETTERS.charAt(bits >> 18 - 6 * k & 63));
            }
        }
        return out.toString();
    }
}
