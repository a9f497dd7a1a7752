package org.coda.core;

/**
 * Base of all deliberate errors, by whose fault they are; the text is one sentence for a person: what, where, and what
 * to do. Names are those of {@code device_runtime/errors.py}, because reports carry them.
 */
public class CodaError extends RuntimeException {
    private static final long serialVersionUID = 1L;

    CodaError(String message) {
        super(message);
    }

    /** The name that reports carry. */
    public final String name() {
        String whole = getClass().getName(); // getSimpleName depends on what tools have kept of a class file
        return whole.substring(Math.max(whole.lastIndexOf('$'), whole.lastIndexOf('.')) + 1);
    }

    /** The caller's data or arguments cannot be used. */
    public static class InputError extends CodaError {
        private static final long serialVersionUID = 1L;

        public InputError(String message) {
            super(message);
        }
    }

    /** An engine is missing, or refuses a graph, or failed while running it. */
    public static class EngineError extends CodaError {
        private static final long serialVersionUID = 1L;

        public EngineError(String message) {
            super(message);
        }
    }

    /** The engine cannot be used on this machine. */
    public static final class EngineUnavailable extends EngineError {
        private static final long serialVersionUID = 1L;

        public EngineUnavailable(String message) {
            super(message);
        }
    }

    /** The engine ran the graphs and they did not train as they should; it must not be used. */
    public static final class SelfTestFailed extends EngineError {
        private static final long serialVersionUID = 1L;

        public SelfTestFailed(String message) {
            super(message);
        }
    }

    /** The peer or the network failed. */
    public static class TransportError extends CodaError {
        private static final long serialVersionUID = 1L;

        TransportError(String message) {
            super(message);
        }
    }

    /** No answer, or one that was cut short. Trying again later may help. */
    public static final class Unreachable extends TransportError {
        private static final long serialVersionUID = 1L;

        public Unreachable(String message) {
            super(message);
        }
    }

    /** The server answered, and it is "no". */
    public static final class Refused extends TransportError {
        private static final long serialVersionUID = 1L;
        /** The HTTP status. */
        public final int status;

        public Refused(int status, String message) {
            super(message);
            this.status = status;
        }
    }

    /** A signature, hash or key is not what it must be. Nothing of the offered data was used. */
    public static final class TrustError extends CodaError {
        private static final long serialVersionUID = 1L;

        public TrustError(String message) {
            super(message);
        }
    }

    /** Bytes do not decode: truncated, damaged, of an unknown version, or out of bounds. */
    public static final class WireError extends CodaError {
        private static final long serialVersionUID = 1L;

        public WireError(String message) {
            super(message);
        }
    }

    /** The local store is full, unreadable, or of another version. */
    public static final class StoreError extends CodaError {
        private static final long serialVersionUID = 1L;

        public StoreError(String message) {
            super(message);
        }
    }

    /** Work was put aside because the device is needed otherwise, or a budget is used up; the next call goes on. */
    public static final class Yielded extends CodaError {
        private static final long serialVersionUID = 1L;

        public Yielded(String message) {
            super(message);
        }
    }
}
