"""Processes that train and take turns, so that a busy machine is busy for all; and whether their work is the same.

What a worker answers is in `peers/protocol.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.prepare import last_line
from device_runtime.errors import InputError
from device_runtime.samples import Float32

CHECKED_STEPS = 5
LOSS_WITHIN, WEIGHTS_WITHIN = 1e-4, 1e-3
"""Of the reference's loss (absolute) and weights (as a share of how far the tensor moved)."""


@dataclass
class Worker:
    """A process that trains on one engine.

    losses, weights: of the first and the last of the steps that are checked, and what they led to. off_by, off_in: the
    largest difference from the reference's weights, as a share of how far the tensor moved, and the tensor.
    """

    engine: str
    process: subprocess.Popen[str]
    losses: tuple[float, float] = (0.0, 0.0)
    weights: dict[str, Float32] = field(default_factory=dict)
    off_by: float = 0.0
    off_in: str = ""
    ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    first_step_ms: float = 0.0
    steps_per_call: int = 1
    install_mib: float = 0.0
    peak_mib: float = 0.0

    @classmethod
    def start(cls, engine: str, command: Sequence[str], environment: Mapping[str, str]) -> Worker:
        """Raises: InputError: there is no such program."""
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=os.environ | dict(environment)
            )
        except OSError as error:
            raise InputError(f"{engine}: {command[0]} cannot be run: {error.strerror}") from None
        return cls(engine, process)

    def ask(self, line: str) -> Mapping[str, Any]:
        """Raises: InputError: the worker is gone; the message is the last line that it wrote."""
        assert self.process.stdin is not None and self.process.stdout is not None and self.process.stderr is not None
        if line:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise InputError(f"{self.engine} does not run here: {last_line(self.process.stderr.read())}")
        found: Mapping[str, Any] = json.loads(answer)
        return found

    def begin(self) -> None:
        """Wait until it is ready, and let it take the steps that are checked. Raises: InputError: it is gone."""
        first = self.ask("")
        self.first_step_ms, self.steps_per_call = first["first_step_ms"], first["steps_per_call"]
        self.losses = (first["loss"], self.ask(str(CHECKED_STEPS - 1))["loss"])
        with tempfile.TemporaryDirectory(prefix="coda-bench-") as folder:
            names = self.ask(f"weights {folder}")["weights"]
            self.weights = {name: np.load(Path(folder) / f"{name}.npy") for name in names}

    def compare(self, reference: Worker, start: Mapping[str, Float32]) -> None:
        """Whether it did the reference's work in the steps that are checked. start: the trained weights before them.

        Raises:
            InputError: a loss or a weight differs, or a weight is missing.
        """
        other = f"{self.engine} does other work than {reference.engine}"
        if not np.allclose(self.losses, reference.losses, rtol=0, atol=LOSS_WITHIN):
            raise InputError(f"{other}: its losses are {self.losses}, not {reference.losses}")
        for name, before in start.items():
            if name not in self.weights:
                raise InputError(f"{other}: it has no weight {name!r}")
            wanted = reference.weights[name]
            moved = max(float(np.abs(wanted - before).max()), 1e-3 * float(np.abs(before).max()))
            off = float(np.abs(self.weights[name] - wanted).max()) / moved
            if not off <= WEIGHTS_WITHIN:
                raise InputError(f"{other}: {name!r} is off by {off:.1e} of how far it moves")
            if off > self.off_by:
                self.off_by, self.off_in = off, name

    def turn(self, steps: int, count: bool) -> None:
        found = self.ask(str(steps))
        self.peak_mib = found["peak_mib"]
        if count:
            self.ms += found["ms"]
            self.cpu_ms.append(found["cpu_ms"])

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def race(
    commands: Mapping[str, Sequence[str]],
    start: Mapping[str, Float32],
    turns: int,
    steps: int,
    environment: Mapping[str, str],
) -> tuple[list[Worker], dict[str, str]]:
    """Start a process for each command and let them take turns; the first turn warms up: (those that ran, engine -> why
    it did not).

    The first command is the reference: the others must do its work, or they are not timed.

    Raises:
        InputError: the first does not run, or one that had begun is gone.
    """
    workers: list[Worker] = []
    absent = {}
    try:
        for engine, command in commands.items():
            worker = None
            try:
                worker = Worker.start(engine, command, environment)
                worker.begin()
                worker.compare(workers[0] if workers else worker, start)
                workers.append(worker)
            except InputError as reason:
                if worker is not None:
                    worker.close()
                if not workers:
                    raise
                absent[engine] = str(reason)
        for number in range(turns + 1):
            for worker in workers:
                worker.turn(steps, count=number > 0)
        for worker in workers:  # last: walking over files takes memory
            worker.install_mib = worker.ask("install")["install_mib"]
    finally:
        for worker in workers:
            worker.close()
    return workers, absent
