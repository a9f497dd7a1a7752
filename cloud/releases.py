"""Releases at work: the catalog's rollouts with a clock. Command line, HTTP and the server's keeper all act through it.

What is decided is pure and in `cloud.rollout`; here it is looked up, put to a device, a report or an operator's wish,
and written down.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from cloud.catalog import AuditLine, Catalog, Device, Voice
from cloud.rollout import (
    LADDER,
    Course,
    Decision,
    Facts,
    Finding,
    Gate,
    Judgement,
    Policy,
    Rollout,
    Rule,
    Rung,
    judge,
    planned,
    summed,
)
from cloud.rollout.course import arm_of, bounds_of, climbed, costs_of, is_late, quality_of
from cloud.rollout.ladder import Action
from device_runtime.errors import InputError
from device_runtime.messages import BundleRef, RoundReport
from device_runtime.trust import Listing, parse

log = logging.getLogger("coda.releases")
GATE = "gate"
"""Who acts when nobody does: the name stands in the audit log."""
_BOUND_REPORTS = 5000
"""Of the previous bundle, the newest: enough for a 95 % quantile."""
_FRESH_S = 1.0
_WHY = 2000
_MET = 20_000


@dataclass(frozen=True)
class Explained:
    """Which bundle a device gets, and all that this follows from."""

    facts: Facts
    decision: Decision


def conditions(rule: Rule) -> dict[str, Any]:
    """What a rule asks for, without what it does not; JSON's types only."""
    names = ("devices", "cohorts", "os", "engine", "device_class", "locale", "app_from", "app_before")
    held = {name: getattr(rule, name) for name in names if getattr(rule, name)}
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in held.items()}


def check_listed(catalog: Catalog, ref: BundleRef) -> None:
    """Raises: InputError: the publisher has a list of bundles, and this one is not on it."""
    found = catalog.rollouts.newest_documents().get("bundles")
    if found is None:
        return
    listing = parse(found[1], "bundles")
    if not isinstance(listing, Listing) or listing.bundles.get(ref.version) != ref.manifest:
        raise InputError(
            f"bundle {ref.version} is not on the publisher's list of bundles, version {found[0]}: devices would refuse "
            "it. Have a newer list signed, and add it by `coda release trust`"
        )


