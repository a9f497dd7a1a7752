package org.coda.core;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * The personal sample classifier: which candidates lie inside the boundary of the user's own samples. The twin of
 * {@code device_runtime/filtering.py}, which says how it works.
 */
final class Filtering {
    private static final int FOLDS = 2;
    /** Local samples that are cross-fitted, at least. */
    private static final int LEAST = 8;
    private static final int NEWTON = 20;
    /** Precision of the calibration's slope; its level's is 1. */
    private static final double PRIOR = 0.1;

    /** Positions among the candidates, ascending. */
    final int[] kept;
    /** Of every candidate: the probability of being the user's own. */
    final float[] scores;
    final float[] weights;

    private Filtering(int[] kept, float[] scores, float[] weights) {
        this.kept = kept;
        this.scores = scores;
        this.weights = weights;
    }

    /** float32 [n, width - filterFrom + 1]: what of an embedding describes the impression, and the label. */
    static Tensor inputs(Tensor embeddings, float[] labels, int filterFrom) {
        int width = embeddings.width();
        int wide = width - filterFrom + 1;
        float[] found = new float[labels.length * wide];
        for (int i = 0; i < labels.length; i++) {
            System.arraycopy(embeddings.floats, i * width + filterFrom, found, i * wide, wide - 1);
            found[i * wide + wide - 1] = labels[i] - 0.5f;
        }
        return Tensor.of(found, labels.length, wide);
    }

    /**
     * @param change by how much the logits of the candidates' labels differ from the model's; null where they are other
     *         users' samples.
     */
    static Filtering of(Model model, Tensor local, Tensor candidates, double[] change, Pcg64 random) {
        RoundSettings settings = model.manifest.settings;
        int count = candidates.rows();
        int wide = candidates.width();
        float[] liked = new float[count];
        for (int i = 0; i < count; i++) {
            liked[i] = Math.max(0, Math.min(1, candidates.floats[i * wide + wide - 1] + 0.5f));
        }
        if (count < FOLDS || settings.classifierEpochs == 0) {
            return withoutClassifier(settings, count, change);
        }
        Tensor halves = Tensor.join(labelled(candidates, 0.5f), labelled(candidates, -0.5f));
        if (!settings.classifierLabel) { // a label that says nothing
            halves = labelled(halves, 0);
            local = labelled(local, 0);
        }
        float[] mass = new float[2 * count];
        for (int i = 0; i < count; i++) {
            mass[i] = liked[i];
            mass[count + i] = 1 - liked[i];
        }
        int[] drawn = random.permutation(count);
        int locals = local.rows();
        boolean unseen = settings.calibration && locals >= LEAST;
        int[] ownDrawn = unseen ? random.permutation(locals) : null;
        float[] logit = new float[2 * count];
        float[] ownLogit = new float[locals];
        for (int fold = 0; fold < FOLDS; fold++) {
            int[] known = Ints.range(0, locals);
            int[] held = {};
            if (unseen) {
                int[] each = Ints.range(0, locals);
                int trained = 0;
                int left = 0;
                held = new int[locals];
                for (int i = 0; i < locals; i++) {
                    if (ownDrawn[i] % FOLDS == fold) {
                        held[left++] = i;
                    } else {
                        each[trained++] = i;
                    }
                }
                known = Arrays.copyOf(each, trained);
                held = Arrays.copyOf(held, left);
            }
            int[] against = new int[2 * count];
            int[] judged = new int[2 * count];
            int opposite = 0;
            int own = 0;
            for (int i = 0; i < 2 * count; i++) {
                if (drawn[i % count] % FOLDS == fold) {
                    judged[own++] = i;
                } else if (mass[i] > 0) {
                    against[opposite++] = i;
                }
            }
            int[] outside = Arrays.copyOf(against, opposite);
            int[] mine = Arrays.copyOf(judged, own);
            Map<String, Tensor> weights = fit(model, local.take(known), halves.take(outside),
                    Floats.take(mass, outside), settings, random);
            Map<String, Tensor> x = new LinkedHashMap<>();
            x.put("x", Tensor.join(halves.take(mine), local.take(held)));
            float[] found = Trainer.scores(model.graph("classifier_score"), weights, x).floats;
            for (int i = 0; i < own; i++) {
                logit[mine[i]] = found[i];
            }
            for (int i = 0; i < held.length; i++) {
                ownLogit[held[i]] = found[own + i];
            }
        }
        if (unseen) {
            calibrate(ownLogit, logit, mass);
        }
        return judged(settings, liked, logit, change);
    }

