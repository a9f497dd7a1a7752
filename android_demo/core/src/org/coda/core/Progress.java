package org.coda.core;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * What has been committed of a round, beside its state and its working files; and the journal of states as data. The
 * twin of {@code device_runtime/journal.py}, and stored as the same JSON.
 */
public final class Progress {
    private static final Map<String, List<String>> TRANSITIONS = new LinkedHashMap<>();
    private static final Map<String, List<String>> NEEDS = new LinkedHashMap<>();
    private static final int MOST_STUMBLES = 5;
    private static final double RESUME_WITHIN_S = 7 * 86400.0;

    static {
        state("started", "pulled failed interrupted", "");
        state("pulled", "encoded done failed interrupted", "");
        state("encoded", "matched tuned started failed interrupted", "encoded");
        state("matched", "filtered tuned failed interrupted", "encoded answer");
        state("filtered", "tuned failed interrupted", "answer filter");
        state("tuned", "judged failed interrupted", "answer tuned");
        state("judged", "activated failed interrupted", "");
        state("activated", "done failed interrupted", "");
    }

    private static void state(String name, String onward, String needs) {
        TRANSITIONS.put(name, Arrays.asList(onward.split(" ")));
        NEEDS.put(name, needs.isEmpty() ? Collections.<String>emptyList() : Arrays.asList(needs.split(" ")));
    }

    /** What a round was started with. */
    static final class Inputs {
        final long seed;
        final boolean match;
        final String engine;
        final long until;
        final long events;
        final long ordinal;

        Inputs(long seed, boolean match, String engine, long until, long events, long ordinal) {
            this.seed = seed;
            this.match = match;
            this.engine = engine;
            this.until = until;
            this.events = events;
            this.ordinal = ordinal;
        }
    }

    /** What the filter did: counts of candidates by score, and shares of liked ones (null where there are none). */
    public static final class View {
        public final double[] edges;
        public final long[] kept;
        public final long[] dropped;
        public final Double keptPositive;
        public final Double candidatesPositive;

        View(double[] edges, long[] kept, long[] dropped, Double keptPositive, Double candidatesPositive) {
            this.edges = edges;
            this.kept = kept;
            this.dropped = dropped;
            this.keptPositive = keptPositive;
            this.candidatesPositive = candidatesPositive;
        }
    }

    final Inputs inputs;
    public int bundle;
    String manifest = "";
    public int local;
    public int candidates;
    public int kept;
    public Report.Verdict verdict;
    public View view;
    public String outcome = "";
    final Map<String, String> files = new LinkedHashMap<>();
    List<Report.Phase> phases = new ArrayList<>();
    /** Message -> bytes (up, down). */
    public Map<String, long[]> traffic = new LinkedHashMap<>();
    public int resumed;
    int stumbles;
    boolean repulled;
    /** AUC of what served before another bundle took its place, on this round's held-out samples. */
    Double aucPrevious;
    /** Whether this round has changed bundles. */
    boolean moved;
    /** Passes that led to the tuned weights; null where an older version of this software tuned them. */
    Integer passes;

    Progress(Inputs inputs) {
        this.inputs = inputs;
    }

    static Progress parse(byte[] json) {
        Fields fields = Fields.parse(json, "the progress of a round");
        Fields in = fields.object("inputs");
        Progress found = new Progress(new Inputs(in.integer("seed"), in.flag("match", true), in.string("engine"),
                in.integer("until"), in.integer("events"), in.integer("ordinal")));
        found.bundle = fields.int32("bundle");
        found.manifest = fields.string("manifest");
        found.local = fields.int32("local");
        found.candidates = fields.int32("candidates");
        found.kept = fields.int32("kept");
        found.verdict = fields.has("verdict") ? new Report.Verdict(fields.object("verdict")) : null;
        if (fields.has("view")) {
            Fields view = fields.object("view");
            found.view = new View(doubles(view.list("edges")), longs(view.list("kept")), longs(view.list("dropped")),
                    view.has("kept_positive_share") ? view.number("kept_positive_share") : null,
                    view.has("candidates_positive_share") ? view.number("candidates_positive_share") : null);
        }
        found.outcome = fields.string("outcome");
        for (Map.Entry<String, Object> file : fields.map("files").entrySet()) {
            found.files.put(file.getKey(), String.valueOf(file.getValue()));
        }
        for (Fields phase : fields.objects("phases")) {
            found.phases.add(new Report.Phase(phase));
        }
        for (Map.Entry<String, Object> each : fields.map("traffic").entrySet()) {
            found.traffic.put(each.getKey(), longs((List<?>) each.getValue()));
        }
        found.resumed = fields.int32("resumed");
        found.stumbles = fields.int32("stumbles");
        found.repulled = fields.flag("repulled", false);
        found.aucPrevious = fields.has("auc_previous") ? fields.number("auc_previous") : null;
        found.moved = fields.flag("moved", false);
        found.passes = fields.has("passes") ? fields.int32("passes") : null;
        return found;
    }

