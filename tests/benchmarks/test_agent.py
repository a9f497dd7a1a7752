"""`coda bench agent`: on a device's home that has had a round, every question gets a figure."""

from __future__ import annotations

import json

from benchmarks.round import one_round
from device_runtime.cli import main


def test_a_device_that_has_had_a_round_is_measured(serving, published, tmp_path):
    with serving() as (url, _):
        words = ["--server", url, "--trust", published.bundle / "release.pub", "--import", published.history]
        one_round(tmp_path, "onnx", words)
    [home] = [path.parent for path in tmp_path.rglob("coda.db")]
    out = tmp_path / "agent.json"
    assert main(["bench", "agent", "--quick", "--events", "2000", "--home", str(home), "--json", str(out)]) == 0
    rows = {row["what"]: row["value"] for row in json.loads(out.read_text())["rows"]}
    asked = ("idle agent, peak memory", "cold start to a ranked list, CPU", "between two looks for the app in a round")
    assert all(any(what.startswith(one) for what in rows) for one in asked)
    assert all(value > 0 for value in rows.values())
