package org.coda.core;

import org.coda.core.CodaError.StoreError;

import java.io.File;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * What is damaged in a device's folder, what can be saved of it, and what is lost, in words. The twin of
 * {@code device_runtime/repair.py}: a damaged database is kept beside the one that its readable rows are saved into;
 * what the server has is only removed, and pulled again by the next round.
 */
public final class Repair {
    private static final int BATCH = 500;
    /** Row numbers to look beyond a damaged page, at most. */
    private static final long FARTHEST = 1 << 24;

    /** Opens an SQLite file. Raises: StoreError: it cannot be read at all. */
    public interface Opener {
        Database open(File path);
    }

    private final File home;
    private final Opener opener;
    private final List<String> done = new ArrayList<>();

    private Repair(File home, Opener opener) {
        this.home = home;
        this.opener = opener;
    }

    /**
     * Mend a device's folder; returns what was found and done, a sentence each; empty where all was well.
     *
     * @throws StoreError the folder cannot be written, or a round is running in it.
     */
    public static List<String> repair(File path, Opener opener) {
        final Repair repair = new Repair(path, opener);
        File database = new File(path, "coda.db");
        if (database.exists() && !repair.isWhole(database)) {
            repair.mendDatabase(database);
        }
        try (final DeviceHome home = new DeviceHome(path, new Store(opener.open(database)), "")) {
            home.locked(new DeviceHome.Work<Void>() {
                @Override
                public Void run() {
                    repair.mendFiles(home);
                    return null;
                }
            });
        }
        return repair.done;
    }

    private boolean isWhole(File path) {
        try (Database db = opener.open(path)) {
            return "ok".equals(db.query("PRAGMA integrity_check").get(0)[0]);
        } catch (StoreError damaged) {
            return false;
        }
    }

    private void mendDatabase(File path) {
        File aside = null;
        for (int n = 1; aside == null || aside.exists(); n++) {
            aside = new File(home, "coda.db.damaged-" + n);
        }
        File rescued = new File(home, "coda.db.rescued");
        for (File left : Files.list(home)) {
            if (left.getName().startsWith(rescued.getName())) {
                Files.delete(left);
            }
        }
        Map<String, Integer> saved = new LinkedHashMap<>();
        try (Store made = new Store(opener.open(rescued))) {
            save(path, made.db(), saved);
            made.db().query("PRAGMA wal_checkpoint(TRUNCATE)");
        }
        for (String suffix : new String[] {"-wal", "-shm"}) {
            File beside = new File(home, path.getName() + suffix);
            if (beside.exists()) {
                Files.move(beside, new File(home, aside.getName() + suffix));
            }
        }
        Files.move(path, aside);
        Files.move(rescued, path);
        StringBuilder counts = new StringBuilder();
        for (Map.Entry<String, Integer> each : saved.entrySet()) {
            if (each.getValue() > 0) {
                counts.append(counts.length() > 0 ? ", " : "").append(each.getValue()).append(' ').append(each.getKey());
            }
        }
        done.add("the database was damaged: saved " + (counts.length() > 0 ? counts : "nothing")
                + "; the damaged file is kept as " + aside.getName());
        if (!saved.containsKey("settings") || saved.get("settings") == 0) {
            done.add("what server this phone belongs to is lost: enrol it again, its key is still the same");
        }
    }

    private void save(File path, Database fresh, Map<String, Integer> saved) {
        try (Database damaged = opener.open(path)) {
            for (Object[] table : fresh.query("SELECT name FROM sqlite_master WHERE type = 'table'"
                    + " AND name NOT LIKE 'android_%' AND name NOT LIKE 'sqlite_%' ORDER BY name")) {
                saved.put((String) table[0], save(damaged, fresh, (String) table[0]));
            }
        } catch (StoreError unreadable) {
            return; // what was saved until then is saved
        }
    }

    /** Copy the rows that can be read, and that are what their table takes. Returns how many. */
    private static int save(Database damaged, Database fresh, String table) {
        StringBuilder names = new StringBuilder();
        StringBuilder marks = new StringBuilder();
        for (Object[] column : fresh.query("PRAGMA table_info(" + table + ")")) {
            names.append(names.length() > 0 ? ", " : "").append(column[1]);
            marks.append(marks.length() > 0 ? ", ?" : "?");
        }
        int count = 0;
        fresh.begin();
        for (Object[] row : readable(damaged, table, names.toString())) {
            try {
                fresh.execute("INSERT OR IGNORE INTO " + table + " (" + names + ") VALUES (" + marks + ")", row);
                count++;
            } catch (StoreError nonsense) {
                continue;
            }
        }
        fresh.commit();
        return count;
    }

    /**
     * The rows of a table, in order; pages that cannot be read are stepped over, in growing steps. A damaged tree may
     * lead anywhere, also in circles: only rows that come later than those before are taken.
     */
    private static List<Object[]> readable(Database db, String table, String columns) {
        List<Object[]> found = new ArrayList<>();
        long last = 0;
        long step = 0;
        while (step < FARTHEST) {
            String query = "SELECT rowid, " + columns + " FROM " + table + " WHERE rowid > ";
            List<Object[]> rows = rows(db, query + (last + step) + " ORDER BY rowid LIMIT " + (step > 0 ? 1 : BATCH));
            if (rows == null && step == 0) { // the batch reaches into the damage: up to there, row by row
                rows = rows(db, query + last + " ORDER BY rowid LIMIT 1");
            }
            if (rows != null && rows.isEmpty()) {
                return found;
            }
            long taken = last;
            for (Object[] row : rows == null ? new ArrayList<Object[]>() : rows) {
                long number = ((Number) row[0]).longValue();
                if (taken < number && number < taken + FARTHEST) {
                    taken = number;
                    found.add(Arrays.copyOfRange(row, 1, row.length));
                }
            }
            step = taken > last ? 0 : Math.max(1, 2 * step);
            last = taken;
        }
        return found;
    }

    /** Null where they cannot be read. */
    private static List<Object[]> rows(Database db, String query) {
        try {
            return db.query(query);
        } catch (StoreError damaged) {
            return null;
        }
    }

    private void mendFiles(DeviceHome home) {
        if (home.store.setting("device") != null && !new File(home.path, "device.key").exists()) {
            done.add("this phone's key is gone: enrol again, and the server will see a new device");
        }
        int removed = 0;
        for (File blob : Files.list(home.blobs.folder)) {
            boolean named = blob.isFile() && blob.getName().matches("[0-9a-f]{64}");
            if (named && !Bytes.hex(Bytes.sha256(Files.read(blob))).equals(blob.getName())) {
                removed += Files.delete(blob) ? 1 : 0;
            }
        }
        Files.delete(new File(home.blobs.folder, "unpacked")); // made from blobs, and engines read them unverified
        if (removed > 0) {
            done.add("removed " + removed + " damaged bundle files; the next round pulls them again");
        }
        if (!home.hasReadableWeights()) {
            home.useOwnWeights();
            done.add("the personal weights are gone or damaged; the bundle's own serve until the next round");
        }
    }
}
