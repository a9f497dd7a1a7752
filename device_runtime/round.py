"""One personalization: pull, match, filter, tune, judge, activate or keep, report; metered and journalled.

A round starts from the bundle's weights with all local samples, not from earlier personal weights: what it ends with
depends on the data, not on how many rounds came before. Whatever goes wrong, the weights that served before still do.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from device_runtime import filtering, personalize, query
from device_runtime.bundle import FileRef, files_of
from device_runtime.engines import Array, Engine
from device_runtime.engines.selftest import self_test
from device_runtime.errors import CodaError, Refused, TransportError, TrustError
from device_runtime.home import DeviceHome
from device_runtime.identity import answer_text, verify
from device_runtime.messages import BundleRef, RoundReport, Verdict, from_json, to_json
from device_runtime.meter import Meter
from device_runtime.model import VOCABULARY, Model, Weights
from device_runtime.samples import Float32, SampleBatch
from device_runtime.store import Event, labels
from device_runtime.stream import Events, samples
from device_runtime.tables import LocalTable
from device_runtime.transport import Transport
from device_runtime.wire import MatchAnswer, MatchQuery, decode_answer, encode_contribution, encode_query

FRAME = "application/vnd.coda.frame"
_BINS = np.linspace(0, 1, 21)
_OUTBOX = 20
"""Reports of earlier rounds that are sent along, at most."""


@dataclass(frozen=True)
class RoundOptions:
    """seed: of everything random on the device. match: False trains on local samples alone. contribute: hand the
    training samples to the pool afterwards; only ever by the user's choice."""

    seed: int = 0
    match: bool = True
    contribute: bool = False


@dataclass(frozen=True)
class FilterView:
    """What the filter did, for the device's own eyes: counts of candidates by score, and shares of liked ones."""

    edges: list[float]
    kept: list[int]
    dropped: list[int]
    kept_positive_share: float | None
    candidates_positive_share: float | None


@dataclass(frozen=True)
class RoundResult:
    """filter: None where nothing was matched. traffic: bytes (up, down) by message, this round's."""

    report: RoundReport
    filter: FilterView | None
    traffic: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Local:
    """Local samples, oldest first: those to train on and those that only the judge sees. unknown: events of items that
    the catalogue does not have."""

    train: SampleBatch
    held_out: SampleBatch
    unknown: int

    @property
    def everything(self) -> SampleBatch:
        return SampleBatch.concatenate([self.train, self.held_out])


@dataclass(frozen=True)
class Augmentation:
    """The kept candidates, their weights, and what matching and filtering did."""

    kept: SampleBatch
    weights: Float32
    candidates: int
    view: FilterView


