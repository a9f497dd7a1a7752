"""What may be said of a few devices, and the numbers beneath it."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest

from cloud.report.model import ENOUGH, SAME, Aucs, Difference, difference, summarize
from tests.cloud.report import sample


def _pairs(values: list[float]) -> dict[str, tuple[float, float]]:
    return {f"device-{i}": (0.5 + value, 0.5) for i, value in enumerate(values)}


def test_interval_agrees_with_every_possible_resample() -> None:
    values = [-0.03, 0.0, 0.002, 0.01, 0.04, 0.11]
    exact = np.quantile([np.mean(drawn) for drawn in itertools.product(values, repeat=6)], [0.025, 0.975])
    found = difference(_pairs(values))
    assert found.mean == pytest.approx(np.mean(values))
    assert found.ci95 == pytest.approx(tuple(exact), abs=0.002)


def test_interval_is_the_same_for_the_same_seed(rng: np.random.Generator) -> None:
    pairs = _pairs(rng.normal(0, 0.1, 20).tolist())
    assert difference(pairs, 3) == difference(pairs, 3)
    assert difference(pairs, 3).ci95 != difference(pairs, 4).ci95


def test_shares_count_what_is_within_the_rule_as_the_same() -> None:
    found = difference(_pairs([0.9 * SAME, -0.9 * SAME, 2 * SAME, -2 * SAME]))
    assert (found.better, found.same, found.worse) == (0.25, 0.5, 0.25)
    assert found.worst == pytest.approx(-2 * SAME)
    assert found.worst_device == "device-3"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "Nothing can be said"),
        ([0.3], "No difference can be claimed from one device"),
        ([0.3] * (ENOUGH - 1), f"No difference can be claimed from {ENOUGH - 1} devices: too few"),
        ([0.0] * ENOUGH, "the interval includes zero"),
        ([-0.1, 0.1] * 5, "No difference can be claimed from 10 devices: the interval includes zero"),
        ([0.01, 0.02] * 5, "the whole interval lies above zero"),
        ([-0.01, -0.02] * 5, "the whole interval lies below zero"),
    ],
)
def test_claim_follows_from_the_interval(values: list[float], words: str) -> None:
    assert words in difference(_pairs(values)).claim


def test_rounding_errors_are_no_difference() -> None:
    assert "includes zero" in Difference(n=10, mean=0.1, ci95=(1.4e-17, 0.2)).claim


def test_one_device_has_no_interval() -> None:
    assert difference(_pairs([0.1])).ci95 is None


def test_left_out_devices_are_named_with_their_reason(rng: np.random.Generator) -> None:
    devices = [
        sample.device("fine", rng),
        sample.device("one-class", rng, auc=Aucs()),
        sample.device("nothing", rng, auc=Aucs(), held_out=0),
        sample.device("half", rng, auc=Aucs(cloud=0.5)),
        sample.device("broken", rng, error="the disk is full"),
    ]
    found = summarize(sample.report(devices))
    assert set(found.left_out) == {"one-class", "nothing", "half", "broken"}
    assert "one class" in found.left_out["one-class"]
    assert "no held-out" in found.left_out["nothing"]
    assert "CoDA's weights is missing" in found.left_out["half"]
    assert found.left_out["broken"] == "the disk is full"
    assert found.coda_minus_cloud.n == 1


def test_means_are_over_the_same_devices(rng: np.random.Generator) -> None:
    devices = [
        sample.device("a", rng, auc=Aucs(0.5, 0.6, 0.7)),
        sample.device("b", rng, auc=Aucs(0.7, 0.8, 0.9)),
        sample.device("without local", rng, auc=Aucs(0.1, None, 0.2)),
    ]
    found = summarize(sample.report(devices))
    assert found.n == 2
    assert msgspec.structs.astuple(found.means) == pytest.approx((0.6, 0.7, 0.8))
    assert found.coda_minus_cloud.n == 3


def test_first_and_later_rounds_are_kept_apart_by_engine() -> None:
    devices = sample.fleet(6)
    found = summarize(sample.report(devices))
    assert set(found.overhead) == {"all", "onnx", "executorch"}
    assert "self-test" in found.phases["onnx"]["first"]
    assert "self-test" not in found.phases["onnx"]["later"]
    firsts = [sum(p.cpu_user_s + p.cpu_system_s for p in d.rounds[0].phases) for d in devices if d.engine == "onnx"]
    assert found.overhead["onnx"]["first"].cpu_s == pytest.approx(float(np.median(firsts)))
    assert found.messages["first"]["item rows"].down == 370516
    assert "item rows" not in found.messages["later"]


def test_a_phase_that_ran_twice_adds_its_cpu_but_not_its_peak(rng: np.random.Generator) -> None:
    twice = [sample.phase("encode", 1.0, 60.0, down=5), sample.phase("encode", 2.0, 70.0, down=6)]
    one = msgspec.structs.replace(sample.one_round(rng, first=True), phases=twice)
    found = summarize(sample.report([sample.device("a", rng, rounds=[one])]))
    cost = found.phases["onnx"]["first"]["encode"]
    assert (cost.cpu_s, cost.peak_mib, cost.bytes_down) == (3.0, 70.0, 11)


def test_rounds_without_a_verdict_are_in_the_totals_only(rng: np.random.Generator) -> None:
    done = sample.one_round(rng, first=True)
    broken = msgspec.structs.replace(done, outcome="failed", verdict=None, phases=[sample.phase("pull", 100.0, 50.0)])
    found = summarize(sample.report([sample.device("a", rng, rounds=[done, broken])]))
    assert found.unfinished == 1
    assert found.cpu_s > 100
    assert "later" not in found.overhead["onnx"]


def test_weights_of_an_earlier_round_still_count_as_personal(rng: np.random.Generator) -> None:
    one = sample.one_round(rng, first=True)
    rounds = [msgspec.structs.replace(one, outcome=outcome) for outcome in ("activated", "kept")]
    assert sample.device("a", rng, rounds=rounds).personal
    assert not sample.device("b", rng, rounds=rounds[1:]).personal
