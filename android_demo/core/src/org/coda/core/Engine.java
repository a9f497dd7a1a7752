package org.coda.core;

import java.io.Closeable;
import java.io.File;
import java.util.Map;

/** What executes graphs on a device. */
public interface Engine {
    /** As reports carry it. */
    String name();

    /** Of the software behind it. */
    String version();

    /** The manifest's key for graph files that it reads. */
    String format();

    /** Whether its files of step graphs have a loop, so that a call takes several training steps. */
    boolean loops();

    /** @throws CodaError.EngineError the file is not a graph for this engine and version. */
    Graph load(File path, GraphSpec spec);

    /** A loaded graph. */
    interface Graph extends Closeable {
        GraphSpec spec();

        /**
         * Run once. Nothing given is written to.
         *
         * @throws CodaError.EngineError a tensor does not fit the spec and nothing was run, or the engine failed.
         */
        Map<String, Tensor> run(Map<String, Tensor> inputs);

        @Override
        void close();
    }
}
