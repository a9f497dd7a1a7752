package com.facebook.jni;

/** What a C++ exception becomes. Looked up by name. */
public class CppException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    public CppException(String message) {
        super(message);
    }
}
