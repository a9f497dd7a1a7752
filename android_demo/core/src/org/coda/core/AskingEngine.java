package org.coda.core;

import java.io.File;
import java.util.Map;

/** An engine whose graphs ask the watcher before each run. */
final class AskingEngine implements Engine {
    private final Engine engine;
    private final Round.Watcher watcher;

    AskingEngine(Engine engine, Round.Watcher watcher) {
        this.engine = engine;
        this.watcher = watcher;
    }

    @Override
    public String name() {
        return engine.name();
    }

    @Override
    public String version() {
        return engine.version();
    }

    @Override
    public String format() {
        return engine.format();
    }

    @Override
    public boolean loops() {
        return engine.loops();
    }

    @Override
    public Graph load(File path, GraphSpec spec) {
        final Graph graph = engine.load(path, spec);
        return new Graph() {
            @Override
            public GraphSpec spec() {
                return graph.spec();
            }

            @Override
            public Map<String, Tensor> run(Map<String, Tensor> inputs) {
                watcher.pulse();
                return graph.run(inputs);
            }

            @Override
            public void close() {
                graph.close();
            }
        };
    }
}
