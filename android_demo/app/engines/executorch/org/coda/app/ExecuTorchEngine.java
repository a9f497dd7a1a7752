package org.coda.app;

import org.coda.core.CodaError;
import org.coda.core.CodaError.EngineError;
import org.coda.core.CodaError.EngineUnavailable;
import org.coda.core.Engine;
import org.coda.core.GraphSpec;
import org.coda.core.Tensor;
import org.pytorch.executorch.EValue;
import org.pytorch.executorch.Module;

import java.io.BufferedReader;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;

/** The stock ExecuTorch library for Android. No android.* class is used, so that a JVM can run this one as well. */
public final class ExecuTorchEngine implements Engine {
    /** Of the package that the library is taken from: it does not tell its own. */
    static final String VERSION = "react-native-executorch 0.8.5";

    /**
     * @param cpuinfo what the kernel tells of the processor, {@code /proc/cpuinfo}.
     * @throws EngineUnavailable the processor or the installation lacks what the library needs, in plain words.
     */
    public ExecuTorchEngine(File cpuinfo) {
        if (System.getProperty("os.arch").equals("aarch64") && !hasAtomics(cpuinfo)) {
            throw new EngineUnavailable("this phone's processor is older than ARMv8.1 (it has no atomic instructions, "
                    + "\"atomics\" in /proc/cpuinfo), and the ExecuTorch library would crash on it; nothing was changed");
        }
        try {
            Class.forName("org.pytorch.executorch.Module");
        } catch (ClassNotFoundException | LinkageError error) {
            throw new EngineUnavailable("the ExecuTorch library cannot be loaded on this device: " + error.getMessage()
                    + "; install the app that was built for its processor");
        }
    }

    private static boolean hasAtomics(File cpuinfo) {
        try (BufferedReader lines = new BufferedReader(
                new InputStreamReader(new FileInputStream(cpuinfo), "UTF-8"))) {
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                if (line.startsWith("Features") && Arrays.asList(line.split("[:\\s]+")).contains("atomics")) {
                    return true;
                }
            }
            return false;
        } catch (IOException error) {
            throw new EngineUnavailable("cannot find out what processor this is: " + error.getMessage());
        }
    }

    @Override
    public String name() {
        return "executorch";
    }

    @Override
    public String version() {
        return VERSION;
    }

    @Override
    public String format() {
        return "executorch";
    }

    @Override
    public boolean loops() {
        return false;
    }

    @Override
    public Graph load(File path, GraphSpec spec) {
        try {
            Module module = Module.load(path.getPath(), Module.LOAD_MODE_MMAP, 1);
            int failed = module.loadMethod("forward");
            if (failed != 0) {
                module.destroy();
                throw new EngineError("the graph " + path.getName().substring(0, 12)
                        + "… was made for another ExecuTorch than this app's (" + VERSION + ", error " + failed
                        + "); export the bundle again, or update the app");
            }
            return new Loaded(module, spec);
        } catch (CodaError error) {
            throw error;
        } catch (RuntimeException error) { // the library's own have no common type
            throw new EngineError("ExecuTorch (" + VERSION + ") cannot load a graph: " + error.getMessage()
                    + "; export the bundle again, or update the app");
        }
    }

    private static final class Loaded implements Graph {
        private final Module module;
        private final GraphSpec spec;

        Loaded(Module module, GraphSpec spec) {
            this.module = module;
            this.spec = spec;
        }

        @Override
        public GraphSpec spec() {
            return spec;
        }

        @Override
        public Map<String, Tensor> run(Map<String, Tensor> inputs) {
            spec.check(inputs); // not every kernel looks at what it is given
            EValue[] given = new EValue[spec.inputs.size()];
            for (int i = 0; i < given.length; i++) {
                given[i] = EValue.from(outward(inputs.get(spec.inputs.get(i).name)));
            }
            EValue[] results;
            try {
                results = module.forward(given);
            } catch (RuntimeException error) {
                throw new EngineError("executorch failed while running a graph: " + error.getMessage());
            }
            if (results.length != spec.outputs.size()) {
                throw new EngineError("a graph gives " + results.length + " results; the manifest names "
                        + spec.outputs.size());
            }
            Map<String, Tensor> found = new LinkedHashMap<>();
            for (int i = 0; i < results.length; i++) {
                found.put(spec.outputs.get(i).name, inward(results[i], spec.outputs.get(i)));
            }
            return found;
        }

        private static org.pytorch.executorch.Tensor outward(Tensor tensor) {
            long[] shape = new long[tensor.shape.length];
            for (int i = 0; i < shape.length; i++) {
                shape[i] = tensor.shape[i];
            }
            switch (tensor.dtype) {
                case "float32":
                    return org.pytorch.executorch.Tensor.fromBlob(tensor.floats, shape);
                case "int64":
                    return org.pytorch.executorch.Tensor.fromBlob(tensor.longs, shape);
                default:
                    throw new EngineError("this app gives graphs float32 and int64 tensors, not " + tensor.dtype);
            }
        }

        private static Tensor inward(EValue value, GraphSpec.TensorSpec spec) {
            if (!value.isTensor()) {
                throw new EngineError("a graph's result '" + spec.name + "' is no tensor");
            }
            org.pytorch.executorch.Tensor tensor = value.toTensor();
            long[] sizes = tensor.shape();
            int[] shape = new int[sizes.length];
            for (int i = 0; i < shape.length; i++) {
                shape[i] = (int) sizes[i];
            }
            switch (spec.dtype) {
                case "float32":
                    return Tensor.of(tensor.getDataAsFloatArray(), shape);
                case "int64":
                    return Tensor.of(tensor.getDataAsLongArray(), shape);
                default:
                    throw new EngineError("this app takes float32 and int64 tensors from graphs, not " + spec.dtype);
            }
        }

        @Override
        public void close() {
            module.destroy();
        }
    }
}
