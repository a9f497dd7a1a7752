"""The journal of a round as data: its states, where each may lead, what must be at hand to go on from it.

Pure: nothing here reads or writes. `store` commits what it describes, `round` acts on it.

A state names what has been *done and committed*. A process that dies in a step leaves the state before that step, so
the next one does the step again: every step gives the same result when it is done twice, because it draws its random
numbers from a stream of its own (`stream_of`) and reads only what was committed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import msgspec

from device_runtime.messages import PhaseOverhead, Verdict

TRANSITIONS: dict[str, tuple[str, ...]] = {
    "started": ("pulled", "failed", "interrupted"),
    "pulled": ("encoded", "done", "failed", "interrupted"),
    "encoded": ("matched", "tuned", "started", "failed", "interrupted"),
    "matched": ("filtered", "tuned", "failed", "interrupted"),
    "filtered": ("tuned", "failed", "interrupted"),
    "tuned": ("judged", "failed", "interrupted"),
    "judged": ("activated", "failed", "interrupted"),
    "activated": ("done", "failed", "interrupted"),
    "done": (),
    "failed": (),
    "interrupted": (),
}
"""States of a round, and where each may lead. `pulled` ends where there are too few samples. `encoded` goes straight to
`tuned` where nothing is asked for, and `matched` does where nothing came; `encoded` goes back to `started` when the
server says that the query was made by an outdated encoder. `interrupted` is a round that could not be resumed."""

FINAL = frozenset(state for state, onward in TRANSITIONS.items() if not onward)

NEEDS: dict[str, tuple[str, ...]] = {
    "started": (),
    "pulled": (),
    "encoded": ("encoded",),
    "matched": ("encoded", "answer"),
    "filtered": ("answer", "filter"),
    "tuned": ("answer", "tuned"),
    "judged": (),
    "activated": (),
}
"""The working files without which a round cannot go on from a state. Of those named, only the ones that the round wrote
count: one that asks for nothing has no answer. What `judged` needs may already have been moved to where it serves."""

MOST_STUMBLES = 5
"""A round that the disk has failed so often is begun anew: perhaps it is what this round has stored."""

RESUME_WITHIN_S = 7 * 86400.0
"""A round that was cut off longer ago than this is begun anew: its candidates were chosen from an old pool."""


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """What a round was started with.

    seed, match: the caller's options. engine: name and version. until, events: the sequence number of the newest event
    that it looks at, and how many there were up to it; later ones are the next round's. ordinal: rounds before it.
    """

    seed: int
    match: bool
    engine: str
    until: int
    events: int
    ordinal: int


@dataclass(frozen=True)
class FilterView:
    """What the filter did, for the device's own eyes: counts of candidates by score, and shares of liked ones."""

    edges: list[float]
    kept: list[int]
    dropped: list[int]
    kept_positive_share: float | None
    candidates_positive_share: float | None


class Progress(msgspec.Struct, kw_only=True):
    """What has been committed of a round, beside its state and its working files.

    bundle, manifest: the version in use and the sha256 of its manifest. files: working file -> sha256. phases, traffic:
    the cost so far, of all processes that worked on it; a phase that was killed is in neither. resumed: how often it
    was taken up again. moved: whether the round began with another bundle, of which auc_previous is. stumbles: how
    often it was put aside because nothing could be stored. repulled: whether the server has sent it back for a newer
    encoder already. passes: those that led to the tuned weights; None where an older version of this software tuned
    them, which always made as many as the settings say.
    """

    inputs: Inputs
    bundle: int = 0
    manifest: str = ""
    local: int = 0
    candidates: int = 0
    kept: int = 0
    verdict: Verdict | None = None
    view: FilterView | None = None
    outcome: str = ""
    files: dict[str, str] = {}
    phases: list[PhaseOverhead] = []
    traffic: dict[str, tuple[int, int]] = {}
    resumed: int = 0
    stumbles: int = 0
    repulled: bool = False
    moved: bool = False
    auc_previous: float | None = None
    passes: int | None = None


def allowed(state: str, onward: str) -> bool:
    return onward in TRANSITIONS.get(state, ())


def needed(state: str, progress: Progress) -> list[str]:
    """The working files that must be whole for a round to go on from this state."""
    return [name for name in NEEDS[state] if name in progress.files]


def obstacle(state: str, progress: Progress, now: Inputs, age_s: float, manifest: str, whole: Collection[str]) -> str:
    """Why a round cannot go on where it was; "" if it can.

    now: what a round would be started with at this moment, `events` counted up to the old round's `until`. age_s: since
    it was started; negative where the clock was set back, which is no obstacle. manifest: the sha256 of the one that
    serves, "" if none does. whole: its working files that are on disk as they were written.
    """
    was = progress.inputs
    if state in FINAL:
        return f"it has ended: {state}"
    if age_s > RESUME_WITHIN_S:
        return f"it was started {age_s / 86400:.0f} days ago"
    if progress.stumbles >= MOST_STUMBLES:
        return f"the disk has failed it {progress.stumbles} times"
    if (was.seed, was.match) != (now.seed, now.match):
        return "it was started with other options"
    if was.engine != now.engine:
        return f"it was started on {was.engine}"
    if was.events != now.events:
        return "events that it looks at have been removed since"
    if state != "started" and manifest != progress.manifest:
        return "another bundle serves now"
    if lacking := [name for name in needed(state, progress) if name not in whole]:
        return f"its working file {lacking[0]!r} is gone or damaged"
    return ""


def stream_of(progress: Progress, step: str) -> list[int]:
    """The seed of a step's random numbers: a step that is done again draws the same."""
    return [progress.inputs.seed, progress.inputs.ordinal, list(NEEDS).index(step)]
