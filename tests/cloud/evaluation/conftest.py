"""One quick run of `coda evaluate`, which the other tests look at and go on from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloud.evaluation import synthetic
from cloud.evaluation.cloud_side import Place
from cloud.evaluation.protocols import Split, split
from device_runtime.cli import main


@dataclass(frozen=True)
class Finished:
    """words: of the command, without --json. work: its folder, with a trained cloud. result: the JSON."""

    words: list[str]
    work: Path
    report: Path
    result: dict[str, Any]
    made: synthetic.Made
    parts: Split
    place: Place


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("evaluation")
    words = ["evaluate", "--protocol", "synthetic", "--heterogeneity", "1", "--quick", "--users", "6", "--jobs", "1"]
    words += ["--work", str(folder / "work")]
    out = folder / "out.json"
    assert main([*words, "--methods", "all", "--json", str(out), "--report", str(folder / "report")]) == 0
    [cloud] = (folder / "work").glob("cloud-*")
    [pool] = cloud.glob("pool-*")
    made = synthetic.make(1.0, 0, synthetic.QUICK)
    return Finished(
        words,
        folder / "work",
        folder / "report",
        json.loads(out.read_text()),
        made,
        split(made.dataset, "synthetic", 6, cut=synthetic.CUT),
        Place(cloud / "bundle", pool),
    )
