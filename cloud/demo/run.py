"""The demo's stages: read, train, export, serve, devices, tests on later events, report."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cloud.datasets import Dataset, write_history
from cloud.demo.processes import coda, server
from cloud.demo.split import DemoSplit, DeviceData, arrivals, split
from cloud.home import ServerHome, ingest, publish
from cloud.report.model import (
    Aucs,
    DatasetFacts,
    DemoReport,
    DeviceResult,
    FilterFacts,
    ModelFacts,
    Overhead,
    RankedItem,
    Stage,
)
from cloud.training import train
from device_runtime import __version__
from device_runtime.bundle import Manifest, RoundSettings
from device_runtime.engines import Engine, open_engine
from device_runtime.errors import CodaError, EngineUnavailable
from device_runtime.identity import Signer
from device_runtime.messages import RoundReport
from device_runtime.meter import merge
from device_runtime.platform_info import capability
from export.checkpoint import Trained, TrainSettings
from export.package import Source, build

Show = Callable[[str, int, int], None]
"""Called with a stage's name, what is done, and what there is to do."""
_DEEP = 200
"""Ranks under the cloud's weights that are looked at."""


@dataclass(frozen=True)
class DemoOptions:
    """devices: how many. rounds: of each device. quick: a smaller training. work: where everything is put."""

    devices: int
    rounds: int
    seed: int
    quick: bool
    work: Path
    command: str


