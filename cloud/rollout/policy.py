"""Who is meant by a release: rules over what a device says of itself; the most specific one decides.

A rule is more specific the fewer devices it can mean: one that names devices beats one that names cohorts, which beats
one with more conditions, which beats one with fewer. Two rules that are equally specific and could both mean a device
contradict each other unless they want the same; they are refused when the second one is added, not when a device asks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from cloud.rollout.buckets import place
from cloud.rollout.ladder import Rollout
from device_runtime.errors import InputError

_VERSION = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}")
_SETS = ("os", "engine", "device_class", "locale")


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a device. cohorts: given by the operator, not claimed by the device. bundle: the version that it
    runs, 0 if none; whatever it says, it only decides whether it is told of another one."""

    device: str
    app_version: str = ""
    os: str = ""
    engine: str = ""
    device_class: str = ""
    locale: str = ""
    cohorts: frozenset[str] = frozenset()
    bundle: int = 0


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A condition that is empty means every device. All conditions must hold.

    os, engine, device_class: one of these. locale: one of these, or one that such a one begins ("de" means "de-AT").
    app_from, app_before: versions, the first included, the second not.
    release: name of the rollout whose ladder these devices climb. pin: a bundle version that they get and keep,
    whatever is rolled out. Exactly one of the two is set.
    """

    name: str
    devices: frozenset[str] = frozenset()
    cohorts: frozenset[str] = frozenset()
    os: frozenset[str] = frozenset()
    engine: frozenset[str] = frozenset()
    device_class: frozenset[str] = frozenset()
    locale: frozenset[str] = frozenset()
    app_from: str = ""
    app_before: str = ""
    release: str = ""
    pin: int = 0

    def __post_init__(self) -> None:
        """Raises: InputError."""
        if not self.name or bool(self.release) == bool(self.pin) or self.pin < 0:
            raise InputError(f"rule {self.name!r} needs a name, and either a release or a bundle version to pin")
        for field in ("app_from", "app_before"):
            if (text := getattr(self, field)) and not _VERSION.fullmatch(text):
                raise InputError(f"rule {self.name!r}: {field} is {text!r}; write a version such as 2.10 or 2.10.3")
        if self.app_from and self.app_before and _version(self.app_from) >= _version(self.app_before):
            raise InputError(f"rule {self.name!r}: no app version is from {self.app_from} and before {self.app_before}")

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """Larger is more specific."""
        conditions = sum(bool(getattr(self, name)) for name in (*_SETS, "app_from", "app_before"))
        return bool(self.devices), bool(self.cohorts), conditions

    def misses(self, facts: Facts) -> str:
        """Why the rule does not mean this device, in words; "" if it does."""
        if self.devices and facts.device not in self.devices:
            return "it names other devices"
        if self.cohorts and not self.cohorts & facts.cohorts:
            return f"the device is in none of the cohorts {_listed(self.cohorts)}"
        for name in _SETS:
            wanted, have = getattr(self, name), getattr(facts, name)
            starts = name == "locale" and any(have.startswith(f"{prefix}-") for prefix in wanted)
            if wanted and have not in wanted and not starts:
                return f"the device's {name} is {have or 'unknown'}, not {_listed(wanted)}"
        if self.app_from or self.app_before:
            if not _VERSION.fullmatch(facts.app_version):
                return f"the device's app version {facts.app_version!r} is not one"
            version = _version(facts.app_version)
            if self.app_from and version < _version(self.app_from):
                return f"app version {facts.app_version} is before {self.app_from}"
            if self.app_before and version >= _version(self.app_before):
                return f"app version {facts.app_version} is not before {self.app_before}"
        return ""

    def apart(self, other: Rule) -> bool:
        """Whether no device can be meant by both. A device may be in several cohorts, so these do not tell."""
        if self.devices and other.devices and not self.devices & other.devices:
            return True
        for name in _SETS:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine and theirs and not any(_overlap(a, b, name) for a in mine for b in theirs):
                return True
        for low, high in ((self, other), (other, self)):
            if low.app_from and high.app_before and _version(low.app_from) >= _version(high.app_before):
                return True
        return False


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """bundle: the version that the device should run, 0 if there is none for it. rule: that decided, "" if none did.
    group: of the rollout. why: the whole reasoning, a line a step."""

    bundle: int
    rule: str
    release: str
    group: str
    why: tuple[str, ...]


def added(rules: Sequence[Rule], new: Rule) -> tuple[Rule, ...]:
    """The rules with one more; a rule of the same name is replaced.

    Raises:
        InputError: it contradicts another one, which is named.
    """
    others = [rule for rule in rules if rule.name != new.name]
    for rule in others:
        same = (rule.release, rule.pin) == (new.release, new.pin)
        if rule.rank == new.rank and not same and not rule.apart(new):
            raise InputError(
                f"rules {rule.name!r} and {new.name!r} are equally specific, can mean the same device and want "
                "different things; add a condition to one of them"
            )
    return (*others, new)


def decide(facts: Facts, rules: Sequence[Rule], rollouts: Mapping[str, Rollout], base: int) -> Decision:
    """What a device gets, and why. base: the bundle for whoever no rule means.

    Raises:
        InputError: a rule names a rollout that there is not.
    """
    why = []
    for rule in sorted(rules, key=lambda rule: (rule.rank, rule.name), reverse=True):
        if missed := rule.misses(facts):
            why.append(f"rule {rule.name}: {missed}")
            continue
        why.append(f"rule {rule.name} means this device and is the most specific one that does")
        if rule.pin:
            why.append(f"it pins bundle {rule.pin}")
            return Decision(bundle=rule.pin, rule=rule.name, release="", group="pinned", why=tuple(why))
        if rule.release not in rollouts:
            raise InputError(f"rule {rule.name!r} names the release {rule.release!r}, which is not here")
        rollout = rollouts[rule.release]
        version, group, reason = rollout.gives(facts.device, place(facts.device, rollout.salt), facts.bundle)
        why.append(reason)
        return Decision(bundle=version, rule=rule.name, release=rule.release, group=group, why=tuple(why))
    why.append(f"no rule means this device, so it gets bundle {base}")
    return Decision(bundle=base, rule="", release="", group="rest", why=tuple(why))


def _version(text: str) -> tuple[int, ...]:
    parts = [int(part) for part in text.split(".")]
    return tuple(parts + [0] * (4 - len(parts)))


def _listed(names: frozenset[str]) -> str:
    return " or ".join(sorted(names))


def _overlap(a: str, b: str, name: str) -> bool:
    return a == b or (name == "locale" and (a.startswith(f"{b}-") or b.startswith(f"{a}-")))
