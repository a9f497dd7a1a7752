"""Events of the app: stored in batches, turned into samples by triggers, counted over windows."""

import os
import random
import signal
import subprocess
import sys
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime.activity import ROW_BYTES, Activity, ActivityLog, Recorder, stamp_ms
from device_runtime.errors import InputError, StoreError
from device_runtime.store import Event, Store
from device_runtime.triggers import DEFAULTS, MOST_LIVE, Trie, Trigger, check, digest, load
from device_runtime.windows import Windows

DAY_MS = 86_400_000


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "coda.db") as opened:
        yield opened


@pytest.fixture
def log(store):
    return ActivityLog(store.database)


def act(kind, at, item="", page="p", value=0.0):
    return Activity(kind, at * 1000, item, page, value)


VISIT = [
    act("page_enter", 10), act("exposure", 11, "a"), act("exposure", 12, "b"), act("click", 15, "b"),
    act("rating", 20, "b", value=4.0), act("page_exit", 30),
]  # fmt: skip


def test_a_visit_becomes_a_click_a_skip_and_a_rating(store, log):
    log.append(VISIT)
    found = digest(store, log, DEFAULTS)
    assert (found.events, found.samples, found.rounds) == (6, 3, ())
    assert store.events() == [Event("a", 11, 0.0), Event("b", 12, 1.0), Event("b", 20, None, 4.0)]
    assert digest(store, log, DEFAULTS) == digest(store, log, DEFAULTS), "nothing new, nothing done"


@given(st.permutations(VISIT), st.lists(st.integers(0, 6), max_size=3), st.booleans())
@settings(max_examples=40, deadline=None)
def test_order_of_arrival_repeats_and_batches_do_not_matter(order, cuts, twice):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "coda.db") as store:
        log = ActivityLog(store.database)
        for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 6], strict=True):
            log.append(order[start:end] * (2 if twice else 1))
            digest(store, log, DEFAULTS)
        labels = {(e.item, e.timestamp): (e.label, e.rating) for e in store.events()}
        assert labels[("b", 12)] == (1.0, None) and labels[("b", 20)] == (None, 4.0)
        assert labels[("a", 11)] == (0.0, None)


def test_what_was_clicked_too_late_or_elsewhere_is_no_click(store, log):
    log.append([act("exposure", 10, "a"), act("click", 10 + 1801, "a"), act("exposure", 5000, "b", "p"),
                act("click", 5001, "b", "q")])  # fmt: skip
    assert digest(store, log, DEFAULTS).samples == 0


def naive(events, trigger):
    """All triples (trigger, first, last), by a plain search; `events` in order."""
    found = []

    def extend(first, at, matched):
        if matched == len(trigger.sequence):
            last = events[at]
            between = [e for e in events[: at] if e.at_ms >= first.at_ms and e.kind in trigger.unless
                       and e.page == first.page and (not e.item or not first.item or e.item == first.item)]  # fmt: skip
            if last.at_ms - first.at_ms <= trigger.within_s * 1000 and not between:
                found.append((trigger.name, first, last))
            return
        for n in range(at + 1, len(events)):
            e = events[n]
            if e.kind == trigger.sequence[matched] and e.page == first.page and (
                not e.item or not first.item or e.item == first.item
            ):  # fmt: skip
                extend(first, n, matched + 1)

    for n, first in enumerate(events):
        if first.kind == trigger.sequence[0]:
            extend(first, n, 1)
    return found


@given(
    st.lists(st.sampled_from(["exposure a", "exposure b", "click a", "click b", "page_exit ", "rating a"]), max_size=9)
)
@settings(max_examples=80, deadline=None)
def test_the_trie_finds_what_a_plain_search_of_pairs_finds(words):
    events = [act(*(w.split(" ")[0], 10 + n, w.split(" ")[1])) for n, w in enumerate(words)]
    stops = [n for n, e in enumerate(events) if e.kind == "page_exit"]
    visit = events[: stops[0] + 1] if stops else events  # a page that was left is over
    pairs = [*DEFAULTS, Trigger(name="twice", sequence=("click", "click"), then="round")]
    trie = Trie(pairs)
    fired = Counter((f.trigger.name, f.first, f.last) for e in visit for f in trie.feed(e))
    expected = Counter(match for trigger in pairs for match in naive(visit, trigger))
    assert fired == expected


