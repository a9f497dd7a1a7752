"""Whether a release may climb: tests that may be looked at after every report.

Peeking at a fixed-size test inflates its error; these are valid at all times at once, so a release may be stopped the
moment that one of them fires.

- Failures, costly rounds and devices that are not heard of again: the first of both groups are compared, as many of
  one as of the other, so under the null each event is as likely the treatment's as the control's. A mixture over how
  much worse it might be bets against that; by Ville's inequality its wealth exceeds 1 / alpha with probability alpha
  at most, however often one looks (Ramdas et al., "Game-theoretic statistics and safe anytime-valid inference", 2023,
  section 3).
- Quality: the normal-mixture confidence sequence over the difference of the groups' means, in information time
  (Robbins 1970; Waudby-Smith et al., "Time-uniform central limit theory and asymptotic confidence sequences", 2021,
  theorem 2.2). It does not want groups of one size, so the reference speaks with the control.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np

from cloud.rollout.evidence import SILENT, Arm, Evidence
from cloud.rollout.ladder import Rung
from device_runtime.errors import InputError

Verdict = Literal["stop", "wait", "promote"]


class Gate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """alpha: the probability that a harmless release is ever stopped, over all tests and all looks together.
    events_factor, silence_factor, quality_tolerance: how many times as frequent events, and silent devices, may be, and
    how much lower AUC, before a release counts as harmful: what a thousandth of devices that forge could feign.
    quality_margin: to climb, the interval of the quality must lie above this loss.
    failure_share, failure_count: a release with that many failures, and that share of devices failing, is stopped
    without a comparison: both groups may be broken. failure_bound: to climb, the upper confidence bound of the share of
    treated devices that fail must lie below this. tuned_at: standard errors of the mean at which the interval is
    tightest; it is valid at others, too. sizes: devices of each group whose quality the test wants before it speaks,
    for the normal approximation.
    silence_s: seconds within which a device that was heard in its group is expected to be heard again; 0: silence is
    not counted. silence_from_s: a request sooner than that after the first one is still of the same session."""

    alpha: float = 0.01
    events_factor: float = 1.2
    quality_tolerance: float = 0.001
    quality_margin: float = 0.01
    failure_share: float = 0.2
    failure_count: int = 5
    failure_bound: float = 0.1
    tuned_at: float = 0.002
    sizes: int = 50
    silence_s: float = 2 * 86_400.0
    silence_from_s: float = 3600.0
    silence_factor: float = 1.05

    def __post_init__(self) -> None:
        """Raises: InputError."""
        if not 0 < self.alpha < 0.5 or self.tuned_at <= 0 or min(self.events_factor, self.silence_factor) < 1:
            raise InputError("a gate needs an alpha between 0 and 0.5, a tuned_at above 0, and factors of 1 or more")
        if not 0 <= self.quality_tolerance < self.quality_margin:
            raise InputError("a gate's quality_margin is larger than its quality_tolerance, which is not negative")
        if not 0 < min(self.failure_share, self.failure_bound) <= max(self.failure_share, self.failure_bound) <= 1:
            raise InputError("a gate's failure_share and failure_bound are between 0 and 1")
        if self.failure_count < 1 or self.sizes < 2:
            raise InputError("a gate's failure_count is at least 1, its sizes 2")
        if self.silence_s and not 0 <= self.silence_from_s < self.silence_s < math.inf:
            raise InputError("a gate's silence_s is longer than its silence_from_s; 0 leaves silence out")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """verdict: of all tests. why: a line a test. quality: estimate of the difference in AUC with its interval, None
    without enough reports. failures: share of treated devices that failed with its interval, None without any.
    evidence: test -> e-value: 1 / alpha of it is proof."""

    verdict: Verdict
    why: tuple[str, ...]
    quality: tuple[float, float, float] | None
    evidence: dict[str, float]
    failures: tuple[float, float, float] | None = None


def judge(evidence: Evidence, rung: Rung, gate: Gate, *, stood_s: float) -> Finding:
    """Whether the release may climb from this rung. stood_s: seconds that it has stood there. Pure."""
    treatment, control = evidence.treatment, evidence.control
    # quality has the least to spare of its reports, so half of alpha is its
    alpha, quality_alpha = gate.alpha / 2 / max(len(evidence.events), 1), gate.alpha / 2
    worth = {
        name: e_value(*counts, gate.silence_factor if name == SILENT else gate.events_factor)
        for name, counts in evidence.events.items()
    }
    quality = difference(treatment, control.joined(evidence.reference), gate, quality_alpha)
    failures = rate(treatment.failures, treatment.devices, alpha) if treatment.devices else None
    harms: list[str] = []
    waits: list[str] = []

    def finding(verdict: Verdict, why: list[str]) -> Finding:
        return Finding(verdict=verdict, why=tuple(why), quality=quality, evidence=worth, failures=failures)

    for name, value in worth.items():
        if value >= 1 / alpha:
            counts = evidence.events[name]
            of = evidence.of(name)
            harms.append(f"{name}: {counts[0]} of {of}, the control's {counts[1]} (e-value {value:.3g})")
    failing = treatment.failures / max(treatment.devices, 1)
    if treatment.failures >= gate.failure_count and failing >= gate.failure_share:
        harms.append(f"failures: {treatment.failures} of {treatment.devices} devices")
    if quality is not None and quality[2] < -gate.quality_tolerance:
        harms.append(f"quality: {quality[0]:+.4f} AUC, at best {quality[2]:+.4f}")
    if harms:
        return finding("stop", harms)
    if treatment.devices < rung.least:
        waits.append(f"{treatment.devices} of {rung.least} devices have reported")
    if stood_s < rung.dwell_s:
        waits.append(f"{stood_s / 3600:.1f} of {rung.dwell_s / 3600:.3g} hours have passed")
    if 0 < rung.share < 1:
        if failures is not None and failures[2] >= gate.failure_bound:
            waits.append(f"failures: {failures[0]:.1%}, but {failures[2]:.1%} is not excluded")
        # not only of the first to be heard, who are the busiest
        wanted = max(rung.least, evidence.pairs // 2)
        if SILENT in evidence.events and evidence.watched < wanted:
            hours = gate.silence_s / 3600
            waits.append(f"{evidence.watched} of {wanted} devices have been watched for {hours:.3g} hours")
        if quality is None:
            waits.append(f"quality: fewer than {gate.sizes} devices of a group have evaluated it")
        elif quality[1] < -gate.quality_margin:
            waits.append(f"quality: {quality[0]:+.4f} AUC, but {quality[1]:+.4f} is not excluded")
    if waits:
        return finding("wait", waits)
    return finding("promote", ["nothing speaks against it"])


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


def rate(events: int, of: int, alpha: float) -> tuple[float, float, float]:
    """(estimate, low, high) of a probability by as many independent trials, valid at all looks together: what a
    mixture of bets over all probabilities (Jeffreys' prior) does not win 1 / alpha against (Ville's inequality)."""
    mixture = _log_beta(events + 0.5, of - events + 0.5) - _log_beta(0.5, 0.5)

    def excluded(share: float) -> bool:
        likelihood = (events * math.log(share) if events else 0.0) + (
            (of - events) * math.log1p(-share) if of > events else 0.0
        )
        return mixture - likelihood >= -math.log(alpha)

    def border(outside: float, inside: float) -> float:
        for _ in range(40):
            middle = (outside + inside) / 2
            outside, inside = (middle, inside) if excluded(middle) else (outside, middle)
        return outside

    found = events / of
    return found, border(0.0, found) if events else 0.0, border(1.0, found) if events < of else 1.0


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


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
