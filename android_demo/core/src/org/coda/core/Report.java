package org.coda.core;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** What a device tells the cloud of a round: counts, verdict and cost; no sample, id or score. */
public final class Report {
    public final String round;
    public final int bundle;
    public final String engine;
    public final String outcome;
    public final int local;
    public final int candidates;
    public final int kept;
    /** Null where nothing was judged. */
    public final Verdict verdict;
    public final List<Phase> phases;
    public final String error;
    /** From the round's start to this sending, by the device's clock. */
    public final double ageS;
    /** AUC of what served when the round began, on the verdict's samples; null where that cannot be told. */
    public final Double aucPrevious;

    Report(String round, String engine, Progress done, String error) {
        this.ageS = 0;
        // the same bundle: what the judge compared with is what served
        boolean same = done.aucPrevious == null && done.verdict != null && !done.moved;
        this.aucPrevious = same ? done.verdict.aucBefore : done.aucPrevious;
        this.round = round;
        this.bundle = done.bundle;
        this.engine = engine;
        this.outcome = done.outcome;
        this.local = done.local;
        this.candidates = done.candidates;
        this.kept = done.kept;
        this.verdict = done.verdict;
        this.phases = new ArrayList<>(done.phases);
        this.error = error;
    }

    private Report(Fields fields) {
        round = fields.string("round");
        bundle = fields.int32("bundle");
        engine = fields.string("engine");
        outcome = fields.string("outcome");
        local = fields.int32("local");
        candidates = fields.int32("candidates");
        kept = fields.int32("kept");
        verdict = fields.has("verdict") ? new Verdict(fields.object("verdict")) : null;
        phases = new ArrayList<>();
        for (Fields phase : fields.objects("phases")) {
            phases.add(new Phase(phase));
        }
        error = fields.string("error", "");
        ageS = fields.number("age_s", 0);
        aucPrevious = fields.has("auc_previous") ? fields.number("auc_previous") : null;
    }

    private Report(Report other, double ageS) {
        round = other.round;
        bundle = other.bundle;
        engine = other.engine;
        outcome = other.outcome;
        local = other.local;
        candidates = other.candidates;
        kept = other.kept;
        verdict = other.verdict;
        phases = other.phases;
        error = other.error;
        this.ageS = ageS;
        aucPrevious = other.aucPrevious;
    }

    /** The same, as it is sent now. */
    Report aged(double seconds) {
        return new Report(this, Math.rint(10 * Math.max(seconds, 0)) / 10);
    }

    public static Report parse(byte[] json, String what) {
        return new Report(Fields.parse(json, what));
    }

    public byte[] json() {
        return Json.bytes(fields());
    }

    Map<String, Object> fields() {
        Map<String, Object> found = new LinkedHashMap<>();
        found.put("round", round);
        found.put("bundle", bundle);
        found.put("engine", engine);
        found.put("outcome", outcome);
        found.put("local", local);
        found.put("candidates", candidates);
        found.put("kept", kept);
        found.put("verdict", verdict == null ? null : verdict.fields());
        found.put("phases", Phase.fields(phases));
        found.put("error", error);
        found.put("age_s", ageS);
        found.put("auc_previous", aucPrevious);
        return found;
    }

    /** Sums over all phases, and the highest peak: the overhead record of a round. */
    public Map<String, Object> overhead() {
        double cpu = 0;
        double peak = 0;
        long down = 0;
        long up = 0;
        long stored = 0;
        for (Phase phase : phases) {
            cpu += phase.cpuUser + phase.cpuSystem;
            peak = Math.max(peak, phase.peakMib);
            down += phase.down;
            up += phase.up;
            stored += phase.stored;
        }
        Map<String, Object> found = new LinkedHashMap<>();
        found.put("cpu_s", cpu);
        found.put("peak_mib", peak);
        found.put("bytes_down", down);
        found.put("bytes_up", up);
        found.put("bytes_stored", stored);
        return found;
    }

    /** What one phase cost; the fields of {@code messages.PhaseOverhead} that a JVM and an Android app can tell. */
    public static final class Phase {
        public final String name;
        public final double cpuUser;
        public final double cpuSystem;
        public final double wall;
        public final double peakMib;
        public final String peakSource;
        public final long stored;
        public final long up;
        public final long down;
        /** Null where the machine does not tell. */
        public final Double energyJ;
        /** Null where the machine does not tell. */
        public final Double temperatureC;

