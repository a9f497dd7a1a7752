"""A rollout with all that decides on it: whom it means, by which gate, and what a report says for or against it.

Pure: the catalog keeps courses, `cloud.releases` hands in clocks and reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np

from cloud.rollout.evidence import Evidence
from cloud.rollout.gates import Finding, Gate
from cloud.rollout.ladder import Rollout
from cloud.rollout.policy import Decision, Facts, Rule, added, decide
from device_runtime.errors import InputError
from device_runtime.messages import RoundReport

COSTS = ("cpu_s", "peak_mib", "bytes")
"""What a round costs its device, as gates compare it: CPU seconds, MiB, bytes both ways."""
ONE_TIME = ("pull", "self-test", "compare", "evaluate")
"""Phases that a new bundle, or a question of the cloud's, costs once: they are not compared."""
LEAST_REPORTS = 20
"""Of the previous bundle, for a bound on a cost: the 95 % quantile of fewer is any of them."""
_LIVE = ("running", "paused")


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate found, and in what."""

    finding: Finding
    evidence: Evidence


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """automatic: it climbs by itself where the gate lets it, from the first rung with a share on. created, begun,
    judged: seconds since 1970; begun: when it first stood on a rung that treats devices, 0 if it has not. bounds:
    cost -> the amount above which a round is costly. retired: another course has taken its place."""

    rollout: Rollout
    rule: Rule
    gate: Gate
    automatic: bool
    created: float
    begun: float = 0.0
    bounds: dict[str, float] = {}
    judgement: Judgement | None = None
    judged: float = 0.0
    retired: bool = False

    @property
    def name(self) -> str:
        return self.rollout.name

    @property
    def live(self) -> bool:
        return self.rollout.state in _LIVE

    @property
    def universal(self) -> bool:
        """Whether it means every device."""
        return self.rule.rank == (False, False, 0)

    @property
    def ending(self) -> int:
        """The bundle that it leaves its devices with; of one that has ended."""
        return self.rollout.bundle if self.rollout.state == "complete" else self.rollout.previous

    @property
    def control_share(self) -> float:
        """Of the devices that the rule means: as many as are treated, as far as there are any left."""
        return min(self.rollout.standing.share, 1 - self.rollout.standing.share)


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Who gets what at this moment. courses: those that are not retired. pins: device -> bundle. base: the bundle of
    whoever no rule means."""

    courses: dict[str, Course]
    pins: dict[str, int]
    base: int

    def decide(self, facts: Facts) -> Decision:
        rules = [course.rule for course in self.courses.values()]
        if facts.device in self.pins:
            rules.append(_pin(facts.device, self.pins[facts.device]))
        return decide(facts, rules, {name: course.rollout for name, course in self.courses.items()}, self.base)

    def bundles(self) -> set[int]:
        """All that a device may get."""
        both = {version for c in self.courses.values() for version in (c.rollout.bundle, c.rollout.previous)}
        return {version for version in both | set(self.pins.values()) | {self.base} if version}


def planned(policy: Policy, course: Course) -> tuple[Course, list[str]]:
    """The course as it may be added, and the names of those that have ended and whose place it takes. `previous` of the
    rollout becomes what its devices have now.

    Raises:
        InputError: it contradicts another course, which is named, or brings nothing new.
    """
    for rung in course.rollout.ladder:
        if rung.named and not rung.share and len(course.rollout.named) < rung.least:
            raise InputError(
                f"the rung {rung.name!r} wants {rung.least} devices to report before the release may leave it; name as "
                "many, or give a ladder without it"
            )
    previous, replaced, others = policy.base, [], []
    for other in policy.courses.values():
        if _conditions(other.rule) != _conditions(course.rule):
            others.append(other.rule)
        elif other.live:
            raise InputError(
                f"release {other.name} is {other.rollout.state} and means the same devices; complete it or roll it "
                "back first"
            )
        else:
            previous = other.ending
            replaced.append(other.name)
    if course.rollout.bundle <= previous:
        raise InputError(
            f"release {course.name} brings bundle {course.rollout.bundle}, but its devices have {previous}: a release "
            "brings a newer one, and `rollback` the older"
        )
    added(others, course.rule)
    rollout = msgspec.structs.replace(course.rollout, previous=previous)
    return msgspec.structs.replace(course, rollout=rollout), replaced


def climbed(course: Course, bounds: Mapping[str, float], at: float) -> Course:
    """After a promotion: evidence is taken from the first rung on that treats devices. bounds: of the costs, fixed
    then: a bound that followed the reports that it judges would let a test err more often than it says."""
    standing = course.rollout.standing
    if course.begun or not (standing.share or standing.named):
        return course
    return msgspec.structs.replace(course, begun=at, bounds=dict(bounds))


def bounds_of(reports: Iterable[RoundReport]) -> dict[str, float]:
    """Each cost's 95 % quantile under the previous bundle; without a cost of which too few reports tell."""
    found = {}
    told = [costs for report in reports if (costs := costs_of(report))]
    if len(told) >= LEAST_REPORTS:
        for name in COSTS:
            found[name] = float(np.quantile([costs[name] for costs in told], 0.95))
    return found


def costs_of(report: RoundReport) -> dict[str, float]:
    """What the round cost beside what a new bundle costs once; {} if it had no phase that could be compared."""
    phases = [phase for phase in report.phases if phase.phase not in ONE_TIME]
    if not phases:
        return {}
    return {
        "cpu_s": math.fsum(p.cpu_user_s + p.cpu_system_s for p in phases),
        "peak_mib": max(p.peak_mib for p in phases),
        "bytes": float(sum(p.bytes_up + p.bytes_down for p in phases)),
    }


def quality_of(report: RoundReport, before: float | None) -> float | None:
    """The AUC of what serves after a round, less that of what served when it began, on the same held-out samples. Of
    devices that do not tell the latter: less `before`, of the device's last round with the previous bundle. Devices of
    both groups tell the same, so what tuning and time change, they change for both."""
    verdict = report.verdict
    if verdict is None or verdict.auc_before is None or verdict.auc_after is None:
        return None
    since = before if report.auc_previous is None else report.auc_previous
    served = verdict.auc_after if report.outcome == "activated" else verdict.auc_before
    return None if since is None else served - since


def is_late(course: Course, received: float, age_s: float) -> bool:
    """Whether a report is of a round that began before the comparison did, or comes after it has ended."""
    return not course.live or not course.begun or received - max(age_s, 0.0) < course.begun


def arm_of(decision: Decision, course: Course, report: RoundReport) -> str:
    """The group that a report speaks for; "" for none: the device is in neither, or ran another bundle. A round that
    failed before it had a bundle is held against the one that it was to have."""
    if decision.group not in ("treatment", "control", "reference") or decision.release != course.name:
        return ""
    wanted = course.rollout.bundle if decision.group == "treatment" else course.rollout.previous
    failed_early = report.bundle == 0 and report.outcome == "failed"
    return decision.group if report.bundle == wanted or failed_early else ""


def _pin(device: str, bundle: int) -> Rule:
    return Rule(name=f"pin of device {device}", devices=frozenset({device}), pin=bundle)


def _conditions(rule: Rule) -> Rule:
    return msgspec.structs.replace(rule, name="any", release="any", pin=0)
