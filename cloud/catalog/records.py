"""Values that the catalog takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from device_runtime.messages import BundleRef, PhaseOverhead, Profile, RoundReport

MACHINES = ("arm64", "x86-64", "other")
MEMORIES = ("up to 1 GiB", "up to 4 GiB", "more than 4 GiB", "unknown")
DEVICE_CLASSES = tuple(f"{machine}, {memory}" for machine in MACHINES for memory in MEMORIES)
OUTCOMES: tuple[str, ...] = ("activated", "kept", "too few samples", "failed", "other")
"""What a round can come to, as devices report it; a word that this version does not know counts as `other`."""
_MACHINES = {"aarch64": "arm64", "arm64": "arm64", "x86_64": "x86-64", "amd64": "x86-64"}


@dataclass(frozen=True)
class Device:
    """id follows from the first public key, and stays when the key is rotated. previous_key: the one before, which is
    good for nothing but repeating a rotation whose answer was lost. revoked: its requests are refused. rotation_due:
    the operator wants a new key. enrolled, seen: seconds since 1970; `seen` is at most a minute old. os: of its last
    enrolment, such as "linux". profile: what it told last."""

    id: str
    public_key: str
    revoked: bool
    previous_key: str | None = None
    rotation_due: bool = False
    enrolled: float = 0.0
    seen: float = 0.0
    device_class: str = DEVICE_CLASSES[-1]
    os: str = ""
    profile: Profile = field(default_factory=Profile)


@dataclass(frozen=True)
class Release:
    """published: seconds since 1970. staged: only a rollout brings it to devices."""

    name: str
    ref: BundleRef
    published: float
    staged: bool = False


@dataclass(frozen=True)
class AuditLine:
    """at: seconds since 1970. who: an operator, or "gate". subject: a rollout's name, or "device ID" for a pin. rung,
    state: after it; "" for a pin. why: in their words."""

    at: float
    who: str
    subject: str
    action: str
    rung: str
    state: str
    why: str


@dataclass(frozen=True)
class Operator:
    """role: "viewer" or "releaser", who may also act."""

    name: str
    role: str


@dataclass(frozen=True)
class RoundRow:
    """A report in a line. cpu_s: seconds. peak_mib: MiB. auc_before, auc_after: by the device's judge, if it had both
    classes held out."""

    received: float
    device: str
    bundle: int
    outcome: str
    engine: str
    device_class: str
    candidates: int
    kept: int
    cpu_s: float
    peak_mib: float
    bytes_up: int
    bytes_down: int
    auc_before: float | None
    auc_after: float | None


def device_class(capability: Mapping[str, object]) -> str:
    """One of `DEVICE_CLASSES`: of devices whose rounds cost about the same."""
    machine = _MACHINES.get(str(capability.get("machine", "")).lower(), "other")
    mib = capability.get("memory_mib")
    if not isinstance(mib, int) or mib <= 0:
        memory = MEMORIES[3]
    else:
        memory = MEMORIES[0] if mib <= 1024 else MEMORIES[1] if mib <= 4096 else MEMORIES[2]
    return f"{machine}, {memory}"


def columns_of(report: RoundReport, kind: str) -> dict[str, Any]:
    """What the table of reports keeps of a report beside the report itself."""
    phases: list[PhaseOverhead] = report.phases
    verdict = report.verdict
    return {
        "outcome": report.outcome if report.outcome in OUTCOMES else "other",
        "engine": report.engine[:32],
        "device_class": kind,
        "candidates": _within(report.candidates),
        "kept": _within(report.kept),
        "cpu_s": sum(p.cpu_user_s + p.cpu_system_s for p in phases),
        "peak_mib": max((p.peak_mib for p in phases), default=0.0),
        "bytes_up": _within(sum(p.bytes_up for p in phases), 1 << 62),
        "bytes_down": _within(sum(p.bytes_down for p in phases), 1 << 62),
        "auc_before": verdict.auc_before if verdict else None,
        "auc_after": verdict.auc_after if verdict else None,
    }


def _within(number: int, most: int = (1 << 31) - 1) -> int:
    """A device may report any number; a column may not."""
    return max(0, min(number, most))
