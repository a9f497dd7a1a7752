package android.util;

/** Android's log, for ExecuTorch's Java classes on a JVM. */
public final class Log {
    private Log() {}

    public static int v(String tag, String message) {
        return 0;
    }

    public static int d(String tag, String message) {
        return 0;
    }

    public static int i(String tag, String message) {
        return 0;
    }

    public static int w(String tag, String message) {
        return e(tag, message);
    }

    public static int e(String tag, String message) {
        System.err.println(tag + ": " + message);
        return 1;
    }

    public static int e(String tag, String message, Throwable error) {
        return e(tag, message + ": " + error);
    }
}
