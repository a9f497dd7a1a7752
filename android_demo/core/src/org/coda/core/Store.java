package org.coda.core;

import org.coda.core.CodaError.StoreError;

import java.io.Closeable;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/**
 * What a device keeps: events, the journal of its rounds, which bundle and which weights serve. One SQLite file, laid
 * out as {@code device_runtime/database.py} lays it out, so that {@code coda device status} reads a phone's.
 *
 * <p>Every public method is one transaction. Statements are those of SQLite 3.18, which Android 8 has.
 */
public final class Store implements Closeable {
    private static final int VERSION = 2;
    private static final String[] TABLES = {
        "CREATE TABLE events (seq INTEGER PRIMARY KEY, item TEXT NOT NULL, timestamp INTEGER NOT NULL, label REAL,"
            + " rating REAL, observed INTEGER NOT NULL, UNIQUE (item, timestamp, observed))",
        "CREATE TABLE bundle (only INTEGER PRIMARY KEY CHECK (only = 1), ref BLOB NOT NULL, etag TEXT NOT NULL)",
        "CREATE TABLE weights (version TEXT PRIMARY KEY, bundle INTEGER NOT NULL, active INTEGER NOT NULL)",
        "CREATE TABLE self_tests (what TEXT PRIMARY KEY)",
        "CREATE TABLE rounds (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, state TEXT NOT NULL,"
            + " started REAL NOT NULL, report BLOB, delivered INTEGER NOT NULL DEFAULT 0, traffic BLOB, progress BLOB)",
        "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
        "CREATE TABLE activity (seq INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, kind TEXT NOT NULL,"
            + " item TEXT NOT NULL, page TEXT NOT NULL, value REAL NOT NULL, UNIQUE (at_ms, kind, item, page, value))",
        "CREATE TABLE usage (day TEXT NOT NULL, what TEXT NOT NULL, amount REAL NOT NULL, PRIMARY KEY (day, what))",
    };
    private static final String UNFINISHED = "state NOT IN ('done', 'failed', 'interrupted')";

    private final Database db;

    /** One thing the user did with an item. label in [0, 1], or rating, or both; null where unknown. */
    public static final class Event {
        public final String item;
        public final long timestamp;
        public final Double label;
        public final Double rating;
        public final boolean observed;

        public Event(String item, long timestamp, Double label, Double rating, boolean observed) {
            this.item = item;
            this.timestamp = timestamp;
            this.label = label;
            this.rating = rating;
            this.observed = observed;
        }
    }

    /** A round in the journal; report and progress may be null. */
    public static final class RoundRow {
        public final String id;
        public final String state;
        public final double started;
        public final Report report;
        public final boolean delivered;
        public final Progress progress;

        RoundRow(Object[] row) {
            id = (String) row[0];
            state = (String) row[1];
            started = ((Number) row[2]).doubleValue();
            report = row[3] == null ? null : Report.parse((byte[]) row[3], "the report of round " + id);
            delivered = ((Number) row[4]).longValue() != 0;
            progress = row[5] == null ? null : Progress.parse((byte[]) row[5]);
        }
    }

    /** The bundle that serves, and the ETag under which the server announced it. */
    static final class Serving {
        final Manifest.Ref ref;
        final String etag;

        Serving(Manifest.Ref ref, String etag) {
            this.ref = ref;
            this.etag = etag;
        }
    }

    /** @throws StoreError the file is damaged, of another version or program, or cannot be written. */
    public Store(Database db) {
        this.db = db;
        try {
            long version = number("PRAGMA user_version");
            if (version == VERSION) {
                number("SELECT count(*) FROM rounds"); // a damaged file is found out now, not in the middle of a round
                return;
            }
            if (version != 0 || number("SELECT count(*) FROM sqlite_master WHERE name NOT LIKE 'android_%'") > 0) {
                throw new StoreError("the database is of version " + version + "; this app reads version " + VERSION
                        + ": update the app, or erase its data");
            }
            transaction(new Change() {
                @Override
                public void make() {
                    for (String table : TABLES) {
                        db().execute(table);
                    }
                    db().execute("PRAGMA user_version = " + VERSION);
                }
            });
        } catch (StoreError error) {
            db.close();
            throw error;
        }
    }

    @Override
    public void close() {
        db.close();
    }

    Database db() {
        return db;
    }

    interface Change {
        void make();
    }

