"""One personalization: pull, match, filter, tune, judge, activate or keep, report; metered and journalled.

A round starts from the bundle's weights with all local samples, not from earlier personal weights: what it ends with
depends on the data, not on how many rounds came before. Whatever goes wrong, the weights that served before still do.

The states are those of `journal`. Each step does its work, writes its result to a working file, and then commits the
state that it leads to; a round that is cut off goes on after the last step that was committed, and ends with the same
weights as one that was not.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save as save_safetensors

from device_runtime import evaluating, personalize, query
from device_runtime.augmenting import chosen, restored
from device_runtime.bundle import RoundSettings, read_tensors
from device_runtime.candidates import Augmentation
from device_runtime.engines import Engine
from device_runtime.errors import (
    CodaError,
    EngineError,
    InputError,
    Refused,
    StoreError,
    TransportError,
    Yielded,
)
from device_runtime.home import DeviceHome
from device_runtime.identity import answer_text, verify
from device_runtime.journal import FINAL, FilterView, Inputs, Progress, obstacle, stream_of
from device_runtime.local import Local, local_samples
from device_runtime.messages import BundleRef, RoundReport, Task
from device_runtime.meter import Meter
from device_runtime.metrics import auc
from device_runtime.model import VOCABULARY, Model, Weights, personal_table
from device_runtime.personalize import Tuned
from device_runtime.pull import pull
from device_runtime.samples import Float32, Int32
from device_runtime.sensors import Sensors
from device_runtime.tables import LocalTable
from device_runtime.transport import Transport
from device_runtime.wire import MatchAnswer, Rows, decode_answer, encode_contribution, encode_report
from device_runtime.working import WorkingFiles
from device_runtime.yielding import AskingEngine, Pulse

FRAME = "application/vnd.coda.frame"
_OUTBOX = 20
"""Reports of earlier rounds that are sent along, at most."""


@dataclass(frozen=True)
class RoundOptions:
    """seed: of everything random on the device. match: False trains on local samples alone. contribute: hand the
    training samples to the pool afterwards; only ever by the user's choice. evaluate: try configurations that the cloud
    wants compared (`evaluating`), of which only figures leave the device."""

    seed: int = 0
    match: bool = True
    contribute: bool = False
    evaluate: bool = True


@dataclass(frozen=True)
class RoundResult:
    """filter: None where nothing was matched. traffic: bytes (up, down) by message, this round's. resumed: how often
    it was taken up again after having been cut off. meter_cost_s: wall seconds that measuring took; they are in no
    phase."""

    report: RoundReport
    filter: FilterView | None
    traffic: dict[str, tuple[int, int]]
    resumed: int = 0
    meter_cost_s: float = 0.0


class Round:
    """Runs once, from its first step or from where the last process left it. Use `run_round`."""

    def __init__(
        self,
        home: DeviceHome,
        transport: Transport,
        engine: Engine,
        options: RoundOptions,
        now: Callable[[], float],
        pulse: Pulse | None = None,
        sensors: Sensors | None = None,
    ) -> None:
        self.home, self.transport, self.options = home, transport, options
        self.engine = engine if pulse is None else AskingEngine(engine, pulse)
        self.meter = Meter(home.path, transport.counter, sensors)
        self._before, self._now = dict(transport.counter.by_label), now
        serving = home.store.bundle()
        transport.bundle = serving[0].version if serving else 0
        self.id, self.state, self.progress = self._open(now())
        self._phases, self._traffic_before = list(self.progress.phases), dict(self.progress.traffic)
        self.files = WorkingFiles(home.rounds / self.id)
        WorkingFiles.clear_others(home.rounds, self.id)
        self._steps = {
            "started": self._pull,
            "pulled": self._encode,
            "encoded": self._match if options.match else self._tune,
            "matched": self._filter,
            "filtered": self._tune,
            "tuned": self._judge,
            "judged": self._activate,
            "activated": self._conclude,
        }

    def _open(self, now: float) -> tuple[str, str, Progress]:
        """The round that was cut off, if it can go on; else a new one."""
        store = self.home.store
        found = store.unfinished()
        if found is not None and found.progress is not None:
            progress, serving = found.progress, store.bundle()
            files = WorkingFiles(self.home.rounds / found.id)
            reason = obstacle(
                found.state,
                progress,
                self._inputs(progress.inputs.until, progress.inputs.ordinal),
                now - found.started,
                serving[0].manifest if serving else "",
                files.whole(progress.files),
            )
            if not reason:
                progress.resumed += 1
                return found.id, found.state, progress
        round_id = secrets.token_hex(8)
        return round_id, "started", store.start_round(round_id, now, lambda n: self._inputs(store.last_event(), n))

    def _inputs(self, until: int, ordinal: int) -> Inputs:
        return Inputs(
            seed=self.options.seed,
            match=self.options.match,
            engine=f"{self.engine.name} {self.engine.version}",
            until=until,
            events=self.home.store.count_events(until),
            ordinal=ordinal,
        )

    def run(self) -> RoundResult:
        try:
            while (step := self._steps[self.state]()) not in FINAL:
                self._commit(step)
        except (Yielded, StoreError) as reason:  # it stays, to be taken up again: when the disk has room, say
            self.progress.stumbles += isinstance(reason, StoreError)
            self._note_cost()
            with suppress(StoreError):
                self.home.store.note_progress(self.id, self.progress)
            raise
        except CodaError as error:
            self.progress.outcome = "failed"
            self._finish("failed", type(error).__name__)
            raise
        return self._finish("done")

    def _commit(self, state: str) -> None:
        if state != "activated":  # which `_activate` has committed together with what it activates
            self._note_cost()
            self.home.store.advance_round(self.id, state, self.progress)
        self.state = state

    def _rng(self) -> np.random.Generator:
        """Of the step that follows the present state."""
        return np.random.default_rng(stream_of(self.progress, self.state))

    # -- what steps hand on, from memory or from the working files -------------------------------------------------

    @cached_property
    def model(self) -> Model:
        return self.home.model(self.engine)

    @cached_property
    def local(self) -> Local:
        return local_samples(self.home, self.model, self.progress.inputs.until)

    @cached_property
    def answer(self) -> MatchAnswer | None:
        """None where nothing was asked for."""
        if "answer" not in self.progress.files:
            return None
        return decode_answer(self.files.read("answer"), self.model.manifest.schema)

    @property
    def rows(self) -> Rows | None:
        """The item rows that came with the candidates."""
        return self.answer.rows.get(VOCABULARY) if self.answer else None

    def _ids(self) -> Int32:
        ids = self.local.everything.ids(VOCABULARY)
        return np.union1d(ids, self.answer.candidates.ids(VOCABULARY)).astype(np.int32) if self.answer else ids

    def _keep(self, name: str, data: bytes) -> None:
        self.progress.files[name] = self.files.write(name, data)

    def _tensors(self, name: str) -> dict[str, npt.NDArray[np.generic]]:
        return read_tensors(self.files.read(name), f"the working file {name!r}")

    # -- the steps: each returns the state that it leads to --------------------------------------------------------

    def _pull(self) -> str:
        self.__dict__.pop("model", None)
        self.__dict__.pop("local", None)
        before = self.home.store.bundle()
        trusted = self.home.trusted if before else ""
        self.model, ref = pull(self.home, self.transport, self.engine, self.meter, self._now)
        if before and before[0].manifest != ref.manifest:
            self.progress.moved = True
            with self.meter.phase("compare"):
                self.progress.auc_previous = self._auc_of(before[0], trusted)
        self.progress.bundle, self.progress.manifest = ref.version, ref.manifest
        return "pulled"

    def _auc_of(self, ref: BundleRef, trusted: str) -> float | None:
        """Of a bundle that served until now, with the weights that did, on what this round holds out: how a release is
        compared with the one before. None where that cannot be told."""
        try:
            model = Model.open(self.home.manifest(ref, trusted), self.engine, self.home.blobs)
            local = local_samples(self.home, model, self.progress.inputs.until)
            if not len(local.held_out):
                return None
            weights = self.home.judged_weights(model)
            table = model.table(local.everything.ids(VOCABULARY), weights)
            return auc(local.held_out.labels, model.logits(local.held_out, table, weights))
        except (InputError, EngineError, StoreError):  # it may lack rows of new items, or be damaged: why it is left
            return None

    def _encode(self) -> str:
        model = self.model
        with self.meter.phase("encode"):
            local = self.local
            self.progress.local = len(local.train) + len(local.held_out)
            settings = model.manifest.settings
            if not personalize.enough(self.progress.local, settings):
                self.progress.outcome = "too few samples"
                return "done"
            everything = local.everything
            embeddings = model.encode(everything, model.table(everything.ids(VOCABULARY), model.base))
            shards = np.array(model.held(), np.int32)
            asked = query.frame(model.manifest, embeddings, settings, shards, self._rng(), model.directory)
            held = {"embeddings": embeddings, "query": np.frombuffer(asked, np.uint8)}
            self._keep("encoded", save_safetensors(held))
        return "encoded"

    def _match(self) -> str:
        try:
            with self.meter.phase("match"):
                body = self._tensors("encoded")["query"].tobytes()
                answer = self.transport.request(
                    "POST", "/v1/match", body, label="match", content_type=FRAME, accept=FRAME
                )
                signature = answer.headers.get("CoDA-Signature", "")
                verify(self.model.manifest.answer_key, answer_text(answer.nonce, answer.body), signature)
                self.answer = decode_answer(answer.body, self.model.manifest.schema)
                self._keep("answer", answer.body)
        except Refused as refused:
            if refused.status != 409 or self.progress.repulled:
                raise
            self.progress.repulled = True  # the server has moved on to another encoder: pull it, and ask again, once
            return "started"
        self.progress.candidates = len(self.answer.candidates)
        return "matched"

    def _filter(self) -> str:
        answer, model, local = self.answer, self.model, self.local
        if answer is None or not len(answer.candidates):
            return self._tune()
        with self.meter.phase("filter"):
            table = model.table(self._ids(), model.base, self.rows)
            found = chosen(model, answer.candidates, local, self._embeddings(local), table, self._rng())
            self.progress.view, self.progress.kept = found.view, len(found.filtered.kept)
            self._keep("filter", save_safetensors(found.tensors()))
        return "filtered"

    def _augmentation(self) -> Augmentation | None:
        """What the filter kept; None where there was nothing to filter."""
        if self.answer is None or "filter" not in self.progress.files:
            return None
        return restored(self.model, self.answer.candidates, self.local, self._tensors("filter"))

    def _embeddings(self, local: Local) -> Float32:
        """Of the samples that are trained on."""
        held: Float32 = self._tensors("encoded")["embeddings"].astype(np.float32)[: len(local.train)]
        return held

    def _tune(self) -> str:
        model = self.model
        with self.meter.phase("tune"):
            base = model.table(self._ids(), model.base, self.rows)
            kept, settings = self._augmentation(), model.manifest.settings
            local, rng = self.local, self._rng()
            tuned = personalize.tune(model, model.base, base, local.train, kept, settings, rng, local.held_out)
            self.progress.passes = tuned.passes
            self._keep("tuned", save_safetensors(tuned.weights.tensors()))
        return "tuned"

    def _judge(self) -> str:
        model, local = self.model, self.local
        settings = model.manifest.settings
        with self.meter.phase("judge"):
            tuned = Weights.from_tensors(self._tensors("tuned"), self.id)
            base = model.table(self._ids(), model.base, self.rows)
            active = self.home.judged_weights(model)
            before = model.logits(local.held_out, model.table(self._ids(), active, self.rows), active)

            def after(share: float) -> Float32:
                part = personalize.part_of_the_way(model, tuned, base, share)
                return model.logits(local.held_out, personal_table(base, part), part)

            verdict = personalize.consider(local.held_out.labels, before, after, settings)
            self.progress.verdict = verdict
            self.progress.outcome = "activated" if verdict.activate else "kept"
            if verdict.share < 1:
                part = personalize.part_of_the_way(model, tuned, base, verdict.share)
                self._keep("part", save_safetensors(part.tensors()))
        if verdict.activate and settings.learn_held_out:
            with self.meter.phase("tune"):
                rng = self._rng()

                def anew(kept: Augmentation | None, settings: RoundSettings) -> Weights:
                    return personalize.tune(model, model.base, base, local.everything, kept, settings, rng).weights

                passes = settings.epochs if self.progress.passes is None else self.progress.passes
                learned = personalize.learn_held_out(Tuned(tuned, passes), self._augmentation(), settings, anew)
                learned = personalize.part_of_the_way(model, learned, base, verdict.share)
                self._keep("learned", save_safetensors(learned.tensors()))
        return "judged"

    def _activate(self) -> str:
        better = self.progress.verdict is not None and self.progress.verdict.activate
        with self.meter.phase("activate"):
            if better:
                judged = self.files.path("part" if "part" in self.progress.files else "tuned")
                if "learned" in self.progress.files:
                    self.home.place_weights(self.id, self.files.path("learned"), judged=judged)
                else:
                    self.home.place_weights(self.id, judged)
        self._note_cost()
        self.home.store.activate_round(self.id, self.progress, self.id if better else "")
        return "activated"

    def _conclude(self) -> str:
        if self.options.evaluate and "evaluation" in self.transport.stale:
            with self.meter.phase("evaluate"):
                seed = stream_of(self.progress, "filtered")  # as the round itself tuned
                evaluating.answer_task(self.transport, self.model, self._material, seed)
        with self.meter.phase("clean"):
            self.home.drop_superseded()
            if (serving := self.home.store.bundle()) is not None:
                self.home.drop_other_blobs(serving[0], self.model.manifest)
            self.files.clear()
        if self.options.contribute:
            with self.meter.phase("contribute"):
                self._contribute()
        return "done"

    def _material(self, task: Task) -> evaluating.Material:
        table = self.model.table(self._ids(), self.model.base, self.rows)
        if task.period == "validation":
            local = evaluating.before_the_judged(self.local, self.model.manifest.settings)
            return evaluating.Material(local, table, self._augmentation_for(local, table))
        return evaluating.Material(self.local, table, self._augmentation())

    def _augmentation_for(self, local: Local, table: LocalTable) -> Augmentation | None:
        """What the filter would keep for a user of whom less is known: what is held out must not tell it anything."""
        if self.answer is None or "filter" not in self.progress.files:
            return None
        rng = np.random.default_rng(stream_of(self.progress, "matched"))
        return chosen(self.model, self.answer.candidates, local, self._embeddings(local), table, rng).augmentation

    def _contribute(self) -> None:
        """Samples that have been handed over before are not handed over again."""
        until = int(self.home.store.setting("contributed_until") or 0)
        local = self.local
        if (new := np.flatnonzero(local.times > until)).size:
            body = encode_contribution(local.train.take(new))
            try:
                self.transport.request(
                    "POST", "/v1/contributions", body, label="contribution", content_type=FRAME, accept_status=(204,)
                )
            except Refused as refusal:
                if refusal.status != 429:
                    raise
                return  # a quota is used up: what is new waits, and the round is none the worse
            self.home.store.set(contributed_until=str(int(local.times.max())))

    # -- report -------------------------------------------------------------------------------------------------

    def _finish(self, state: str, error: str = "") -> RoundResult:
        """Record the round, then deliver its report and those that could not be delivered before.

        The report cannot contain the cost of its own delivery; the journal's traffic does.
        """
        self._note_cost()
        report = self._report(error)
        self.home.store.finish_round(self.id, state, report, self.progress)
        self.files.clear()
        waiting = [(row, row.report) for row in self.home.store.rounds() if row.report and not row.delivered]
        try:
            for row, late in waiting[-_OUTBOX:]:
                age_s = round(max(self._now() - row.started, 0.0), 1)
                body = encode_report(msgspec.structs.replace(late, age_s=age_s))
                self.transport.request(
                    "POST", "/v1/reports", body, label="report", content_type=FRAME, accept_status=(204,)
                )
                self.home.store.mark_delivered(row.id)
        except (TransportError, Yielded):
            pass  # the outbox keeps them for the next round
        self._note_cost()
        self.home.store.note_progress(self.id, self.progress)
        self.home.store.set(stale=self.transport.stale)
        return RoundResult(report, self.progress.view, self.progress.traffic, self.progress.resumed, self.meter.cost_s)

    def _report(self, error: str) -> RoundReport:
        done = self.progress
        return RoundReport(
            round=self.id,
            bundle=done.bundle,
            engine=self.engine.name,
            outcome=done.outcome,
            local=done.local,
            candidates=done.candidates,
            kept=done.kept,
            verdict=done.verdict,
            phases=done.phases,
            error=error,
            auc_previous=self._auc_previous(),
        )

    def _auc_previous(self) -> float | None:
        if self.progress.auc_previous is None and self.progress.verdict is not None and not self.progress.moved:
            return self.progress.verdict.auc_before  # the same bundle: that is what served
        return self.progress.auc_previous

    def _note_cost(self) -> None:
        """What this process has spent so far, added to what those before it had."""
        self.progress.phases = self._phases + self.meter.records
        traffic = dict(self._traffic_before)
        for label, now in self.transport.counter.by_label.items():
            spent = now - self._before[label] if label in self._before else now
            if spent.up or spent.down:
                up, down = traffic.get(label, (0, 0))
                traffic[label] = (up + spent.up, down + spent.down)
        self.progress.traffic = traffic


def run_round(
    home: DeviceHome,
    transport: Transport,
    engine: Engine,
    options: RoundOptions,
    now: Callable[[], float] = time.time,
    pulse: Pulse | None = None,
    sensors: Sensors | None = None,
) -> RoundResult:
    """Run one round and report it; a round that was cut off, by a kill or by `pulse`, is taken up where it was.

    now: seconds since 1970. pulse: see `yielding.Pulse`. sensors: what to read beside CPU, memory and bytes.

    Raises:
        Yielded, StoreError: pulse asked for it, or nothing could be stored; the next call goes on.
        CodaError: the round failed; it is recorded and reported as failed, and the old weights still serve.
    """
    with home.locked():
        return Round(home, transport, engine, options, now, pulse, sensors).run()
