package org.coda.core;

import java.util.LinkedHashMap;
import java.util.Map;

/** How a device runs a round: {@code bundle.RoundSettings} says what each does. */
public final class RoundSettings {
    public final String matching;
    public final boolean pooled;
    public final int centroids;
    public final int candidates;
    public final double sharpness;
    public final boolean tastes;
    public final int minLocal;
    public final double holdout;
    public final int classifierEpochs;
    public final double classifierRate;
    public final boolean classifierLabel;
    public final boolean calibration;
    public final double threshold;
    public final double keep;
    public final double ratioBound;
    public final boolean densityWeights;
    public final double outsideWeight;
    public final boolean labelCorrection;
    public final int epochs;
    public final int patience;
    public final double rate;
    public final double tableRate;
    public final double interpolation;
    public final boolean freezeHistories;
    public final int rowSteps;
    public final double rowShare;
    public final boolean judge;
    public final double tolerance;
    public final double partial;
    public final boolean learnHeldOut;

    /** As in the manifest. */
    private final Map<String, Object> given;

    RoundSettings(Fields fields) {
        given = fields.members();
        matching = fields.has("matching") ? fields.oneOf("matching", "nearest", "pooled", "directory") : "pooled";
        pooled = matching.equals("pooled");
        centroids = fields.int32("centroids", 8);
        candidates = fields.int32("candidates", 8000);
        sharpness = fields.number("sharpness", 12);
        tastes = fields.flag("tastes", true);
        minLocal = fields.int32("min_local", 4);
        holdout = fields.number("holdout", 0.2);
        classifierEpochs = fields.int32("classifier_epochs", 5);
        classifierRate = fields.number("classifier_rate", 0.01);
        classifierLabel = fields.flag("classifier_label", true);
        calibration = fields.flag("calibration", false);
        threshold = fields.number("threshold", 0);
        keep = fields.number("keep", 0.9);
        ratioBound = fields.number("ratio_bound", 20);
        densityWeights = fields.flag("density_weights", false);
        outsideWeight = fields.number("outside_weight", 2);
        labelCorrection = fields.flag("label_correction", false);
        epochs = fields.int32("epochs", 3);
        patience = fields.int32("patience", 0);
        rate = fields.number("rate", 0.05);
        tableRate = fields.number("table_rate", 0.05);
        interpolation = fields.number("interpolation", 1);
        freezeHistories = fields.flag("freeze_histories", true);
        rowSteps = fields.int32("row_steps", 2);
        rowShare = fields.number("row_share", 0.75);
        judge = fields.flag("judge", true);
        tolerance = fields.number("tolerance", 2);
        partial = fields.number("partial", 0.5);
        learnHeldOut = fields.flag("learn_held_out", true);
        String[] ofServer = {"cover", "answer_bytes", "neighbours", "core", "half_life",
            "shrinkage", "near_shrinkage", "age_shrinkage", "fitted_until", "fitted_weight"};
        for (String name : ofServer) {
            fields.has(name);
        }
        fields.nothingElse();
    }

    /** The same settings, some changed. Raises: WireError: one that is none, or of another kind. */
    RoundSettings with(Map<String, Object> changes) {
        Map<String, Object> made = new LinkedHashMap<>(given);
        made.putAll(changes);
        return new RoundSettings(Fields.of(made, "the settings of an evaluation"));
    }
}
