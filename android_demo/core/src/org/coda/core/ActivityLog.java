package org.coda.core;

import org.coda.core.Store.Event;
import org.coda.core.Trie.Fired;

import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;

/** What the user did, as stored, and the samples that triggers make of it. */
public final class ActivityLog {
    private static final String DIGESTED = "digested";
    private static final int CHUNK = 10_000;
    private static final int BATCH = 5000;
    private static final long KEEP_MS = 400 * 86_400_000L;

    private final Store store;

    public ActivityLog(Store store) {
        this.store = store;
    }

    /** One stored event. */
    private static final class Row {
        final long seq;
        final Activity event;

        Row(Object[] row) {
            seq = ((Number) row[0]).longValue();
            event = new Activity((String) row[1], ((Number) row[2]).longValue(), (String) row[3], (String) row[4],
                    ((Number) row[5]).doubleValue());
        }
    }

    /** Store events, all or none; those that are there already stay as they are. */
    public void append(final List<Activity> events) {
        store.transaction(new Store.Change() {
            @Override
            public void make() {
                for (Activity e : events) {
                    store.db().execute("INSERT OR IGNORE INTO activity (at_ms, kind, item, page, value)"
                            + " VALUES (?, ?, ?, ?, ?)", e.atMs, e.kind, e.item, e.page, e.value);
                }
            }
        });
    }

    /** By time, those after this time and sequence number; at most {@link #CHUNK}. */
    private List<Row> read(long atMs, long seq) {
        List<Row> found = new ArrayList<>();
        for (Object[] row : store.db().query("SELECT seq, kind, at_ms, item, page, value FROM activity"
                + " WHERE (at_ms, seq) > (" + atMs + ", " + seq + ") ORDER BY at_ms, seq LIMIT " + CHUNK)) {
            found.add(new Row(row));
        }
        return found;
    }

    /**
     * Turn what has arrived since the last time into samples; harmless if it is cut off, or done twice. Reading starts so
     * far before the earliest new event that every match it can be part of is seen whole.
     *
     * @return names of the triggers that want a round.
     */
    Set<String> digest(List<Trigger> triggers) {
        String known = store.setting(DIGESTED);
        long done = known == null ? 0 : Long.parseLong(known);
        long last = store.number("SELECT coalesce(max(seq), 0) FROM activity");
        Set<String> wanted = new LinkedHashSet<>();
        if (last <= done) {
            return wanted;
        }
        long earliest = store.number("SELECT min(at_ms) FROM activity WHERE seq > " + done);
        double reach = 0;
        for (Trigger trigger : triggers) {
            reach = Math.max(reach, trigger.withinMs);
        }
        Trie trie = new Trie(triggers);
        List<Event> made = new ArrayList<>();
        long at = earliest - (long) reach - 1;
        long seq = Activity.LATEST_MS;
        List<Row> rows;
        do {
            rows = read(at, seq);
            for (Row row : rows) {
                at = row.event.atMs;
                seq = row.seq;
                for (Fired fired : trie.feed(row.event)) {
                    if (!fired.trigger.then.equals("round")) {
                        made.add(sample(fired));
                    } else if (row.seq > done) {
                        wanted.add(fired.trigger.name);
                    }
                }
                if (made.size() >= BATCH) {
                    store.addSamples(made);
                    made.clear();
                }
            }
        } while (rows.size() == CHUNK);
        store.addSamples(made);
        store.set(DIGESTED, String.valueOf(last));
        return wanted;
    }

    /** Remove what is older than 400 days; never the newest, whose sequence number must not be given to another. */
    void retain(final long nowMs) {
        store.transaction(new Store.Change() {
            @Override
            public void make() {
                store.db().execute("DELETE FROM activity WHERE seq < (SELECT max(seq) FROM activity) AND at_ms < "
                        + (nowMs - KEEP_MS));
            }
        });
    }

    private static Event sample(Fired fired) {
        long second = fired.first.atMs / 1000;
        if (fired.trigger.then.equals("rating")) {
            return new Event(fired.last.item, second, null, fired.last.value, true);
        }
        return new Event(fired.first.item, second, fired.trigger.then.equals("positive") ? 1.0 : 0.0, null, true);
    }
}
