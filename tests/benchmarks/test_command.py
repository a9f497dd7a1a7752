"""`coda bench`: what it lists, what it refuses, and the JSON that scripts read."""

from __future__ import annotations

import json

import pytest

from benchmarks import result
from benchmarks.command import BENCHES
from device_runtime.cli import main


def test_help_lists_every_question(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    assert all(f"  {name} " in told for name in BENCHES)


@pytest.mark.parametrize("name", BENCHES)
def test_each_question_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", name, "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    assert f"coda bench {name}" in told and "--quick" in told and "--json" in told


def test_an_unknown_question_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "nonsense"])
    assert stop.value.code == 2
    assert "engines" in capsys.readouterr().err


def test_the_json_says_what_was_measured_on_what(tmp_path):
    rows = [{"engine": "onnx", "ms": 1.5}]
    result.write(str(tmp_path / "out.json"), "bench x", result.now(), rows, samples=3)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["command"] == "bench x" and found["rows"] == rows and found["samples"] == 3
    assert {"version", "machine", "started"} <= set(found)
    assert found["machine"]["cores"] >= 1


def test_the_table_aligns_words_and_numbers():
    rows = [{"engine": "onnx", "ms": 1.5}, {"engine": "reference", "ms": None}]
    lines = result.table(rows, {"engine": "", "ms": ".2f"}).splitlines()
    assert lines == ["engine       ms", "onnx       1.50", "reference     -"]
