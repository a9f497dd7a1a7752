package org.coda.core;

import org.coda.core.CodaError.Refused;

import java.util.Arrays;

/** Hands training samples to the pool, by the user's choice; what was handed over before is not handed over again. */
final class Contributing {
    private static final String UNTIL = "contributed_until";

    private Contributing() {}

    static void contribute(Store store, Transport transport, Local local, Compressor compressor) {
        String known = store.setting(UNTIL);
        long until = known == null ? 0 : Long.parseLong(known);
        long latest = until;
        int[] fresh = new int[local.times.length];
        int count = 0;
        for (int i = 0; i < fresh.length; i++) {
            latest = Math.max(latest, local.times[i]);
            if (local.times[i] > until) {
                fresh[count++] = i;
            }
        }
        if (count == 0) {
            return;
        }
        byte[] body = Wire.encodeContribution(local.train.take(Arrays.copyOf(fresh, count)), compressor);
        try {
            transport.request("POST", "/v1/contributions", body, "contribution", Wire.FRAME, "", Transport.noHeaders(),
                    204);
        } catch (Refused refusal) {
            if (refusal.status != 429) {
                throw refusal;
            }
            return; // a quota is used up: what is new waits, and the round is none the worse
        }
        store.set(UNTIL, String.valueOf(latest));
    }
}
