"""Made-up demo results. Nothing in them was measured."""

from __future__ import annotations

import msgspec
import numpy as np

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
from device_runtime.messages import PhaseOverhead, RoundReport, Verdict
from device_runtime.meter import merge

SEED = 20220110
PHASES = ("pull", "self-test", "encode", "match", "filter", "tune", "judge", "activate")
_EDGES = [i / 20 for i in range(21)]


def report(devices: list[DeviceResult], *, notes: list[str] | None = None, **other: object) -> DemoReport:
    """A whole result of these devices."""
    made = DemoReport(
        command="coda demo --report made-up",
        version="0.0.0",
        machine={"system": "Made-up 1.0", "machine": "x86_64", "python": "3.11", "cores": 2, "memory_mib": 4096},
        started="2026-01-02T03:04:05Z",
        seconds=75.5,
        quick=False,
        seed=SEED,
        dataset=DatasetFacts("made-up", 610, 9742, 100836, "2016-03-22T08:26:11Z", 61, 80669, ["nothing is real"]),
        model=ModelFacts("DIN", 170777, 3, 0.6381, 7.3, {"graphs": 36610, "weights": 59764, "item rows": 367676}),
        stages=[Stage("train", 7.3), Stage("devices", 35.6)],
        devices=devices,
        notes=notes or [],
    )
    return msgspec.structs.replace(made, **other)


def fleet(count: int, rounds: int = 3) -> list[DeviceResult]:
    """Devices that all came to their end; every second one on another engine."""
    rng = np.random.default_rng(SEED)
    return [device(f"user-{i}", rng, "executorch" if i % 2 else "onnx", rounds) for i in range(count)]


def device(name: str, rng: np.random.Generator, engine: str = "onnx", count: int = 3, **other: object) -> DeviceResult:
    """One device after so many rounds; `other` replaces fields."""
    reports = [one_round(rng, engine, first=not number) for number in range(count)]
    last = reports[-1]
    cloud = float(rng.uniform(0.45, 0.9))
    local = min(cloud + float(rng.normal(0.004, 0.02)), 1.0)
    moved = any(one.outcome == "activated" for one in reports)
    scores = rng.beta(0.3, 3, last.candidates)
    chosen = np.zeros(last.candidates, bool)
    chosen[np.argsort(-scores)[: last.kept]] = True
    made = DeviceResult(
        id=name,
        engine=engine,
        local=last.local,
        candidates=last.candidates,
        kept=last.kept,
        activated=last.outcome == "activated",
        held_out=int(rng.integers(20, 140)),
        auc=Aucs(cloud, local, min(cloud + float(rng.normal(0.01, 0.02)), 1.0) if moved else cloud),
        overhead=msgspec.convert(merge(last.phases), Overhead, strict=False),
        rounds=reports,
        bytes_by_message=[_messages(first=not number) for number in range(count)],
        filter=FilterFacts(
            _EDGES,
            np.histogram(scores[chosen], _EDGES)[0].tolist(),
            np.histogram(scores[~chosen], _EDGES)[0].tolist(),
            0.64,
            0.55,
        ),
        top=[
            RankedItem(rank, f"{527 + rank}", f"A Made-up Film, Part {rank} (19{60 + rank})", 0.9 - rank / 50, was)
            for rank, was in enumerate([2, 1, 40, None, 5], 1)
        ],
    )
    return msgspec.structs.replace(made, **other)


def one_round(rng: np.random.Generator, engine: str = "onnx", *, first: bool) -> RoundReport:
    """A finished round."""
    before, local = float(rng.uniform(0.5, 0.8)), int(rng.integers(40, 600))
    after = before + float(rng.normal(-0.01, 0.02))
    fell = after < before
    verb = "fell" if fell else "did not fall"
    phases = [_phase(name, rng, engine, first) for name in PHASES if first or name != "self-test"]
    return RoundReport(
        round=rng.bytes(8).hex(),
        bundle=1,
        engine=engine,
        outcome="activated" if fell else "kept",
        local=local,
        candidates=400,
        kept=int(rng.integers(3, 60)),
        verdict=Verdict(
            activate=fell,
            reason=f"log loss {verb} ({before:.4f} to {after:.4f})",
            samples=local // 5,
            loss_before=before,
            loss_after=after,
            auc_before=0.61,
            auc_after=0.62,
        ),
        phases=phases,
    )


def phase(name: str, cpu_s: float, peak_mib: float, *, down: int = 0, up: int = 0) -> PhaseOverhead:
    """One phase's record."""
    return PhaseOverhead(
        phase=name,
        cpu_user_s=cpu_s,
        cpu_system_s=0.0,
        wall_s=cpu_s,
        peak_mib=peak_mib,
        peak_source="phase",
        bytes_stored=0,
        bytes_up=up,
        bytes_down=down,
    )


def _phase(name: str, rng: np.random.Generator, engine: str, first: bool) -> PhaseOverhead:
    cpu = {"filter": 0.045, "tune": 0.03, "self-test": 0.05}.get(name, 0.01) * float(rng.uniform(0.8, 1.3))
    peak = (50.0 if engine == "executorch" else 65.0) + 3 * PHASES.index(name)
    down, up = {"pull": (448_000, 2_850) if first else (109, 349), "match": (12_800, 1_400)}.get(name, (0, 0))
    return phase(name, cpu, peak, down=down, up=up)


def _messages(*, first: bool) -> dict[str, tuple[int, int]]:
    pull = {"manifest": (141, 2781), "weights": (282, 60331), "graphs": (705, 14421), "item rows": (1410, 370516)}
    later = {"bundle": (349, 109), "match": (1405, 12796), "report": (2113, 81)}
    return pull | later if first else later
