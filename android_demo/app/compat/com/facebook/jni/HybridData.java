package com.facebook.jni;

import com.facebook.soloader.nativeloader.NativeLoader;

/** Holds a native object for its Java peer. Written for CoDA: fbjni's native half looks this class up by name. */
public class HybridData {
    static {
        NativeLoader.loadLibrary("fbjni");
    }

    private final Destructor mDestructor = new Destructor();

    public synchronized void resetNative() {
        mDestructor.free();
    }

    public boolean isValid() {
        return mDestructor.mNativePointer != 0;
    }

    @Override
    @SuppressWarnings("deprecation")
    protected void finalize() {
        resetNative();
    }

    /** Its field is written by native code. */
    public static class Destructor {
        private volatile long mNativePointer;

        void free() {
            long pointer = mNativePointer;
            mNativePointer = 0;
            if (pointer != 0) {
                deleteNative(pointer);
            }
        }

        static native void deleteNative(long pointer);
    }
}
