package org.coda.core;

/**
 * Makes zstd frames that state their size. What is written does not depend on which one is used but in its length: a
 * reader takes any of them. {@link #NONE} does without, and what could have been squeezed travels as it is.
 */
public interface Compressor {
    /** Leaves everything as it is. */
    Compressor NONE = new Compressor() {
        @Override
        public byte[] compress(byte[] plain, int level, byte[] dictionary) {
            return null;
        }
    };

    /**
     * @param level as zstd's.
     * @param dictionary raw content that matches may reach back into; empty for none.
     * @return one frame, or null where this compressor makes none.
     */
    byte[] compress(byte[] plain, int level, byte[] dictionary);
}
