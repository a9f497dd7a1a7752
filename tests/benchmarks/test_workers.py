"""Workers take turns only if they do the same work; one that does not, or that is gone, is named with the reason."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.workers import race
from device_runtime.errors import InputError

START = {"bias": np.zeros(3, np.float32), "weight": np.ones((2, 3), np.float32)}

WORKER = """
import json, sys
import numpy as np

loss, given = float(sys.argv[1]), dict(np.load(sys.argv[2]))

def say(**fields):
    print(json.dumps(fields), flush=True)

say(first_step_ms=1.0, loss=0.5, peak_mib=1.0, steps_per_call=1)
for line in sys.stdin:
    word, _, folder = line.strip().partition(" ")
    if word == "weights":
        for name, array in given.items():
            np.save(f"{folder}/{name}.npy", array)
        say(weights=list(given))
    elif word == "install":
        say(install_mib=3.0)
    else:
        say(ms=[2.0] * int(word), cpu_ms=1.5, peak_mib=4.0, loss=loss)
"""


def command(folder: Path, name: str, loss: float, **weights: np.ndarray) -> list[str]:
    np.savez(folder / f"{name}.npz", **weights)
    return [sys.executable, "-c", WORKER, str(loss), str(folder / f"{name}.npz")]


MOVED = {name: array + 1 for name, array in START.items()}


def test_those_that_do_the_same_work_take_turns(tmp_path: Path) -> None:
    nearly = {**MOVED, "bias": MOVED["bias"] + np.float32(1e-5)}
    commands = {"one": command(tmp_path, "one", 0.25, **MOVED), "two": command(tmp_path, "two", 0.25, **nearly)}
    (one, two), absent = race(commands, START, turns=2, steps=3, environment={})
    assert absent == {}
    assert one.ms == two.ms == [2.0] * 6 and two.cpu_ms == [1.5] * 2, "the first turn warms up"
    assert (two.peak_mib, two.install_mib, two.first_step_ms) == (4.0, 3.0, 1.0)
    assert one.off_by == 0
    assert two.off_in == "bias" and two.off_by == pytest.approx(1e-5, rel=0.1)


@pytest.mark.parametrize(
    ("loss", "change", "reason"),
    [
        (0.2502, {}, "its losses are (0.5, 0.2502), not (0.5, 0.25)"),
        (0.25, {"bias": MOVED["bias"] - np.float32(0.01)}, "'bias' is off by 1.0e-02 of how far it moves"),
        (0.25, {"weight": START["weight"]}, "'weight' is off by 1.0e+00 of how far it moves"),
        (0.25, {"weight": MOVED["weight"] * np.float32(np.nan)}, "'weight' is off by nan of how far it moves"),
        (0.25, {"bias": None}, "it has no weight 'bias'"),
    ],
)
def test_one_that_does_other_work_is_not_timed(
    tmp_path: Path, loss: float, change: dict[str, np.ndarray | None], reason: str
) -> None:
    other = {name: array for name, array in {**MOVED, **change}.items() if array is not None}
    commands = {"one": command(tmp_path, "one", 0.25, **MOVED), "two": command(tmp_path, "two", loss, **other)}
    workers, absent = race(commands, START, turns=1, steps=1, environment={})
    assert [w.engine for w in workers] == ["one"]
    assert absent == {"two": f"two does other work than one: {reason}"}


def test_one_that_does_not_run_says_why(tmp_path: Path) -> None:
    commands = {
        "one": command(tmp_path, "one", 0.25, **MOVED),
        "dies": [sys.executable, "-c", "raise SystemExit('no such engine here')"],
        "absent": [str(tmp_path / "no-such-python")],
    }
    workers, absent = race(commands, START, turns=1, steps=1, environment={})
    assert [w.engine for w in workers] == ["one"]
    assert absent["dies"] == "dies does not run here: no such engine here"
    assert "no-such-python cannot be run: No such file" in absent["absent"]


def test_without_the_first_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dies does not run here: it said nothing"):
        race({"dies": [sys.executable, "-c", ""]}, START, turns=1, steps=1, environment={})
