package org.coda.core;

import org.coda.core.Manifest.FileRef;
import org.coda.core.Store.Event;

import java.util.ArrayList;
import java.util.List;

/**
 * A history for a phone that has none: items of the catalogue's first shard, of which a made-up user likes those of one
 * half, nine times out of ten. For trying out and benchmarks; it says nothing about accuracy.
 */
public final class MadeUpHistory {
    private static final long FIRST_S = 1_600_000_000L;

    private MadeUpHistory() {}

    /**
     * Pulls what it takes and adds the events; the same seed adds the same ones, once.
     *
     * @param engine that will run the rounds, by name.
     * @return how many came.
     */
    public static int add(DeviceHome home, Transport transport, String engine, long seed, int count) {
        Announced found = Announced.find(home, transport, engine);
        transport.fetchBlob(found.ref.file(), home.blobs, "manifest");
        Manifest.TableEntry table = home.manifest(found.ref, found.key).tables.get(Model.VOCABULARY);
        FileRef first = table.shards.get(0);
        transport.fetchBlob(first, home.blobs, "item rows");
        Tables.Shard shard = new Tables.Shard(home.blobs.read(first), table.tensors);
        Pcg64 random = new Pcg64(seed);
        int[] order = random.permutation(shard.keys.length);
        List<Event> events = new ArrayList<>();
        for (int i = 0; i < Math.min(count, order.length); i++) {
            boolean liked = shard.ids[order[i]] % 2 == 0 ^ random.uniform() < 0.1;
            events.add(new Event(shard.keys[order[i]], FIRST_S + 3600L * i, liked ? 1.0 : 0.0, null, true));
        }
        return home.store.addEvents(events);
    }
}
