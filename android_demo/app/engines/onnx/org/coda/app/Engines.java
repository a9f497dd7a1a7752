package org.coda.app;

import org.coda.core.Engine;

/** The engine of this build of the app: ONNX Runtime. The build with ExecuTorch has a class of the same name. */
final class Engines {
    private Engines() {}

    /** @throws org.coda.core.CodaError.EngineUnavailable this phone cannot run it, in plain words. */
    static Engine open() {
        return new OnnxEngine();
    }
}
