"""The agent: when it runs a round, how it backs off, how it ends, and that a round under it gives way."""

import argparse
import configparser
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from device_runtime import agent as agent_module
from device_runtime.activity import Activity, ActivityLog
from device_runtime.agent import Agent
from device_runtime.commands.device import Command
from device_runtime.counting import ByteCounter
from device_runtime.errors import Yielded
from device_runtime.history import read_history
from device_runtime.home import DeviceHome
from device_runtime.journal import Inputs
from device_runtime.store import Event, Store
from tests.conftest import REPOSITORY
from tests.device_runtime.test_schedule import PI, tree

DAY = 86_400.0


class Setting:
    """A home, a made-up platform, a clock, and a "round" that ends with the status in a file."""

    def __init__(self, folder):
        self.home, self.root = folder / "phone", tree(folder / "root", PI)
        self.now, self.status, self.ran = 1e9, folder / "status", folder / "ran"
        with Store(self.home / "coda.db") as store:
            store.set(server="http://x")

    def round(self, status=0):
        self.status.write_text(str(status))
        program = "import sys; open(sys.argv[2], 'a').write('x'); sys.exit(int(open(sys.argv[1]).read()))"
        command = [sys.executable, "-c", program, str(self.status), str(self.ran)]
        return Agent(self.home, command, self.root, clock=lambda: self.now, say=lambda _: None).look()

    def finished(self, until=0):
        with Store(self.home / "coda.db") as store:
            inputs = Inputs(seed=0, match=True, engine="e", until=until, events=0, ordinal=0)
            progress = store.start_round(f"r{len(store.rounds())}", self.now, lambda _: inputs)
            store._db.execute("UPDATE rounds SET state = 'done'")
            return progress


@pytest.fixture
def setting(tmp_path):
    return Setting(tmp_path)


def test_the_first_round_is_due_and_then_new_samples_or_a_day_make_one(setting):
    assert setting.round().due == "there has been no round yet"
    setting.finished()
    assert setting.round() == setting.round() and setting.round().due == ""
    with Store(setting.home / "coda.db") as store:
        store.add_events([Event(f"i{n}", n + 1, 1.0) for n in range(20)])
    assert setting.round().due == "20 new samples"
    setting.finished(until=20)
    assert setting.round().ran is None
    setting.now += DAY
    assert setting.round().due == "the last round is old"


def test_a_home_that_is_not_enrolled_waits(tmp_path):
    with Store(tmp_path / "phone" / "coda.db") as store:
        store.add_events([Event("a", 1, 1.0)])
    assert Agent(tmp_path / "phone").look().due == ""


def test_conditions_and_budgets_hold_it_back(setting):
    (setting.home / "foreground").touch()
    found = setting.round()
    assert (found.due != "", found.refusals, found.ran) == (True, ("the app is in front",), None)
    (setting.home / "foreground").unlink()
    (setting.home / "policy.json").write_text('{"disk_mib": 0.001}')
    assert "the budget is 0.001" in setting.round().refusals[0]
    assert not setting.ran.exists()


def test_events_are_digested_and_may_ask_for_a_round(setting):
    setting.finished()
    declared = [{"name": "leaving", "sequence": ["page_exit"], "then": "round"},
                {"name": "clicked", "sequence": ["click"], "then": "positive"}]  # fmt: skip
    (setting.home / "triggers.json").write_text(json.dumps(declared))
    with Store(setting.home / "coda.db") as store:
        ActivityLog(store.database).append([Activity("click", 10_000_000, "a"), Activity("page_exit", 10_000_001)])
    assert setting.round(status=4).due == "trigger 'leaving' wants a round"
    setting.now += 1000
    assert setting.round().ran == 0, "it is wanted until it has been run"
    assert setting.round().due == ""


def test_failures_are_followed_by_growing_pauses_and_a_yield_is_none(setting):
    assert setting.round(Yielded.exit_status).ran == 7
    assert setting.round(4).ran == 4, "after a yield it looks again at once"
    for pause in (900, 1800, 3600):
        setting.now += pause - 1
        assert setting.round(4).due == ""
        setting.now += 2
        assert setting.round(4).ran == 4
    setting.now -= 400 * DAY
    assert setting.round(0).ran == 0, "a pause that a wrong clock has noted does not last for a year"
    with Store(setting.home / "coda.db") as store:
        assert store.setting("agent_failures") == "0"