def test_many_triggers_share_one_trie_and_start_rounds(store, log):
    many = tuple(
        Trigger(name=f"t{n}", sequence=("page_enter", "exposure", "click", "page_exit")[: 1 + n % 4], then="round")
        for n in range(400)
    )
    log.append(VISIT)
    found = digest(store, log, many)
    assert len(found.rounds) == 400 and found.samples == 0
    log.append([act("page_enter", 900, page="q")])
    assert set(digest(store, log, many).rounds) == {f"t{n}" for n in range(0, 400, 4)}, "old matches do not fire again"


def test_what_is_followed_at_once_is_bounded():
    trie = Trie(DEFAULTS)
    for n in range(MOST_LIVE + 500):
        trie.feed(Activity("exposure", 1 + n, f"i{n}", f"p{n % 7}"))
    assert len(trie._live) == MOST_LIVE
    held = sum(len(m) for kinds in trie._waiting.values() for items in kinds.values() for m in items.values())
    assert held <= 2 * MOST_LIVE
    assert not trie.feed(Activity("click", MOST_LIVE + 600, "i3", "p3")), "the oldest was given up"
    assert trie.feed(Activity("click", MOST_LIVE + 601, "i900", f"p{900 % 7}"))


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ([{"name": "x", "sequence": ["swipe"], "then": "round"}], "'swipe' is not one of"),
        ([{"name": "x", "sequence": [], "then": "round"}], "needs a sequence"),
        ([{"name": "x", "sequence": ["page_exit"], "then": "positive"}], "must begin with an event of an item"),
        ([{"name": "x", "sequence": ["click"], "then": "rating"}], "must end with one"),
        ([{"name": "x", "sequence": ["click"], "then": "dance"}], "does not declare triggers"),
        ([{"name": "x", "sequence": ["click"], "then": "round", "within_s": 0}], "within_s above 0"),
    ],
)
def test_triggers_that_cannot_be_meant_are_refused(tmp_path, declared, words):
    (tmp_path / "triggers.json").write_bytes(msgspec.json.encode(declared))
    with pytest.raises(InputError, match=words):
        load(tmp_path / "triggers.json")
    assert load(tmp_path / "none.json") == DEFAULTS
    check(DEFAULTS)


@pytest.mark.parametrize(
    ("given", "words"),
    [(("swipe", 1), "kind is one of"), (("click", 0, "a"), "milliseconds"), (("click", 1 << 50, "a"), "milliseconds"),
     (("click", 5), "has an item"), (("page_exit", 5, "a"), "has no item"),
     (("rating", 5, "a", "", float("nan")), "finite")],
)  # fmt: skip
def test_events_that_are_none_are_refused(given, words):
    with pytest.raises(InputError, match=words):
        Activity(*given)


# -- writing --------------------------------------------------------------------------------------------------------


def test_batches_are_stored_when_full_or_old_or_at_the_end(log):
    now = [1000.0]
    with Recorder(log, batch=3, seconds=5.0, clock=lambda: now[0]) as recorder:
        recorder.record("click", "a")
        assert log.count() == 0
        now[0] = 1006.0
        recorder.record("click", "a")
        assert log.count() == 2, "the first has waited for long enough"
        for item in "bcde":
            recorder.record("click", item)
        assert log.count() == 5
    assert log.count() == 6


def test_a_clock_set_back_is_held_for_a_day_and_then_believed(log):
    now = [2_000_000.0]
    with Recorder(log, clock=lambda: now[0]) as recorder:
        recorder.record("click", "a")
        now[0] -= 3600
        recorder.record("click", "b")
        now[0] -= 10 * 86_400
        recorder.record("click", "c")
    times = {event.item: event.at_ms for _, event in log.read()}
    assert times == {"a": 2_000_000_000, "b": 2_000_000_000, "c": 2_000_000_000 - 3_600_000 - 10 * DAY_MS}
    assert stamp_ms(5.0, 0) == 5000


