package org.coda.core;

import java.io.File;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** What a round costs: a record for each phase, and bytes by message; what earlier processes spent on it stays. */
final class RoundCost {
    private final Meter meter;
    private final ByteCounter counter;
    private final File home;
    private final Map<String, long[]> before = new LinkedHashMap<>();
    private final List<Report.Phase> records = new ArrayList<>();
    private List<Report.Phase> earlierPhases = new ArrayList<>();
    private Map<String, long[]> earlierTraffic = new LinkedHashMap<>();

    RoundCost(Meter meter, ByteCounter counter, File home) {
        this.meter = meter;
        this.counter = counter;
        this.home = home;
        for (Map.Entry<String, long[]> each : counter.byLabel.entrySet()) {
            before.put(each.getKey(), each.getValue().clone());
        }
    }

    /** Go on from what a round had cost when it was cut off. */
    void startsAfter(Progress progress) {
        earlierPhases = new ArrayList<>(progress.phases);
        earlierTraffic = new LinkedHashMap<>(progress.traffic);
    }

    void phase(String name, Runnable work) {
        long stored = Files.bytes(home);
        long[] traffic = counter.total();
        meter.resetPeak();
        Double energy = meter.energyJ();
        double[] cpu = meter.cpuSeconds();
        long started = System.nanoTime();
        try {
            work.run();
        } finally {
            double wall = (System.nanoTime() - started) / 1e9;
            double[] after = meter.cpuSeconds();
            Double used = meter.energyJ();
            long[] moved = counter.total();
            records.add(new Report.Phase(name, micros(after[0] - cpu[0]), micros(after[1] - cpu[1]), micros(wall),
                    meter.peakMib(), meter.peakSource(), Files.bytes(home) - stored, moved[0] - traffic[0],
                    moved[1] - traffic[1], energy == null || used == null ? null : (Double) (used - energy),
                    meter.temperatureC()));
        }
    }

    /** Seconds to the microsecond: more digits mean nothing, and are written into the journal at every step. */
    private static double micros(double seconds) {
        return Math.rint(seconds * 1e6) / 1e6;
    }

    /** What this process has spent so far, added to what those before it had. */
    void note(Progress progress) {
        progress.phases = new ArrayList<>(earlierPhases);
        progress.phases.addAll(records);
        Map<String, long[]> traffic = new LinkedHashMap<>(earlierTraffic);
        for (Map.Entry<String, long[]> each : counter.byLabel.entrySet()) {
            long[] was = before.containsKey(each.getKey()) ? before.get(each.getKey()) : new long[2];
            long[] known = traffic.containsKey(each.getKey()) ? traffic.get(each.getKey()) : new long[2];
            long up = each.getValue()[0] - was[0];
            long down = each.getValue()[1] - was[1];
            if (up > 0 || down > 0) {
                traffic.put(each.getKey(), new long[] {known[0] + up, known[1] + down});
            }
        }
        progress.traffic = traffic;
    }
}