class Round:
    """Runs once. Use `run_round`."""

    def __init__(
        self, home: DeviceHome, transport: Transport, engine: Engine, options: RoundOptions, now: Callable[[], float]
    ) -> None:
        self.home, self.transport, self.engine, self.options = home, transport, engine, options
        self.meter = Meter(home.path, transport.counter)
        self.id = secrets.token_hex(8)
        self._before = dict(transport.counter.by_label)
        earlier = home.store.start_round(self.id, now())
        self.rng = np.random.default_rng([options.seed, earlier])
        self.local_count = self.candidate_count = self.kept_count = self.bundle = 0
        self.verdict: Verdict | None = None
        self.view: FilterView | None = None

    def run(self) -> RoundResult:
        try:
            outcome = self._personalize()
        except CodaError as error:
            self._finish("failed", "failed", type(error).__name__)
            raise
        return self._finish("done", outcome)

    def _personalize(self) -> str:
        model = self._pull()
        with self.meter.phase("encode"):
            local = local_samples(self.home, model)
            self.local_count = len(local.train) + len(local.held_out)
            if self.local_count < model.manifest.settings.min_local:
                return "too few samples"
            ids, rows, found = local.everything.ids(VOCABULARY), None, None
            embeddings = model.encode(local.train, model.table(ids, model.base))
        self._at("encoded")
        if self.options.match:
            model, answer, embeddings = self._match(model, local, embeddings)
            rows = answer.rows.get(VOCABULARY)
            ids = np.union1d(ids, answer.candidates.ids(VOCABULARY)).astype(np.int32)
            if len(answer.candidates):
                found = self._filter(model, local, embeddings, answer, model.table(ids, model.base, rows))
        with self.meter.phase("tune"):
            base = model.table(ids, model.base, rows)
            kept, weights = (found.kept, found.weights) if found else (None, None)
            settings = model.manifest.settings
            tuned = personalize.tune(model, model.base, base, local.train, kept, weights, settings, self.rng)
            tuned = dataclasses.replace(tuned, version=self.id)
        self._at("tuned")
        with self.meter.phase("judge"):
            active = self.home.active_weights(model)
            before = model.logits(local.held_out, model.table(ids, active, rows), active)
            after = model.logits(local.held_out, personal_table(base, tuned), tuned)
            self.verdict = personalize.judge(local.held_out.labels, before, after)
        self._at("judged")
        with self.meter.phase("activate"):
            if self.verdict.activate:
                self.home.activate(tuned, model.manifest.version)
        if self.options.contribute:
            with self.meter.phase("contribute"):
                self._contribute(local.train)
        return "activated" if self.verdict.activate else "kept"

    def _at(self, state: str) -> None:
        self.home.store.advance_round(self.id, state)

    # -- pull ---------------------------------------------------------------------------------------------------

    def _pull(self) -> Model:
        """The current bundle, whole, verified, tested on this engine, and in service."""
        with self.meter.phase("pull"):
            ref, etag = self._announced()
            manifest_blob = FileRef(ref.manifest, ref.size, ref.size, "none")
            self.transport.fetch_blob(manifest_blob, self.home.blobs, "manifest")
            manifest = self.home.manifest(ref)
            for name, blob in files_of(manifest, self.engine.format).items():
                self.transport.fetch_blob(blob, self.home.blobs, "graphs" if name.startswith("graph") else "weights")
            model = Model.open(manifest, self.engine, self.home.blobs)
            for number in model.shards_for(event.item for event in self.home.store.events()):
                shard = manifest.tables[VOCABULARY].shards[number]
                self.transport.fetch_blob(shard, self.home.blobs, "item rows")
            self.bundle = manifest.version
        what = f"{ref.manifest}/{self.engine.name}/{self.engine.version}"
        if not self.home.store.passed(what):
            with self.meter.phase("self-test"):
                try_engine(model)
                self.home.store.pass_test(what)
        self.home.store.use_bundle(ref, etag)
        self._at("pulled")
        return model

    def _announced(self) -> tuple[BundleRef, str]:
        serving = self.home.store.bundle()
        headers = {"If-None-Match": serving[1]} if serving else {}
        answer = self.transport.request(
            "GET", "/v1/bundle", label="bundle", accept="application/json", accept_status=(200, 304), headers=headers
        )
        if answer.status == 304 and serving:
            return serving
        ref = from_json(answer.body, BundleRef, "the announced bundle")
        if serving and ref.version < serving[0].version:
            raise TrustError(
                f"{self.transport.base_url} announces bundle {ref.version}, but this device already has "
                f"{serving[0].version}; an older one is refused (a replay, or a server restored from an old copy)"
            )
        return ref, answer.headers.get("ETag", "")

    # -- match and filter ---------------------------------------------------------------------------------------

    def _match(self, model: Model, local: Local, embeddings: Float32) -> tuple[Model, MatchAnswer, Float32]:
        try:
            answer = self._ask(model, embeddings)
        except Refused as refused:
            if refused.status != 409:
                raise
            self._at("matched")  # the server has moved on to another encoder: pull it, and ask again, once
            model = self._pull()
            with self.meter.phase("encode"):
                table = model.table(local.everything.ids(VOCABULARY), model.base)
                embeddings = model.encode(local.train, table)
            self._at("encoded")
            answer = self._ask(model, embeddings)
        self.candidate_count = len(answer.candidates)
        self._at("matched")
        return model, answer, embeddings

    def _ask(self, model: Model, embeddings: Float32) -> MatchAnswer:
        settings = model.manifest.settings
        with self.meter.phase("match"):
            body = encode_query(
                MatchQuery(
                    model.manifest.encoder,
                    query.centroids(embeddings, settings.centroids, self.rng),
                    settings.candidates,
                    np.array(model.held(), np.int32),
                )
            )
            answer = self.transport.request("POST", "/v1/match", body, label="match", content_type=FRAME, accept=FRAME)
            signature = answer.headers.get("CoDA-Signature", "")
            verify(model.manifest.answer_key, answer_text(answer.nonce, answer.body), signature)
            return decode_answer(answer.body, model.manifest.schema)

    def _filter(
        self, model: Model, local: Local, embeddings: Float32, answer: MatchAnswer, table: LocalTable
    ) -> Augmentation:
        candidates = answer.candidates
        with self.meter.phase("filter"):
            start = model.manifest.filter_from
            found = filtering.filter_candidates(
                model.graph("classifier_score"),
                model.graph("classifier_step"),
                model.classifier,
                filtering.classifier_inputs(embeddings, local.train.labels, start),
                filtering.classifier_inputs(model.encode(candidates, table), candidates.labels, start),
                model.manifest.settings,
                self.rng,
            )
            kept = candidates.take(found.kept)
            dropped = np.delete(found.scores, found.kept)
            view = FilterView(
                _BINS.tolist(),
                np.histogram(found.scores[found.kept], _BINS)[0].tolist(),
                np.histogram(dropped, _BINS)[0].tolist(),
                float(kept.labels.mean()) if len(kept) else None,
                float(candidates.labels.mean()),
            )
        self.kept_count, self.view = len(kept), view
        self._at("filtered")
        return Augmentation(kept, found.weights, len(candidates), view)

    def _contribute(self, train: SampleBatch) -> None:
        """Samples that have been handed over before are not handed over again."""
        done = int(self.home.store.setting("contributed") or 0)
        if done < len(train):
            body = encode_contribution(train.take(slice(done, len(train))))
            self.transport.request(
                "POST", "/v1/contributions", body, label="contribution", content_type=FRAME, accept_status=(204,)
            )
            self.home.store.set(contributed=str(len(train)))

    # -- report -------------------------------------------------------------------------------------------------

    def _finish(self, state: str, outcome: str, error: str = "") -> RoundResult:
        """Record the round, then deliver its report and those that could not be delivered before.

        The report cannot contain the cost of its own delivery; the journal's traffic does.
        """
        report = self._report(outcome, error)
        self.home.store.finish_round(self.id, state, report, self._traffic())
        waiting = [row for row in self.home.store.rounds() if row.report is not None and not row.delivered]
        try:
            for row in waiting[-_OUTBOX:]:
                self.transport.request("POST", "/v1/reports", to_json(row.report), label="report", accept_status=(204,))
                self.home.store.mark_delivered(row.id)
        except TransportError:
            pass  # the outbox keeps them for the next round
        return RoundResult(report, self.view, self._traffic())

    def _report(self, outcome: str, error: str) -> RoundReport:
        return RoundReport(
            round=self.id,
            bundle=self.bundle,
            engine=self.engine.name,
            outcome=outcome,
            local=self.local_count,
            candidates=self.candidate_count,
            kept=self.kept_count,
            verdict=self.verdict,
            phases=self.meter.records,
            error=error,
        )

    def _traffic(self) -> dict[str, tuple[int, int]]:
        found = {}
        for label, now in self.transport.counter.by_label.items():
            spent = now - self._before[label] if label in self._before else now
            if spent.up or spent.down:
                found[label] = (spent.up, spent.down)
        return found


