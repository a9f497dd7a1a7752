package org.coda.core;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Follows a sequence of events, oldest first, for all triggers at once: an event moves every half-done match that waits
 * for it. A later event belongs to a match if it is of the same page and, where both have one, of the same item.
 */
final class Trie {
    /** Half-done matches that are followed at once; the oldest is given up for a new one. */
    static final int MOST_LIVE = 20_000;

    /** first, last: the events at the ends of a match. */
    static final class Fired {
        final Trigger trigger;
        final Activity first;
        final Activity last;

        Fired(Trigger trigger, Activity first, Activity last) {
            this.trigger = trigger;
            this.first = first;
            this.last = last;
        }
    }

    private static final class Node {
        final Map<String, Node> onward = new LinkedHashMap<>();
        final List<Trigger> ends = new ArrayList<>();
        double patienceMs;
    }

    private static final class Match {
        final Node node;
        final Activity first;

        Match(Node node, Activity first) {
            this.node = node;
            this.first = first;
        }
    }

    private final Node root = new Node();
    /** Kind that is waited for -> page -> item ("" of pages) -> matches. */
    private final Map<String, Map<String, Map<String, List<Match>>>> waiting = new HashMap<>();
    private final ArrayDeque<Match> live = new ArrayDeque<>();
    /** (kind, page, item) -> time, for {@code unless}. */
    private final Map<List<String>, Long> latest = new HashMap<>();

    Trie(List<Trigger> triggers) {
        for (String kind : Activity.KINDS) {
            waiting.put(kind, new HashMap<String, Map<String, List<Match>>>());
        }
        for (Trigger trigger : triggers) {
            Node node = root;
            for (String kind : trigger.sequence) {
                Node next = node.onward.get(kind);
                if (next == null) {
                    next = new Node();
                    node.onward.put(kind, next);
                }
                next.patienceMs = Math.max(next.patienceMs, trigger.withinMs);
                node = next;
            }
            node.ends.add(trigger);
        }
    }

    /** What an event completes. */
    List<Fired> feed(Activity event) {
        List<Match> moved = new ArrayList<>();
        for (Match match : met(event)) {
            moved.add(new Match(match.node.onward.get(event.kind), match.first));
        }
        if (root.onward.containsKey(event.kind)) {
            moved.add(new Match(root.onward.get(event.kind), event));
        }
        List<Fired> fired = new ArrayList<>();
        for (Match match : moved) {
            for (Trigger trigger : match.node.ends) {
                if (event.atMs - match.first.atMs <= trigger.withinMs && !isUndone(trigger, match.first)) {
                    fired.add(new Fired(trigger, match.first, event));
                }
            }
            if (!match.node.onward.isEmpty()) {
                follow(match);
            }
        }
        latest.put(Arrays.asList(event.kind, event.page, event.item), event.atMs);
        if (latest.size() > 4 * MOST_LIVE) {
            forget(event.atMs);
        }
        return fired;
    }

    /** The matches that wait for this event. They stay: the same exposure may be clicked, then left. */
    private List<Match> met(Activity event) {
        Map<String, List<Match>> byItem = waiting.get(event.kind).get(event.page);
        List<Match> found = new ArrayList<>();
        if (byItem == null) {
            return found;
        }
        List<String> keys = event.item.isEmpty() ? new ArrayList<>(byItem.keySet()) : Arrays.asList(event.item, "");
        for (String key : keys) {
            List<Match> still = new ArrayList<>();
            for (Match match : byItem.containsKey(key) ? byItem.get(key) : Collections.<Match>emptyList()) {
                if (event.atMs - match.first.atMs <= match.node.patienceMs) {
                    still.add(match);
                }
            }
            found.addAll(still);
            if (still.isEmpty() || event.kind.equals("page_exit")) { // nothing on a page outlives it
                byItem.remove(key);
            } else {
                byItem.put(key, still);
            }
        }
        if (byItem.isEmpty()) {
            waiting.get(event.kind).remove(event.page);
        }
        return found;
    }

    private void follow(Match match) {
        for (String kind : match.node.onward.keySet()) {
            Map<String, Map<String, List<Match>>> byPage = waiting.get(kind);
            Map<String, List<Match>> byItem = byPage.get(match.first.page);
            if (byItem == null) {
                byItem = new HashMap<>();
                byPage.put(match.first.page, byItem);
            }
            List<Match> matches = byItem.get(match.first.item);
            if (matches == null) {
                matches = new ArrayList<>();
                byItem.put(match.first.item, matches);
            }
            matches.add(match);
        }
        live.add(match);
        if (live.size() > MOST_LIVE) {
            giveUp(live.remove());
        }
    }

    private void giveUp(Match match) {
        for (String kind : match.node.onward.keySet()) {
            Map<String, List<Match>> byItem = waiting.get(kind).get(match.first.page);
            List<Match> matches = byItem == null ? null : byItem.get(match.first.item);
            if (matches != null) {
                matches.remove(match); // by identity: matches have no other equality
                if (matches.isEmpty()) {
                    byItem.remove(match.first.item);
                }
            }
        }
    }

    /** Whether an {@code unless} event came since the first one, and before this one. */
    private boolean isUndone(Trigger trigger, Activity first) {
        for (String kind : trigger.unless) {
            for (String item : new String[] {first.item, ""}) {
                Long at = latest.get(Arrays.asList(kind, first.page, item));
                if (at != null && at >= first.atMs) {
                    return true;
                }
            }
        }
        return false;
    }

    private void forget(long nowMs) {
        double longest = 0;
        for (Node node : root.onward.values()) {
            longest = Math.max(longest, node.patienceMs);
        }
        for (Iterator<Long> each = latest.values().iterator(); each.hasNext(); ) {
            if (each.next() < nowMs - longest) {
                each.remove();
            }
        }
    }
}
