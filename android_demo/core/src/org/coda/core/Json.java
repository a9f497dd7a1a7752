package org.coda.core;

import org.coda.core.CodaError.WireError;

import java.math.BigDecimal;
import java.math.MathContext;
import java.math.RoundingMode;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.CodingErrorAction;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * JSON as both sides write it: UTF-8, no white space, members in the order given, numbers in the fewest digits that give
 * them back. Values are null, Boolean, Long, Double, String, List and LinkedHashMap; other lists, maps and numbers are
 * written too. Not org.json, which Android has and the JVM does not, and which writes numbers otherwise.
 */
public final class Json {
    private static final int DEEPEST = 100;

    private final String text;
    private int at;

    private Json(String text) {
        this.text = text;
    }

    /**
     * @param what what is being read, for the error.
     * @throws WireError not JSON, not UTF-8, or nested too deeply.
     */
    public static Object parse(byte[] data, String what) {
        try {
            String text = StandardCharsets.UTF_8.newDecoder().onMalformedInput(CodingErrorAction.REPORT)
                    .decode(ByteBuffer.wrap(data)).toString();
            Json reader = new Json(text);
            Object value = reader.value(0);
            reader.space();
            if (reader.at < text.length()) {
                throw reader.wrong("something after the end");
            }
            return value;
        } catch (CharacterCodingException error) {
            throw new WireError(what + ": it is not UTF-8");
        } catch (Malformed error) {
            throw new WireError(what + ": " + error.getMessage());
        }
    }

    /**
     * The bytes of one member of an object, exactly as they stand: what a signature covers.
     *
     * @throws WireError it is no object, or has no such member.
     */
    static byte[] member(byte[] data, String name) {
        parse(data, "a signed document");
        Json reader = new Json(Bytes.text(data));
        reader.next();
        byte[] found = null;
        for (reader.at++; reader.next() == '"'; reader.at++) { // at a name, or at the end of an empty object
            String member = reader.string();
            reader.next();
            reader.at++;
            reader.next();
            int start = reader.at;
            reader.value(1);
            if (member.equals(name)) {
                found = Bytes.utf8(reader.text.substring(start, reader.at));
            }
            if (reader.next() == '}') {
                break;
            }
        }
        if (found == null) {
            throw new WireError("a signed document has no '" + name + "'");
        }
        return found;
    }

    private static final class Malformed extends RuntimeException {
        private static final long serialVersionUID = 1L;

        Malformed(String message) {
            super(message);
        }
    }

    private Malformed wrong(String what) {
        return new Malformed("JSON is malformed: " + what + " (character " + at + ")");
    }

