package com.facebook.jni;

/** What std::system_error becomes. Looked up by name. */
public class CppSystemErrorException extends CppException {
    private static final long serialVersionUID = 1L;
    public final int errorCode;

    public CppSystemErrorException(String message, int errorCode) {
        super(message);
        this.errorCode = errorCode;
    }
}
