package org.coda.core;

import org.coda.core.CodaError.InputError;

import java.util.Arrays;
import java.util.List;

/** One event, as the app tells it: raw material for samples. The twin of {@code device_runtime/activity.py}. */
public final class Activity {
    static final List<String> KINDS = Arrays.asList("exposure", "click", "rating", "page_enter", "page_exit");
    private static final List<String> OF_ITEMS = KINDS.subList(0, 3);
    static final long LATEST_MS = (1L << 33) * 1000;

    public final String kind;
    /** Milliseconds since 1970. */
    public final long atMs;
    /** "" of pages. */
    public final String item;
    /** Where; "" if the app has no pages. */
    public final String page;
    /** Of a rating. */
    public final double value;

    /** @throws InputError says which field does not fit. */
    public Activity(String kind, long atMs, String item, String page, double value) {
        if (!KINDS.contains(kind)) {
            throw new InputError("an event's kind is one of " + KINDS + "; given: '" + kind + "'");
        }
        if (atMs <= 0 || atMs >= LATEST_MS) {
            throw new InputError("an event's time is in milliseconds since 1970; given: " + atMs);
        }
        if (OF_ITEMS.contains(kind) == item.isEmpty()) {
            throw new InputError("an event of kind " + kind + " has "
                    + (item.isEmpty() ? "an item" : "no item, but a page") + "; given: '" + item + "'");
        }
        if (Double.isNaN(value) || Double.isInfinite(value)) {
            throw new InputError("a rating is a finite number; given: " + value);
        }
        this.kind = kind;
        this.atMs = atMs;
        this.item = item;
        this.page = page;
        this.value = value;
    }
}
