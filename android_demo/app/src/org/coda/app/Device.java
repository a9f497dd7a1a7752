package org.coda.app;

import android.app.ActivityManager;
import android.content.Context;
import android.net.TrafficStats;
import android.os.Build;
import android.os.Process;

import org.coda.core.Activity;
import org.coda.core.ActivityLog;
import org.coda.core.ByteCounter;
import org.coda.core.CodaError;
import org.coda.core.Database;
import org.coda.core.DeviceHome;
import org.coda.core.Engine;
import org.coda.core.Files;
import org.coda.core.Repair;
import org.coda.core.Report;
import org.coda.core.Round;
import org.coda.core.Store;
import org.coda.core.Story;
import org.coda.core.Transport;
import org.coda.core.ZstdWriter;

import java.io.File;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** This phone as a device: its folder, what it says of itself, and its rounds. */
final class Device {
    static final String VERSION = "0.1.0";
    /** Bytes, both ways, of one round at most: a first pull of a large catalogue included. */
    private static final long MOST_BYTES = 256L << 20;

    private static final String CONTRIBUTE = "contribute";

    private final Context context;
    private final File folder;

    Device(Context context) {
        this.context = context;
        this.folder = new File(context.getFilesDir(), "device");
    }

    File folder() {
        return folder;
    }

    /** To be closed. Raises: StoreError: the database cannot be used, in words for the user. */
    DeviceHome open() {
        folder.mkdirs();
        return new DeviceHome(folder, new Store(new SqliteDatabase(new File(folder, "coda.db"))), "android");
    }

    /** What was found and mended, in words. */
    List<String> repair() {
        return Repair.repair(folder, new Repair.Opener() {
            @Override
            public Database open(File path) {
                return new SqliteDatabase(path);
            }
        });
    }

    /** Events, weights, key: all of it. */
    boolean erase() {
        return Files.delete(folder);
    }

    String enrol(String server, String trust) {
        try (DeviceHome home = open()) {
            return home.enrol(server, trust, capability(), new ByteCounter(MOST_BYTES));
        }
    }

    Map<String, Object> capability() {
        ActivityManager.MemoryInfo memory = new ActivityManager.MemoryInfo();
        ((ActivityManager) context.getSystemService(Context.ACTIVITY_SERVICE)).getMemoryInfo(memory);
        Engine engine = engine();
        Map<String, Object> found = new LinkedHashMap<>();
        found.put("runtime", VERSION);
        found.put("machine", Build.SUPPORTED_ABIS[0]);
        found.put("system", "Android " + Build.VERSION.RELEASE);
        found.put("cores", Runtime.getRuntime().availableProcessors());
        found.put("memory_mib", memory.totalMem >> 20);
        found.put("engines", Collections.singletonMap(engine.name(), engine.version()));
        return found;
    }

    /** Run a round, or go on with the one that was cut off. What it returns is a row of a benchmark's record. */
    Map<String, Object> round(long seed, Round.Watcher watcher) {
        try (DeviceHome home = open()) {
            ByteCounter counter = new ByteCounter(MOST_BYTES);
            int me = Process.myUid();
            long up = TrafficStats.getUidTxBytes(me);
            long down = TrafficStats.getUidRxBytes(me);
            home.rotateKeyIfDue(counter);
            home.digest();
            Round.Options options = new Round.Options();
            options.seed = seed;
            options.contribute = contributes(home);
            Report report;
            try (Transport transport = home.transport(counter)) {
                report = new Round(home, transport, engine(), new AndroidMeter(context), watcher, new ZstdWriter(),
                        options).run();
            }
            home.rotateKeyIfDue(counter);
            Map<String, Object> platform = new LinkedHashMap<>();
            platform.put("pss_mib", AndroidMeter.pssMib());
            platform.put("uid_bytes_up", TrafficStats.getUidTxBytes(me) - up);
            platform.put("uid_bytes_down", TrafficStats.getUidRxBytes(me) - down);
            List<Store.RoundRow> rounds = home.store.rounds();
            return Story.row(report, rounds.get(rounds.size() - 1).progress.traffic, platform);
        }
    }

    /** Whether the user hands samples to the pool. */
    private static boolean contributes(DeviceHome home) {
        return "yes".equals(home.store.setting(CONTRIBUTE));
    }

    /** The same, for the screen; false where nothing can be read. */
    boolean contributes() {
        if (!folder.exists()) {
            return false;
        }
        try (DeviceHome home = open()) {
            return contributes(home);
        } catch (CodaError unreadable) { // the screen says so when it shows the rest
            return false;
        }
    }

    /** Note what the user saw or did. */
    void note(List<Activity> events) {
        try (DeviceHome home = open()) {
            new ActivityLog(home.store).append(events);
        }
    }

    void contribute(boolean wanted) {
        try (DeviceHome home = open()) {
            home.store.set(CONTRIBUTE, wanted ? "yes" : "no");
        }
    }

    Engine engine() {
        return Engines.open();
    }
}
