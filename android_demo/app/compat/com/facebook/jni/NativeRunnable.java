package com.facebook.jni;

/** A native function as a Runnable. Looked up by name. */
public class NativeRunnable implements Runnable {
    private final HybridData mHybridData;

    private NativeRunnable(HybridData data) {
        mHybridData = data;
    }

    @Override
    public native void run();
}
