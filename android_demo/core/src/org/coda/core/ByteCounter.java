package org.coda.core;

import org.coda.core.CodaError.Yielded;

import java.util.LinkedHashMap;
import java.util.Map;

/**
 * Bytes that a program hands to and takes from its connections, by message: request lines, headers and bodies. Over
 * https they are counted inside TLS, whose records and handshakes come on top: the platform's own counters have them.
 */
public final class ByteCounter {
    /** Message -> bytes (up, down). */
    final Map<String, long[]> byLabel = new LinkedHashMap<>();
    private final long limit;

    /** @param limit bytes, up and down together, after which nothing more is sent or received. */
    public ByteCounter(long limit) {
        this.limit = limit;
    }

    void add(String label, long up, long down) {
        long[] known = byLabel.get(label);
        if (known == null) {
            known = new long[2];
            byLabel.put(label, known);
        }
        known[0] += up;
        known[1] += down;
    }

    /** (up, down). */
    long[] total() {
        long[] total = new long[2];
        for (long[] each : byLabel.values()) {
            total[0] += each[0];
            total[1] += each[1];
        }
        return total;
    }

    /** @throws Yielded the limit is reached. */
    void check() {
        long[] total = total();
        if (total[0] + total[1] >= limit) {
            throw new Yielded("the byte budget is used up (" + total[0] + " bytes sent, " + total[1]
                    + " received); what has arrived is kept, and the next round goes on from there");
        }
    }
}
