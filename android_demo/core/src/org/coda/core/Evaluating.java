package org.coda.core;

import org.coda.core.CodaError.EngineError;
import org.coda.core.CodaError.WireError;
import org.coda.core.Model.Weights;
import org.coda.core.Tables.LocalTable;
import org.coda.core.Transport.Answer;

import java.math.BigDecimal;
import java.math.RoundingMode;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeSet;

/**
 * Federated evaluation, the device's side: try configurations on one's own held-out samples, and tell only how it went.
 * The twin of {@code device_runtime/evaluating.py}. Nothing of it serves.
 */
final class Evaluating {
    private static final int MOST_CONFIGURATIONS = 4;
    private static final int MOST_PASSES = 32;
    private static final List<String> PASSES = Arrays.asList("epochs", "row_steps");
    private static final List<String> FLAGS = Arrays.asList("freeze_histories", "label_correction");
    private static final List<String> NUMBERS =
            Arrays.asList("interpolation", "outside_weight", "rate", "table_rate");

    private Evaluating() {}

    /** Ask the server for a task, and send back what came of it. */
    static void evaluate(Transport transport, Model model, Local local, LocalTable table, Augmentation found,
            long[] seed) {
        Answer asked = transport.request("GET", "/v1/evaluation", new byte[0], "evaluation", "", "application/json",
                Transport.noHeaders(), 200, 204);
        if (asked.head.status == 204) {
            return;
        }
        byte[] metrics = metrics(model, asked.body, local, table, found, seed);
        transport.request("POST", "/v1/evaluation", metrics, "evaluation", "application/json", "",
                Transport.noHeaders(), 204);
        transport.stale = "";
    }

    /**
     * Tune from the bundle's weights by each configuration, and compare on the held-out samples.
     *
     * @param task {@code messages.Task} as JSON.
     * @param seed of the training; the same for each, so that they differ in nothing else.
     * @return {@code messages.Metrics} as JSON.
     * @throws WireError the task asks for what none may.
     */
    private static byte[] metrics(Model model, byte[] task, Local local, LocalTable table, Augmentation found,
            long[] seed) {
        Fields asked = Fields.parse(task, "the evaluation");
        String name = asked.string("name");
        Fields configurations = asked.object("configurations");
        Map<String, RoundSettings> made = new LinkedHashMap<>();
        for (String each : configurations.members().keySet()) {
            made.put(each, settings(model.manifest.settings, configurations.numbers(each)));
        }
        if (made.isEmpty() || made.size() > MOST_CONFIGURATIONS) {
            throw new WireError("an evaluation has 1 to " + MOST_CONFIGURATIONS + " configurations; this one has "
                    + made.size());
        }
        Map<String, Object> outcomes = new LinkedHashMap<>();
        for (Map.Entry<String, RoundSettings> each : made.entrySet()) {
            outcomes.put(each.getKey(), outcome(model, each.getValue(), local, table, found, seed));
        }
        Map<String, Object> metrics = new LinkedHashMap<>();
        metrics.put("task", name);
        metrics.put("samples", local.heldOut.size());
        metrics.put("outcomes", outcomes);
        return Json.bytes(metrics);
    }

    private static Map<String, Object> outcome(Model model, RoundSettings settings, Local local, LocalTable table,
            Augmentation found, long[] seed) {
        Map<String, Object> outcome = new LinkedHashMap<>();
        Weights tuned;
        try {
            tuned = Personalize.tune(model, settings, model.base, table, local.train, found, new Pcg64(seed),
                    null).weights;
        } catch (EngineError diverged) { // that is what is to be told of this configuration
            outcome.put("diverged", true);
            return outcome;
        }
        float[] labels = local.heldOut.labels;
        float[] logits = model.logits(local.heldOut, Model.personal(table, tuned), tuned);
        Double auc = Metrics.auc(labels, logits);
        if (auc != null) {
            outcome.put("auc", auc);
        }
        outcome.put("log_loss", new BigDecimal(Metrics.logLoss(labels, logits)).setScale(6, RoundingMode.HALF_EVEN)
                .doubleValue());
        return outcome;
    }

    /** Raises: WireError: a change that no configuration may make, or nonsense. */
    static RoundSettings settings(RoundSettings base, Map<String, Double> changes) {
        List<String> tunable = new ArrayList<>(PASSES);
        tunable.addAll(FLAGS);
        tunable.addAll(NUMBERS);
        TreeSet<String> unknown = new TreeSet<>(changes.keySet());
        unknown.removeAll(tunable);
        if (!unknown.isEmpty()) {
            throw new WireError("an evaluation may not set " + join(unknown) + "; it may set "
                    + join(new TreeSet<>(tunable)));
        }
        Map<String, Object> made = new LinkedHashMap<>();
        for (Map.Entry<String, Double> change : changes.entrySet()) {
            String name = change.getKey();
            double value = change.getValue();
            boolean isPasses = PASSES.contains(name);
            if (!(value >= 0) || Double.isInfinite(value) || isPasses && value > MOST_PASSES) {
                throw new WireError("an evaluation cannot set " + name + " to " + Json.shortest(value));
            }
            made.put(name, isPasses ? (Object) (long) value : FLAGS.contains(name) ? (Object) (value != 0)
                    : (Object) value);
        }
        return base.with(made);
    }

    private static String join(Iterable<String> names) {
        StringBuilder out = new StringBuilder();
        for (String name : names) {
            out.append(out.length() > 0 ? ", " : "").append(name);
        }
        return out.toString();
    }
}