    void transaction(Change change) {
        db.begin();
        boolean whole = false;
        try {
            change.make();
            db.commit();
            whole = true;
        } finally {
            if (!whole) {
                db.rollback();
            }
        }
    }

    private void change(final String sql, final Object... values) {
        transaction(new Change() {
            @Override
            public void make() {
                db.execute(sql, values);
            }
        });
    }

    long number(String sql) {
        return ((Number) db.query(sql).get(0)[0]).longValue();
    }

    private Object[] first(String sql, String... values) {
        List<Object[]> rows = db.query(sql, values);
        return rows.isEmpty() ? null : rows.get(0);
    }

    // -- events ------------------------------------------------------------------------------------------------------

    /** Append events; those already there (same item, second and kind) stay as they are. Returns how many came. */
    public int addEvents(final List<Event> events) {
        long before = countEvents(Long.MAX_VALUE);
        transaction(new Change() {
            @Override
            public void make() {
                for (Event e : events) {
                    db.execute("INSERT OR IGNORE INTO events (item, timestamp, label, rating, observed)"
                            + " VALUES (?, ?, ?, ?, ?)", e.item, e.timestamp, e.label, e.rating, e.observed ? 1L : 0L);
                }
            }
        });
        return (int) (countEvents(Long.MAX_VALUE) - before);
    }

    /** As {@link #addEvents}, for events that triggers made; of two labels for one impression the higher one counts. */
    void addSamples(final List<Event> events) {
        addEvents(events);
        transaction(new Change() {
            @Override
            public void make() {
                for (Event e : events) { // Android 8's SQLite has no upsert
                    if (e.label != null) {
                        db.execute("UPDATE events SET label = ? WHERE item = ? AND timestamp = ? AND observed = ?"
                                + " AND label < ?", e.label, e.item, e.timestamp, e.observed ? 1L : 0L, e.label);
                    }
                }
            }
        });
    }

    /** The newest events that had arrived when {@link #lastEvent} gave this number, oldest first. */
    public List<Event> events(long until, int newest) {
        List<Event> found = new ArrayList<>();
        for (Object[] row : db.query("SELECT item, timestamp, label, rating, observed FROM events WHERE seq <= " + until
                + " ORDER BY timestamp DESC, seq DESC LIMIT " + newest)) {
            found.add(new Event((String) row[0], ((Number) row[1]).longValue(), real(row[2]), real(row[3]),
                    ((Number) row[4]).longValue() != 0));
        }
        Collections.reverse(found);
        return found;
    }

    private static Double real(Object value) {
        return value == null ? null : (Double) ((Number) value).doubleValue();
    }

    /** The items of all events, each once. */
    public List<String> items() {
        List<String> found = new ArrayList<>();
        for (Object[] row : db.query("SELECT DISTINCT item FROM events")) {
            found.add((String) row[0]);
        }
        return found;
    }

    public long countEvents(long until) {
        return number("SELECT count(*) FROM events WHERE seq <= " + until);
    }

    /** The sequence number of the event that arrived last; 0 if there is none. */
    public long lastEvent() {
        return number("SELECT coalesce(max(seq), 0) FROM events");
    }

    // -- what serves -------------------------------------------------------------------------------------------------

    /** Null where none has been pulled. */
    Serving bundle() {
        Object[] row = first("SELECT ref, etag FROM bundle");
        return row == null ? null : new Serving(Manifest.Ref.parse((byte[]) row[0], "the stored bundle"),
                (String) row[1]);
    }

    /** Let a bundle serve. trusted: the key that its manifest is signed with. */
    void useBundle(final Manifest.Ref ref, final String etag, final String trusted) {
        transaction(new Change() {
            @Override
            public void make() {
                db.execute("INSERT OR REPLACE INTO bundle VALUES (1, ?, ?)", ref.json(), etag);
                db.execute("INSERT OR REPLACE INTO settings VALUES ('trusted', ?)", trusted);
            }
        });
    }

    /** The version of the personal weights that serve, if they belong to this bundle; else null. */
    public String weights(int bundle) {
        Object[] row = first("SELECT version FROM weights WHERE active AND bundle = " + bundle);
        return row == null ? null : (String) row[0];
    }

    /** The version of the personal weights that serve, whichever bundle they belong to; null where none do. */
    String weights() {
        Object[] row = first("SELECT version FROM weights WHERE active");
        return row == null ? null : (String) row[0];
    }

