"""Whether a release may climb: tests that may be looked at after every report.

Peeking at a fixed-size test inflates its error; these are valid at all times at once, so a release may be stopped the
moment that one of them fires.

- Failures and costly rounds: the first reports of both groups are compared, as many of one as of the other, so under
  the null each event is as likely the treatment's as the control's. A mixture over how much worse it might be bets
  against that; by Ville's inequality its wealth exceeds 1 / alpha with probability alpha at most, however often one
  looks (Ramdas et al., "Game-theoretic statistics and safe anytime-valid inference", 2023, section 3).
- Quality: the normal-mixture confidence sequence over the difference of the groups' means, in information time
  (Robbins 1970; Waudby-Smith et al., "Time-uniform central limit theory and asymptotic confidence sequences", 2021,
  theorem 2.2).
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np

from cloud.rollout.evidence import Arm, Evidence
from cloud.rollout.ladder import Rung
from device_runtime.errors import InputError

Verdict = Literal["stop", "wait", "promote"]


class Gate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """alpha: the probability that a harmless release is ever stopped, over all tests and all looks together.
    events_factor, quality_tolerance: how many times as frequent events may be, and how much lower AUC, before a release
    counts as harmful: what a thousandth of devices that forge could feign. quality_margin: to climb, the interval of
    the quality must lie above this loss.
    failure_share, failure_count: a release with that many failures, and that share of devices failing, is stopped
    without a comparison: both groups may be broken. tuned_at: standard errors of the mean at which the interval is
    tightest; it is valid at others, too. sizes: devices of each group whose quality the test wants before it speaks,
    for the normal approximation."""

    alpha: float = 0.01
    events_factor: float = 1.2
    quality_tolerance: float = 0.001
    quality_margin: float = 0.01
    failure_share: float = 0.2
    failure_count: int = 5
    tuned_at: float = 0.002
    sizes: int = 50

    def __post_init__(self) -> None:
        """Raises: InputError."""
        if not 0 < self.alpha < 0.5 or self.tuned_at <= 0 or self.events_factor < 1:
            raise InputError(
                "a gate needs an alpha between 0 and 0.5, a tuned_at above 0, an events_factor of 1 or more"
            )
        if not 0 <= self.quality_tolerance < self.quality_margin:
            raise InputError("a gate's quality_margin is larger than its quality_tolerance, which is not negative")
        if not 0 < self.failure_share <= 1 or self.failure_count < 1 or self.sizes < 2:
            raise InputError("a gate's failure_share is between 0 and 1, its failure_count at least 1, its sizes 2")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """verdict: of all tests. why: a line a test. quality: estimate of the difference in AUC with its interval, None
    without enough reports. evidence: test -> e-value: 1 / alpha of it is proof."""

    verdict: Verdict
    why: tuple[str, ...]
    quality: tuple[float, float, float] | None
    evidence: dict[str, float]


def judge(evidence: Evidence, rung: Rung, gate: Gate, *, stood_s: float) -> Finding:
    """Whether the release may climb from this rung. stood_s: seconds that it has stood there. Pure."""
    treatment, control = evidence.treatment, evidence.control
    alpha = gate.alpha / (len(evidence.events) + 1)
    worth = {name: e_value(*counts, gate.events_factor) for name, counts in evidence.events.items()}
    quality = difference(treatment, control, gate, alpha)
    harms, waits = [], []
    for name, value in worth.items():
        if value >= 1 / alpha:
            counts = evidence.events[name]
            harms.append(f"{name}: {counts[0]} of {evidence.pairs}, the control's {counts[1]} (e-value {value:.3g})")
    failing = treatment.failures / max(treatment.devices, 1)
    if treatment.failures >= gate.failure_count and failing >= gate.failure_share:
        harms.append(f"failures: {treatment.failures} of {treatment.devices} devices")
    if quality is not None and quality[2] < -gate.quality_tolerance:
        harms.append(f"quality: {quality[0]:+.4f} AUC, at best {quality[2]:+.4f}")
    if harms:
        return Finding(verdict="stop", why=tuple(harms), quality=quality, evidence=worth)
    if treatment.devices < rung.least:
        waits.append(f"{treatment.devices} of {rung.least} devices have reported")
    if stood_s < rung.dwell_s:
        waits.append(f"{stood_s / 3600:.1f} of {rung.dwell_s / 3600:.3g} hours have passed")
    if 0 < rung.share < 1:
        if quality is None:
            waits.append(f"quality: fewer than {gate.sizes} devices of a group have evaluated it")
        elif quality[1] < -gate.quality_margin:
            waits.append(f"quality: {quality[0]:+.4f} AUC, but {quality[1]:+.4f} is not excluded")
    if waits:
        return Finding(verdict="wait", why=tuple(waits), quality=quality, evidence=worth)
    return Finding(verdict="promote", why=("nothing speaks against it",), quality=quality, evidence=worth)


def e_value(treated: int, control: int, factor: float = 1.0) -> float:
    """Evidence that an event is more than `factor` times as likely in the treatment: the wealth of a bettor who starts
    with 1, and whose wealth is not expected to grow if it is not.

    With n = factor / (1 + factor), the treatment's share of events under the null, a uniform mixture over larger shares
    bets: mean over p in (n, 1) of (p/n)^treated ((1-p)/(1-n))^control.
    """
    if not treated + control:
        return 1.0
    null = factor / (1 + factor)
    # by midpoints, in logarithms: the integrand is smooth, and its peak is some 1/sqrt(events) wide
    share = null + (np.arange(4096) + 0.5) / 4096 * (1 - null)
    logs = treated * np.log(share / null) + control * np.log((1 - share) / (1 - null))
    highest = float(logs.max())
    return math.exp(min(highest + math.log(float(np.exp(logs - highest).mean())), 700.0))


def difference(treatment: Arm, control: Arm, gate: Gate, alpha: float) -> tuple[float, float, float] | None:
    """(estimate, low, high) of the treatment's mean quality less the control's; None with too few reports of one."""
    if min(treatment.rated, control.rated) < gate.sizes:
        return None
    estimate = treatment.quality / treatment.rated - control.quality / control.rated
    # a floor under the variance: that all reports say the same happens with few of them
    variance = sum(max(_variance(arm), 1e-6) / arm.rated for arm in (treatment, control))
    half = radius(1 / variance, alpha, gate.tuned_at)
    return estimate, estimate - half, estimate + half


def radius(information: float, alpha: float, tuned_at: float) -> float:
    """Half the width of the confidence sequence where the estimate has this information, 1 / variance.

    tuned_at: the standard error at which it is about as tight as it can be.
    """
    wanted = -2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)
    rho = wanted * tuned_at**2  # the mixture's variance, in units of 1 / information
    scaled = information * rho + 1
    return math.sqrt(scaled / (information**2 * rho) * (math.log(scaled) - 2 * math.log(alpha)))


def _variance(arm: Arm) -> float:
    mean = arm.quality / arm.rated
    return (arm.squares - arm.rated * mean * mean) / (arm.rated - 1)
