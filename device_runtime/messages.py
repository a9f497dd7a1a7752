"""Control messages: small JSON, checked against these types on both sides."""

from __future__ import annotations

import hashlib
from typing import Literal, TypeVar

import msgspec

from device_runtime.errors import WireError

_Message = TypeVar("_Message")
MAX_PROFILE = 1024
"""Bytes of a profile's JSON, which is ASCII: it travels in a header."""


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """What a device says of itself when it enrols and reports."""

    runtime: str
    python: str = ""
    machine: str = ""
    system: str = ""
    cores: int = 0
    memory_mib: int = 0
    engines: dict[str, str] = {}


class Profile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an app tells of itself and its user's choices, by which releases may be aimed: `HOME/profile.json` on the
    device. engine is filled in by the round. cohorts: that the user joined, such as "beta"; the operator may know of
    others."""

    app_version: str = ""
    os: str = ""
    engine: str = ""
    locale: str = ""
    cohorts: tuple[str, ...] = ()


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """A device introduces itself. The request is signed with the key that it announces.

    public_key: Ed25519, 64 hex digits.
    """

    public_key: str
    capability: Capability


class Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    """device: the id to sign requests with, stable for this key. server_time: seconds since 1970."""

    device: str
    server_time: int


class Rotation(msgspec.Struct, frozen=True, kw_only=True):
    """A device replaces its key. The request is signed with the old one.

    public_key: the new one, Ed25519, 64 hex digits. proof: its signature over `identity.rotation_text`, hex: nobody can
    claim a key that they do not hold.
    """

    public_key: str
    proof: str


class BundleRef(msgspec.Struct, frozen=True, kw_only=True):
    """Points to a signed manifest.

    manifest: sha256 of its blob, hex. size: bytes of that blob. signature: Ed25519 over the manifest's (decompressed)
    bytes, hex. key: the first 16 hex digits of sha256 of the public key that made it.
    """

    version: int
    manifest: str
    size: int
    key: str
    signature: str


class Announcement(BundleRef, frozen=True, kw_only=True, omit_defaults=True):
    """Which bundle a device should have. The server signs the answer that this is, with the request's nonce.

    device: whom it is for. expires: until when the device may go on without asking anew, seconds since 1970. root:
    version of the newest root; listing_version, listing: version and sha256 of the newest list of bundles; 0 and ""
    where the publisher has none (`trust`).
    """

    device: str = ""
    expires: int = 0
    root: int = 0
    listing_version: int = 0
    listing: str = ""

    @property
    def ref(self) -> BundleRef:
        return BundleRef(**{name: getattr(self, name) for name in BundleRef.__struct_fields__})


class PhaseOverhead(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one phase of a round cost. The fields of the design's overhead record, per phase.

    cpu_user_s, cpu_system_s, wall_s: seconds. peak_mib: highest resident memory during the phase, MiB.
    peak_source: "phase" where the kernel's high-water mark could be reset, "process" where it is that of the whole
    process so far. bytes_stored: growth of the device's home. bytes_up, bytes_down: counted at the socket, headers
    included. The rest is None where the machine does not tell: instructions retired in user space; energy_j of the
    whole package or board, in joules; temperature_c of the hottest zone and frequency_mhz of the first core, both at
    the end.
    """

    phase: str
    cpu_user_s: float
    cpu_system_s: float
    wall_s: float
    peak_mib: float
    peak_source: str
    bytes_stored: int
    bytes_up: int
    bytes_down: int
    instructions: int | None = None
    energy_j: float | None = None
    temperature_c: float | None = None
    frequency_mhz: float | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The judge's finding on held-out local samples. loss: mean log loss. auc: None where one class is missing. share:
    how far, from the bundle's weights to the tuned ones, those lie that it speaks of."""

    activate: bool
    reason: str
    samples: int
    loss_before: float
    loss_after: float
    auc_before: float | None = None
    auc_after: float | None = None
    share: float = 1.0


class RoundReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a device tells the cloud of a round: counts, verdict and cost; no sample, id or score.

    round: chosen by the device, so that a report that is sent twice counts once. age_s: seconds from the round's start
    to this sending, by the device's clock: reports wait while a device is offline. auc_previous: of what served when
    the round began, on the same held-out samples as the verdict's; None where one class is missing.
    """

    round: str
    bundle: int
    engine: str
    outcome: str
    local: int
    candidates: int
    kept: int
    verdict: Verdict | None
    phases: list[PhaseOverhead]
    error: str = ""
    age_s: float = 0.0
    auc_previous: float | None = None


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A federated evaluation for a device. configurations: name -> field of the round's settings -> value. period: on
    which of its samples: those that the judge sees, or the newest of those before (settings that are chosen by the
    judge's own rows would please the judge)."""

    name: str
    configurations: dict[str, dict[str, float]]
    period: Literal["judged", "validation"] = "judged"


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of one configuration on a device's held-out samples. auc: None where one class is missing. log_loss: mean."""

    auc: float | None = None
    log_loss: float | None = None
    diverged: bool = False


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """What comes back of a federated evaluation: figures alone. samples: that the device held out. period: as asked
    for; a device that knows of no other tells of those that the judge sees."""

    task: str
    samples: int
    outcomes: dict[str, Outcome]
    period: Literal["judged", "validation"] = "judged"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error answer (RFC 9457)."""

    title: str
    status: int
    detail: str = ""


def profile_digest(profile: Profile, root: int = 0, listing: int = 0) -> str:
    """8 hex digits, by which both sides see whether the server knows a device's profile, and the device the publisher's
    documents: their versions, 0 for a device that was given a key instead."""
    return hashlib.sha256(to_json((profile, root, listing))).hexdigest()[:8]


def to_json(message: object) -> bytes:
    return msgspec.json.encode(message)


def from_json(data: bytes, kind: type[_Message], what: str) -> _Message:
    """Decode and check a message.

    Raises:
        WireError: names what was being read, and the field that does not fit.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise WireError(f"{what}: {error}") from None
