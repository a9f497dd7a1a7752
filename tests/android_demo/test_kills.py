"""The Java core is killed at random instants of a round, network, disk and graphs alike: nothing of it is lost."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import time

import numpy as np

from device_runtime.store import Store
from tests.android_demo.test_round import weights
from tests.conftest import REPOSITORY

SEED = 5
KILLS = 8


def killed_after(device, seconds, **properties):
    """Whether the process, and the one that runs its graphs, still worked when they were killed."""
    command = [*device.command(home=device.home, **properties), "org.coda.core.HostDevice"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def rounds(device):
    with Store(device.home / "coda.db") as store:
        return store.rounds()


def test_a_round_that_is_killed_again_and_again_ends_as_one_that_was_not(device, serving, published, tmp_path, rng):
    undisturbed = dataclasses.replace(device, home=tmp_path / "undisturbed")
    with serving() as (url, services):
        for each in (device, undisturbed):
            each.told(server=url, trust=published.trust, history=published.history, rounds=0)
        started = time.monotonic()
        expected, _ = undisturbed.run(seed=SEED)
        whole = time.monotonic() - started
        kills, states = 0, set()
        while kills < KILLS and not any(row.state == "done" for row in rounds(device)):
            kills += killed_after(device, rng.uniform(0.2, 1.0) * whole, seed=SEED)
            states |= {row.state for row in rounds(device)}
        if not any(row.state == "done" for row in rounds(device)):
            device.run(seed=SEED)
        [first, *_] = rounds(device)
        delivered = [report.round for _, report in services.catalog.reports()]
    print(f"killed {kills} times within {whole:.1f} s; seen states: {', '.join(sorted(states))}")
    assert first.state == "done" and "interrupted" not in states, "it went on, and did not begin anew"
    assert first.report.verdict is not None and first.report.kept == expected["kept"]
    assert delivered.count(first.id) <= 1 and len(set(delivered)) == len(delivered)
    ours, meant = weights(device.home), weights(undisturbed.home)
    for name, tensor in meant.items():
        np.testing.assert_array_equal(ours[name], tensor)
