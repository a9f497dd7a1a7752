"""When a round may run: probes over made-up sysfs trees, policies, budgets, and giving way."""

import subprocess
import sys
from datetime import UTC, datetime

import msgspec
import pytest

from device_runtime.errors import InputError, Yielded
from device_runtime.schedule import Conditions, Policy, Usage, conditions, load_policy, over_budget, probe
from device_runtime.store import Store
from device_runtime.yielding import AskingEngine, GiveWay
from tests.conftest import REPOSITORY

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
DAY = 86_400.0
FINE = Conditions(idle=True, charging=True, unmetered=True, battery_percent=80.0, temperature_c=40.0)


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


PI = {
    "sys/class/thermal/thermal_zone0/temp": "48312",
    "proc/pressure/cpu": "some avg10=0.51 avg60=0.2 avg300=0.1 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0",
    "sys/class/net/eth0/operstate": "up", "sys/class/net/eth0/type": "1", "sys/class/net/eth0/device/vendor": "x",
    "sys/class/net/lo/operstate": "unknown", "sys/class/net/lo/type": "772",
}  # fmt: skip
LAPTOP = {
    "sys/class/power_supply/AC/type": "Mains", "sys/class/power_supply/AC/online": "0",
    "sys/class/power_supply/BAT0/type": "Battery", "sys/class/power_supply/BAT0/capacity": "23",
    "sys/class/power_supply/BAT0/status": "Discharging",
    "sys/class/power_supply/mouse/type": "Battery", "sys/class/power_supply/mouse/scope": "Device",
    "sys/class/power_supply/mouse/capacity": "3",
    "sys/class/net/wlan0/operstate": "up", "sys/class/net/wlan0/type": "1", "sys/class/net/wlan0/wireless/x": "",
    "sys/class/thermal/thermal_zone0/temp": "71000", "sys/class/thermal/thermal_zone1/temp": "x",
    "proc/loadavg": "1.75 0.9 0.4 1/200 999",
}  # fmt: skip


def test_a_board_on_a_cable_without_a_battery(tmp_path):
    found = probe(tree(tmp_path, PI))
    assert found == Conditions(idle=True, charging=None, unmetered=True, battery_percent=None, temperature_c=48.312)
    assert Policy().refusals(found) == [], "what a board cannot tell does not keep it from working"
    strict = Policy(unknown=frozenset())
    assert strict.refusals(found) == [
        "charging is unknown here, and the policy wants to know it",
        "battery_percent is unknown here, and the policy wants to know it",
    ]


def test_a_warm_laptop_on_battery(tmp_path):
    found = probe(tree(tmp_path, LAPTOP))
    assert found == Conditions(idle=False, charging=False, unmetered=None, battery_percent=23.0, temperature_c=71.0)
    assert Policy().refusals(found) == [
        "the device is busy", "it is not charging", "the battery is below 30 %", "it is hotter than 60 °C",
    ]  # fmt: skip
    lenient = Policy(idle=False, charging=False, min_battery_percent=20, max_temperature_c=80)
    assert lenient.refusals(found) == []


def test_a_full_battery_that_draws_no_more_is_charging_and_a_modem_is_metered(tmp_path):
    changed = {
        "sys/class/power_supply/AC/online": "1", "sys/class/power_supply/BAT0/status": "Not charging",
        "sys/class/net/wwan0/operstate": "up", "sys/class/net/wwan0/uevent": "DEVTYPE=wwan",
    }  # fmt: skip
    found = probe(tree(tmp_path, LAPTOP | changed))
    assert found.charging is True and found.unmetered is False


def test_without_proc_and_sys_nothing_is_known(tmp_path):
    assert probe(tmp_path) == Conditions()
    assert probe(tree(tmp_path, {"sys/class/net/eth0/operstate": "down"})).unmetered is False, "no link at all"


def test_the_app_knows_better(tmp_path):
    home, root = tmp_path / "home", tree(tmp_path / "root", LAPTOP)
    tree(home, {"conditions.json": '{"charging": true, "battery_percent": 99, "foreground": false}'})
    found = conditions(home, root)
    assert (found.charging, found.battery_percent, found.idle, found.foreground) == (True, 99.0, False, False)
    (home / "foreground").touch()
    assert conditions(home, root).foreground
    assert Policy().refusals(msgspec.structs.replace(FINE, foreground=True)) == ["the app is in front"]


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [("conditions.json", '{"charging": "yes"}', "Expected `bool . null`, got `str` - at `.*charging"),
     ("conditions.json", '{"colour": 1}', "unknown field `colour`"), ("policy.json", "{", "truncated"),
     ("policy.json", '{"cpu_s": "lots"}', "cpu_s")],
)  # fmt: skip
def test_a_file_that_cannot_be_meant_is_refused_by_name(tmp_path, file, text, words):
    tree(tmp_path, {file: text})
    with pytest.raises(InputError, match=rf"{file}.*{words}.*correct it"):
        load_policy(tmp_path)
        conditions(tmp_path)