    private void space() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
    }

    private char next() {
        space();
        if (at >= text.length()) {
            throw wrong("it ends too early");
        }
        return text.charAt(at);
    }

    private Object value(int depth) {
        if (depth > DEEPEST) {
            throw wrong("it is nested too deeply");
        }
        switch (next()) {
            case '{':
                return object(depth);
            case '[':
                return array(depth);
            case '"':
                return string();
            case 't':
                return word("true", Boolean.TRUE);
            case 'f':
                return word("false", Boolean.FALSE);
            case 'n':
                return word("null", null);
            default:
                return number();
        }
    }

    private Map<String, Object> object(int depth) {
        Map<String, Object> members = new LinkedHashMap<>();
        at++;
        if (next() == '}') {
            at++;
            return members;
        }
        while (true) {
            if (next() != '"') {
                throw wrong("a name is expected");
            }
            String name = string();
            if (next() != ':') {
                throw wrong("':' is expected");
            }
            at++;
            members.put(name, value(depth + 1));
            char onward = next();
            at++;
            if (onward == '}') {
                return members;
            }
            if (onward != ',') {
                throw wrong("',' or '}' is expected");
            }
        }
    }

    private List<Object> array(int depth) {
        List<Object> items = new ArrayList<>();
        at++;
        if (next() == ']') {
            at++;
            return items;
        }
        while (true) {
            items.add(value(depth + 1));
            char onward = next();
            at++;
            if (onward == ']') {
                return items;
            }
            if (onward != ',') {
                throw wrong("',' or ']' is expected");
            }
        }
    }

    private Object word(String word, Object value) {
        if (!text.startsWith(word, at)) {
            throw wrong("an unknown word");
        }
        at += word.length();
        return value;
    }

    private String string() {
        for (int end = at + 1; end < text.length() && text.charAt(end) >= ' ' && text.charAt(end) != '\\'; end++) {
            if (text.charAt(end) == '"') { // nothing in it is escaped, as in nearly all
                String plain = text.substring(at + 1, end);
                at = end + 1;
                return plain;
            }
        }
        StringBuilder out = new StringBuilder();
        for (at++; ; at++) {
            if (at >= text.length()) {
                throw wrong("a string does not end");
            }
            char c = text.charAt(at);
            if (c == '"') {
                at++;
                return out.toString();
            }
            if (c < ' ') {
                throw wrong("a control character in a string");
            }
            if (c != '\\') {
                out.append(c);
                continue;
            }
            at++;
            char escaped = at < text.length() ? text.charAt(at) : ' ';
            int known = "\"\\/bfnrt".indexOf(escaped);
            if (known >= 0) {
                out.append("\"\\/\b\f\n\r\t".charAt(known));
            } else if (escaped == 'u' && at + 4 < text.length()) {
                try {
                    out.append((char) Integer.parseInt(text.substring(at + 1, at + 5), 16));
                } catch (NumberFormatException error) {
                    throw wrong("an unknown escape");
                }
                at += 4;
            } else {
                throw wrong("an unknown escape");
            }
        }
    }

    private Object number() {
        int start = at;
        digits(text.startsWith("-", at) ? 1 : 0, true);
        boolean whole = true;
        if (at < text.length() && text.charAt(at) == '.') {
            whole = false;
            digits(1, false);
        }
        if (at < text.length() && (text.charAt(at) | 32) == 'e') {
            whole = false;
            at++;
            digits(at < text.length() && "+-".indexOf(text.charAt(at)) >= 0 ? 1 : 0, false);
        }
        String found = text.substring(start, at);
        try {
            return whole ? (Object) Long.valueOf(found) : (Object) Double.valueOf(found);
        } catch (NumberFormatException error) {
            throw wrong("a whole number beyond 64 bits");
        }
    }

    private void digits(int skipped, boolean noLeadingZero) {
        at += skipped;
        int start = at;
        while (at < text.length() && text.charAt(at) >= '0' && text.charAt(at) <= '9') {
            at++;
        }
        if (at == start || noLeadingZero && at - start > 1 && text.charAt(start) == '0') {
            throw wrong("a number is expected");
        }
    }

    // -- writing ----------------------------------------------------------------------------------------------------

    public static byte[] bytes(Object value) {
        StringBuilder out = new StringBuilder();
        write(value, out);
        return Bytes.utf8(out.toString());
    }

    private static void write(Object value, StringBuilder out) {
        if (value == null || value instanceof Boolean || value instanceof Long || value instanceof Integer) {
            out.append(value);
        } else if (value instanceof Number) {
            out.append(shortest(((Number) value).doubleValue()));
        } else if (value instanceof CharSequence) {
            quote(value.toString(), out);
        } else if (value instanceof Map) {
            out.append('{');
            boolean first = true;
            for (Map.Entry<?, ?> member : ((Map<?, ?>) value).entrySet()) {
                if (!first) {
                    out.append(',');
                }
                first = false;
                quote((String) member.getKey(), out);
                out.append(':');
                write(member.getValue(), out);
            }
            out.append('}');
        } else if (value instanceof Iterable) {
            out.append('[');
            boolean first = true;
            for (Object item : (Iterable<?>) value) {
                if (!first) {
                    out.append(',');
                }
                first = false;
                write(item, out);
            }
            out.append(']');
        } else {
            throw new IllegalArgumentException("no JSON for " + value.getClass());
        }
    }

    private static void quote(String text, StringBuilder out) {
        out.append('"');
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            int known = c >= ' ' && c != '"' && c != '\\' ? -1 : "\"\\\b\f\n\r\t".indexOf(c);
            if (known >= 0) {
                out.append('\\').append("\"\\bfnrt".charAt(known));
            } else if (c < ' ') {
                out.append("\\u00").append(Bytes.hex(new byte[] {(byte) c}));
            } else {
                out.append(c);
            }
        }
        out.append('"');
    }

    /**
     * The fewest digits that give the number back, laid out as msgspec does; not {@code Double.toString}, which up to
     * Java 18 and on Android sometimes writes more. A number that is not finite becomes null, as JSON has none.
     */
    static String shortest(double value) {
        if (Double.isNaN(value) || Double.isInfinite(value)) {
            return "null";
        }
        if (value == 0) {
            return 1 / value < 0 ? "-0.0" : "0.0";
        }
        BigDecimal found = fewestDigits(value);
        String digits = found.unscaledValue().abs().toString();
        int point = digits.length() - found.scale(); // digits before the decimal point
        int end = digits.length();
        while (end > 1 && digits.charAt(end - 1) == '0') {
            end--;
        }
        digits = digits.substring(0, end);
        String sign = value < 0 ? "-" : "";
        if (point > 16 || point < -4) {
            String rest = digits.length() > 1 ? "." + digits.substring(1) : "";
            return sign + digits.charAt(0) + rest + "e" + (point - 1);
        }
        if (point <= 0) {
            return sign + "0." + zeros(-point) + digits;
        }
        if (point >= digits.length()) {
            return sign + digits + zeros(point - digits.length()) + ".0";
        }
        return sign + digits.substring(0, point) + "." + digits.substring(point);
    }

    private static BigDecimal fewestDigits(double value) {
        BigDecimal written = new BigDecimal(Double.toString(value));
        if (written.precision() <= 15 && Math.abs(value) > 1e-300) {
            return written; // two decimals of so few digits are never the same double, so there is no shorter one
        }
        BigDecimal exact = new BigDecimal(value);
        BigDecimal found = null; // 17 digits always give the number back, and toString writes no fewer than it takes
        for (int digits = Math.min(17, written.precision()); digits > 0; digits--) {
            BigDecimal fewer = rounded(exact, digits);
            if (fewer == null) {
                break;
            }
            found = fewer;
        }
        return found == null ? exact.round(new MathContext(17, RoundingMode.HALF_EVEN)) : found;
    }

    /** Null where no number of so many digits gives the number back. */
    private static BigDecimal rounded(BigDecimal exact, int digits) {
        // below a power of two numbers lie closer, so the nearest may not give the number back while the next does
        for (RoundingMode mode : new RoundingMode[] {RoundingMode.HALF_EVEN, RoundingMode.UP}) {
            BigDecimal found = exact.round(new MathContext(digits, mode));
            if (found.doubleValue() == exact.doubleValue()) {
                return found;
            }
        }
        return null;
    }

    private static String zeros(int count) {
        StringBuilder out = new StringBuilder();
        for (int i = 0; i < count; i++) {
            out.append('0');
        }
        return out.toString();
    }
}
