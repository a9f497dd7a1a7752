package org.coda.core;

import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;

import org.coda.app.OnnxEngine;
import org.coda.core.CodaError.EngineError;

import java.io.File;
import java.io.IOException;
import java.util.LinkedHashMap;
import java.util.Map;

/** {@link HostDevice} with the app's ONNX adapter, over a stand-in for the library that has a process run the graphs. */
public final class OnnxDevice {
    private OnnxDevice() {}

    public static void main(String[] args) throws IOException {
        OrtEnvironment.version = System.getProperty("ort", OrtEnvironment.version);
        try (final PipeEngine pipe = new PipeEngine(System.getProperty("engine").split(" "))) {
            OrtEnvironment.backend = new OrtEnvironment.Backend() {
                @Override
                public byte[] load(String path) throws OrtException {
                    try {
                        return pipe.loaded(new File(path));
                    } catch (EngineError error) {
                        throw new OrtException(error.getMessage());
                    }
                }

                @Override
                public Map<String, Object[]> run(byte[] graph, Map<String, Object[]> inputs) throws OrtException {
                    Map<String, Tensor> given = new LinkedHashMap<>();
                    for (Map.Entry<String, Object[]> each : inputs.entrySet()) {
                        int[] shape = Ints.of((long[]) each.getValue()[1]);
                        Object numbers = each.getValue()[0];
                        given.put(each.getKey(), numbers instanceof float[] ? Tensor.of((float[]) numbers, shape)
                                : Tensor.of((long[]) numbers, shape));
                    }
                    Map<String, Object[]> found = new LinkedHashMap<>();
                    for (Map.Entry<String, Tensor> each : pipe.run(graph, given).entrySet()) {
                        Tensor tensor = each.getValue();
                        found.put(each.getKey(), new Object[] {tensor.floats == null ? tensor.longs : tensor.floats,
                            Ints.wide(tensor.shape)});
                    }
                    return found;
                }
            };
            try {
                HostDevice.run(new OnnxEngine());
            } catch (CodaError error) {
                System.out.println(error.name() + ": " + error.getMessage());
                System.exit(3);
            }
            System.out.println("open tensors: " + OrtEnvironment.openTensors());
        }
    }
}
