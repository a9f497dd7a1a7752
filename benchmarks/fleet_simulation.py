"""A fleet that exists only as arrays: who comes online when, what its devices install, and what they report.

Groups, ladder, evidence and gates are the server's own code (`cloud.rollout`); only the devices are made up. Memory is
a few arrays of one number a device, however long it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cloud.rollout import LADDER, Evidence, Facts, Gate, Reports, Rollout, Rule, Watched, decide, judge, summed
from cloud.rollout.buckets import places, reference_until
from device_runtime.samples import Bool, Float32, Float64

Index = npt.NDArray[np.int8]

HOUR, DAY = 3600.0, 86400.0
_APPS = ("1.9", "2.0", "2.1")
_APP_SHARES = (0.08, 0.32, 0.60)
_SUPPORTED = Rule(name="supported apps", app_from="2.0", release="next")
_ZONES = np.array([0.0, 1.0, 2.0, 8.0, 17.0])
"""Hours by which devices' days are shifted."""
_WORKS = np.array([0.995, 0.97, 0.85], np.float32)
"""How often a download is whole at the first try: on an unmetered, a metered and a poor network."""
_NETWORKS = (0.6, 0.3, 0.1)


@dataclass(frozen=True)
class Fleet:
    """A row a device, ascending by place. rate: sessions a day, on average. zone, network, app: indices into the shifts
    of the day, the success of downloads and the app versions. place: of the release under test."""

    rate: Float32
    zone: Index
    network: Index
    app: Index
    place: Float64

    def __len__(self) -> int:
        return len(self.rate)

    def take(self, which: slice | npt.NDArray[np.int64]) -> Fleet:
        return Fleet(self.rate[which], self.zone[which], self.network[which], self.app[which], self.place[which])

    def online(self, at: float, step_s: float, rng: np.random.Generator) -> Bool:
        """bool [n]: which devices have a session in this step. Sessions come at random, at a rate that follows the
        device's day: most in its evening, hardly any in its night."""
        hour = (at / HOUR + _ZONES) % 24
        rhythm = ((1 + 0.9 * np.cos((hour - 20) / 24 * 2 * np.pi)) * (step_s / DAY)).astype(np.float32)
        # the wait for the next session is exponential: it ends within this step or not
        found: Bool = rng.standard_exponential(len(self), np.float32) < self.rate * rhythm[self.zone]
        return found


def fleet(devices: int, salt: str, rng: np.random.Generator) -> Fleet:
    """A tenth of the devices is hardly ever used; the rest has two sessions a day in the median, few have many."""
    rate = np.exp(rng.normal(math.log(2), 0.9, devices))
    rate[rng.random(devices) < 0.1] = 1 / 20
    made = Fleet(
        rate=rate.astype(np.float32),
        zone=rng.integers(len(_ZONES), size=devices, dtype=np.int8),
        network=rng.choice(3, devices, p=_NETWORKS).astype(np.int8),
        app=rng.choice(len(_APPS), devices, p=_APP_SHARES).astype(np.int8),
        place=places((f"device-{number}" for number in range(devices)), salt),
    )
    return made.take(np.argsort(made.place))


