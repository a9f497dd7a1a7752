"""What some machines tell beside CPU time, and the two ways in which a round's cost is shown."""

import xml.etree.ElementTree as ElementTree

import pytest

from device_runtime.errors import InputError
from device_runtime.messages import PhaseOverhead, RoundReport, to_json
from device_runtime.meter import Meter
from device_runtime.plot import svg, write_plot
from device_runtime.prometheus import text, write_prometheus
from device_runtime.sensors import PowerLog, Sensors
from tests.device_runtime.test_schedule import tree


def burn(n):
    total = 0
    for i in range(n):
        total += i
    return total


def test_instructions_are_counted_where_the_kernel_allows_it_and_repeat(tmp_path):
    sensors = Sensors(tmp_path)
    if sensors.read().instructions is None:
        pytest.skip("perf_event_open is not allowed here (kernel.perf_event_paranoid, or a container)")
    meter = Meter(tmp_path, None, sensors)
    for work in (100_000, 100_000, 400_000):
        with meter.phase(str(work)):
            burn(work)
    one, again, four = (record.instructions for record in meter.records)
    assert again == pytest.approx(one, rel=0.2) and 3 < four / one < 5


def test_where_nothing_is_told_the_record_says_nothing(tmp_path):
    sensors = Sensors(tmp_path)
    meter = Meter(tmp_path, None, sensors)
    with meter.phase("p"):
        pass
    [record] = meter.records
    assert (record.energy_j, record.temperature_c, record.frequency_mhz) == (None, None, None)
    assert b"energy_j" not in to_json(record), "what is unknown is not sent"


def test_energy_comes_from_the_packages_and_survives_a_wrap(tmp_path):
    zone = "sys/class/powercap/intel-rapl:0"
    files = {f"{zone}/energy_uj": "9500000", f"{zone}/max_energy_range_uj": "10000000",
             f"{zone}:0/energy_uj": "77", f"{zone}:0/max_energy_range_uj": "10000000",
             "sys/class/thermal/thermal_zone0/temp": "51500",
             "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1800000"}  # fmt: skip
    tree(tmp_path, files)
    sensors = Sensors(tmp_path)
    meter = Meter(tmp_path / "home", None, sensors)
    with meter.phase("wraps"):
        (tmp_path / zone / "energy_uj").write_text("250000")
    with meter.phase("then"):
        (tmp_path / zone / "energy_uj").write_text("1250000")
    assert [record.energy_j for record in meter.records] == pytest.approx([0.75, 1.0])
    assert (meter.records[0].temperature_c, meter.records[0].frequency_mhz) == (51.5, 1800.0)


def test_a_power_meters_log_is_integrated(tmp_path):
    log = tmp_path / "power.csv"
    log.write_text("time_s,watts\n100,2\n110,4\n120,4\n")
    power = PowerLog(log)
    assert power.joules(99) is None and power.joules(121) is None, "outside the log nothing is known"
    assert [power.joules(at) for at in (100, 105, 110, 120)] == pytest.approx([0, 12.5, 30, 70])
    now = [105.0]
    meter = Meter(tmp_path / "home", None, Sensors(tmp_path, log, clock=lambda: now[0]))
    with meter.phase("p"):
        now[0] = 115.0
    assert meter.records[0].energy_j == pytest.approx(50 - 12.5)


@pytest.mark.parametrize("content", ["volts,amps\n1,2\n", "time_s,watts\n1,much\n", None])
def test_a_log_that_is_none_is_refused(tmp_path, content):
    if content:
        (tmp_path / "power.csv").write_text(content)
    with pytest.raises(InputError, match=r"power.csv"):
        Sensors(tmp_path, tmp_path / "power.csv")


def report():
    def phase(name, peak, **more):
        return PhaseOverhead(phase=name, cpu_user_s=0.5, cpu_system_s=0.25, wall_s=1.0, peak_mib=peak,
                             peak_source="phase", bytes_stored=-5, bytes_up=7, bytes_down=9, **more)  # fmt: skip

    phases = [phase("match", 10.0, instructions=100), phase("tune", 20.0, temperature_c=50.0), phase("tune", 15.0)]
    return RoundReport(round="<r>", bundle=1, engine="onnx", outcome="activated", local=9, candidates=5, kept=2,
                       verdict=None, phases=phases)  # fmt: skip


def test_prometheus_text_has_a_gauge_a_figure_and_sums_what_was_done_twice(tmp_path):
    words = text(report())
    for line in (
        'coda_round_cpu_seconds{phase="tune"} 1.5', 'coda_round_peak_bytes{phase="tune"} 20971520',
        'coda_round_received_bytes{phase="match"} 9', 'coda_round_instructions{phase="match"} 100',
        'coda_round_temperature_celsius{phase="tune"} 50', 'coda_round_stored_bytes{phase="tune"} -10',
        "coda_round_kept_candidates 2", "coda_round_activated 1",
    ):  # fmt: skip
        assert line in words.splitlines()
    assert "energy" not in words, "what is unknown has no gauge"
    write_prometheus(tmp_path / "coda.prom", report())
    assert (tmp_path / "coda.prom").read_text() == words
    assert (tmp_path / "coda.prom").stat().st_mode & 0o044 == 0o044, "the collector is another user"


def test_the_plot_is_a_picture_of_every_phase(tmp_path):
    write_plot(tmp_path / "cost.svg", report())
    root = ElementTree.parse(tmp_path / "cost.svg").getroot()
    bars = [element for element in root.iter() if element.tag.endswith("rect")]
    assert len(bars) == 3 * 4 and "&lt;r&gt;" in svg(report())