    private static Filtering judged(RoundSettings settings, float[] liked, float[] logit, double[] change) {
        int count = liked.length;
        float bound = (float) Math.log(settings.ratioBound);
        float[] probability = new float[count];
        float[] density = new float[count];
        boolean[] inside = new boolean[count];
        for (int i = 0; i < count; i++) {
            float one = (float) Math.exp(Math.max(-bound, Math.min(bound, logit[i])));
            float zero = (float) Math.exp(Math.max(-bound, Math.min(bound, logit[count + i])));
            density[i] = liked[i] * one + (1 - liked[i]) * zero;
            probability[i] = density[i] / (1 + density[i]);
            inside[i] = probability[i] >= settings.threshold;
        }
        int[] kept = foremost(density, change, inside, settings.keep);
        return new Filtering(kept, probability,
                settings.densityWeights ? Floats.take(probability, kept) : Floats.filled(kept.length, 1));
    }

    /** Scores become logits of being the user's own: {@code filtering.calibration} says how. */
    static void calibrate(float[] own, float[] outside, float[] mass) {
        double total = Math.max(Floats.sum(mass), 1e-9);
        double slope = 0;
        double level = 0;
        for (int step = 0; step < NEWTON; step++) {
            double downSlope = -PRIOR * slope;
            double downLevel = -level;
            double a = PRIOR;
            double b = 0;
            double c = 1;
            for (int i = 0; i < own.length + outside.length; i++) {
                boolean mine = i < own.length;
                double score = mine ? own[i] : outside[i - own.length];
                double weight = mine ? 1 : own.length * (mass[i - own.length] / total);
                double p = Metrics.sigmoid(slope * score + level);
                double residual = weight * ((mine ? 1 : 0) - p);
                double curvature = weight * p * (1 - p);
                downSlope += residual * score;
                downLevel += residual;
                a += curvature * score * score;
                b += curvature * score;
                c += curvature;
            }
            double determinant = a * c - b * b;
            slope += (c * downSlope - b * downLevel) / determinant;
            level += (a * downLevel - b * downSlope) / determinant;
        }
        for (int i = 0; i < outside.length; i++) {
            outside[i] = slope > 0 ? (float) (slope * outside[i] + level) : 0;
        }
    }

    /** Those that change the model most; in the order that they came in, where that is not known. */
    static Filtering withoutClassifier(RoundSettings settings, int count, double[] change) {
        boolean[] inside = new boolean[count];
        Arrays.fill(inside, true);
        int[] kept = foremost(Floats.filled(count, 1), change, inside, settings.keep);
        return new Filtering(kept, Floats.filled(count, 0.5f), Floats.filled(kept.length, 1));
    }

    /** Positions, ascending, of those inside that are worth most, at most this share of all; of equals, the first ones. */
    private static int[] foremost(float[] density, double[] change, boolean[] inside, double share) {
        final double[] worth = new double[density.length];
        List<Integer> order = new ArrayList<>();
        for (int i = 0; i < worth.length; i++) {
            worth[i] = change == null ? density[i] : density[i] * (change[i] * change[i]);
            if (inside[i]) {
                order.add(i);
            }
        }
        Collections.sort(order, new Comparator<Integer>() { // stable
            @Override
            public int compare(Integer a, Integer b) {
                return Double.compare(worth[b], worth[a]);
            }
        });
        int[] kept = new int[Math.min((int) Math.ceil(share * worth.length), order.size())];
        for (int i = 0; i < kept.length; i++) {
            kept[i] = order.get(i);
        }
        Arrays.sort(kept);
        return kept;
    }

    private static Tensor labelled(Tensor x, float label) {
        Tensor found = x.copy();
        for (int i = found.width() - 1; i < found.size(); i += found.width()) {
            found.floats[i] = label;
        }
        return found;
    }

    /** Both classes weigh the same in total, so that 0.5 is the boundary whatever their sizes. */
    private static Map<String, Tensor> fit(Model model, Tensor local, Tensor outside, float[] mass,
            RoundSettings settings, Pcg64 random) {
        int own = local.rows();
        int all = own + outside.rows();
        float[] label = new float[all];
        float[] weight = new float[all];
        float total = Floats.sum(mass);
        for (int i = 0; i < all; i++) {
            label[i] = i < own ? 1 : 0;
            weight[i] = i < own ? (float) (0.5 / own * all) : (float) ((double) (0.5f * mass[i - own] / total) * all);
        }
        Engine.Graph step = model.graph("classifier_step");
        Map<String, Tensor> x = new LinkedHashMap<>();
        x.put("x", Tensor.join(local, outside));
        return Trainer.train(step, model.classifier, x, label, weight, settings.classifierRate,
                settings.classifierRate, settings.classifierEpochs, random, null);
    }
}
