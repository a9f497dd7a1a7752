package org.coda.core;

import org.coda.core.CodaError.InputError;
import org.coda.core.Store.Event;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** A user's history from CSV with a header; bad rows are counted, with line and reason. */
public final class History {
    private static final double LATEST = 1L << 33;

    public final List<Event> events = new ArrayList<>();
    public int bad;
    /** "line 7: reason", the first few. */
    public final List<String> examples = new ArrayList<>();

    /**
     * @param csv columns item_id, timestamp in seconds, label from 0 to 1 or rating or both, and perhaps observed.
     * @throws InputError a column is missing; nothing of it is used.
     */
    public History(String csv) {
        String text = csv.startsWith("\uFEFF") ? csv.substring(1) : csv;
        List<List<String>> rows = rows(text);
        List<String> head = rows.isEmpty() ? new ArrayList<String>() : rows.get(0);
        if (!head.contains("item_id") || !head.contains("timestamp")
                || !head.contains("label") && !head.contains("rating")) {
            throw new InputError("a history needs a header with item_id, timestamp and label or rating; it has "
                    + head);
        }
        for (int i = 1; i < rows.size(); i++) {
            try {
                events.add(event(head, rows.get(i)));
            } catch (IllegalArgumentException reason) {
                bad++;
                if (examples.size() < 5) {
                    examples.add("row " + (i + 1) + ": " + reason.getMessage());
                }
            }
        }
    }

    private static Event event(List<String> head, List<String> row) {
        if (row.size() != head.size()) {
            throw new IllegalArgumentException("another number of columns than the header");
        }
        Map<String, String> named = new HashMap<>();
        for (int i = 0; i < row.size(); i++) {
            named.put(head.get(i), row.get(i).trim());
        }
        if (named.get("item_id").isEmpty()) {
            throw new IllegalArgumentException("no item_id");
        }
        Double timestamp = number(named, "timestamp");
        if (timestamp == null || !(timestamp > 0 && timestamp < LATEST)) {
            throw new IllegalArgumentException("timestamp is not in seconds since 1970");
        }
        Double label = number(named, "label");
        Double rating = number(named, "rating");
        if (label == null && rating == null) {
            throw new IllegalArgumentException("neither label nor rating");
        }
        if (label != null && !(label >= 0 && label <= 1)) {
            throw new IllegalArgumentException("label is not between 0 and 1");
        }
        String observed = named.get("observed");
        boolean sampled = "0".equals(observed) || "false".equalsIgnoreCase(observed);
        return new Event(named.get("item_id"), timestamp.longValue(), label, rating, !sampled);
    }

    private static Double number(Map<String, String> row, String name) {
        String text = row.get(name);
        if (text == null || text.isEmpty()) {
            return null;
        }
        double value;
        try {
            value = Double.parseDouble(text);
        } catch (NumberFormatException error) {
            throw new IllegalArgumentException(name + " is not a number");
        }
        if (Double.isNaN(value) || Double.isInfinite(value)) {
            throw new IllegalArgumentException(name + " is not finite");
        }
        return value;
    }

    /** RFC 4180: quotes may hold commas, line ends and doubled quotes. Empty lines are left out. */
    private static List<List<String>> rows(String text) {
        List<List<String>> rows = new ArrayList<>();
        List<String> row = new ArrayList<>();
        StringBuilder field = new StringBuilder();
        boolean quoted = false;
        for (int i = 0; i <= text.length(); i++) {
            char c = i < text.length() ? text.charAt(i) : '\n';
            if (quoted && i < text.length()) {
                boolean doubled = c == '"' && i + 1 < text.length() && text.charAt(i + 1) == '"';
                if (c != '"' || doubled) {
                    field.append(c);
                    i += doubled ? 1 : 0;
                } else {
                    quoted = false;
                }
            } else if (c == '"' && field.length() == 0) {
                quoted = true;
            } else if (c == ',' || c == '\n') {
                row.add(field.toString());
                field.setLength(0);
                if (c == '\n') {
                    if (row.size() > 1 || !row.get(0).isEmpty()) {
                        rows.add(row);
                    }
                    row = new ArrayList<>();
                }
            } else if (c != '\r') {
                field.append(c);
            }
        }
        return rows;
    }
}
