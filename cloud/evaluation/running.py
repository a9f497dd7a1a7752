"""Users in chunks over processes; each finished chunk is a file, so that a run that was killed goes on from there."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import joblib
import msgspec
import numpy as np

import cloud
import device_runtime
from cloud.evaluation.cloud_side import Cloud, Place, code_digest
from cloud.evaluation.device import Device, Spent
from cloud.evaluation.expectation import difference_variance
from cloud.evaluation.methods import METHODS
from cloud.evaluation.protocols import Case
from cloud.evaluation.synthetic import FilterTruth, Truth, examine_filter
from device_runtime.bundle import RoundSettings, write_atomically
from device_runtime.errors import EngineError, EngineUnavailable
from device_runtime.metrics import auc, log_loss
from device_runtime.samples import Float32

CHUNK = 4
"""Users in a file of results, and in a task."""
BINS = 10
_WAVE = 4
"""Tasks for each process between two signs of progress, where a backend gives no others."""


class Score(msgspec.Struct, frozen=True):
    """One method on one user's test rows. bins: of predicted probability -> (rows, sum of predictions, sum of labels).
    variance: of its AUC minus the cloud's, over other test rows of this user; null where rows are too few to say.
    share: how much of the way from the cloud's weights to tuned ones serves; 0 for the cloud's own. failed: why the
    device kept those although the method did not say so; "" where nothing failed."""

    auc: float
    log_loss: float
    bins: list[tuple[int, float, float]]
    spent: Spent
    variance: float | None = None
    share: float = 1.0
    failed: str = ""


class UserResult(msgspec.Struct, frozen=True):
    """user: number in the data set. local, test: rows. positives: share among the test rows. cap: see `Case`.
    filter: how well the filter chose, where the truth is known."""

    user: int
    local: int
    test: int
    positives: float
    cap: int
    scores: dict[str, Score]
    filter: FilterTruth | None = None


@dataclass(frozen=True)
class Work:
    """What a worker process needs, beside its chunk of users. truth: of synthetic data."""

    place: Place
    settings: RoundSettings
    methods: tuple[str, ...]
    growing: bool
    truth: Truth | None = None


@dataclass(frozen=True)
class Task:
    """One chunk; results: by seed, the file that it becomes."""

    work: Work
    cases: tuple[Case, ...]
    results: dict[int, Path]

    @property
    def devices(self) -> int:
        return len(self.cases) * len(self.results)

    @property
    def missing(self) -> Task:
        """What of it is still to be done."""
        return replace(self, results={seed: path for seed, path in self.results.items() if not path.exists()})


def tasks(work: Work, cases: Sequence[Case], seeds: Sequence[int], results: Path) -> list[Task]:
    """results: the folder of finished chunks; those in it of the same work by the same code are reused."""
    mine = results / _name(work)
    found = []
    for start in range(0, len(cases), CHUNK):
        part = tuple(cases[start : start + CHUNK])
        names = ",".join(f"{c.user}:{c.local_from}:{c.test_from}:{len(c.events)}" for c in part)
        digest = hashlib.sha256(names.encode()).hexdigest()[:12]
        found.append(Task(work, part, {seed: mine / f"seed{seed}-{digest}.json" for seed in seeds}))
    return found


def run(
    todo: Sequence[Task], backend: str, jobs: int, progress: Callable[[int, int], None]
) -> dict[int, list[UserResult]]:
    """Seed -> results of all users. progress: called with users done and users in all, each counted for every seed.

    Raises:
        EngineUnavailable: the backend is not installed.
        CodaError: a worker's error.
    """
    total = sum(task.devices for task in todo)
    missing = [left for task in todo if (left := task.missing).results]
    done = total - sum(task.devices for task in missing)
    progress(done, total)
    for count in _parallel(missing, backend, jobs):
        done += count
        progress(done, total)
    found: dict[int, list[UserResult]] = {}
    for task in todo:
        for seed, path in task.results.items():
            found.setdefault(seed, []).extend(msgspec.json.decode(path.read_bytes(), type=list[UserResult]))
    return found


def examine(task: Task) -> int:
    """Play the devices of a chunk, write the results, and say how many there were."""
    opened, work = _opened(task.work.place), task.work
    results: dict[int, list[UserResult]] = {seed: [] for seed in task.results}
    with tempfile.TemporaryDirectory(prefix="coda-evaluate-") as scratch:
        for case in task.cases:
            pool = opened.before(case.match_time)
            for seed, found in results.items():
                device = Device(opened, case, pool, work.settings, seed, Path(scratch), work.growing)
                result = _examined(device, work.methods)
                if work.truth is not None:
                    result = msgspec.structs.replace(result, filter=_filter_truth(device, work.truth))
                found.append(result)
    for seed, path in task.results.items():
        write_atomically(path, msgspec.json.encode(results[seed]))
    return task.devices


def _examined(device: Device, methods: Sequence[str]) -> UserResult:
    test = device.parts.test
    base, scores = device.logits(test, device.model.base), {}
    for name in methods:
        failed = ""
        try:
            weights, spent = device.run(METHODS[name].run)
        except EngineError as error:  # training diverged: a device goes on with what it has
            weights, spent, failed = device.model.base, device.spent(), str(error)
        logits = device.logits(test, weights)
        found = score(test.labels, logits, spent)
        variance = difference_variance(test.labels, base, logits)
        scores[name] = msgspec.structs.replace(
            found,
            variance=variance if math.isfinite(variance) else None,
            share=device.share_of(weights),
            failed=failed,
        )
    return UserResult(
        device.case.user, len(device.parts.local), len(test), float(test.labels.mean()), device.case.cap, scores
    )


def _filter_truth(device: Device, truth: Truth) -> FilterTruth | None:
    candidates, change = device.offered()
    found = device.filtered(candidates, change)
    origins = device.cloud.origins(candidates) if device.settings.matching != "pooled" else None
    return examine_filter(truth, device.case.user, candidates, origins, found.kept)


def score(labels: Float32, logits: Float32, spent: Spent) -> Score:
    p = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -30, 30)))
    number = np.minimum((p * BINS).astype(int), BINS - 1)
    bins = [(int((at := number == i).sum()), float(p[at].sum()), float(labels[at].sum())) for i in range(BINS)]
    area = auc(labels, logits)
    assert area is not None, "users with one class in their test rows are not admitted"
    return Score(area, log_loss(labels, logits), bins, spent)


@lru_cache(maxsize=1)
def _opened(place: Place) -> Cloud:
    """The cloud that this process works with: loading it takes longer than a user does."""
    return Cloud.open(place)


def _name(work: Work) -> str:
    here = Path(cloud.__file__).parent
    files = [
        *Path(device_runtime.__file__).parent.rglob("*.py"),
        *(here / "matching").rglob("*.py"),
        *(here / f"{name}.py" for name in ("drift", "shrinkage")),
        *(
            here / "evaluation" / f"{name}.py"
            for name in ("device", "methods", "running", "cloud_side", "mpda", "synthetic", "expectation")
        ),
    ]
    facts = msgspec.json.encode(
        [
            work.place.pool.parent.name,
            work.place.pool.name,
            msgspec.to_builtins(work.settings),
            work.methods,
            work.growing,
            code_digest(files),
        ]
    )
    return hashlib.sha256(facts).hexdigest()[:12]


def _parallel(todo: Sequence[Task], backend: str, jobs: int) -> Iterator[int]:
    if not todo:
        return
    if jobs == 1 and backend == "loky":
        yield from map(examine, todo)
        return
    calls = [joblib.delayed(examine)(task) for task in todo]
    with _backend(backend):
        if backend == "loky":
            yield from joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(calls)
            return
        wave = _WAVE * joblib.effective_n_jobs(jobs)  # joblib's Ray backend hands nothing back before all is done
        for start in range(0, len(calls), wave):
            yield from joblib.Parallel(n_jobs=jobs)(calls[start : start + wave])


@contextmanager
def _backend(name: str) -> Iterator[None]:
    if name == "ray":
        try:
            from ray.util.joblib import register_ray
        except ImportError as error:
            raise EngineUnavailable(
                f"the ray backend needs the ray extra ({error.name} is missing): pip install 'coda-loop[ray]', "
                "or leave out --backend ray"
            ) from None
        register_ray()
    with joblib.parallel_config(backend=name):
        yield