# -- coverage -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """Bytes. profile: that ride on any request to say what the device has, and on its answer. pull: a request for a
    bundle and what it brings. poll: a request whose answer is that nothing is new. push: a message to a device."""

    profile: int
    pull: int
    poll: int
    push: int


@dataclass
class Strategy:
    """offers(online, at): which devices learn of the release in this step."""

    name: str
    covered: Bool
    offers: Callable[[Bool, float], Bool]
    sessions: npt.NDArray[np.int16]
    bytes: int = 0
    requests: int = 0
    reached: list[int] = field(default_factory=list)


def coverage(
    fleet: Fleet, costs: Costs, days: float, step_s: float, rng: np.random.Generator, progress: Callable[[float], None]
) -> dict[str, dict[str, object]]:
    """How fast a release that everyone may have reaches the supported devices, by three ways of telling them.

    All three see the same sessions and the same failing downloads. push-then-pull: what a device has rides on the
    requests that its app makes anyway, and the answer says what is stale. polling: each device asks by itself, at most
    every six hours, while it is in use. push: the server sends a message to all that lack it, every hour, and it
    arrives where a session is going on.
    """
    supported = _supported(fleet)
    n, lasting = len(fleet), 300.0
    asked = np.full(n, -np.inf, np.float32)
    made: list[Strategy] = []

    def riding(online: Bool, _: float) -> Bool:
        made[0].bytes += int(online.sum()) * costs.profile
        return online & ~made[0].covered

    def polling(online: Bool, at: float) -> Bool:
        asks = online & (at - asked >= 6 * HOUR)
        asked[asks] = at
        made[1].requests += int(asks.sum())
        made[1].bytes += int((asks & made[1].covered).sum()) * costs.poll
        return asks & ~made[1].covered

    def pushed(online: Bool, at: float) -> Bool:
        if at % HOUR >= step_s:
            return np.zeros(n, bool)
        lacking = supported & ~made[2].covered
        made[2].requests += int(lacking.sum())
        arrives = lacking & online & (rng.random(n, np.float32) < lasting / step_s)
        made[2].bytes += int(arrives.sum()) * costs.push
        return arrives

    for name, offers in (("push-then-pull", riding), ("polling", polling), ("push", pushed)):
        made.append(Strategy(name, ~supported, offers, np.zeros(n, np.int16)))
    came, steps = np.zeros(n, bool), int(days * DAY / step_s)
    for number in range(steps):
        at = number * step_s
        online = fleet.online(at, step_s, rng)
        came |= online & supported
        works = rng.random(n, np.float32) < _WORKS[fleet.network]
        for way in made:
            way.sessions[online & ~way.covered] += 1
            told = way.offers(online, at)
            way.requests += int(told.sum()) if way is not made[1] else 0
            way.bytes += int(told.sum()) * costs.pull
            way.covered |= told & works
            way.reached.append(int((way.covered & supported).sum()))
        progress((number + 1) / steps)
    return {way.name: _told(way, supported, came, step_s) for way in made}


def _told(way: Strategy, supported: Bool, came: Bool, step_s: float) -> dict[str, object]:
    reached, all_of_them = np.array(way.reached), int(supported.sum())
    times = {}
    for share in (0.5, 0.9, 0.99):
        enough = np.flatnonzero(reached >= share * all_of_them)
        times[f"t{share * 100:.0f}"] = float((enough[0] + 1) * step_s / HOUR) if len(enough) else None
    # who came once and failed has not had a second session yet: only those that had their chance are counted
    chance = came & (way.covered | (way.sessions >= 2))
    within = chance & way.covered & (way.sessions <= 2)
    return {
        **times,
        "bytes": way.bytes,
        "requests": way.requests,
        "covered": float(reached[-1] / all_of_them),
        "within_two_sessions": float(within.sum() / max(int(chance.sum()), 1)),
        "curve": [float(share) for share in reached[:: max(1, len(reached) // 200)] / all_of_them],
    }


def _supported(fleet: Fleet) -> Bool:
    """By the server's own policy, asked once for each kind of device."""
    whole = Rollout(name="next", bundle=2, previous=1, salt="", rung=len(LADDER) - 1)
    told = [
        decide(Facts(device="any", app_version=app, bundle=1), [_SUPPORTED], {"next": whole}, base=1) for app in _APPS
    ]
    gets = np.array([decision.bundle == 2 for decision in told])
    found: Bool = gets[fleet.app]
    return found


