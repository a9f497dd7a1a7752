"""From scores of users to a table. Users are the unit: what is random in a device (seeds) is averaged per user first,
and intervals are bootstrapped over users, in pairs.

So an interval speaks of other users under this cloud model and this split, and not of other data sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from cloud.evaluation.expectation import expected_tails
from cloud.evaluation.running import BINS, Score, UserResult
from device_runtime.samples import Float64

BEYOND = 0.01
"""AUC by which a user must differ to count as better or worse."""
RESAMPLES, _BLOCK = 10_000, 1_000
STRATA = (10, 20, 50, 100, 200)
"""Upper ends of the strata by local sample count; the last has none."""


class Difference(msgspec.Struct, frozen=True):
    """Mean paired difference of user AUC, and its bootstrap interval over users; None with fewer than two users."""

    mean: float
    ci95: tuple[float, float] | None


class Shares(msgspec.Struct, frozen=True):
    better: float
    same: float
    worse: float


class Cost(msgspec.Struct, frozen=True):
    """Means over users and seeds; peak_mib: the highest."""

    cpu_s: float
    peak_mib: float
    bytes_down: float
    bytes_up: float
    candidates: float
    kept: float


class Stratum(msgspec.Struct, frozen=True):
    """Users of so many local samples, "21-50"."""

    local: str
    users: int
    mean_user_auc: float
    vs_cloud: Difference
    vs_local: Difference


class MethodResult(msgspec.Struct, frozen=True):
    """mean_user_auc: of users' means over seeds. gauc: the same, weighted by test rows. log_loss, calibration (expected
    calibration error over ten bins) and predicted_over_observed: over all test rows. better, same, worse: shares of
    users against the cloud, beyond 0.01 AUC; raw: the same, beyond 0. expected: the same beyond 0.01, of true
    differences behind the measured ones (`expectation`); null where rows are too few. p5: 5th percentile of the users'
    differences from the cloud. reference: an upper bound, not a method. failed: rounds, users times seeds, in which
    training failed."""

    name: str
    about: str
    mean_user_auc: float
    gauc: float
    log_loss: float
    calibration: float
    predicted_over_observed: float
    vs_cloud: Difference
    vs_local: Difference
    better: float
    same: float
    worse: float
    raw: Shares
    p5: float
    cost: Cost
    strata: list[Stratum]
    expected: Shares | None = None
    reference: bool = False
    failed: int = 0


class JudgeErrors(msgspec.Struct, frozen=True):
    """The judge of CoDA against the test rows. updates: rounds, users times seeds, that had one to judge. kept: share
    of them that was let serve, in whole or in part; partly: in part. harmful, helpful: share of updates that, in whole,
    have a user AUC more than 0.01 below or above the cloud's. harmful_kept: share of the harmful ones that was let
    serve, in whole or in part; helpful_refused: of the helpful ones, refused; harmful_partly, helpful_partly: let serve
    in part; None where there were none. Test rows are few, so all hold their noise: a judge that knew the truth would
    not reach zero."""

    updates: int
    kept: float
    harmful: float
    helpful: float
    harmful_kept: float | None
    helpful_refused: float | None
    partly: float = 0.0
    harmful_partly: float | None = None
    helpful_partly: float | None = None


def judge_errors(results: Mapping[int, Sequence[UserResult]]) -> JudgeErrors | None:
    """None unless CoDA was played with the judge and without."""
    users = [user.scores for seed in results.values() for user in seed]
    known = [s for s in users if "coda" in s and "coda-no-judge" in s and s["coda-no-judge"].share > 0]
    if not known:
        return None
    gain = np.array([s["coda-no-judge"].auc - s["cloud"].auc for s in known])
    share = np.array([s["coda"].share for s in known])
    kept, partly = share > 0, (share > 0) & (share < 1)
    harmful, helpful = gain < -BEYOND, gain > BEYOND

    def within(group: npt.NDArray[np.bool_], found: npt.NDArray[np.bool_]) -> float | None:
        return float(found[group].mean()) if group.any() else None

    return JudgeErrors(
        updates=len(known),
        kept=float(kept.mean()),
        harmful=float(harmful.mean()),
        helpful=float(helpful.mean()),
        harmful_kept=within(harmful, kept),
        helpful_refused=within(helpful, ~kept),
        partly=float(partly.mean()),
        harmful_partly=within(harmful, partly),
        helpful_partly=within(helpful, partly),
    )


def bootstrap(differences: Float64, seed: int = 0) -> Difference:
    """differences: float64 [users]."""
    if len(differences) < 2:
        return Difference(float(differences.mean()), None)
    rng, count = np.random.default_rng(seed), len(differences)
    blocks = [differences[rng.integers(0, count, (_BLOCK, count))].mean(1) for _ in range(RESAMPLES // _BLOCK)]
    means = np.concatenate(blocks)
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(float(differences.mean()), (float(low), float(high)))


def shares(differences: Float64, beyond: float) -> Shares:
    better, worse = float((differences > beyond).mean()), float((differences < -beyond).mean())
    return Shares(better, 1 - better - worse, worse)


def user_aucs(results: Mapping[int, Sequence[UserResult]], method: str) -> Float64:
    """float64 [users]: mean over seeds; the order of users is that of the first seed.

    Raises:
        ValueError: seeds differ in their users.
    """
    each = list(results.values())
    order = [user.user for user in each[0]]
    if any([user.user for user in seed] != order for seed in each):
        raise ValueError("the seeds have not examined the same users")
    means: Float64 = np.array([[user.scores[method].auc for user in seed] for seed in each]).mean(0)
    return means


def summarize(
    results: Mapping[int, Sequence[UserResult]], methods: Mapping[str, tuple[str, bool]]
) -> list[MethodResult]:
    """methods: name -> (about, reference); `cloud` and `local` must be among them."""
    base, local = user_aucs(results, "cloud"), user_aucs(results, "local")
    users = next(iter(results.values()))
    rows = np.array([user.test for user in users], float)
    counts = np.array([user.local for user in users])
    found = []
    for name, (about, reference) in methods.items():
        mine = user_aucs(results, name)
        against = shares(mine - base, BEYOND)
        scores = [user.scores[name] for seed in results.values() for user in seed]
        error, ratio = calibration(scores)
        tested = np.tile(rows, len(results))
        found.append(
            MethodResult(
                name=name,
                about=about,
                mean_user_auc=float(mine.mean()),
                gauc=float((mine * rows).sum() / rows.sum()),
                log_loss=float((np.array([s.log_loss for s in scores]) * tested).sum() / tested.sum()),
                calibration=error,
                predicted_over_observed=ratio,
                vs_cloud=bootstrap(mine - base),
                vs_local=bootstrap(mine - local),
                better=against.better,
                same=against.same,
                worse=against.worse,
                raw=shares(mine - base, 0.0),
                p5=float(np.quantile(mine - base, 0.05)),
                cost=_cost(scores),
                strata=_strata(counts, mine, base, local),
                expected=_expected(results, name, mine - base),
                reference=reference,
                failed=sum(bool(s.failed) for s in scores),
            )
        )
    return found


def _expected(results: Mapping[int, Sequence[UserResult]], name: str, differences: Float64) -> Shares | None:
    """Seeds share their test rows, so a mean over them is no less noisy than one."""
    each = [[user.scores[name].variance for user in seed] for seed in results.values()]
    variances = np.array([[math.inf if v is None else v for v in seed] for seed in each]).mean(0)
    found = expected_tails(differences, variances, BEYOND)
    return None if found is None else Shares(found[1], 1 - sum(found), found[0])


def calibration(scores: Sequence[Score]) -> tuple[float, float]:
    """(expected calibration error, predicted over observed positives) over all rows of these scores."""
    bins = np.array([score.bins for score in scores], float).reshape(-1, BINS, 3).sum(0)
    count, predicted, observed = bins.T
    error = np.abs(predicted - observed).sum() / count.sum()
    return float(error), float(predicted.sum() / observed.sum())


def _cost(scores: Sequence[Score]) -> Cost:
    def mean(name: str) -> float:
        return float(np.mean([getattr(score.spent, name) for score in scores]))

    peak = max(score.spent.peak_mib for score in scores)
    return Cost(mean("cpu_s"), peak, *(mean(name) for name in ("bytes_down", "bytes_up", "candidates", "kept")))


def _strata(counts: npt.NDArray[np.int_], mine: Float64, base: Float64, local: Float64) -> list[Stratum]:
    found, low = [], 0
    for high in (*STRATA, None):
        within = (counts > low) & (counts <= (high or counts.max(initial=0)))
        if within.any():
            found.append(
                Stratum(
                    f"{low + 1}-{high}" if high else f">{low}",
                    int(within.sum()),
                    float(mine[within].mean()),
                    bootstrap((mine - base)[within]),
                    bootstrap((mine - local)[within]),
                )
            )
        low = high or low
    return found
