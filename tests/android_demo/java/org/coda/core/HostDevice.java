package org.coda.core;

import org.coda.core.CodaError.Yielded;

import java.io.File;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.lang.management.ThreadMXBean;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * A device on a JVM: enrols if it has not, imports a history if one is given, runs rounds, and prints a line of JSON for
 * each. Properties: home, server, trust, history, seed, rounds, engine (a command), kill (the graph run after which the
 * process dies), yield (the one before which the round is put aside), keep (a folder for the working files of a round),
 * repair (mend the folder first), contribute (hand samples to the pool), rotate (replace the key first), events (so many are made up), record (the file for a benchmark's record), export (that for the user's data).
 */
public final class HostDevice {
    private static final ThreadMXBean THREADS = ManagementFactory.getThreadMXBean();

    private HostDevice() {}

    public static void main(String[] args) throws IOException {
        try (PipeEngine engine = new PipeEngine(System.getProperty("engine").split(" "))) {
            run(engine);
        }
    }

    static void run(Engine engine) throws IOException {
        File path = new File(System.getProperty("home"));
        Files.makeFolder(path);
        if (Boolean.getBoolean("repair")) {
            for (String line : Repair.repair(path, JdbcDatabase.OPENER)) {
                System.out.println("repaired: " + line);
            }
        }
        try (DeviceHome home = new DeviceHome(path, new Store(new JdbcDatabase(new File(path, "coda.db"))),
                "linux")) {
            run(home, engine);
        } catch (CodaError error) {
            System.out.println(error.name() + ": " + error.getMessage());
            System.exit(3);
        }
    }

    private static void run(DeviceHome home, Engine engine) throws IOException {
        String server = System.getProperty("server");
        if (server != null) {
            Map<String, Object> capability = new LinkedHashMap<>();
            capability.put("runtime", "test");
            home.enrol(server, System.getProperty("trust"), capability, new ByteCounter(Long.MAX_VALUE));
        }
        String history = System.getProperty("history");
        if (history != null) {
            home.store.addEvents(new History(Bytes.text(Files.read(new File(history)))).events);
        }
        if (Integer.getInteger("events", 0) > 0) {
            try (Transport transport = home.transport(new ByteCounter(Long.MAX_VALUE))) {
                MadeUpHistory.add(home, transport, engine.name(), Long.getLong("seed", 0), Integer.getInteger("events"));
            }
        }
        home.digest();
        if (Boolean.getBoolean("rotate")) {
            home.rotateKey(new ByteCounter(Long.MAX_VALUE));
        }
        home.rotateKeyIfDue(new ByteCounter(Long.MAX_VALUE));
        List<Map<String, Object>> rows = new ArrayList<>();
        for (int round = 0; round < Integer.getInteger("rounds", 1); round++) {
            Map<String, Object> found = once(home, engine);
            System.out.println(Bytes.text(Json.bytes(found)));
            rows.add(row(home, found));
        }
        if (!rows.isEmpty()) {
            home.rotateKeyIfDue(new ByteCounter(Long.MAX_VALUE));
        }
        if (System.getProperty("record") != null) {
            Map<String, Object> machine = new LinkedHashMap<>();
            machine.put("runtime", "test");
            Files.writeAtomically(new File(System.getProperty("record")),
                    Story.record("test", machine, "2026-01-01T00:00:00Z", rows), false);
        }
        System.out.println(Story.summary(home.store) + "\n" + Story.log(home.store));
        if (System.getProperty("export") != null) {
            Files.writeAtomically(new File(System.getProperty("export")), Story.export(home.store), false);
        }
        try (Model model = home.model(engine)) {
            Map<String, Object> ranked = new LinkedHashMap<>();
            for (Ranker.Ranked each : Ranker.rank(home, model, 10)) {
                ranked.put(each.item, each.score);
            }
            System.out.println(Bytes.text(Json.bytes(ranked)));
        }
    }

    /** As the app writes it, the platform's counters being what the round itself counted. */
    private static Map<String, Object> row(DeviceHome home, Map<String, Object> found) {
        List<Store.RoundRow> rounds = home.store.rounds();
        Store.RoundRow last = rounds.get(rounds.size() - 1);
        Map<String, Object> platform = new LinkedHashMap<>();
        platform.put("pss_mib", 80.0);
        platform.put("uid_bytes_up", found.get("up"));
        platform.put("uid_bytes_down", found.get("down"));
        return Story.row(last.report, last.progress.traffic, platform);
    }

    private static Map<String, Object> once(final DeviceHome home, Engine engine) throws IOException {
        Round.Watcher watcher = new Round.Watcher() {
            private int runs;

            @Override
            public void phase(String name) {
                String keep = System.getProperty("keep");
                for (File round : Files.list(home.rounds)) {
                    for (File file : keep == null ? new File[0] : Files.list(round)) {
                        Files.writeAtomically(new File(keep, file.getName()), Files.read(file), false);
                    }
                }
            }

            @Override
            public void pulse() {
                runs++;
                if (runs == Integer.getInteger("kill", -1)) {
                    Runtime.getRuntime().halt(9);
                }
                if (runs == Integer.getInteger("yield", -1)) {
                    throw new Yielded("asked to stop");
                }
            }
        };
        double[] cpu = new JvmMeter().cpuSeconds();
        long thread = THREADS.getCurrentThreadCpuTime();
        PipeEngine.spentS = 0;
        ByteCounter counter = new ByteCounter(Long.MAX_VALUE);
        try (Transport transport = home.transport(counter)) {
            Round.Options options = new Round.Options();
            options.seed = Long.getLong("seed", 0);
            options.contribute = Boolean.getBoolean("contribute");
            Round round = new Round(home, transport, engine, new JvmMeter(), watcher, new ZstdWriter(), options);
            Map<String, Object> found = round.run().fields();
            double[] after = new JvmMeter().cpuSeconds();
            found.put("thread_cpu_s", (THREADS.getCurrentThreadCpuTime() - thread) / 1e9 - PipeEngine.spentS);
            found.put("process_cpu_s", after[0] + after[1] - cpu[0] - cpu[1] - PipeEngine.spentS);
            found.put("up", counter.total()[0]);
            found.put("down", counter.total()[1]);
            List<Store.RoundRow> rows = home.store.rounds();
            found.put("resumed", rows.get(rows.size() - 1).progress.resumed);
            return found;
        }
    }
}