# -- releases -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What a release does to the devices that have it. failing: share of rounds that fail. slower: factor on CPU.
    quality: of AUC on average. dying: share of devices that are never heard of again once they have it. forging: share
    of devices whose reports are made up to look as bad as can be."""

    failing: float = 0.01
    slower: float = 1.0
    quality: float = 0.0
    dying: float = 0.0
    forging: float = 0.0


KINDS = {
    "crashing": Kind(failing=0.05),
    "slower": Kind(slower=1.2),
    "less accurate": Kind(quality=-0.01),
    "dying": Kind(dying=0.05),
}
HARMLESS = {"harmless": Kind(), "harmless, 0.1 % of devices forge": Kind(forging=0.001)}
_USUAL = Kind()
_CPU_S, _CPU_SPREAD, _QUALITY_SPREAD = 0.4, 0.4, 0.1
_PEAK_MIB, _BYTES, _LITTLE_SPREAD = 90.0, 3000.0, 0.1
_BOUNDS = {
    "cpu_s": _CPU_S * math.exp(1.645 * _CPU_SPREAD),
    "peak_mib": _PEAK_MIB * math.exp(1.645 * _LITTLE_SPREAD),
    "bytes": _BYTES * math.exp(1.645 * _LITTLE_SPREAD),
}
"""The 95 % quantile of a log-normal: 1.645 standard deviations above the median."""


@dataclass(frozen=True)
class Ran:
    """state: in which the release ended. rung: on which. reached: share of the fleet that had installed it. days: that
    it took."""

    state: str
    rung: str
    reached: float
    days: float
    why: str


def release(fleet: Fleet, kind: Kind, gate: Gate, rng: np.random.Generator, most_days: float = 30.0) -> Ran:
    """Roll a release out by the real ladder and gate, which is asked every hour at 1 % and every three hours above,
    until it is stopped, is complete, or time is up."""
    rollout = Rollout(name="next", bundle=2, previous=1, salt="fleet")
    # simulation and named devices come before: what is simulated here is what a fleet can show
    for _ in range(2):
        rollout = rollout.acted("promote", at=0.0, who="operator", why="the rungs before the fleet were passed")
    taken = _Taken(fleet, rollout.standing.share, kind)
    at = 0.0
    while rollout.state == "running" and at < most_days * DAY:
        step = HOUR if rollout.standing.share < 0.05 else 3 * HOUR
        taken.sessions(at, step, gate, rng)
        at += step
        evidence = taken.evidence(at, gate)
        found = judge(evidence, rollout.standing, gate, stood_s=at - rollout.since)
        if found.verdict == "wait":
            continue
        action = found.verdict
        rollout = rollout.acted(action, at=at, who="gate", why="; ".join(found.why))
        if action == "promote" and rollout.standing.share == 1:
            break  # nobody is left to compare with
        if action == "promote":
            taken = taken.grown(fleet, rollout.standing.share, kind)
    reached = taken.installed() / len(fleet)
    last = rollout.log[-1]
    state = "promoted to everyone" if rollout.standing.share == 1 else rollout.state
    return Ran(state, rollout.standing.name, reached, at / DAY, last.why)


class _Group:
    """Devices of a group at a rung, a row each: those of the fleet from start to stop. has: the bundle of its group.
    said: it has reported as one of it. rated: its quality is counted. since: its first session in its group, endless
    before; met: in that order. heard: it had another one within the window. dead: it has none any more."""

    def __init__(self, fleet: Fleet, start: int, stop: int, kind: Kind, has: bool) -> None:
        n = stop - start
        self.start, self.stop = start, stop
        self.fleet, self.kind = fleet.take(slice(start, stop)), kind
        self.has, self.dead = np.full(n, has), np.zeros(n, bool)
        self.said, self.rated, self.heard = np.zeros(n, bool), np.zeros(n, bool), np.zeros(n, bool)
        self.since = np.full(n, np.inf)
        self.met: list[npt.NDArray[np.int64]] = []
        self.reports: list[Reports] = []

    def keep(self, before: _Group, *names: str) -> None:
        """What is known of those that were in another group."""
        start, stop = max(self.start, before.start), min(self.stop, before.stop)
        for name in names if start < stop else ():
            theirs = getattr(before, name)[start - before.start : stop - before.start]
            getattr(self, name)[start - self.start : stop - self.start] = theirs

    def session(self, at: float, step: float, gate: Gate, rng: np.random.Generator) -> None:
        """A while in which some are online: those that have their bundle report, others install it."""
        online = np.flatnonzero(self.fleet.online(at, step, rng) & ~self.dead)
        waited = at - self.since[online]
        self.heard[online[(waited >= gate.silence_from_s) & (waited < gate.silence_s)]] = True
        first = online[waited < 0]
        self.since[first] = at
        self.met.append(first)
        has = self.has[online]
        speaks = online[has & ~self.said[online]]
        self.said[speaks] = True
        told = _reports(len(speaks), self.kind, rng)
        told.quality[self.rated[speaks]] = np.nan
        self.rated[speaks] = True
        self.reports.append(told)
        lacks = online[~has]
        installs = lacks[rng.random(len(lacks), np.float32) < _WORKS[self.fleet.network[lacks]]]
        self.has[installs] = True
        if self.kind.dying:
            self.dead[installs[rng.random(len(installs)) < self.kind.dying]] = True

    def joined(self) -> Reports:
        if len(self.reports) > 1:  # once: a step's reports are few beside all of them
            parts = self.reports
            self.reports = [
                Reports(
                    np.concatenate([part.failed for part in parts]),
                    np.concatenate([part.quality for part in parts]),
                    {name: np.concatenate([part.costs[name] for part in parts]) for name in _BOUNDS},
                )
            ]
        return self.reports[0]

    def watched(self, at: float, gate: Gate) -> Watched:
        self.met = [np.concatenate(self.met)]
        over = np.searchsorted(self.since[self.met[0]], at - gate.silence_s, side="right")
        return Watched(~self.heard[self.met[0][:over]])


class _Taken:
    """The groups at a rung. Each device of the treatment installs in a session, and reports in a later one; others
    report when they are next online, and one that was of the reference once more when it has become the control's."""

    def __init__(self, fleet: Fleet, share: float, kind: Kind) -> None:
        borders = (share, 1 - reference_until(share), 1 - share)
        treated, wide, control = (int(at) for at in np.searchsorted(fleet.place, borders))
        self.treatment = _Group(fleet, 0, treated, kind, has=False)
        self.control = _Group(fleet, control, len(fleet), _USUAL, has=True)
        self.reference = _Group(fleet, wide, control, _USUAL, has=True)

    def grown(self, fleet: Fleet, share: float, kind: Kind) -> _Taken:
        """At a higher rung: who was in a group stays in it, with what it has and has said."""
        more = _Taken(fleet, share, kind)
        for now, before in zip(more.groups, self.groups, strict=True):
            now.keep(before, "has", "said", "rated", "since", "heard", "dead")
            now.reports = before.reports
            was = np.flatnonzero(np.isfinite(now.since))
            now.met = [was[np.argsort(now.since[was], kind="stable")]]
        more.control.keep(self.reference, "rated")
        return more

    @property
    def groups(self) -> tuple[_Group, _Group, _Group]:
        return self.treatment, self.control, self.reference

    def sessions(self, at: float, step: float, gate: Gate, rng: np.random.Generator) -> None:
        for group in self.groups:
            group.session(at, step, gate, rng)

    def evidence(self, at: float, gate: Gate) -> Evidence:
        return summed(
            self.treatment.joined(),
            self.control.joined(),
            _BOUNDS,
            reference=self.reference.joined().quality,
            watched=(self.treatment.watched(at, gate), self.control.watched(at, gate)),
        )

    def installed(self) -> int:
        return int(self.treatment.has.sum())


