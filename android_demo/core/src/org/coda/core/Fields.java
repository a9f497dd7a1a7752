package org.coda.core;

import org.coda.core.CodaError.WireError;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** A JSON object read by name; every error says what was being read and which field does not fit. */
final class Fields {
    private final Map<?, ?> members;
    private final String what;
    private final Set<Object> known = new HashSet<>();

    private Fields(Map<?, ?> members, String what) {
        this.members = members;
        this.what = what;
    }

    static Fields parse(byte[] json, String what) {
        return of(Json.parse(json, what), what);
    }

    static Fields of(Object value, String what) {
        if (!(value instanceof Map)) {
            throw new WireError(what + ": an object is expected");
        }
        return new Fields((Map<?, ?>) value, what);
    }

    /** Raises: a member that was not read. */
    void nothingElse() {
        for (Object name : members.keySet()) {
            if (!known.contains(name)) {
                throw new WireError(what + ": the field '" + name + "' is unknown; update the older side");
            }
        }
    }

    /** The object itself, to be read again. */
    Map<String, Object> members() {
        Map<String, Object> found = new LinkedHashMap<>();
        for (Map.Entry<?, ?> member : members.entrySet()) {
            found.put((String) member.getKey(), member.getValue());
        }
        return found;
    }

    boolean has(String name) {
        known.add(name);
        return members.get(name) != null;
    }

    private Object required(String name) {
        known.add(name);
        if (!members.containsKey(name)) {
            throw new WireError(what + ": the field '" + name + "' is missing");
        }
        return members.get(name);
    }

    private WireError wrong(String name, String expected) {
        return new WireError(what + ": the field '" + name + "' must be " + expected);
    }

    String string(String name) {
        Object value = required(name);
        if (!(value instanceof String)) {
            throw wrong(name, "a string");
        }
        return (String) value;
    }

    String string(String name, String otherwise) {
        return has(name) ? string(name) : otherwise;
    }

    String oneOf(String name, String... allowed) {
        String value = string(name);
        for (String each : allowed) {
            if (each.equals(value)) {
                return value;
            }
        }
        throw wrong(name, "one of " + Arrays.toString(allowed));
    }

    long integer(String name) {
        Object value = required(name);
        if (!(value instanceof Long)) {
            throw wrong(name, "a whole number");
        }
        return (Long) value;
    }

    int int32(String name) {
        long value = integer(name);
        if (value != (int) value) {
            throw wrong(name, "a whole number of 32 bits");
        }
        return (int) value;
    }

    int int32(String name, int otherwise) {
        return has(name) ? int32(name) : otherwise;
    }

    double number(String name) {
        Object value = required(name);
        if (!(value instanceof Number)) {
            throw wrong(name, "a number");
        }
        return ((Number) value).doubleValue();
    }

    double number(String name, double otherwise) {
        return has(name) ? number(name) : otherwise;
    }

    boolean flag(String name, boolean otherwise) {
        if (!has(name)) {
            return otherwise;
        }
        Object value = required(name);
        if (!(value instanceof Boolean)) {
            throw wrong(name, "true or false");
        }
        return (Boolean) value;
    }

    List<?> list(String name) {
        Object value = required(name);
        if (!(value instanceof List)) {
            throw wrong(name, "a list");
        }
        return (List<?>) value;
    }

    List<Fields> objects(String name) {
        List<Fields> found = new ArrayList<>();
        for (Object each : list(name)) {
            found.add(of(each, what + ", " + name));
        }
        return found;
    }

    List<String> strings(String name) {
        List<String> found = new ArrayList<>();
        for (Object each : list(name)) {
            if (!(each instanceof String)) {
                throw wrong(name, "a list of strings");
            }
            found.add((String) each);
        }
        return found;
    }

    Fields object(String name) {
        return of(required(name), what + ", " + name);
    }

    /** An object whose names are data. */
    Map<String, Object> map(String name) {
        Object value = required(name);
        if (!(value instanceof Map)) {
            throw wrong(name, "an object");
        }
        return new Fields((Map<?, ?>) value, what).members();
    }

    Map<String, Double> numbers(String name) {
        Map<String, Double> found = new LinkedHashMap<>();
        if (has(name)) {
            for (Map.Entry<String, Object> member : map(name).entrySet()) {
                if (!(member.getValue() instanceof Number)) {
                    throw wrong(name, "an object of numbers");
                }
                found.put(member.getKey(), ((Number) member.getValue()).doubleValue());
            }
        }
        return found;
    }
}
