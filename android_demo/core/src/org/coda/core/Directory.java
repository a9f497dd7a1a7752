package org.coda.core;

import org.coda.core.CodaError.InputError;
import org.coda.core.CodaError.WireError;

import java.util.Arrays;

/**
 * What samples look like to the cloud's model, as a few centroids that come with the bundle: the twin of
 * {@code device_runtime/directory.py}.
 */
final class Directory {
    static final String TENSOR = "directory:centroids";
    static final int MOST = 256;
    private static final int SMALLEST = 8;

    /** [k, width]. */
    private final Tensor centroids;
    /** 16 hex digits, of the centroids as they are stored. */
    final String id;

    /** @throws WireError the tensor is not float16 [k, width], or not of finite numbers. */
    Directory(Tensor stored, int width) {
        int[] shape = stored.shape;
        if (!stored.dtype.equals("float16") || shape.length != 2 || shape[1] != width || shape[0] < 1
                || shape[0] > MOST) {
            throw new WireError("the bundle's directory is " + stored.dtype + " " + Arrays.toString(shape)
                    + "; float16 [1 to " + MOST + ", " + width + "] expected");
        }
        if (!stored.isFinite()) {
            throw new WireError("the bundle's directory holds numbers that are not finite");
        }
        centroids = stored;
        id = Bytes.hex(Bytes.sha256(stored.data())).substring(0, 16);
    }

    /**
     * A byte a centroid, the largest 255: the mean of the samples' soft assignments, as shares of the largest.
     *
     * @throws InputError there are no samples, or a number is not finite.
     */
    byte[] weights(Tensor embeddings, double sharpness) {
        if (embeddings.rows() == 0 || !embeddings.isFinite() || Double.isNaN(sharpness)
                || Double.isInfinite(sharpness)) {
            throw new InputError("a directory query needs local samples, and finite embeddings of them");
        }
        int parts = centroids.rows();
        double[] mass = new double[parts];
        for (int i = 0; i < embeddings.rows(); i++) {
            double[] odds = similarities(embeddings, i);
            double most = largest(odds);
            double sum = 0;
            for (int c = 0; c < parts; c++) {
                odds[c] = Math.exp(sharpness * (odds[c] - most));
                sum += odds[c];
            }
            for (int c = 0; c < parts; c++) {
                mass[c] += odds[c] / sum;
            }
        }
        double most = largest(mass);
        byte[] found = new byte[parts];
        for (int c = 0; c < parts; c++) {
            double weight = Math.rint(mass[c] / most * 255);
            found[c] = weight < SMALLEST ? 0 : (byte) (int) weight;
        }
        return found;
    }

    private double[] similarities(Tensor embeddings, int row) {
        int width = centroids.width();
        double[] found = new double[centroids.rows()];
        for (int c = 0; c < found.length; c++) {
            for (int d = 0; d < width; d++) {
                found[c] += (double) embeddings.floats[row * width + d] * centroids.floats[c * width + d];
            }
        }
        return found;
    }

    private static double largest(double[] numbers) {
        double found = numbers[0];
        for (double number : numbers) {
            found = Math.max(found, number);
        }
        return found;
    }
}