def _reports(n: int, kind: Kind, rng: np.random.Generator) -> Reports:
    quality = rng.normal(kind.quality, _QUALITY_SPREAD, n)
    quality[rng.random(n) < 0.2] = np.nan  # one class only among the rows held out
    costs = {
        "cpu_s": _CPU_S * kind.slower * np.exp(rng.normal(0, _CPU_SPREAD, n)),
        "peak_mib": _PEAK_MIB * np.exp(rng.normal(0, _LITTLE_SPREAD, n)),
        "bytes": _BYTES * np.exp(rng.normal(0, _LITTLE_SPREAD, n)),
    }
    failed = rng.random(n) < kind.failing
    forged = rng.random(n) < kind.forging
    quality[forged], failed[forged] = -1.0, True
    for amounts in costs.values():
        amounts[forged] = 1e12
    return Reports(failed, quality, costs)


def summary(runs: list[Ran]) -> dict[str, float]:
    """stopped_share: of the runs. reached_share_p95: of the fleet that had a release when it ended, in all but one run
    of twenty; reached_share_most: in any."""
    reached = np.array([ran.reached for ran in runs])
    return {
        "runs": len(runs),
        "stopped_share": float(np.mean([ran.state == "stopped" for ran in runs])),
        "reached_share_p95": float(np.quantile(reached, 0.95)),
        "reached_share_most": float(reached.max()),
        "days_median": float(np.median([ran.days for ran in runs])),
    }


def interval(stopped: int, runs: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson)."""
    z, share = 1.96, stopped / runs
    middle, half = share + z * z / (2 * runs), z * math.sqrt(share * (1 - share) / runs + z * z / (4 * runs * runs))
    return max(0.0, (middle - half) / (1 + z * z / runs)), min(1.0, (middle + half) / (1 + z * z / runs))
