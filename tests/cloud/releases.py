"""A catalog with bundles and devices that tell of rounds, and a clock to move: what tests of releases stand on."""

from __future__ import annotations

import numpy as np

from cloud.catalog import Catalog
from cloud.releases import Releases
from cloud.rollout import Gate, Rung
from device_runtime.messages import BundleRef, PhaseOverhead, RoundReport, Verdict

QUICK = (
    Rung(name="simulation"),
    Rung(name="25 %", share=0.25, named=True, least=20, dwell_s=600),
    Rung(name="100 %", share=1.0, named=True),
)
"""A ladder for fleets of hundreds."""
LENIENT = Gate(quality_margin=0.2, sizes=20, failure_bound=0.5, silence_s=0)
"""Hundreds of devices cannot exclude a loss of 0.01 AUC, and a test's days are short."""


class Clock:
    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def ref(version: int) -> BundleRef:
    return BundleRef(version=version, manifest=f"{version:064x}", size=1, key="0" * 16, signature="0" * 128)


def told(name, bundle, outcome="kept", cpu_s=0.4, auc=0.6, age_s=0.0, **more):
    """A round's report. auc: of what serves after it."""
    phases = [
        PhaseOverhead(
            phase=phase, cpu_user_s=seconds, cpu_system_s=0.0, wall_s=1.0, peak_mib=80.0, peak_source="phase",
            bytes_stored=0, bytes_up=900, bytes_down=1700,
        )
        for phase, seconds in (("pull", 9.0), ("self-test", 9.0), ("tune", cpu_s))
    ]  # fmt: skip
    verdict = Verdict(
        activate=False, reason="", samples=20, loss_before=0.6, loss_after=0.7, auc_before=auc, auc_after=auc - 0.1
    )
    return RoundReport(
        round=name, bundle=bundle, engine="onnx", outcome=outcome, local=60, candidates=60, kept=60,
        verdict=None if outcome == "failed" else verdict, phases=phases, age_s=age_s, **more,
    )  # fmt: skip


class Fleet:
    """Devices of a catalog that run what they should, and report what a test has a bundle do to them."""

    def __init__(self, catalog: Catalog, rng: np.random.Generator, clock: Clock) -> None:
        self.catalog, self.clock, self.rng = catalog, clock, rng
        self.releases = Releases(catalog, clock)
        self.ids = [device.id for device in catalog.devices()]
        self.failing: dict[int, float] = {}
        self.cpu_s: dict[int, float] = {}
        self.auc: dict[int, float] = {}

    def runs(self) -> list[int]:
        """The bundle of each device, as it would be told now."""
        return [self.releases.decide(self.catalog.device(one), 0).bundle for one in self.ids]

    def round(self) -> None:
        """Every device runs one, and reports it."""
        for one in self.ids:
            device = self.catalog.device(one)
            bundle = self.releases.decide(device, 0).bundle
            failed = self.rng.random() < self.failing.get(bundle, 0.01)
            report = told(
                f"{one[:8]}-{self.clock():.2f}", bundle, "failed" if failed else "kept",
                cpu_s=self.cpu_s.get(bundle, 0.4) * float(np.exp(self.rng.normal(0, 0.2))),
                auc=self.auc.get(bundle, 0.6) + float(self.rng.normal(0, 0.02)),
            )  # fmt: skip
            self.clock.now += 0.01
            now = self.clock()
            self.catalog.report(one, report, now, self.releases.voice(device, report, now))


def stocked(catalog: Catalog, versions=(2, 3, 4)) -> None:
    """The first of these bundles is everyone's, the others are staged."""
    for number, version in enumerate(versions):
        catalog.release(f"bundle {version}", ref(version), now=1.0, staged=number > 0)


def enrolled(catalog: Catalog, devices: int) -> None:
    for number in range(devices):
        catalog.enrol(f"{number:064x}", {"system": "Linux 6.1", "machine": "aarch64"}, 1.0)
