package com.facebook.soloader.nativeloader;

/**
 * What ExecuTorch's Java classes load their library with. Written for CoDA: the package that has ExecuTorch expects it
 * from React Native.
 */
public final class NativeLoader {
    private static NativeLoaderDelegate delegate;

    private NativeLoader() {}

    public static synchronized boolean isInitialized() {
        return delegate != null;
    }

    public static synchronized void init(NativeLoaderDelegate given) {
        if (delegate == null) {
            delegate = given;
        }
    }

    public static boolean loadLibrary(String shortName) {
        return loadLibrary(shortName, 0);
    }

    public static synchronized boolean loadLibrary(String shortName, int flags) {
        init(new SystemDelegate());
        return delegate.loadLibrary(shortName, flags);
    }
}