    /** Let the bundle's own weights serve. */
    void dropWeights() {
        change("DELETE FROM weights");
    }

    boolean passed(String what) {
        return first("SELECT 1 FROM self_tests WHERE what = ?", what) != null;
    }

    void passTest(String what) {
        change("INSERT OR REPLACE INTO self_tests VALUES (?)", what);
    }

    // -- rounds ------------------------------------------------------------------------------------------------------

    /** Rounds so far. */
    long countRounds() {
        return number("SELECT count(*) FROM rounds");
    }

    /** Open a round; an unfinished one is marked as interrupted. */
    void startRound(final String id, final double now, final Progress progress) {
        transaction(new Change() {
            @Override
            public void make() {
                db.execute("UPDATE rounds SET state = 'interrupted' WHERE " + UNFINISHED);
                db.execute("INSERT INTO rounds (id, state, started, progress) VALUES (?, 'started', ?, ?)", id, now,
                        progress.json());
            }
        });
    }

    /** Commit a step: its results, and the state that it leads to. */
    void advanceRound(final String id, final String state, final Progress progress) {
        transaction(new Change() {
            @Override
            public void make() {
                advance(id, state, progress);
            }
        });
    }

    /** Commit what a step cost that did not get to its end; the state stays. */
    void noteProgress(String id, Progress progress) {
        change("UPDATE rounds SET progress = ? WHERE id = ?", progress.json(), id);
    }

    /** Let a round's weights serve ("": those that do stay), and commit that it did. */
    void activateRound(final String id, final Progress progress, final String weights) {
        transaction(new Change() {
            @Override
            public void make() {
                if (!weights.isEmpty()) {
                    db.execute("DELETE FROM weights");
                    db.execute("INSERT INTO weights VALUES (?, ?, 1)", weights, (long) progress.bundle);
                }
                advance(id, "activated", progress);
            }
        });
    }

    /** The last state, and the report to deliver. */
    void finishRound(final String id, final String state, final Report report, final Progress progress) {
        transaction(new Change() {
            @Override
            public void make() {
                advance(id, state, progress);
                db.execute("UPDATE rounds SET report = ? WHERE id = ?", report.json(), id);
            }
        });
    }

    void markDelivered(String id) {
        change("UPDATE rounds SET delivered = 1 WHERE id = ?", id);
    }

    private void advance(String id, String state, Progress progress) {
        Object[] row = first("SELECT state FROM rounds WHERE id = ?", id);
        if (row == null || !Progress.allows((String) row[0], state)) {
            throw new StoreError("round " + id + " cannot go from " + (row == null ? "nowhere" : row[0]) + " to "
                    + state);
        }
        db.execute("UPDATE rounds SET state = ?, progress = ?, traffic = ? WHERE id = ?", state, progress.json(),
                Json.bytes(progress.trafficFields()), id);
    }

    /** The journal, oldest first. */
    public List<RoundRow> rounds() {
        return rounds("ORDER BY seq");
    }

    /** Rounds whose report has not been delivered, oldest first. */
    List<RoundRow> undelivered() {
        return rounds("WHERE report IS NOT NULL AND NOT delivered ORDER BY seq");
    }

    /** The round that was cut off; null if none was. */
    RoundRow unfinished() {
        List<RoundRow> found = rounds("WHERE " + UNFINISHED + " ORDER BY seq DESC LIMIT 1");
        return found.isEmpty() ? null : found.get(0);
    }

    private List<RoundRow> rounds(String which) {
        List<RoundRow> found = new ArrayList<>();
        for (Object[] row : db.query("SELECT id, state, started, report, delivered, progress FROM rounds " + which)) {
            found.add(new RoundRow(row));
        }
        return found;
    }

    // -- settings ----------------------------------------------------------------------------------------------------

    /** Null where it was never set. */
    public String setting(String name) {
        Object[] row = first("SELECT value FROM settings WHERE name = ?", name);
        return row == null ? null : (String) row[0];
    }

    public List<Object[]> settings() {
        return db.query("SELECT name, value FROM settings ORDER BY name");
    }

    /** @param pairs name, value, name, value... */
    public void set(final String... pairs) {
        transaction(new Change() {
            @Override
            public void make() {
                for (int i = 0; i < pairs.length; i += 2) {
                    db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", pairs[i], pairs[i + 1]);
                }
            }
        });
    }
}