        Phase(String name, double cpuUser, double cpuSystem, double wall, double peakMib, String peakSource,
                long stored, long up, long down, Double energyJ, Double temperatureC) {
            this.name = name;
            this.cpuUser = cpuUser;
            this.cpuSystem = cpuSystem;
            this.wall = wall;
            this.peakMib = peakMib;
            this.peakSource = peakSource;
            this.stored = stored;
            this.up = up;
            this.down = down;
            this.energyJ = energyJ;
            this.temperatureC = temperatureC;
        }

        Phase(Fields fields) {
            this(fields.string("phase"), fields.number("cpu_user_s"), fields.number("cpu_system_s"),
                    fields.number("wall_s"), fields.number("peak_mib"), fields.string("peak_source"),
                    fields.integer("bytes_stored"), fields.integer("bytes_up"), fields.integer("bytes_down"),
                    fields.has("energy_j") ? fields.number("energy_j") : null,
                    fields.has("temperature_c") ? fields.number("temperature_c") : null);
        }

        static List<Object> fields(List<Phase> phases) {
            boolean energy = false;
            boolean temperature = false;
            for (Phase phase : phases) { // a report has columns: a field is in all of its phases or in none
                energy |= phase.energyJ != null;
                temperature |= phase.temperatureC != null;
            }
            List<Object> found = new ArrayList<>();
            for (Phase phase : phases) {
                Map<String, Object> each = new LinkedHashMap<>();
                each.put("phase", phase.name);
                each.put("cpu_user_s", phase.cpuUser);
                each.put("cpu_system_s", phase.cpuSystem);
                each.put("wall_s", phase.wall);
                each.put("peak_mib", phase.peakMib);
                each.put("peak_source", phase.peakSource);
                each.put("bytes_stored", phase.stored);
                each.put("bytes_up", phase.up);
                each.put("bytes_down", phase.down);
                if (energy) {
                    each.put("energy_j", phase.energyJ);
                }
                if (temperature) {
                    each.put("temperature_c", phase.temperatureC);
                }
                found.add(each);
            }
            return found;
        }
    }

    /** The judge's finding on held-out local samples; an AUC is null where one class is missing. */
    public static final class Verdict {
        public final boolean activate;
        public final String reason;
        public final int samples;
        public final double lossBefore;
        public final double lossAfter;
        public final Double aucBefore;
        public final Double aucAfter;
        /** How far, from the bundle's weights to the tuned ones, those lie that it speaks of. */
        public final double share;

        Verdict(boolean activate, String reason, int samples, double lossBefore, double lossAfter, Double aucBefore,
                Double aucAfter, double share) {
            this.activate = activate;
            this.reason = reason;
            this.samples = samples;
            this.lossBefore = lossBefore;
            this.lossAfter = lossAfter;
            this.aucBefore = aucBefore;
            this.aucAfter = aucAfter;
            this.share = share;
        }

        Verdict(Fields fields) {
            this(fields.flag("activate", false), fields.string("reason"), fields.int32("samples"),
                    fields.has("loss_before") ? fields.number("loss_before") : Double.NaN,
                    fields.has("loss_after") ? fields.number("loss_after") : Double.NaN,
                    fields.has("auc_before") ? fields.number("auc_before") : null,
                    fields.has("auc_after") ? fields.number("auc_after") : null, fields.number("share", 1));
        }

        /** The same of weights at a share of the way. */
        Verdict of(double share, String why) {
            return new Verdict(activate, why, samples, lossBefore, lossAfter, aucBefore, aucAfter, share);
        }

        Map<String, Object> fields() {
            Map<String, Object> found = new LinkedHashMap<>();
            found.put("activate", activate);
            found.put("reason", reason);
            found.put("samples", samples);
            found.put("loss_before", lossBefore);
            found.put("loss_after", lossAfter);
            found.put("auc_before", aucBefore);
            found.put("auc_after", aucAfter);
            found.put("share", share);
            return found;
        }
    }
}
