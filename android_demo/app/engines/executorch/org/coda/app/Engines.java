package org.coda.app;

import org.coda.core.Engine;

import java.io.File;

/** The engine of this build of the app: ExecuTorch. The build with ONNX Runtime has a class of the same name. */
final class Engines {
    private static final File CPUINFO = new File("/proc/cpuinfo");

    private Engines() {}

    /** @throws org.coda.core.CodaError.EngineUnavailable this phone cannot run it, in plain words. */
    static Engine open() {
        return new ExecuTorchEngine(CPUINFO);
    }
}
