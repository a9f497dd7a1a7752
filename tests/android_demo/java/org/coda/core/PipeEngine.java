package org.coda.core;

import org.coda.core.CodaError.EngineError;

import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.Closeable;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.File;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.lang.management.ThreadMXBean;
import java.util.Map;

/** Graphs run by a process beside the JVM: see engine_helper.py. */
final class PipeEngine implements Engine, Closeable {
    private static final ThreadMXBean THREADS = ManagementFactory.getThreadMXBean();

    private final Process process;
    private final DataInputStream in;
    private final DataOutputStream out;

    PipeEngine(String... command) throws IOException {
        process = new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.INHERIT).start();
        in = new DataInputStream(new BufferedInputStream(process.getInputStream()));
        out = new DataOutputStream(new BufferedOutputStream(process.getOutputStream()));
    }

    @Override
    public void close() {
        process.destroy();
    }

    @Override
    public String name() {
        return "executorch";
    }

    @Override
    public String version() {
        return "1.5.1";
    }

    @Override
    public String format() {
        return "executorch";
    }

    /** CPU seconds that went into talking to the other process: not the core's. */
    static double spentS;

    private byte[] ask(char kind, byte[] body) {
        try {
            out.writeByte(kind);
            out.writeInt(body.length);
            out.write(body);
            out.flush();
            boolean failed = in.readByte() != 0;
            byte[] answer = new byte[in.readInt()];
            in.readFully(answer);
            if (failed) {
                throw new EngineError(Bytes.text(answer));
            }
            return answer;
        } catch (IOException error) {
            throw new EngineError("the engine's process ended: " + error.getMessage());
        }
    }

    /** The other process's number of a graph. */
    byte[] loaded(File path) {
        return ask('L', Bytes.utf8(path.getPath()));
    }

    Map<String, Tensor> run(byte[] number, Map<String, Tensor> inputs) {
        long started = THREADS.getCurrentThreadCpuTime();
        byte[] call = Bytes.join(number, Safetensors.write(inputs));
        Map<String, Tensor> found = Safetensors.read(ask('R', call), "the outputs");
        spentS += (THREADS.getCurrentThreadCpuTime() - started) / 1e9;
        return found;
    }

    @Override
    public boolean loops() {
        return false;
    }

    @Override
    public Graph load(File path, final GraphSpec spec) {
        final byte[] number = loaded(path);
        return new Graph() {
            @Override
            public GraphSpec spec() {
                return spec;
            }

            @Override
            public Map<String, Tensor> run(Map<String, Tensor> inputs) {
                spec.check(inputs);
                return PipeEngine.this.run(number, inputs);
            }

            @Override
            public void close() {
                // graphs live as long as the process
            }
        };
    }
}
