package com.facebook.jni;

/** What a thrown value that is no std::exception becomes. Looked up by name. */
public class UnknownCppException extends CppException {
    private static final long serialVersionUID = 1L;

    public UnknownCppException() {
        super("an unknown C++ exception");
    }

    public UnknownCppException(String message) {
        super(message);
    }
}
