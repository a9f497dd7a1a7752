package org.coda.core;

import org.coda.core.CodaError.WireError;

import java.util.Arrays;

/** The envelope of everything binary: magic, kind, version, a checksum, and zstd where it helps. */
public final class Framing {
    static final int VERSION = 3;
    static final int MOST = 64 << 20;
    private static final byte[] MAGIC = {'C', 'o', 'D', 'A'};
    private static final int LEVEL = 9;
    private static final int HEAD = 15;

    private Framing() {}

    public static byte[] seal(int kind, byte[] plain, byte[] dictionary, Compressor compressor) {
        byte[] squeezed = compressor.compress(plain, LEVEL, dictionary);
        boolean smaller = squeezed != null && squeezed.length < plain.length;
        byte[] payload = smaller ? squeezed : plain;
        byte[] head = Bytes.join(MAGIC, new byte[] {(byte) kind, VERSION, (byte) (smaller ? 1 : 0)});
        return Bytes.join(head, Blake2b.digest(Bytes.join(head, payload)), payload);
    }

    /**
     * @param most bytes of the body after decompression, at most.
     * @throws WireError another kind or version, damaged, or too large.
     */
    public static byte[] unseal(byte[] data, int kind, int most, byte[] dictionary) {
        if (data.length < HEAD || !Arrays.equals(Arrays.copyOf(data, 4), MAGIC)) {
            throw new WireError("these " + data.length + " bytes are not a CoDA frame");
        }
        if (data[5] != VERSION) {
            throw new WireError("the frame has version " + (data[5] & 255) + "; this program reads version " + VERSION
                    + ": update the older side");
        }
        if (data[4] != kind) {
            throw new WireError("a frame of kind " + (data[4] & 255) + " stands where kind " + kind + " is expected");
        }
        byte[] payload = Arrays.copyOfRange(data, HEAD, data.length);
        byte[] digest = Blake2b.digest(Bytes.join(Arrays.copyOf(data, 7), payload));
        if (!Arrays.equals(digest, Arrays.copyOfRange(data, 7, HEAD))) {
            throw new WireError("the frame is damaged or truncated: its checksum does not fit");
        }
        return (data[6] & 1) == 0 ? payload : Zstd.decompress(payload, most, dictionary);
    }
}
