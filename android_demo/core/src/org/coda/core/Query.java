package org.coda.core;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;

/**
 * The query: the user's profile, a few centroids of the embedded local samples, or how much of them lies in each part of
 * the bundle's directory. It is all that the cloud learns.
 */
final class Query {
    private static final int ITERATIONS = 10;
    private static final float SMALL = 1e-6f;

    private Query() {}

    /**
     * The query's frame, as the bundle's settings ask for it.
     *
     * @param embeddings of the local samples, oldest first.
     * @throws InputError there are no local samples to ask by a directory.
     */
    static byte[] frame(Model model, Tensor embeddings, Pcg64 random, Compressor compressor) {
        Manifest manifest = model.manifest;
        RoundSettings settings = manifest.settings;
        if (settings.matching.equals("directory")) {
            return Wire.encodeDirectoryQuery(manifest.encoder, model.directory.id,
                    model.directory.weights(embeddings, settings.sharpness), settings.candidates, model.held(),
                    compressor);
        }
        Tensor asked = vectors(embeddings, manifest.filterFrom, settings, random);
        return Wire.encodeQuery(manifest.encoder, asked, settings.candidates, model.held(), compressor);
    }

    /** What is sent where no directory is asked by, float32 [k, width], unit rows. */
    static Tensor vectors(Tensor embeddings, int filterFrom, RoundSettings settings, Pcg64 random) {
        return settings.pooled ? profile(embeddings, filterFrom) : centroids(embeddings, settings.centroids, random);
    }

    /** float32 [1, width]: the person behind the newest sample, without its impression; no row if nothing is known. */
    static Tensor profile(Tensor embeddings, int filterFrom) {
        int width = embeddings.width();
        float[] row = Arrays.copyOfRange(embeddings.floats, embeddings.size() - width, embeddings.size());
        Arrays.fill(row, filterFrom, width, 0);
        float norm = norm(row, 0, width);
        if (!(norm > SMALL)) {
            return Tensor.of(new float[0], 0, width);
        }
        for (int i = 0; i < width; i++) {
            row[i] /= Math.max(norm, SMALL);
        }
        return Tensor.of(row, 1, width);
    }

    private static float norm(float[] rows, int from, int width) {
        float[] squares = new float[width];
        for (int i = 0; i < width; i++) {
            squares[i] = rows[from + i] * rows[from + i];
        }
        return (float) Math.sqrt(Floats.sum(squares));
    }

    /** Spherical k-means from a k-means++ start, float32 [at most k, width]. */
    static Tensor centroids(Tensor embeddings, int k, Pcg64 random) {
        int width = embeddings.width();
        Map<String, Integer> first = new LinkedHashMap<>();
        for (int i = 0; i < embeddings.rows(); i++) {
            long[] rounded = new long[width];
            for (int j = 0; j < width; j++) {
                rounded[j] = (long) Math.rint(embeddings.floats[i * width + j] * 1e4f);
            }
            String key = Arrays.toString(rounded);
            if (!first.containsKey(key)) {
                first.put(key, i);
            }
        }
        int[] at = new int[first.size()];
        int count = 0;
        for (int i : first.values()) {
            at[count++] = i;
        }
        Tensor distinct = embeddings.take(at);
        if (count <= k) {
            return distinct;
        }
        Tensor centres = spread(distinct, k, random);
        for (int iteration = 0; iteration < ITERATIONS; iteration++) {
            float[] sums = new float[k * width];
            for (int i = 0; i < embeddings.rows(); i++) {
                int nearest = 0;
                float best = Float.NEGATIVE_INFINITY;
                for (int c = 0; c < k; c++) {
                    float similarity = product(embeddings, i, centres, c);
                    if (similarity > best) {
                        best = similarity;
                        nearest = c;
                    }
                }
                for (int j = 0; j < width; j++) {
                    sums[nearest * width + j] += embeddings.floats[i * width + j];
                }
            }
            float[] moved = centres.floats.clone();
            for (int c = 0; c < k; c++) {
                float norm = norm(sums, c * width, width);
                for (int j = 0; norm > SMALL && j < width; j++) {
                    moved[c * width + j] = sums[c * width + j] / norm;
                }
            }
            centres = Tensor.of(moved, k, width);
        }
        return centres;
    }

    private static Tensor spread(Tensor points, int k, Pcg64 random) {
        int[] chosen = new int[k];
        chosen[0] = random.below(points.rows());
        float[] distance = Floats.filled(points.rows(), Float.POSITIVE_INFINITY);
        for (int n = 1; n < k; n++) {
            float[] weight = new float[distance.length];
            for (int i = 0; i < distance.length; i++) {
                distance[i] = Math.min(distance[i], 1 - product(points, i, points, chosen[n - 1]));
                weight[i] = Math.max(distance[i], 0) + 1e-12f;
            }
            float total = Floats.sum(weight);
            double[] share = new double[weight.length];
            for (int i = 0; i < share.length; i++) {
                share[i] = weight[i] / total;
            }
            chosen[n] = random.choice(share);
        }
        return points.take(chosen);
    }

    private static float product(Tensor a, int i, Tensor b, int j) {
        int width = a.width();
        float sum = 0;
        for (int d = 0; d < width; d++) {
            sum += a.floats[i * width + d] * b.floats[j * width + d];
        }
        return sum;
    }
}
