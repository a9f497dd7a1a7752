"""How a release climbs: rungs that cannot be skipped, and a state machine whose transitions are data."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloud.rollout.buckets import group
from device_runtime.errors import InputError

State = Literal["running", "paused", "stopped", "complete"]
Action = Literal["promote", "pause", "resume", "stop"]

TRANSITIONS: dict[tuple[State, Action], State] = {
    ("running", "promote"): "running",
    ("running", "pause"): "paused",
    ("running", "stop"): "stopped",
    ("paused", "resume"): "running",
    ("paused", "stop"): "stopped",
    ("complete", "stop"): "stopped",
}
"""What may follow what; promoting from the highest rung ends in "complete". What is stopped stays so: a mended bundle
is another release, with evidence of its own."""


class Rung(msgspec.Struct, frozen=True, kw_only=True):
    """share: of the devices that the rule means, treated by their place; 0: only `named` ones, or none. least: devices
    that must have reported before the next rung. dwell_s: seconds to stay at least, so that a day's rhythm is seen."""

    name: str
    share: float = 0.0
    named: bool = False
    least: int = 0
    dwell_s: float = 0.0


LADDER = (
    Rung(name="simulation"),
    Rung(name="named devices", named=True, least=3),
    Rung(name="1 %", share=0.01, named=True, least=50, dwell_s=86_400),
    Rung(name="5 %", share=0.05, named=True, least=100, dwell_s=86_400),
    Rung(name="20 %", share=0.20, named=True, least=200, dwell_s=86_400),
    Rung(name="100 %", share=1.0, named=True),
)


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the audit log. at: seconds since 1970. who: an operator, or "gate". why: in their words."""

    at: float
    who: str
    action: Action
    rung: str
    state: State
    why: str


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """A release on its way. bundle: what the treated get. previous: what everyone else gets, also after a stop; 0 if
    there was nothing. salt: places the devices; never changed. named: devices of the rung "named devices" on."""

    name: str
    bundle: int
    previous: int
    salt: str
    ladder: tuple[Rung, ...] = LADDER
    named: frozenset[str] = frozenset()
    rung: int = 0
    since: float = 0.0
    state: State = "running"
    log: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        """Raises: InputError."""
        shares = [rung.share for rung in self.ladder]
        if not self.ladder or shares != sorted(shares) or not 0 <= shares[0] <= shares[-1] <= 1:
            raise InputError(f"the ladder of {self.name!r} needs rungs whose shares rise from 0 to 1; given {shares}")
        if not 0 <= self.rung < len(self.ladder):
            raise InputError(f"{self.name!r} has no rung {self.rung}")
        if self.bundle <= 0 or self.bundle == self.previous:
            raise InputError(f"{self.name!r} must bring another bundle than {self.previous}, of a positive version")

    @property
    def standing(self) -> Rung:
        return self.ladder[self.rung]

    def gives(self, device: str, at: float, runs: int) -> tuple[int, str, str]:
        """(version, group, why in words) for a device at this place. runs: the version that it says it has: while the
        release is paused it goes on with that, and nobody else gets it."""
        rung, name = self.standing, self.name
        if self.state == "stopped":
            return self.previous, "rest", f"release {name} was stopped, so it gets bundle {self.previous}"
        if self.state == "complete":
            return self.bundle, "treatment", f"release {name} is complete: everyone gets bundle {self.bundle}"
        found = "treatment" if rung.named and device in self.named else group(at, rung.share)
        where = f"its place {at:.6f} at the rung {rung.name}"
        if found == "treatment" and self.state == "paused" and runs != self.bundle:
            return self.previous, "rest", f"release {name} is paused, so nobody else gets it"
        if found == "treatment":
            return self.bundle, found, f"{where} of release {name} is in the treatment: bundle {self.bundle}"
        return self.previous, found, f"{where} of release {name} is in the {found}: bundle {self.previous}"

    def acted(self, action: Action, *, at: float, who: str, why: str) -> Rollout:
        """The rollout after this.

        Raises:
            InputError: it cannot be done now; what can is named.
        """
        after = TRANSITIONS.get((self.state, action))
        if after is None:
            possible = [name for state, name in TRANSITIONS if state == self.state]
            raise InputError(
                f"release {self.name} is {self.state}: to {action} it is not possible; {possible} would be"
            )
        if not why.strip():
            raise InputError("say why: the audit log keeps it")
        rung, since = self.rung, self.since
        if action == "promote":
            if rung + 1 < len(self.ladder):
                rung, since = rung + 1, at
            else:
                after = "complete"
        step = Step(at=at, who=who, action=action, rung=self.ladder[rung].name, state=after, why=why)
        return msgspec.structs.replace(self, rung=rung, since=since, state=after, log=(*self.log, step))