def test_sigterm_ends_it_cleanly_and_an_idle_one_is_small(setting):
    with Store(setting.home / "coda.db") as store:
        store.set(agent_not_before=str(time.time() + 3600))
    words = ["device", "agent", "--home", str(setting.home), "--look-every", "0.05"]
    with subprocess.Popen(
        [sys.executable, "-m", "device_runtime", *words], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as agent:
        assert agent.stdout.readline()
        status = Path(f"/proc/{agent.pid}/status").read_text()
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(20) == 0
    [kib] = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
    assert kib < 40 << 10


@pytest.mark.parametrize(("on_sigterm", "status"), [("lambda *_: sys.exit(7)", 7), ("signal.SIG_IGN", -signal.SIGKILL)])
def test_a_stopped_agent_gives_the_round_time_to_end_and_then_kills_it(
    setting, tmp_path, monkeypatch, on_sigterm, status
):
    monkeypatch.setattr(agent_module, "_GRACE_S", 10.0 if status == 7 else 0.1)
    up = tmp_path / "up"
    program = f"import pathlib, signal, sys, time\nsignal.signal(15, {on_sigterm})\npathlib.Path(sys.argv[1]).touch()\n"
    command = [sys.executable, "-c", program + "time.sleep(60)", str(up)]
    agent = Agent(setting.home, command, setting.root, say=lambda _: None)

    def stop_once_it_is_up():
        while not up.exists():
            time.sleep(0.01)
        agent.stop()

    thread = threading.Thread(target=stop_once_it_is_up)
    thread.start()
    assert agent.look().ran == status
    thread.join()


def test_a_scheduled_round_gives_way_at_once_and_goes_on_where_it_was(serving, published, tmp_path):
    home = tmp_path / "phone"
    with serving() as (url, _):
        with DeviceHome(home) as opened:
            opened.store.add_events(read_history(published.history).events)
            opened.enrol(url, published.trust, ByteCounter())
        (home / "foreground").touch()
        (home / "policy.json").write_text('{"patience_s": 0.05}')
        command = [sys.executable, "-m", "device_runtime", "device", "run", "--home", str(home), "--engine", "onnx",
                   "--scheduled", "--prometheus", str(tmp_path / "coda.prom")]  # fmt: skip
        told = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
        assert told.returncode == 7, told.stderr
        assert "the app is in front" in told.stderr
        (home / "foreground").unlink()
        told = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
        assert told.returncode == 0, told.stderr
        with DeviceHome(home) as opened:
            [row] = opened.store.rounds()
            assert row.state == "done" and row.progress.resumed == 1
        words = (tmp_path / "coda.prom").read_text()
        assert 'coda_round_received_bytes{phase="match"}' in words and "coda_round_local_samples 60" in words
        (home / "policy.json").write_text('{"bytes": 1}')
        told = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
        assert told.returncode == 7 and "bytes are used up" in told.stderr


def test_a_round_is_put_aside_by_sigterm(serving, published, tmp_path):
    home = tmp_path / "phone"
    with serving() as (url, _):
        with DeviceHome(home) as opened:
            opened.store.add_events(read_history(published.history).events)
            opened.enrol(url, published.trust, ByteCounter())
        (home / "foreground").touch()  # it will wait, for long
        (home / "policy.json").write_text('{"patience_s": 1000}')
        command = [sys.executable, "-m", "device_runtime", "device", "run", "--home", str(home), "--scheduled"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY) as running:
            for _ in range(600):
                with Store(home / "coda.db") as store:
                    if store.unfinished():
                        break
                time.sleep(0.05)
            time.sleep(0.2)
            os.kill(running.pid, signal.SIGTERM)
            assert running.wait(20) == 7
            assert "asked to stop" in running.stderr.read()


def test_the_systemd_unit_starts_what_there_is():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(REPOSITORY / "deploy" / "coda-device.service")
    program, command, *words = unit["Service"]["ExecStart"].split()
    assert (Path(program).name, command) == ("coda", "device")
    parser = argparse.ArgumentParser()
    Command.configure(parser)
    assert parser.parse_args(words).verb == "agent"
    assert float(unit["Service"]["TimeoutStopSec"]) > 10, "a round is given ten seconds to put itself aside"
