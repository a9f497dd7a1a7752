"""One examined user's device, played in this process by the device's own code; every stage metered once.

Methods share stages: what two of them need is computed once and charged to both. Randomness belongs to (seed, user,
stage), so a method's result does not depend on which others are asked for.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from cloud.evaluation import leaks
from cloud.evaluation.cloud_side import Cloud, PoolBefore, token
from cloud.evaluation.protocols import Case
from device_runtime import augmenting, personalize, query
from device_runtime.bundle import RoundSettings
from device_runtime.candidates import Augmentation, as_own
from device_runtime.filtering import Filtered
from device_runtime.messages import Verdict
from device_runtime.meter import Meter
from device_runtime.model import VOCABULARY, Weights, personal_table
from device_runtime.personalize import Tuned
from device_runtime.samples import Column, Float32, Float64, Ragged, SampleBatch
from device_runtime.stream import samples
from device_runtime.tables import LocalTable
from device_runtime.wire import MatchAnswer, MatchQuery, decode_answer, encode_query

_Value = TypeVar("_Value")
ANSWERED = (
    *("matching", "centroids", "candidates", "cover", "answer_bytes", "neighbours", "core", "sharpness"),
    *("shrinkage", "near_shrinkage", "age_shrinkage", "half_life", "fitted_until", "fitted_weight"),
)
"""Settings that an answer depends on."""
PASSES = ("epochs", "patience", "rate", "table_rate", "interpolation", "freeze_histories", "label_correction")
"""Settings that passes over local samples alone depend on."""
FILTERED = (
    *("classifier_epochs", "classifier_rate", "classifier_label", "calibration"),
    *("ratio_bound", "threshold", "keep", "density_weights"),
)
"""Settings that the filter depends on."""


@dataclass(frozen=True)
class Spent:
    """What a method cost on the device. peak_mib: of this process, the cloud's part in it included. kept: samples of
    others that were trained on."""

    cpu_s: float = 0.0
    peak_mib: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    candidates: int = 0
    kept: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.cpu_s + other.cpu_s,
            max(self.peak_mib, other.peak_mib),
            self.bytes_down + other.bytes_down,
            self.bytes_up + other.bytes_up,
            self.candidates + other.candidates,
            self.kept + other.kept,
        )


@dataclass(frozen=True)
class Parts:
    """local: all local samples. train, held_out: the same, cut for the judge. test: with histories that end at the
    match time, unless they may grow."""

    local: SampleBatch
    train: SampleBatch
    held_out: SampleBatch
    test: SampleBatch


class Device:
    """pool: what had been contributed by the match time. scratch: an empty folder, for the meter. settings: of the
    round."""

    def __init__(
        self,
        cloud: Cloud,
        case: Case,
        pool: PoolBefore,
        settings: RoundSettings,
        seed: int,
        scratch: Path,
        growing: bool = False,
    ) -> None:
        self.cloud, self.case, self.pool, self.settings, self.seed = cloud, case, pool, settings, seed
        self.model, self.token = cloud.model, token(case.user)
        self.parts = self._samples(growing)
        self._meter = Meter(scratch, None)
        self._done: dict[str, tuple[object, Spent]] = {}
        self._used: set[str] = set()
        self._weighed: list[tuple[Weights, float]] = []

    # -- stages -------------------------------------------------------------------------------------------------

    def run(self, method: Callable[[Device], Weights]) -> tuple[Weights, Spent]:
        """A method's weights, and the cost of the stages that it used."""
        self._used = set()
        return method(self), self.spent()

    def spent(self) -> Spent:
        """Of the stages that the last method used; those that failed are not among them."""
        return sum((self._done[name][1] for name in sorted(self._used)), Spent())

    def stage(self, name: str, compute: Callable[[], _Value], more: Callable[[_Value], Spent] | None = None) -> _Value:
        """The value of a stage, computed and metered when it is first asked for. compute: must not ask for others.
        more: what the value says of bytes and samples."""
        if name not in self._done:
            try:
                with self._meter.phase(name):
                    value = compute()
            finally:
                record = self._meter.records.pop()
            spent = Spent(record.cpu_user_s + record.cpu_system_s, record.peak_mib)
            self._done[name] = value, spent + more(value) if more else spent
        self._used.add(name)
        return cast(_Value, self._done[name][0])

    def rng(self, stage: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.case.user, zlib.crc32(stage.encode())])

    # -- what devices do ----------------------------------------------------------------------------------------

    def embeddings(self, batch: SampleBatch, name: str) -> Float32:
        return self.stage(f"encode {name}", lambda: self.model.encode(batch, self.table(batch)))

    def table(self, *batches: SampleBatch) -> LocalTable:
        ids = np.unique(np.concatenate([batch.ids(VOCABULARY) for batch in batches])).astype(np.int32)
        return self.model.table(ids, self.model.base)

    def matched(self, settings: RoundSettings | None = None, profile: Float32 | None = None) -> SampleBatch:
        """The candidates of `offered` alone."""
        return self.offered(settings, profile)[0]

    def offered(
        self, settings: RoundSettings | None = None, profile: Float32 | None = None
    ) -> tuple[SampleBatch, Float64 | None]:
        """The candidates for the user's query, as the user would meet them, and by how much they would change the model
        (`as_own`).

        settings: if not the round's. profile: float32 [1, width], asked with instead of the user's own.
        """
        used = settings or self.settings
        name = "match" if profile is None else "match another"
        name += self._differing(used, ANSWERED)
        embeddings = self.embeddings(self.parts.local, "local")

        def ask() -> bytes:
            manifest, held = self.model.manifest, np.array(self.held_shards, np.int32)
            if profile is not None:
                return encode_query(MatchQuery(manifest.encoder, profile, used.candidates, held))
            directory = self.cloud.directory if used.matching == "directory" else None
            return query.frame(manifest, embeddings, used, held, self.rng("query"), directory)

        body = self.stage(f"query {name}", ask, lambda body: Spent(bytes_up=len(body)))
        found = self.received(name, lambda: self.cloud.match(body, self.pool, self.token, used))

        def own() -> tuple[SampleBatch, Float64 | None]:
            return as_own(
                found, self.parts.local, self.parts.train, self.model, self.table(self.parts.local, found), used
            )

        return self.stage(f"own {name}" + ("" if used.tastes else " no tastes"), own)

    def random(self) -> SampleBatch:
        """As many samples of others as the round is offered, drawn at random."""
        used = set(self._used)
        count = len(self.matched())
        self._used = used  # what it takes to know the number is no cost of theirs

        def draw() -> bytes:
            others = self.cloud.others(self.pool, self.token)
            picked = self.rng("random").permutation(len(others))[:count]
            return self.cloud.answer(self.pool.gather(np.sort(others[picked])), self.held_shards)

        return self.received("random", draw)

    def received(self, name: str, serve: Callable[[], bytes]) -> SampleBatch:
        """The samples of an answer's frame. The cloud's work is nobody's cost here; the bytes and decoding are."""
        key = f"answer {name}"
        if key not in self._done:
            frame = serve()
            schema = self.model.manifest.schema
            self.stage(
                key,
                lambda: decode_answer(frame, schema),
                lambda answer: Spent(bytes_down=len(frame), candidates=len(answer.candidates)),
            )
        self._used.add(key)
        return cast(MatchAnswer, self._done[key][0]).candidates

    def filtered(
        self,
        candidates: SampleBatch,
        change: Float64 | None,
        settings: RoundSettings | None = None,
        query: str = "",
    ) -> Filtered:
        """What the filter says of offered candidates. settings: if not the round's. query: what tells the candidates
        from those of the round's own query."""
        used = settings or self.settings
        mine = self.embeddings(self.parts.local, "local")[: len(self.parts.train)]
        theirs = self.embeddings(candidates, f"match {query}") if used.classifier_epochs else None
        return self.stage(
            f"filter {query}{self._differing(used, FILTERED)}",
            lambda: augmenting.filtered(
                self.model,
                self.parts.train,
                mine,
                candidates,
                theirs,
                change,
                used,
                self.rng("filter"),
            ),
        )

    def tuned(
        self,
        name: str,
        local: SampleBatch,
        kept: Augmentation | None = None,
        settings: RoundSettings | None = None,
        start: Weights | None = None,
    ) -> Tuned:
        """start: the weights to begin with, if not the bundle's; then `kept` is not given. Where local samples are held
        out, these may end the passes."""
        mine = local is self.parts.local or local is self.parts.train
        held_out = self.parts.held_out if local is self.parts.train else None
        used, model = settings or self.settings, self.model

        def alone() -> Tuned:
            table = self.table(local) if held_out is None else self.table(local, held_out)
            return personalize.tune(model, model.base, table, local, None, used, self.rng("tune"), held_out)

        passed = None
        if mine and kept is not None and len(kept.samples) and used.row_steps and used.interpolation == 1:
            part = "local" if held_out is None else "train"
            passed = self.stage(f"passes over {part}{self._differing(used, PASSES)}", alone)

        def tune() -> Tuned:
            if start is None:
                others = None if kept is None else kept.samples
                table = self.table(*(batch for batch in (local, others, held_out) if batch is not None))
                rng = self.rng("tune" if passed is None else "reach")
                return personalize.tune(model, model.base, table, local, kept, used, rng, held_out, passed)
            table = personal_table(self.table(local), start)
            moved = personalize.tune(model, start, table, local, None, used, self.rng(name))
            return Tuned(start.followed_by(moved.weights), moved.passes)

        count = (0 if mine else len(local)) + (0 if kept is None else len(kept.samples))
        return self.stage(f"tune {name}", tune, lambda _: Spent(kept=count))

    def judged(
        self,
        name: str,
        tuned: Tuned,
        settings: RoundSettings | None = None,
        kept: Augmentation | None = None,
    ) -> Weights:
        """Tuned weights, or those at a part of the way to them, as the judge lets them serve, with what they learn of
        held-out samples then; else the bundle's.

        settings: if not the round's. kept: what they were tuned on beside local samples.
        """
        used, local = settings or self.settings, self.parts.local

        def part(whole: Weights, share: float) -> Weights:
            if share == 1:  # nearly always, and a table of all rows takes long to make
                return whole
            table = self.table(local) if kept is None else self.table(local, kept.samples)
            return personalize.part_of_the_way(self.model, whole, table, share)

        def judge() -> Verdict:
            held_out = self.parts.held_out
            return personalize.consider(
                held_out.labels,
                self.logits(held_out, self.model.base),
                lambda share: self.logits(held_out, part(tuned.weights, share)),
                used,
            )

        verdict = self.stage(f"judge {name}", judge)
        if not verdict.activate:
            return self.model.base
        whole = tuned.weights
        if used.learn_held_out:
            whole = personalize.learn_held_out(tuned, kept, used, partial(self._anew, name))
        served = self.stage(f"serve {name}", lambda: part(whole, verdict.share))
        self._weighed.append((served, verdict.share))
        return served

    def _anew(self, name: str, kept: Augmentation | None, used: RoundSettings) -> Weights:
        """Tuned on all local samples; without kept ones, for all methods that differ in nothing that passes see."""
        local = self.parts.local
        key = f"learn {name}" if kept is not None else f"learn{self._differing(used, PASSES)}"

        def tune() -> Weights:
            table = self.table(local) if kept is None else self.table(local, kept.samples)
            return personalize.tune(self.model, self.model.base, table, local, kept, used, self.rng("learn")).weights

        return self.stage(key, tune)

    def share_of(self, weights: Weights) -> float:
        """How much of the way from the cloud's weights to tuned ones these have gone: 0 of the cloud's own, 1 of those
        that no judge has cut short."""
        if weights is self.model.base:
            return 0.0
        return next((share for part, share in self._weighed if part is weights), 1.0)

    def logits(self, batch: SampleBatch, weights: Weights) -> Float32:
        return self.model.logits(batch, personal_table(self.table(batch), weights), weights)

    def _differing(self, used: RoundSettings, names: Sequence[str]) -> str:
        """Those of the settings that are not the round's, for the name of a stage."""
        return "".join(f" {n} {getattr(used, n)}" for n in names if getattr(used, n) != getattr(self.settings, n))

    @property
    def enough(self) -> bool:
        """Whether a round is run at all."""
        return personalize.enough(len(self.parts.local), self.settings)

    @cached_property
    def held_shards(self) -> list[int]:
        """The shards of the user's own items: those that a device has pulled."""
        number_of = self.cloud.shard_of_item
        return sorted({int(number_of[i]) for i in self.parts.local.ids(VOCABULARY)})

    def _samples(self, growing: bool) -> Parts:
        case, schema = self.case, self.model.manifest.schema
        everything = samples(case.events, schema)
        local, test = (
            everything.take(slice(case.local_from, case.test_from)),
            everything.take(slice(case.test_from, None)),
        )
        if not growing:
            test = _until(case, test)
        leaks.check_histories(case, local, case.local_from, growing)
        leaks.check_histories(case, test, case.test_from, growing)
        train, held_out = personalize.split(len(local), self.settings.holdout)
        return Parts(local, local.take(train), local.take(held_out), test)


def _until(case: Case, test: SampleBatch) -> SampleBatch:
    """The test samples, each with the history of the match time."""
    known = case.events.take(np.arange(case.test_from))
    liked = known.item[(known.label >= 0.5) & known.observed][-test.schema["history"].bound :]
    zeros = np.zeros(len(test), np.int32)
    columns: dict[str, Column] = dict(test.columns)
    columns["history"] = Ragged(liked, zeros, np.full(len(test), len(liked), np.int32))
    return dataclasses.replace(test, columns=columns)