# -- budgets --------------------------------------------------------------------------------------------------------


@pytest.fixture
def usage(tmp_path):
    with Store(tmp_path / "coda.db") as store:
        yield Usage(store.database)


def test_budgets_are_by_day_and_survive_a_restart(tmp_path, usage):
    usage.add(NOON, cpu_s=1.5, bytes=1000)
    usage.add(NOON + 60, cpu_s=2.0)
    with Store(tmp_path / "coda.db") as again:
        assert Usage(again.database).today(NOON, "cpu_s") == 3.5
    policy = Policy(cpu_s=3, bytes=1000)
    assert over_budget(policy, usage, tmp_path, NOON) == [
        "today's 3 CPU seconds are used up (4)", "today's 1000 bytes are used up (1000)",
    ]  # fmt: skip
    assert over_budget(policy, usage, tmp_path, NOON + DAY) == []


def test_a_clock_set_back_opens_no_new_budget_and_one_set_far_back_does_not_lock_the_device(usage):
    usage.add(NOON, cpu_s=5.0)
    assert usage.today(NOON - DAY, "cpu_s") == 5.0
    usage.add(NOON - DAY, cpu_s=1.0)
    assert usage.today(NOON, "cpu_s") == 6.0
    assert usage.today(NOON - 300 * DAY, "cpu_s") == 0.0


def test_old_days_are_forgotten(usage):
    for day in range(40):
        usage.add(NOON + day * DAY, cpu_s=1.0)
    assert usage._db.execute("SELECT count(*) FROM usage").fetchone() == (32,)


def test_a_folder_that_is_too_large(tmp_path, usage):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "big").write_bytes(bytes(2 << 20))
    assert "takes 2 MiB; the budget is 1" in over_budget(Policy(disk_mib=1), usage, tmp_path, NOON)[0]


# -- giving way -----------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self):
        self.slept, self.cpu = 0.0, 0.0
        self.then = lambda: None

    def sleep(self, seconds):
        self.slept += seconds
        self.then()


def giving_way(folder, clock, **given):
    given = {"cpu_s": 10.0, "memory_mib": 100.0, "patience_s": 5.0, **given}
    return GiveWay(
        folder / "foreground", sleep=clock.sleep, cpu_clock=lambda: clock.cpu, resident_mib=lambda: 50.0, **given
    )


def test_a_round_waits_while_the_app_is_in_front_and_goes_on(tmp_path):
    clock = Clock()
    pulse = giving_way(tmp_path, clock)
    pulse()
    assert clock.slept == 0
    (tmp_path / "foreground").touch()
    clock.then = lambda: (tmp_path / "foreground").unlink() if clock.slept > 2 else None
    pulse()
    assert 2 < clock.slept < 2.1, "it looks again every few hundredths of a second"


def test_patience_cpu_memory_and_signals_have_an_end(tmp_path):
    clock = Clock()
    (tmp_path / "foreground").touch()
    with pytest.raises(Yielded, match="app is in front"):
        giving_way(tmp_path, clock)()
    assert 5 <= clock.slept < 5.1
    stopped = giving_way(tmp_path, clock)
    stopped.stopping = True
    with pytest.raises(Yielded, match="asked to stop"):
        stopped()
    (tmp_path / "foreground").unlink()
    pulse = giving_way(tmp_path, clock, cpu_s=1.0)
    pulse()
    clock.cpu = 1.0
    with pytest.raises(Yielded, match="CPU seconds are used up"):
        pulse()
    with pytest.raises(Yielded, match="50 MiB are resident, 40 are allowed"):
        giving_way(tmp_path, clock, memory_mib=40.0)()


def test_an_engine_asks_before_every_run(tmp_path):
    class Engine:
        name, version, format = "toy", "1", "toy"

        def load(self, path, spec):
            class Graph:
                def __call__(self, inputs):
                    return inputs

            graph = Graph()
            graph.spec = spec
            return graph

    asked = []
    graph = AskingEngine(Engine(), lambda: asked.append(1)).load(tmp_path, "spec")
    assert graph({"x": 1}) == {"x": 1} and graph({"x": 2}) == {"x": 2}
    assert len(asked) == 2 and graph.spec == "spec"


def test_what_the_agent_imports_is_small():
    program = (
        "import sys, device_runtime.commands.device, device_runtime.commands.scheduled\n"
        "print([m for m in ('numpy', 'onnxruntime', 'ssl', 'nacl', 'zstandard', 'safetensors') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert told.stdout.strip() == "[]"
