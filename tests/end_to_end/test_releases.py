"""A release, with real processes: several workers serve, an operator types, a device follows; nothing is restarted."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import reversion
from tests.end_to_end.test_loop import Machine

SEEN_S = 1.5
"""Workers see what another process did within a second."""


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def served(machine, published):
    """(address, home) of `coda serve` with two workers."""
    home, port = machine.folder / "server", machine.folder / "port"
    shutil.copytree(published.home, home)
    with (machine.folder / "log").open("wb") as log:
        words = ["serve", "--home", str(home), "--port", "0", "--port-file", str(port), "--workers", "2"]
        process = subprocess.Popen([sys.executable, "-m", "device_runtime", *words], stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not port.exists():
            assert process.poll() is None and time.monotonic() < deadline, (machine.folder / "log").read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port.read_text().strip()}", home
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
    assert "Traceback" not in (machine.folder / "log").read_text()


def test_a_device_follows_what_an_operator_types(machine, published, served):
    url, home = served
    phone = machine.folder / "phone"
    joining = ("--server", url, "--trust", published.trust, "--import", published.history)

    def runs(*words):
        time.sleep(SEEN_S)
        return machine.result("device", "run", "--home", phone, "--engine", "onnx", *words)["rows"][0]

    def release(*words, status=0):
        return machine.coda("release", *words, "--home", home, status=status)

    assert runs(*joining)["bundle"] == 2
    again = runs()
    assert sum(again["bytes_by_message"]["bundle"]) <= 200, "nothing is new"

    bundle = shutil.copytree(published.bundle, machine.folder / "bundle")
    reversion(bundle, published, 3)
    assert "coda release create NAME --bundle 3" in release("add", bundle)
    assert runs()["bundle"] == 2, "staged: nobody's yet"
    (machine.folder / "ladder.json").write_text('[{"name": "simulation"}, {"name": "100 %", "share": 1.0}]')
    plan = ("create", "week-2", "--bundle", "3", "--why", "newer", "--ladder", machine.folder / "ladder.json")
    release(*plan)
    assert runs()["bundle"] == 2, "it is being simulated"
    release("advance", "week-2", "--why", "simulated well")
    assert runs()["bundle"] == 3
    [device] = machine.result("devices", "list", "--home", home)["rows"]
    assert "release week-2" in release("explain", device["id"], "--runs", "3")
    assert "week-2 is running and means every device" in release("publish", bundle, status=2)
    release("rollback", "week-2", "--why", "on a whim")
    assert runs()["bundle"] == 2
    shown = machine.result("release", "show", "week-2", "--home", home)["rows"][0]
    assert shown["state"] == "stopped" and shown["heard"]["treatment"]["devices"] == 1
    assert machine.coda("device", "rank", "--home", phone, "--top", "3").count("\n") >= 3
