package org.coda.core;

/** The candidates that the filter kept, and their weights. */
final class Augmentation {
    final SampleBatch kept;
    final float[] weights;
    /** By how much the logits of their labels differ from the model's; null where that is not known. */
    final float[] change;

    Augmentation(SampleBatch kept, float[] weights, float[] change) {
        this.kept = kept;
        this.weights = weights;
        this.change = change;
    }
}
