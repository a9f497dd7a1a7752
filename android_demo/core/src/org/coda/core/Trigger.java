package org.coda.core;

import org.coda.core.CodaError.InputError;
import org.coda.core.CodaError.WireError;

import java.io.File;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;

/**
 * A declared sequence of events, and what it makes: a sample labelled 1 or 0 or with the last event's rating, or a round.
 * See {@code device_runtime/triggers.py}.
 */
final class Trigger {
    private static final List<Trigger> DEFAULTS = Arrays.asList(
            new Trigger("clicked", Arrays.asList("exposure", "click"), Collections.<String>emptyList(), "positive"),
            new Trigger("ignored", Arrays.asList("exposure", "page_exit"), Arrays.asList("click", "rating"),
                    "negative"),
            new Trigger("rated", Collections.singletonList("rating"), Collections.<String>emptyList(), "rating"));

    final String name;
    final List<String> sequence;
    /** Kinds that undo it if they come in between. */
    final List<String> unless;
    /** Milliseconds from the first event to the last. */
    final double withinMs;
    final String then;

    private Trigger(String name, List<String> sequence, List<String> unless, String then) {
        this.name = name;
        this.sequence = sequence;
        this.unless = unless;
        this.withinMs = 1800e3;
        this.then = then;
    }

    private Trigger(Fields fields) {
        name = fields.string("name");
        sequence = fields.strings("sequence");
        then = fields.oneOf("then", "positive", "negative", "rating", "round");
        unless = fields.has("unless") ? fields.strings("unless") : Collections.<String>emptyList();
        withinMs = fields.number("within_s", 1800) * 1000;
        fields.nothingElse();
        List<String> named = new ArrayList<>(sequence);
        named.addAll(unless);
        for (String kind : named) {
            if (!Activity.KINDS.contains(kind)) {
                throw wrong("'" + kind + "' is not one of " + Activity.KINDS);
            }
        }
        if (sequence.isEmpty() || !(withinMs > 0) || Double.isInfinite(withinMs)) {
            throw wrong("it needs a sequence, and within_s above 0");
        }
        boolean labels = then.equals("positive") || then.equals("negative");
        if (labels && Activity.KINDS.indexOf(sequence.get(0)) > 2) {
            throw wrong("it makes samples, so it must begin with an event of an item");
        }
        if (then.equals("rating") && !sequence.get(sequence.size() - 1).equals("rating")) {
            throw wrong("it takes a rating, so it must end with one");
        }
    }

    private InputError wrong(String what) {
        return new InputError("trigger '" + name + "': " + what);
    }

    /** Those declared in a file, or the usual ones if there is none. Raises: InputError: names what is wrong. */
    static List<Trigger> load(File path) {
        return path.exists() ? parse(Files.read(path), path.toString()) : DEFAULTS;
    }

    static List<Trigger> parse(byte[] json, String what) {
        try {
            Object declared = Json.parse(json, what);
            if (!(declared instanceof List)) {
                throw new WireError(what + ": a list is expected");
            }
            List<Trigger> found = new ArrayList<>();
            for (Object each : (List<?>) declared) {
                found.add(new Trigger(Fields.of(each, what)));
            }
            return found;
        } catch (WireError error) {
            throw new InputError(what + " does not declare triggers: " + error.getMessage());
        }
    }
}
