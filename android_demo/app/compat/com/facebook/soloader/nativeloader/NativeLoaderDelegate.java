package com.facebook.soloader.nativeloader;

/** How a native library is loaded. */
public interface NativeLoaderDelegate {
    boolean loadLibrary(String shortName, int flags);
}
