"""How a release climbs, is held, and is stopped."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloud.rollout import LADDER, Rollout, Rung
from cloud.rollout.ladder import TRANSITIONS
from device_runtime.errors import InputError

ACTIONS = ("promote", "pause", "resume", "stop")


def started(**changes) -> Rollout:
    return Rollout(**{"name": "next", "bundle": 7, "previous": 6, "salt": "s", **changes})


def test_rungs_are_climbed_one_by_one_and_the_last_promotion_completes():
    now, shares = started(named=frozenset({"mine"})), []
    while now.state == "running":
        shares.append(now.standing.share)
        now = now.acted("promote", at=len(shares), who="gate", why="fine")
    assert shares == [rung.share for rung in LADDER] and now.state == "complete"
    assert [step.rung for step in now.log] == [rung.name for rung in LADDER[1:]] + ["100 %"]
    assert now.gives("anyone", 0.999, 6)[0] == 7


def test_before_its_shares_a_release_is_for_named_devices_only():
    now = started(named=frozenset({"mine"}))
    assert now.gives("mine", 0.0, 6)[0] == 6
    now = now.acted("promote", at=1, who="me", why="simulated well")
    assert now.gives("mine", 0.5, 6)[0] == 7 and now.gives("other", 0.0, 6)[0] == 6


def test_a_pause_reaches_nobody_new_and_takes_from_nobody():
    now = started(rung=2).acted("pause", at=1, who="me", why="a look at the logs")
    assert now.gives("a", 0.001, 7)[0] == 7 and now.gives("b", 0.001, 6)[0] == 6
    assert now.acted("resume", at=2, who="me", why="all well").gives("b", 0.001, 6)[0] == 7


def test_after_a_stop_everyone_gets_what_was_before():
    now = started(rung=2).acted("stop", at=1, who="gate", why="it crashes")
    assert now.gives("a", 0.001, 7)[0] == 6
    with pytest.raises(InputError, match="next is stopped: to resume it is not possible"):
        now.acted("resume", at=2, who="me", why="let us try again")


def test_what_is_done_needs_a_reason_and_is_logged_with_it():
    with pytest.raises(InputError, match="say why"):
        started().acted("pause", at=1, who="me", why=" ")
    [step] = started().acted("pause", at=1.5, who="me", why="lunch").log
    assert (step.at, step.who, step.action, step.state, step.why) == (1.5, "me", "pause", "paused", "lunch")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ladder": (Rung(name="a", share=0.5), Rung(name="b", share=0.1))}, "shares rise"),
        ({"ladder": ()}, "shares rise"),
        ({"rung": 9}, "no rung 9"),
        ({"bundle": 6}, "another bundle than 6"),
    ],
)
def test_a_ladder_that_cannot_be_climbed_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        started(**changes)


class Climbing(RuleBasedStateMachine):
    """Whatever is tried in whatever order: rungs are never skipped, and the log tells all that happened."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.done = started(), 0

    @rule(action=st.sampled_from(ACTIONS))
    def act(self, action):
        before = self.now
        possible = (before.state, action) in TRANSITIONS
        try:
            self.now = before.acted(action, at=self.done, who="someone", why="because")
        except InputError:
            assert not possible
            return
        assert possible
        self.done += 1
        assert self.now.rung - before.rung in (0, 1)
        assert (self.now.rung > before.rung) <= (action == "promote")

    @invariant()
    def log_is_whole(self):
        assert len(self.now.log) == self.done

    @invariant()
    def nobody_is_treated_by_what_was_stopped(self):
        if self.now.state == "stopped":
            assert self.now.gives("x", 0.0, 7)[0] == 6


TestClimbing = Climbing.TestCase
TestClimbing.settings = settings(max_examples=50, stateful_step_count=12, deadline=None)