def run_round(
    home: DeviceHome,
    transport: Transport,
    engine: Engine,
    options: RoundOptions,
    now: Callable[[], float] = time.time,
) -> RoundResult:
    """Run one round and report it.

    Raises:
        CodaError: the round failed; it is recorded and reported as failed, and the old weights still serve.
    """
    with home.locked():
        return Round(home, transport, engine, options, now).run()


def local_samples(home: DeviceHome, model: Model) -> Local:
    """The device's labelled events as samples, cut in time into a training and a held-out part.

    Raises:
        StoreError: the rows of their items have not been pulled.
    """
    stream, unknown = known_events(home, model)
    everything = samples(stream, model.manifest.schema)
    train, held_out = personalize.split(len(everything), model.manifest.settings.holdout)
    return Local(everything.take(train), everything.take(held_out), unknown)


def known_events(home: DeviceHome, model: Model) -> tuple[Events, int]:
    """The labelled events whose items the catalogue knows, ordered, and how many it does not know."""
    return as_stream(model, home.store.events())


def as_stream(model: Model, events: list[Event]) -> tuple[Events, int]:
    """Stored events as a stream; see `known_events`."""
    label = labels(events, model.manifest.positive_at)
    known = model.ids_of([event.item for event in events])
    item = np.array([known.get(event.item, 0) for event in events], np.int32)
    stream = Events(
        np.zeros(len(events), np.int32),
        item,
        np.array([event.timestamp for event in events], np.int64),
        label,
        np.array([event.observed for event in events], bool),
    )
    return stream.take((item > 0) & ~np.isnan(label)).ordered(), int((item == 0).sum())


def personal_table(table: LocalTable, weights: Weights) -> LocalTable:
    """A table of base rows with the personal rows laid over it."""
    if weights.rows is None:
        return table
    at = table.local(weights.rows.ids)
    tensors = dict(table.tensors)
    for name, rows in weights.rows.tensors.items():
        tensors[name] = tensors[name].copy()
        tensors[name][at] = rows
    return LocalTable(table.ids, tensors)


def try_engine(model: Model) -> None:
    """Try the step graph on made-up samples over rows of any shard that is held, or on padding if none is.

    Raises:
        SelfTestFailed, EngineError: the engine must not be used.
    """
    step = model.graph("step")
    held = model.held()
    ids = model.shard(held[0]).ids[:64] if held else np.zeros(0, np.int32)
    table = model.table(ids, model.base)
    rng = np.random.default_rng(0)
    count = step.spec.batch
    batch: dict[str, Array] = {}
    for tensor in step.spec.of("feature"):
        shape = tuple(d for d in tensor.shape if isinstance(d, int))
        if tensor.dtype == "int64":
            batch[tensor.name] = rng.integers(min(1, len(table) - 1), len(table), shape)
        else:
            batch[tensor.name] = rng.normal(size=shape).astype(np.float32)
    batch["label"] = (np.arange(count) % 2).astype(np.float32)
    batch["sample_weight"] = np.ones(count, np.float32)
    self_test(model.engine, step, model.values("step", model.base, table), batch, model.manifest.settings.rate)
