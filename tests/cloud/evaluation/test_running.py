"""Chunks over processes, backends, and the device that is played in them."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cloud.evaluation import cloud_side, mpda, running
from cloud.evaluation.cloud_side import Cloud
from cloud.evaluation.device import FILTERED, Device
from cloud.evaluation.methods import METHODS, Method, chosen
from cloud.evaluation.running import UserResult, Work, examine, run, tasks
from cloud.matching import Counting, Parts, pooled
from cloud.matching.unexplained import asked
from cloud.shrinkage import MOST
from device_runtime import filtering, personalize
from device_runtime.bundle import RoundSettings
from device_runtime.errors import EngineError, EngineUnavailable
from device_runtime.metrics import auc
from device_runtime.model import Weights
from device_runtime.samples import Ragged
from device_runtime.wire import Rows

from .conftest import Finished

pytestmark = pytest.mark.timeout(900)  # the first test waits for an export, which a busy machine draws out


@pytest.fixture
def work(finished: Finished) -> Work:
    return Work(finished.place, RoundSettings(), ("cloud", "local", "coda"), False)


@pytest.fixture
def device(finished: Finished, tmp_path: Path) -> Device:
    return _device(finished, RoundSettings(), tmp_path)


def _device(finished: Finished, settings: RoundSettings, scratch: Path) -> Device:
    opened, case = Cloud.open(finished.place), finished.parts.cases[0]
    return Device(opened, case, opened.before(case.match_time), settings, 0, scratch)


def scores(results: dict[int, list[UserResult]]) -> list[dict[str, float]]:
    return [{n: s.auc for n, s in user.scores.items()} for seed in results.values() for user in seed]


def test_processes_give_what_one_gives(finished: Finished, work: Work, tmp_path: Path) -> None:
    cases = finished.parts.cases
    told: list[tuple[int, int]] = []
    one = run(tasks(work, cases, [0, 1], tmp_path / "one"), "loky", 1, lambda *n: told.append(n))
    two = run(tasks(work, cases, [0, 1], tmp_path / "two"), "loky", 2, lambda *_: None)
    assert scores(one) == scores(two)
    assert told[0] == (0, 12) and told[-1] == (12, 12)
    assert list(one) == [0, 1] and scores({0: one[0]}) != scores({1: one[1]})


def test_finished_chunks_are_reused_only_for_the_same_work(finished: Finished, work: Work, tmp_path: Path) -> None:
    def names(changed: Work) -> list[str]:
        return [str(task.results[0]) for task in tasks(changed, finished.parts.cases, [0], tmp_path)]

    same = names(work)
    assert names(work) == same
    for change in (
        {"settings": RoundSettings(epochs=9)},
        {"methods": ("cloud", "local")},
        {"growing": True},
    ):
        assert not set(names(dataclasses.replace(work, **change))) & set(same)


def test_a_missing_ray_is_said_and_what_to_do(
    finished: Finished, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineUnavailable, match=r"pip install 'coda-loop\[ray\]'"):
        run(tasks(work, finished.parts.cases, [0], tmp_path), "ray", 2, lambda *_: None)


def test_a_training_that_diverges_leaves_the_clouds_weights_and_is_counted(
    finished: Finished, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(_: Device) -> Weights:
        raise EngineError("training diverged")

    monkeypatch.setitem(running.METHODS, "local", Method(diverge, ""))
    [task] = tasks(work, finished.parts.cases[:2], [0], tmp_path)
    examine(task)
    for user in msgspec.json.decode(task.results[0].read_bytes(), type=list[UserResult]):
        assert user.scores["local"].failed == "training diverged"
        assert user.scores["local"].auc == user.scores["cloud"].auc


def test_methods_are_chosen_by_name_with_what_differences_need() -> None:
    assert chosen("coda") == ["cloud", "local", "coda"]
    assert chosen("all") == list(METHODS)


# -- the device ------------------------------------------------------------------------------------------------------


def test_what_comes_is_older_than_the_match_and_somebody_elses(device: Device) -> None:
    came = device.random()
    users, times = device.cloud.origins(came)
    assert len(users) == len(came) == len(device.matched())
    assert (users != device.case.user).all() and times.max() < device.case.match_time


def test_pooled_candidates_come_from_what_others_had_said_by_the_match(device: Device) -> None:
    everything = msgspec.structs.replace(device.settings, cover=1.0)
    came = device.matched(everything)
    assert len(set(came.columns["item"].tolist())) == len(came) > len(device.matched()) > 50
    before = device.pool.segments[0]
    others = before.contributors != np.uint64(device.token)
    assert set(came.columns["item"].tolist()) <= set(before.samples.columns["item"][others].tolist())
    another = device.matched(everything, np.eye(1, device.model.manifest.width, dtype=np.float32))
    assert (another.columns["item"] == came.columns["item"]).all() and (another.labels != came.labels).any()


def test_devices_of_one_user_ask_the_cloud_the_same_once(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, case = Cloud.open(finished.place), finished.parts.cases[0]
    pool, searched = opened.before(case.match_time), []

    def watched(*args, **kwargs):  # type: ignore[no-untyped-def]
        searched.append(args)
        return pooled(*args, **kwargs)

    monkeypatch.setattr(cloud_side, "pooled", watched)
    devices = [Device(opened, case, pool, RoundSettings(), seed, tmp_path) for seed in (0, 1)]
    one, two = (device.matched() for device in devices)
    assert len(searched) == 1 and (one.labels == two.labels).all() and len(one)
    devices[1].matched(RoundSettings(age_shrinkage=7.0))
    assert len(searched) == 2, "another question"


def test_candidates_by_directory_are_somebody_elses_and_of_the_time_before(device: Device) -> None:
    """The bundle is that of all methods, and has no directory; the cloud has it beside."""
    assert device.model.directory is None and device.cloud.directory is not None
    settings = msgspec.structs.replace(device.settings, matching="directory", candidates=400)
    weights, spent = device.run(METHODS["coda-directory"].run)
    assert 0 < spent.candidates <= 400 and 0 < spent.bytes_up < 1024 and weights is not None
    came = device.matched(settings)
    users, times = device.cloud.origins(came)
    assert len(came) == spent.candidates, "the same stage"
    assert (users != device.case.user).all() and times.max() < device.case.match_time
    [segment] = device.pool.segments
    mine = device.embeddings(device.parts.local, "local")
    asked_for = np.flatnonzero(device.cloud.directory.weights(mine, settings.sharpness))
    nearest = device.embeddings(came, "came") @ device.cloud.directory.centroids.T
    near = np.take_along_axis(nearest, nearest.argmax(1)[:, None], 1)[:, 0]
    assert (nearest[:, asked_for].max(1) >= near - 1e-5).all(), "all lie in parts that were asked for"
    fresh = Parts.of(segment.embeddings, device.cloud.directory.centroids)
    np.testing.assert_array_equal(device.cloud.parts(segment).rows, fresh.rows)


def test_what_the_pool_says_is_worked_out_once_for_all_of_it_and_cut_with_it(device: Device) -> None:
    [segment] = device.pool.segments
    found = device.cloud.residuals(segment, Counting())
    assert 0 < len(found.predicted) == len(segment) < len(device.cloud.pool)
    np.testing.assert_array_equal(found.asked, asked(segment))
    some = np.arange(0, len(segment), 97)
    fresh = device.cloud.encoder.predict(segment.samples.take(some))
    np.testing.assert_allclose(found.residuals(some), segment.samples.labels[some] - fresh, atol=1e-6)
    assert (
        found.met.sum() == len(segment)
        and abs(found.sums.sum() - found.residuals(np.arange(len(segment))).sum(dtype=float)) < 0.01
    )


def test_mpda_trains_as_published_and_not_as_coda_does(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    tuned = device.tuned

    def watched(name: str, *args, **kwargs):  # type: ignore[no-untyped-def]
        seen.append(kwargs["settings"])
        return tuned(name, *args, **kwargs)

    monkeypatch.setattr(device, "tuned", watched)
    monkeypatch.setattr(mpda, "USERS", 1)
    mpda.run(device, mpda.randomly)
    assert len(seen) == 2
    for used in seen:
        assert (used.rate, used.table_rate, used.epochs) == (0.01, 0.01, 1)
        assert not (used.label_correction or used.freeze_histories)


def test_samples_of_one_contributor_share_their_history_on_the_wire(device: Device) -> None:
    together = device.random().columns["history"]
    assert isinstance(together, Ragged) and len(together.values) < together.lengths.sum()


def test_a_stage_is_computed_once_and_charged_to_all_who_use_it(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = device.run(METHODS["coda"].run)
    monkeypatch.setattr(personalize, "tune", None)  # nothing is tuned again
    _, again = device.run(METHODS["coda"].run)
    _, unjudged = device.run(METHODS["coda-no-judge"].run)
    assert first == again
    shared = [name for name in device._done if name.startswith(("tune", "passes", "filter", "answer", "learn"))]
    cost = sum(device._done[name][1].cpu_s for name in shared)
    assert {"tune coda", "passes over train"} <= set(shared) and min(first.cpu_s, unjudged.cpu_s) >= cost > 0
    assert unjudged.bytes_down == first.bytes_down > 0


def test_methods_share_a_filter_only_where_none_of_its_settings_differ() -> None:
    read = set(re.findall(r"settings\.(\w+)", inspect.getsource(filtering)))
    assert read == set(FILTERED)


def test_what_is_off_anyway_is_not_played_again_and_what_is_not_is(finished: Finished, tmp_path: Path) -> None:
    plain = _device(finished, RoundSettings(half_life=0.0, shrinkage=MOST), tmp_path)
    weights, _ = plain.run(METHODS["coda"].run)
    for name in ("coda-no-drift", "coda-fixed-shrinkage"):
        assert plain.run(METHODS[name].run)[0] is weights
    faded = _device(finished, RoundSettings(half_life=1.0, shrinkage=2.0, cover=1.0), tmp_path)
    mine = faded.matched().labels
    for off in ({"half_life": 0.0}, {"shrinkage": MOST}, {"age_shrinkage": 1e9}):
        theirs = faded.matched(msgspec.structs.replace(faded.settings, **off)).labels
        assert len(theirs) == len(mine) and (theirs != mine).any()


def test_mpda_keeps_what_raises_the_local_auc_and_rolls_back_the_rest(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = device.parts.local
    kept = []
    tuned = device.tuned

    def watched(name: str, *args, **kwargs):  # type: ignore[no-untyped-def]
        found = tuned(name, *args, **kwargs)
        kept.append((kwargs["start"], found.weights))
        return found

    monkeypatch.setattr(device, "tuned", watched)
    monkeypatch.setattr(mpda, "USERS", 4)
    result = mpda.run(device, mpda.randomly)
    assert len(kept) == 5 and result is kept[-1][1]
    best = auc(local.labels, device.logits(local, device.model.base))
    for (start, tried), (following, _) in pairwise(kept):
        value = auc(local.labels, device.logits(local, tried))
        assert following is (tried if value > best else start)
        best = max(best, value)


def test_similar_users_are_nearer_than_random_ones(device: Device) -> None:
    mine = device.embeddings(device.parts.local, "local").mean(0)

    def nearness(groups: list[np.ndarray]) -> float:
        return float((device.cloud.means(groups) @ mine).mean())

    assert nearness(mpda.by_similarity(device)) > nearness(mpda.randomly(device))


def test_rows_that_moved_before_stay_moved() -> None:
    def weights(ids: list[int], value: float) -> Weights:
        return Weights({}, Rows(np.array(ids, np.int32), {"w": np.full((len(ids), 2), value, np.float32)}))

    joined = weights([2, 5], 1).followed_by(weights([1, 5], 2)).rows
    assert joined is not None and joined.ids.tolist() == [1, 2, 5]
    assert joined.tensors["w"][:, 0].tolist() == [2, 1, 2]
    assert Weights({}).followed_by(weights([1], 2)).rows is not None