def test_a_batch_that_could_not_be_stored_is_kept(store, log):
    recorder = Recorder(log, batch=100)
    recorder.record("click", "a")
    store._db.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="read-only"):
        recorder.flush()
    store._db.execute("PRAGMA query_only = OFF")
    recorder.flush()
    assert log.count() == 1


WRITER = """
import sys
from pathlib import Path
from device_runtime.activity import ActivityLog, Recorder
from device_runtime.store import Store
store = Store(Path(sys.argv[1]))
recorder = Recorder(ActivityLog(store.database), batch=10, seconds=1e9)
for n in range(10_000_000):
    recorder.record("exposure", f"i{n}")
    if n % 10 == 9:
        print(n, flush=True)
"""


def test_a_kill_loses_no_batch_that_was_stored_and_leaves_no_half(tmp_path):
    for after in (1, 4, 9):
        path = tmp_path / f"{after}.db"
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        with writer.stdout as lines:
            for n, _ in enumerate(lines):
                if n == after:
                    os.kill(writer.pid, signal.SIGKILL)
                    break
            said = 10 * (after + 1 + sum(1 for _ in lines))
        writer.wait()
        with Store(path) as store:
            stored = ActivityLog(store.database).count()
        assert stored >= said and stored % 10 == 0


# -- retention, size ------------------------------------------------------------------------------------------------


def test_retention_by_age_and_bytes_keeps_the_newest(log):
    log.append([act("click", 1000 + n, "a") for n in range(1000)])
    assert log.retain(500.0, 1 << 30, now=2000.0) == 500
    assert log.retain(1e9, 100 * ROW_BYTES, now=2000.0) == 400
    assert [event.at_ms for _, event in log.read()] == [1000 * (1900 + n) for n in range(100)]
    last = log.last()
    assert log.retain(0.0, 0, now=1e9) == 99, "the last one keeps its number from being given again"
    log.append([act("click", 5, "z")])
    assert log.last() == last + 1


def test_samples_are_retained_by_age_and_number(store):
    store.add_events([Event("a", n + 1, 1.0) for n in range(100)])
    assert store.retain(50.0, 1000, now=100.0) == 49
    assert store.retain(1e9, 10, now=100.0) == 41
    assert [event.timestamp for event in store.events()] == list(range(91, 101))


def test_a_hundred_thousand_events_are_digested(store, log):
    """How fast is measured by `docs/device.md`'s command; here: that memory stays bounded and nothing is missed."""
    rng = random.Random(7)
    events, at = [], 1_000_000
    while len(events) < 100_000:
        page = f"p{at}"
        shown = [f"i{rng.randrange(5000)}" for _ in range(18)]
        events += [Activity("exposure", at + 10 * n, item, page) for n, item in enumerate(shown)]
        events += [Activity("click", at + 500, shown[0], page), Activity("page_exit", at + 900, "", page)]
        at += 60_000
    assert log.append(events) == len(set(events))
    found = digest(store, log, DEFAULTS)
    assert found.events == len(set(events)) and found.samples == store.count_events()
    assert sum(e.label == 1.0 for e in store.events()) >= 4900


# -- windows --------------------------------------------------------------------------------------------------------


def test_overlapping_windows_count_each_bucket_once(log):
    log.append([act("click", 3600 * hour + 5, "a") for hour in range(200)])
    windows = Windows(log)
    for hour in range(50, 200):
        assert windows.counts(3_600_000 * hour, 24 * 3600)["click", "a"] == 24
    assert windows.computed == 199 - 26, "hours 26 to 198, each once"
    log.append([act("click", 3600 * 150 + 7, "b")])
    assert windows.counts(3_600_000 * 151, 3600) == {("click", "a"): 1, ("click", "b"): 1}, "it arrived late"


def test_what_is_kept_stays_within_its_bytes(log):
    log.append([act("click", 3600 * hour + n, f"i{n}") for hour in range(1, 40) for n in range(50)])
    windows = Windows(log, budget_bytes=30_000)
    for hour in range(11, 40):
        assert sum(windows.counts(3_600_000 * hour, 10 * 3600).values()) == 500
        assert windows.bytes_held <= 30_000