@dataclass
class Demo:
    """One run. `show` is told of progress; `notes` collects what went wrong without ending the run."""

    dataset: Dataset
    options: DemoOptions
    show: Show
    notes: list[str] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)

    def run(self) -> DemoReport:
        """Raises: CodaError: a stage that everything depends on failed."""
        started, begin = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter()
        options = self.options
        parts = split(self.dataset, options.devices, np.random.default_rng(options.seed))
        if len(parts.devices) < options.devices:
            self.notes.append(
                f"{options.devices} devices were asked for, but only {parts.eligible} users are active enough"
            )
        engines = self._engines()
        with self._stage("train"):
            trained = self._train(parts)
        with self._stage("export"), ServerHome(options.work / "server") as home:
            manifest = self._export(trained, engines, home)
        with self._stage("pool"), ServerHome(options.work / "server") as home:
            pool = ingest(home, parts.cloud, lambda done, total: self.show("embed the pool", done, total))
        with self._stage("devices"), server(options.work / "server", options.work / "server.log") as url:
            devices = self._devices(parts, url, engines)
        return DemoReport(
            options.command,
            __version__,
            _machine(),
            started,
            time.perf_counter() - begin,
            options.quick,
            options.seed,
            self._dataset_facts(parts, pool),
            _model_facts(trained, manifest, next(s.seconds for s in self.stages if s.name == "train")),
            self.stages,
            devices,
            self.notes,
        )

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.stages.append(Stage(name, time.perf_counter() - begin))

    def _engines(self) -> list[Engine]:
        found = []
        for name in ("onnx", "executorch"):
            try:
                found.append(open_engine(name))
            except EngineUnavailable as reason:
                self.notes.append(f"the {name} engine is missing, so no device uses it: {reason}")
        if not found:
            raise EngineUnavailable("; ".join(self.notes))
        return found

    def _train(self, parts: DemoSplit) -> Trained:
        settings = TrainSettings(seed=self.options.seed)
        if self.options.quick:
            settings = msgspec.structs.replace(settings, epochs=2)

        def progress(epoch: int, thousandths: int, _: float) -> None:
            self.show(f"train, epoch {epoch}", thousandths, 1000)

        return train(parts.cloud, self.options.work / "model", settings, progress)

    def _export(self, trained: Trained, engines: list[Engine], home: ServerHome) -> Manifest:
        done = iter(range(1, 100))
        steps = 5 * len(engines) + 1
        build(
            Source.of(trained, RoundSettings()),
            self.options.work / "bundle",
            version=1,
            signer=Signer.open_or_create(self.options.work / "release.key"),
            answer_key=home.answer_signer.public,
            engines=engines,
            progress=lambda what: self.show(what, next(done), steps),
        )
        return publish(home, self.options.work / "bundle")

    # -- devices ------------------------------------------------------------------------------------------------

    def _devices(self, parts: DemoSplit, url: str, engines: list[Engine]) -> list[DeviceResult]:
        total = len(parts.devices) * (self.options.rounds + 2)
        done = iter(range(1, total + 1))
        self.show("devices", 0, total)

        def one(number: int) -> DeviceResult:
            engine = engines[number % len(engines)].name
            return self._device(parts.devices[number], engine, url, lambda: self.show("devices", next(done), total))

        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            return list(threads.map(one, range(len(parts.devices))))

    def _device(self, data: DeviceData, engine: str, url: str, step: Callable[[], None]) -> DeviceResult:
        work = self.options.work / "devices" / data.user.replace("/", "_")
        work.mkdir(parents=True)
        home, log, results = work / "home", work / "log", []
        who: list[object] = ["--home", home, "--engine", engine]
        try:
            for number, portion in enumerate(arrivals(data.local, self.options.rounds), 1):
                write_history(self.dataset, portion, work / f"events-{number}.csv")
                out = work / f"round-{number}.json"
                coda(
                    "device", "run", *who, "--server", url, "--trust", self.options.work / "bundle" / "release.pub",
                    "--import", work / f"events-{number}.csv", "--seed", self.options.seed, "--json", out, log=log,
                )  # fmt: skip
                results += json.loads(out.read_text())["rows"]
                step()
            write_history(self.dataset, data.held_out, work / "later.csv")
            coda("device", "evaluate", *who, "--held-out", work / "later.csv", "--json", work / "later.json", log=log)
            step()
            for weights, top in (("active", 5), ("base", _DEEP)):
                words = [*who, "--weights", weights, "--top", top, "--json", work / f"rank-{weights}.json"]
                coda("device", "rank", *words, log=log)
            step()
        except CodaError as error:
            self.notes.append(f"device {data.user} ({engine}): {error}")
            return DeviceResult(data.user, engine, rounds=_reports(results), error=str(error))
        return self._result(data, engine, results, work)

    def _result(self, data: DeviceData, engine: str, results: list[dict[str, Any]], work: Path) -> DeviceResult:
        reports = _reports(results)
        last = reports[-1]
        found = json.loads((work / "later.json").read_text())
        seen = results[-1]["filter"]
        return DeviceResult(
            id=data.user,
            engine=engine,
            local=last.local,
            candidates=last.candidates,
            kept=last.kept,
            activated=last.outcome == "activated",
            held_out=found["held_out"],
            auc=Aucs(**{name: found[name]["auc"] for name in ("cloud", "local", "coda")}),
            overhead=msgspec.convert(merge(last.phases), Overhead, strict=False),
            rounds=reports,
            bytes_by_message=[result["bytes_by_message"] for result in results],
            filter=msgspec.convert(seen, FilterFacts) if seen else None,
            top=self._ranked(work),
        )

    def _ranked(self, work: Path) -> list[RankedItem]:
        before = {row["item"]: row["rank"] for row in json.loads((work / "rank-base.json").read_text())["rows"]}
        titles = dict(zip(self.dataset.items, self.dataset.titles, strict=True))
        return [
            RankedItem(row["rank"], row["item"], titles.get(row["item"], ""), row["score"], before.get(row["item"]))
            for row in json.loads((work / "rank-active.json").read_text())["rows"]
        ]

    def _dataset_facts(self, parts: DemoSplit, pool: int) -> DatasetFacts:
        dataset = self.dataset
        dropped = [f"{count} rows dropped: {reason}" for reason, count in dataset.report.dropped.items()]
        return DatasetFacts(
            dataset.name,
            len(dataset.users),
            len(dataset.items) - 1,
            len(dataset.events),
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(parts.cut)),
            parts.eligible,
            pool,
            [*dataset.report.notes, *dropped],
        )


def _reports(results: list[dict[str, Any]]) -> list[RoundReport]:
    return [msgspec.convert(result, RoundReport) for result in results]


def _model_facts(trained: Trained, manifest: Manifest, seconds: float) -> ModelFacts:
    sizes = {"graphs": 0, "weights": manifest.weights.size + manifest.classifier.size, "item rows": 0}
    for entry in manifest.graphs.values():
        sizes["graphs"] += sum(file.file.size for file in entry.files.values())
    for table in manifest.tables.values():
        sizes["item rows"] += sum(shard.size for shard in table.shards)
    return ModelFacts(
        manifest.model,
        sum(p.numel() for p in trained.model.parameters()),
        len(trained.state.history),
        trained.metrics["validation_auc"],
        seconds,
        sizes,
    )


def _machine() -> dict[str, str | int | float]:
    found = capability({})
    machine: dict[str, str | int | float] = {
        name: value for name, value in msgspec.to_builtins(found).items() if name not in ("engines", "runtime")
    }
    return machine | {"platform": platform.platform()}
