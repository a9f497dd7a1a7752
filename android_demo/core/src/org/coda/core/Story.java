package org.coda.core;

import org.coda.core.Store.RoundRow;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/** What a device has done, in words for its user and as data to take away. */
public final class Story {
    private Story() {}

    /** What the last round pulled, kept, gained and spent; what to do first where there is none. */
    public static String summary(Store store) {
        List<RoundRow> rounds = store.rounds();
        RoundRow last = null;
        for (RoundRow row : rounds) {
            last = row.report == null ? last : row;
        }
        long events = store.countEvents(Long.MAX_VALUE);
        StringBuilder out = new StringBuilder();
        out.append(store.setting("server") == null ? "Not enrolled: give the server's address and the release key.\n"
                : "Enrolled at " + store.setting("server") + ".\n");
        out.append(events).append(" events of yours are on this phone.\n");
        if (last == null) {
            return out.append("No round has been run yet.").toString();
        }
        Report report = last.report;
        Progress done = last.progress;
        long pulled = 0;
        for (Map.Entry<String, long[]> each : done.traffic.entrySet()) {
            pulled += each.getKey().equals("match") ? 0 : each.getValue()[1];
        }
        long[] matched = done.traffic.containsKey("match") ? done.traffic.get("match") : new long[2];
        Map<String, Object> cost = report.overhead();
        out.append("Round ").append(rounds.size()).append(": ").append(outcome(report)).append(".\n");
        out.append(format("Pulled: bundle %d, %.1f KB; candidates %.1f KB for a query of %.1f KB.\n", report.bundle,
                pulled / 1e3, matched[1] / 1e3, matched[0] / 1e3));
        out.append(format("Kept: %d of %d candidates, beside %d samples of your own.\n", report.kept,
                report.candidates, report.local));
        out.append(gained(report)).append('\n');
        out.append(format("Spent: %.2f CPU seconds, at most %.0f MiB, %.1f KB down, %.1f KB up, %+.1f KB stored.",
                cost.get("cpu_s"), cost.get("peak_mib"), ((Long) cost.get("bytes_down")) / 1e3,
                ((Long) cost.get("bytes_up")) / 1e3, ((Long) cost.get("bytes_stored")) / 1e3));
        return out.toString();
    }

    private static String outcome(Report report) {
        switch (report.outcome) {
            case "activated":
                return report.verdict == null || report.verdict.share == 1 ? "the new weights serve"
                        : format("%.0f %% of the way to the new weights serves", 100 * report.verdict.share);
            case "kept":
                return "the old weights stay";
            case "too few samples":
                return "too few samples of your own to learn from";
            default:
                return "it failed (" + report.error + "); what served before still does";
        }
    }

    private static String gained(Report report) {
        if (report.verdict == null) {
            return "Gained: nothing was judged.";
        }
        Report.Verdict verdict = report.verdict;
        String auc = verdict.aucBefore == null || verdict.aucAfter == null ? "one class only"
                : format("AUC %.3f, was %.3f", verdict.aucAfter, verdict.aucBefore);
        return format("Gained: on %d held-out samples of yours %s; log loss %.4f, was %.4f.", verdict.samples, auc,
                verdict.lossAfter, verdict.lossBefore);
    }

    private static String format(String text, Object... values) {
        return String.format(Locale.ROOT, text, values);
    }

    /** One line for each round, oldest first. */
    public static String log(Store store) {
        StringBuilder lines = new StringBuilder();
        for (RoundRow row : store.rounds()) {
            String what = row.report == null ? row.state
                    : row.report.outcome + (row.report.verdict == null ? "" : "; " + row.report.verdict.reason);
            lines.append(row.id, 0, Math.min(8, row.id.length())).append("  ").append(what)
                    .append(row.report == null || row.delivered ? "\n" : "; its report waits for the network\n");
        }
        return lines.toString();
    }

    /** Everything about the user as JSON: events, rounds and settings. The private key is not among them. */
    public static byte[] export(Store store) {
        List<Object> events = new ArrayList<>();
        for (Store.Event event : store.events(Long.MAX_VALUE, Integer.MAX_VALUE)) {
            Map<String, Object> each = new LinkedHashMap<>();
            each.put("item_id", event.item);
            each.put("timestamp", event.timestamp);
            each.put("label", event.label);
            each.put("rating", event.rating);
            each.put("observed", event.observed);
            events.add(each);
        }
        List<Object> rounds = new ArrayList<>();
        for (RoundRow row : store.rounds()) {
            Map<String, Object> each = new LinkedHashMap<>();
            each.put("id", row.id);
            each.put("state", row.state);
            each.put("report", row.report == null ? null : row.report.fields());
            rounds.add(each);
        }
        Map<String, Object> settings = new LinkedHashMap<>();
        for (Object[] pair : store.settings()) {
            settings.put((String) pair[0], pair[1]);
        }
        Map<String, Object> all = new LinkedHashMap<>();
        all.put("samples", events);
        all.put("rounds", rounds);
        all.put("settings", settings);
        return Json.bytes(all);
    }

    /**
     * The overhead record of a benchmark: as {@code coda device run --json} writes it, with what the platform counted.
     *
     * @param rows reports of the rounds, each with what the platform's own counters say beside it.
     */
    public static byte[] record(String version, Map<String, Object> machine, String started,
            List<Map<String, Object>> rows) {
        Map<String, Object> all = new LinkedHashMap<>();
        all.put("command", "android benchmark");
        all.put("version", version);
        all.put("machine", machine);
        all.put("started", started);
        all.put("rows", rows);
        return Json.bytes(all);
    }

    /** One row of a benchmark. */
    public static Map<String, Object> row(Report report, Map<String, long[]> traffic, Map<String, Object> platform) {
        Map<String, Object> row = report.fields();
        Map<String, Object> bytes = new LinkedHashMap<>();
        for (Map.Entry<String, long[]> each : traffic.entrySet()) {
            List<Object> pair = new ArrayList<>();
            pair.add(each.getValue()[0]);
            pair.add(each.getValue()[1]);
            bytes.put(each.getKey(), pair);
        }
        row.put("overhead", report.overhead());
        row.put("bytes_by_message", bytes);
        row.put("platform", platform);
        return row;
    }
}
