"""The journal's table: any order of moves, and every reason for which a round is not taken up again."""

import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from device_runtime.errors import StoreError
from device_runtime.journal import FINAL, NEEDS, TRANSITIONS, Inputs, Progress, allowed, needed, obstacle, stream_of
from device_runtime.store import Store

NOW = Inputs(seed=0, match=True, engine="onnx 1", until=9, events=9, ordinal=2)
STATES = st.sampled_from(sorted(TRANSITIONS))
GOING = st.sampled_from(sorted(NEEDS))


class Journal(RuleBasedStateMachine):
    """The store takes exactly those moves that the table allows, and is the same when it is opened anew."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "coda.db"
        self.store = Store(self.path)
        self.progress = self.store.start_round("r", 0.0, lambda before: NOW)
        self.state = "started"

    @rule(to=STATES, counted=st.integers(0, 1000))
    def move(self, to, counted):
        tried = msgspec.structs.replace(self.progress, candidates=counted)
        if to in TRANSITIONS[self.state]:
            self.store.advance_round("r", to, tried)
            self.state, self.progress = to, tried
        else:
            with pytest.raises(StoreError, match=f"cannot go from {self.state} to {to}"):
                self.store.advance_round("r", to, tried)

    @rule()
    def die(self):
        self.store.close()
        self.store = Store(self.path)

    @invariant()
    def holds_what_was_committed(self):
        [row] = self.store.rounds()
        assert (row.state, row.progress) == (self.state, self.progress)
        assert (self.store.unfinished() is None) == (self.state in FINAL)

    def teardown(self):
        self.store.close()
        self.folder.cleanup()


TestJournal = Journal.TestCase
TestJournal.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)


def test_every_state_can_be_reached_and_every_round_can_end():
    reached, new = set(), {"started"}
    while new:
        reached |= new
        new = {onward for state in new for onward in TRANSITIONS[state]} - reached
    assert reached == set(TRANSITIONS)
    for state, onward in TRANSITIONS.items():
        assert not onward or {"failed", "interrupted"} <= set(onward), state
    assert set(NEEDS) == set(TRANSITIONS) - FINAL, "it is known of each what it takes to go on"
    assert not allowed("no such state", "done")


def progress(files=("encoded", "answer", "filter", "tuned")):
    return Progress(inputs=NOW, manifest="m", files=dict.fromkeys(files, "digest"))


@given(GOING, st.floats(-1e9, 6e5))
def test_a_round_goes_on_if_nothing_has_changed_whatever_the_clock_says(state, age_s):
    assert obstacle(state, progress(), NOW, age_s, "m", needed(state, progress())) == ""


@given(GOING)
def test_each_change_of_its_inputs_is_a_reason_to_begin_anew(state):
    def why(now=NOW, age_s=0.0, manifest="m", whole=("encoded", "answer", "filter", "tuned")):
        return obstacle(state, progress(), now, age_s, manifest, whole)

    change = msgspec.structs.replace
    assert "8 days ago" in why(age_s=8 * 86400.0)
    stumbling = change(progress(), stumbles=5)
    assert "the disk has failed it 5 times" in obstacle(state, stumbling, NOW, 0.0, "m", needed(state, stumbling))
    assert "other options" in why(change(NOW, seed=1)) and "other options" in why(change(NOW, match=False))
    assert "on onnx 1" in why(change(NOW, engine="executorch 1"))
    assert "removed" in why(change(NOW, events=8))
    assert ("another bundle" in why(manifest="n")) == (state != "started")
    assert ("gone or damaged" in why(whole=())) == bool(NEEDS[state])


def test_only_files_that_the_round_has_written_are_needed():
    assert needed("tuned", progress(("encoded", "tuned"))) == ["tuned"], "it asked for nothing"
    for state in FINAL:
        assert "has ended" in obstacle(state, progress(), NOW, 0.0, "m", ())


def test_each_step_draws_from_a_stream_of_its_own():
    streams = [tuple(stream_of(progress(), state)) for state in NEEDS]
    assert len(set(streams)) == len(streams)