    byte[] json() {
        Map<String, Object> in = new LinkedHashMap<>();
        in.put("seed", inputs.seed);
        in.put("match", inputs.match);
        in.put("engine", inputs.engine);
        in.put("until", inputs.until);
        in.put("events", inputs.events);
        in.put("ordinal", inputs.ordinal);
        Map<String, Object> found = new LinkedHashMap<>();
        found.put("inputs", in);
        found.put("bundle", bundle);
        found.put("manifest", manifest);
        found.put("local", local);
        found.put("candidates", candidates);
        found.put("kept", kept);
        found.put("verdict", verdict == null ? null : verdict.fields());
        Map<String, Object> seen = null;
        if (view != null) {
            seen = new LinkedHashMap<>();
            seen.put("edges", list(view.edges));
            seen.put("kept", list(view.kept));
            seen.put("dropped", list(view.dropped));
            seen.put("kept_positive_share", view.keptPositive);
            seen.put("candidates_positive_share", view.candidatesPositive);
        }
        found.put("view", seen);
        found.put("outcome", outcome);
        found.put("files", files);
        found.put("phases", Report.Phase.fields(phases));
        found.put("traffic", trafficFields());
        found.put("resumed", resumed);
        found.put("stumbles", stumbles);
        found.put("repulled", repulled);
        found.put("moved", moved);
        found.put("auc_previous", aucPrevious);
        found.put("passes", passes);
        return Json.bytes(found);
    }

    Map<String, Object> trafficFields() {
        Map<String, Object> found = new LinkedHashMap<>();
        for (Map.Entry<String, long[]> each : traffic.entrySet()) {
            found.put(each.getKey(), list(each.getValue()));
        }
        return found;
    }

    private static List<Object> list(long[] numbers) {
        List<Object> found = new ArrayList<>();
        for (long number : numbers) {
            found.add(number);
        }
        return found;
    }

    private static List<Object> list(double[] numbers) {
        List<Object> found = new ArrayList<>();
        for (double number : numbers) {
            found.add(number);
        }
        return found;
    }

    private static long[] longs(List<?> numbers) {
        long[] found = new long[numbers.size()];
        for (int i = 0; i < found.length; i++) {
            found[i] = ((Number) numbers.get(i)).longValue();
        }
        return found;
    }

    private static double[] doubles(List<?> numbers) {
        double[] found = new double[numbers.size()];
        for (int i = 0; i < found.length; i++) {
            found[i] = ((Number) numbers.get(i)).doubleValue();
        }
        return found;
    }

    // -- the journal -------------------------------------------------------------------------------------------------

    static boolean isFinal(String state) {
        return !TRANSITIONS.containsKey(state);
    }

    static boolean allows(String state, String onward) {
        return TRANSITIONS.containsKey(state) && TRANSITIONS.get(state).contains(onward);
    }

    /** The working files that must be whole for this round to go on from a state. */
    List<String> needed(String state) {
        List<String> found = new ArrayList<>();
        for (String name : NEEDS.get(state)) {
            if (files.containsKey(name)) {
                found.add(name);
            }
        }
        return found;
    }

    /** The seed of a step's random numbers: a step that is done again draws the same. */
    long[] streamOf(String step) {
        return new long[] {inputs.seed, inputs.ordinal, new ArrayList<>(NEEDS.keySet()).indexOf(step)};
    }

    /** Why a round cannot go on where it was; "" if it can. See {@code journal.obstacle}. */
    String obstacle(String state, Inputs now, double ageS, String serving, List<String> whole) {
        if (isFinal(state)) {
            return "it has ended: " + state;
        }
        if (ageS > RESUME_WITHIN_S) {
            return "it was started " + Math.round(ageS / 86400) + " days ago";
        }
        if (stumbles >= MOST_STUMBLES) {
            return "the disk has failed it " + stumbles + " times";
        }
        if (inputs.seed != now.seed || inputs.match != now.match) {
            return "it was started with other options";
        }
        if (!inputs.engine.equals(now.engine)) {
            return "it was started on " + inputs.engine;
        }
        if (inputs.events != now.events) {
            return "events that it looks at have been removed since";
        }
        if (!state.equals("started") && !serving.equals(manifest)) {
            return "another bundle serves now";
        }
        for (String name : needed(state)) {
            if (!whole.contains(name)) {
                return "its working file '" + name + "' is gone or damaged";
            }
        }
        return "";
    }
}
