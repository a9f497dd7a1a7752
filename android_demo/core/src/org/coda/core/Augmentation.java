package org.coda.core;

/** The candidates that the filter kept, and their weights. */
final class Augmentation {
    final SampleBatch kept;
    final float[] weights;

    Augmentation(SampleBatch kept, float[] weights) {
        this.kept = kept;
        this.weights = weights;
    }
}