class Releases:
    """Safe to use from several threads. Several processes over one catalog see each other's changes within a second.

    clock: seconds since 1970. base: the bundle of whoever no rule means, where the catalog has released none.
    """

    def __init__(self, catalog: Catalog, clock: Callable[[], float], base: int = 0) -> None:
        self._catalog, self._log, self._clock, self._base = catalog, catalog.rollouts, clock, base
        self._lock = threading.Lock()
        self._known: tuple[float, Policy] | None = None
        self._documents: dict[str, tuple[int, bytes]] = {}
        self._has_cohorts = False
        self._watched: set[tuple[str, str]] = set()

    # -- devices ------------------------------------------------------------------------------------------------

    def policy(self) -> Policy:
        """What holds, or held a second ago. Raises: StoreError."""
        now = self._clock()
        with self._lock:
            if self._known is None or not 0 <= now - self._known[0] < _FRESH_S:
                found = self._log.policy()
                if not found.base:
                    found = msgspec.structs.replace(found, base=self._base)
                self._documents = self._log.newest_documents()
                self._has_cohorts = self._log.has_cohorts()
                self._known = now, found
            return self._known[1]

    def newest(self, role: str) -> tuple[int, bytes] | None:
        """(version, bytes) of the publisher's newest document of a role, as of the last look at the policy."""
        return self._documents.get(role)

    @property
    def base(self) -> int:
        """The bundle of whoever no rule means, as last looked up; no question to the database."""
        return self._known[1].base if self._known else self._base

    def facts(self, device: Device, bundle: int) -> Facts:
        """bundle: the version that it runs."""
        told = device.profile
        cohorts = frozenset(told.cohorts)
        self.policy()
        if self._has_cohorts:
            cohorts |= self._log.cohorts_of(device.id)
        return Facts(
            device=device.id,
            app_version=told.app_version,
            os=told.os or device.os,
            engine=told.engine,
            device_class=device.device_class,
            locale=told.locale,
            cohorts=cohorts,
            bundle=bundle,
        )

    def decide(self, device: Device, bundle: int) -> Decision:
        """Which bundle a device should run that runs `bundle`."""
        return self.policy().decide(self.facts(device, bundle))

    def meet(self, facts: Facts) -> Decision:
        """What a device that makes a signed request should run. The first such request in a group of a release begins
        to be watched for another one."""
        policy = self.policy()
        decision = policy.decide(facts)
        course = policy.courses.get(decision.release)
        if course is None or not course.live or not course.begun or not course.gate.silence_s:
            return decision
        if decision.group in ("treatment", "control"):
            met = (course.name, facts.device)
            if met not in self._watched:  # by this process, of late: to begin again changes nothing
                if len(self._watched) >= _MET:
                    self._watched.clear()
                self._watched.add(met)
                self._log.watch(course.name, facts.device, decision.group, self._clock())
        return decision

    def explain(self, name: str, bundle: int = 0) -> Explained:
        """As `decide`, with what it follows from. Raises: InputError: no such device."""
        policy, device = self._now_policy(), self._device(name)
        facts = self.facts(device, bundle)
        return Explained(facts, policy.decide(facts))

    def voice(self, device: Device, report: RoundReport, received: float) -> Voice | None:
        """What a report says of the rollout that its device takes part in; None for nothing."""
        decision = self.decide(device, report.bundle)
        course = self.policy().courses.get(decision.release)
        if course is None:
            return None
        arm = arm_of(decision, course, report)
        if course.rollout.state == "stopped" and report.bundle == course.rollout.bundle:
            arm = "treatment"  # it ran what has been rolled back since
        if not arm:
            return None
        return Voice(
            rollout=course.name,
            device=device.id,
            round=report.round,
            arm=arm,
            received=received,
            late=is_late(course, received, report.age_s),
            failed=report.outcome == "failed",
            quality=quality_of(report, self._catalog.served_auc(device.id, course.rollout.previous)),
            costs=costs_of(report),
        )

    # -- operators ----------------------------------------------------------------------------------------------

    def create(
        self,
        name: str,
        bundle: int,
        *,
        who: str,
        why: str,
        rule: Rule | None = None,
        named: Sequence[str] = (),
        ladder: Sequence[Rung] = LADDER,
        gate: Gate | None = None,
        automatic: bool = False,
    ) -> Course:
        """Plan a release of a bundle that was taken in. It stands on its ladder's first rung; ladder, gate and whom it
        means are never changed. rule: its conditions; name, release and pin of it are set here.

        Raises:
            InputError: what is wrong with it, or which other release it contradicts.
        """
        if not name or len(name) > 100 or not name.isprintable() or "/" in name or name != name.strip():
            raise InputError("a release's name has 1 to 100 printable characters, no slash, and no space at its ends")
        self._check_listed(bundle)
        now = self._clock()
        for device in named:
            self._device(device)
        rule = msgspec.structs.replace(rule or Rule(name=name, release=name), name=name, release=name, pin=0)
        course = Course(
            rollout=Rollout(
                name=name,
                bundle=bundle,
                previous=0,
                salt=secrets.token_hex(8),
                ladder=tuple(ladder),
                named=frozenset(named),
                since=now,
            ),
            rule=rule,
            gate=gate or Gate(),
            automatic=automatic,
            created=now,
        )
        line = self._line(now, who, name, "create", course.rollout.standing.name, "running", why)
        return self._changed(self._log.add(lambda policy: planned(self._based(policy), course), line))

    def act(self, name: str, action: Action, *, who: str, why: str, override: bool = False) -> Course:
        """Promote, pause, resume or stop. override: climb although the gate would rather wait; the log says so.

        Raises:
            InputError: it cannot be done now, or the gate speaks against it.
        """
        course = self.course(name)
        if action == "promote" and course.rollout.state == "running":
            found = self.judged(course)
            if found.finding.verdict == "stop":
                raise InputError(f"the gate speaks against {name}: {'; '.join(found.finding.why)}")
            if found.finding.verdict == "wait" and not override:
                raise InputError(
                    f"the gate lets {name} not climb yet: {'; '.join(found.finding.why)}. Wait, or override it"
                )
            if found.finding.verdict == "wait":
                why = f"{why} (the gate would wait: {'; '.join(found.finding.why)})"
        done = self._act(name, action, who, why, course.rollout.rung)
        if done is None:
            raise InputError(f"release {name} has changed meanwhile; look at it again")
        return done

    def pin(self, device: str, bundle: int, *, who: str, why: str) -> None:
        """Give a device a bundle to keep, whatever is rolled out; 0 takes that away.

        Raises:
            InputError: no such device or bundle, or no reason.
        """
        self._device(device)
        if bundle:
            self._check_listed(bundle)
        if not bundle and device not in self._now_policy().pins:
            raise InputError(f"device {device} has no pin")
        action = f"pin to {bundle}" if bundle else "unpin"
        self._log.pin(device, bundle, self._line(self._clock(), who, f"device {device}", action, "", "", why))
        self._forget()

    def course(self, name: str) -> Course:
        """Raises: InputError: there is none of this name."""
        found = self._log.course(name)
        if found is None:
            raise InputError(f"there is no release {name!r}")
        return found

    def shown(self, course: Course) -> dict[str, Any]:
        """A release as the command line, the HTTP API and the console show it: JSON's types only."""
        judgement = self.judged(course) if course.live else course.judgement
        rollout = course.rollout
        plain = {name: getattr(rollout, name) for name in ("name", "bundle", "previous", "state", "since")}
        plain |= {"rung": rollout.standing.name, "share": rollout.standing.share, "control_share": course.control_share}
        plain |= {name: getattr(course, name) for name in ("automatic", "created", "begun", "bounds", "retired")}
        plain |= {"ladder": rollout.ladder, "named": sorted(rollout.named), "means": conditions(course.rule)}
        plain |= {"gate": course.gate, "judgement": judgement, "heard": self._log.heard(course.name)}
        shown: dict[str, Any] = msgspec.to_builtins(plain)
        return shown

    def sizes(self, most: int = 1000) -> tuple[dict[str, dict[str, int]], bool]:
        """Release -> group -> devices, by asking for each of them what it would get, and whether that is exact. Of more
        than `most` devices those with the lowest ids are asked, which are as good as drawn; counts are scaled up."""
        asked = self._catalog.devices(limit=most)
        total = self._catalog.count_devices()
        found: dict[str, dict[str, int]] = {}
        policy = self._now_policy()
        for device in asked:
            decision = policy.decide(self.facts(device, 0))
            groups = found.setdefault(decision.release, {})
            groups[decision.group] = groups.get(decision.group, 0) + 1
        scale = total / max(len(asked), 1)
        scaled = {name: {group: round(n * scale) for group, n in groups.items()} for name, groups in found.items()}
        return scaled, len(asked) == total

    # -- the gate -----------------------------------------------------------------------------------------------

    def judged(self, course: Course) -> Judgement:
        """What the gate finds at this moment."""
        treatment, control, reference = self._log.evidence(course.name)
        watched = self._log.watched(course.name, self._clock(), course.gate) if course.gate.silence_s else None
        evidence = summed(treatment, control, course.bounds, reference=reference.quality, watched=watched)
        stood_s = self._clock() - course.rollout.since
        return Judgement(
            finding=judge(evidence, course.rollout.standing, course.gate, stood_s=stood_s), evidence=evidence
        )

    def judge_all(self, every_s: float = 0.0) -> list[AuditLine]:
        """Ask every live rollout's gate, and do what it says: stop at once; climb where that was asked for. Those that
        somebody has asked less than `every_s` seconds ago are left out. Returns what was done."""
        done = []
        for course in self._now_policy().courses.values():
            treats = course.rollout.standing.share or course.rollout.standing.named
            if not course.live or not treats or 0 <= self._clock() - course.judged < every_s:
                continue
            found = self.judged(course)
            self._log.note_judgement(course.name, found, self._clock())
            action = self._consequence(course, found.finding)
            if action and self._act(course.name, action, GATE, "; ".join(found.finding.why), course.rollout.rung):
                done.append(self._log.audit(course.name, limit=1)[0])
                log.warning(
                    action, extra={"facts": {"release": course.name, "rung": done[-1].rung, "why": done[-1].why}}
                )
        return done

    def _consequence(self, course: Course, finding: Finding) -> Action | None:
        if finding.verdict == "stop":
            return "stop"
        climbs = course.automatic and course.rollout.state == "running" and course.rollout.standing.share > 0
        return "promote" if climbs and finding.verdict == "promote" else None

    def _act(self, name: str, action: Action, who: str, why: str, rung: int) -> Course | None:
        """None if the rollout is on another rung than it was judged on, or has ended."""
        now = self._clock()

        def acted(before: Course) -> tuple[Course, AuditLine] | None:
            if before.rollout.rung != rung or (who == GATE and not before.live):
                return None
            rollout = before.rollout.acted(action, at=now, who=who, why=why)
            course = msgspec.structs.replace(before, rollout=msgspec.structs.replace(rollout, log=()))
            if action == "promote":
                course = climbed(course, bounds, now)
            return course, self._line(now, who, name, action, rollout.standing.name, rollout.state, why)

        bounds: dict[str, float] = {}
        if action == "promote" and not (course := self.course(name)).begun:
            bounds = bounds_of(self._catalog.reports_of(course.rollout.previous, now, _BOUND_REPORTS))
        done = self._log.change(name, acted)
        return None if done is None else self._changed(done)

    def _line(self, at: float, who: str, subject: str, action: str, rung: str, state: str, why: str) -> AuditLine:
        if not why.strip():
            raise InputError("say why: the audit log keeps it")
        return AuditLine(at, who[:100], subject, action, rung, state, why.strip()[:_WHY])

    def _device(self, name: str) -> Device:
        found = self._catalog.device(name)
        if found is None:
            raise InputError(f"no device {name[:64]!r} is enrolled here; `coda devices list` shows them")
        return found

    def _check_listed(self, bundle: int) -> None:
        """Raises: InputError: the bundle is not here, or devices that follow the publisher's list would refuse it."""
        ref = self._catalog.bundle(bundle)
        if ref is None:
            raise InputError(f"bundle {bundle} was not taken in here; `coda release add` does that")
        check_listed(self._catalog, ref)

    def _based(self, policy: Policy) -> Policy:
        return policy if policy.base else msgspec.structs.replace(policy, base=self._base)

    def _now_policy(self) -> Policy:
        self._forget()
        return self.policy()

    def _changed(self, course: Course) -> Course:
        self._forget()
        return course

    def _forget(self) -> None:
        """Have the next look be at what is there now."""
        with self._lock:
            if self._known is not None:
                self._known = -math.inf, self._known[1]
