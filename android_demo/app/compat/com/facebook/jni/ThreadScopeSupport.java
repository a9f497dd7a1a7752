package com.facebook.jni;

import com.facebook.soloader.nativeloader.NativeLoader;

/** Lets native threads find the app's classes. Looked up by name. */
public class ThreadScopeSupport {
    static {
        NativeLoader.loadLibrary("fbjni");
    }

    private static void runStdFunction(long pointer) {
        runStdFunctionImpl(pointer);
    }

    private static native void runStdFunctionImpl(long pointer);
}
