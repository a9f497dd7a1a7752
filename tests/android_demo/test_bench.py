"""The benchmark over a stand-in for adb that executes its commands on a device's tree of files, on this machine.

`am start` runs the app's core on a JVM; what Android's own programs print is recorded.
"""

from __future__ import annotations

import json
import os
import runpy
import shlex

import pytest

from tests.android_demo.conftest import DEMO

ADB = """#!/bin/sh
echo "adb $*" >> "$DEVICE/log"
[ "$2" = emulator-5554 ] || { echo "adb: device '$2' not found" >&2; exit 1; }
verb=$3; shift 3
case $verb in
  install) [ -f "$2" ] || { echo "adb: failed to stat $2: No such file" >&2; exit 1; } ;;
  reverse) ;;
  pull) cp "$DEVICE$1" "$2" ;;
  shell) PATH="$DEVICE/bin:$PATH" exec sh -c "$(echo "$1" | sed "s#/sdcard#$DEVICE/sdcard#g")" ;;
esac
"""
PM = """#!/bin/sh
rm -rf "$DEVICE/data" "$DEVICE"/sdcard/Android/data/org.coda.app/files/*
echo Success
"""
DUMPSYS = """#!/bin/sh
cat "$DEVICE/meminfo"
"""
MEMINFO = """Applications Memory Usage (in Kilobytes):
Uptime: 7216071 Realtime: 7216071

** MEMINFO in pid 12345 [org.coda.app] **
                   Pss  Private  Private  SwapPss      Rss     Heap     Heap     Heap
                 Total    Dirty    Clean    Dirty    Total     Size    Alloc     Free
                ------   ------   ------   ------   ------   ------   ------   ------
  Native Heap    21820    21776        0       17    23436    32712    26532     2015
        TOTAL    {kib}    40120    12004       17   130224    36360    29260     3081

 App Summary
           TOTAL PSS:    {kib}            TOTAL RSS:   130224       TOTAL SWAP PSS:       17
"""


@pytest.fixture
def phone(tmp_path, monkeypatch, device):
    """The stand-in's tree; its benchmark is `HostDevice` with a made-up history."""
    tree = tmp_path / "emulator"
    files = tree / "sdcard/Android/data/org.coda.app/files"
    files.mkdir(parents=True)
    (tree / "bin").mkdir()
    command = [*device.command(home=tree / "data", record=files / "benchmark.json"), "org.coda.core.HostDevice"]
    am = (
        '#!/bin/sh\nshift 4\nwhile [ $# -gt 0 ]; do export "x_$2=$3"; shift 3; done\n'
        'set -- "-Dserver=$x_server" "-Dtrust=$x_trust" "-Drounds=$x_rounds" "-Devents=$x_events" "-Dseed=$x_seed"\n'
        f'( {shlex.join(command[:1])} "$@" {shlex.join(command[1:])} > "$DEVICE/told" '
        f'|| cp "$DEVICE/told" {shlex.quote(str(files))}/benchmark.error ) < /dev/null > /dev/null 2>&1 &\n'
    )
    programs = {"adb": ADB, "bin/pm": PM, "bin/dumpsys": DUMPSYS, "bin/am": am}
    for path, text in ((tree / name, text) for name, text in programs.items()):
        path.write_text(text)
        path.chmod(0o755)
    (tree / "meminfo").write_text(MEMINFO.format(kib=4000 * 1024))
    monkeypatch.setenv("DEVICE", str(tree))
    monkeypatch.setenv("PYTHONPATH", str(DEMO.parent))
    monkeypatch.setenv("PATH", f"{tree}{os.pathsep}{os.environ['PATH']}")
    return tree


def bench(published, url, out, *more):
    run = runpy.run_path(str(DEMO / "bench/run.py"))
    words = ["--adb", "emulator-5554", "--server", url, "--trust", str(published.bundle / "release.pub")]
    return run["main"]([*words, "--report", str(out), "--patience", "20", *map(str, more)])


def test_rounds_of_the_app_become_the_report_of_every_device(phone, serving, published, tmp_path, capsys):
    apk = tmp_path / "coda.apk"
    apk.write_bytes(b"")
    with serving() as (url, services):
        assert (
            bench(published, url, tmp_path / "report", "--rounds", 2, "--repeat", 2, "--events", 60, "--apk", apk) == 0
        )
        delivered = services.catalog.reports()
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [one["round"] for one in found["rounds"]] == [report.round for _, report in delivered]
    rows = found["rows"]
    assert [row["local"] for row in rows] == [60] * 4
    assert rows[0]["bytes_down"] > 4 * rows[1]["bytes_down"] and rows[2]["bytes_down"] > 4 * rows[3]["bytes_down"]
    assert len({device for device, _ in delivered}) == 2, "data are cleared, the key too, before each start"
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Android app on emulator-5554" in page and "emulator runs on this machine" in page
    assert "saw 4000 MiB (PSS)" in page, "what differs is said"
    log = (phone / "log").read_text()
    port = url.rsplit(":", 1)[1]
    assert f"install -r {apk}" in log and f"reverse tcp:{port} tcp:{port}" in log
    assert "am start -W -n org.coda.app/.BenchmarkActivity" in log
    assert capsys.readouterr().out.count("CPU s") == 4


def test_what_the_app_says_of_a_failure_is_passed_on(phone, serving, published, tmp_path, capsys):
    (tmp_path / "other.pub").write_text("ab" * 32)
    with serving() as (url, _):
        assert bench(published, url, tmp_path / "report", "--trust", tmp_path / "other.pub") == 2
    assert "the app says: TrustError: the bundle is signed by key" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_a_device_that_is_not_there_or_an_apk_that_is_not(phone, published, tmp_path, capsys):
    assert bench(published, "http://127.0.0.1:9", tmp_path / "report", "--adb", "ffff") == 4
    assert "device 'ffff' not found" in capsys.readouterr().err
    assert bench(published, "http://127.0.0.1:9", tmp_path / "report", "--apk", tmp_path / "no.apk") == 4
    assert "failed to stat" in capsys.readouterr().err
    assert bench(published, "http://127.0.0.1:9", tmp_path / "report", "--rounds", 0) == 2


def test_counts_that_do_not_agree_are_said():
    bench = runpy.run_path(str(DEMO / "bench/run.py"))
    row = {
        "overhead": {"peak_mib": 70.0},
        "bytes_by_message": {"match": [1000, 2000], "report": [500, 100]},
        "platform": {"uid_bytes_up": 1700, "uid_bytes_down": 90_000},
    }
    said = bench["checks"](bench["Run"]({"rows": [row]}, 90.0))
    assert said == [
        "dumpsys meminfo saw 90 MiB (PSS), the app's own peak is 70 MiB",
        "the kernel counts 90000 bytes down for the app's user, the app itself 2100",
    ]
    row["platform"]["uid_bytes_down"] = 2500
    assert bench["checks"](bench["Run"]({"rows": [row]}, 65.0)) == []
    assert "told nothing" in bench["checks"](bench["Run"]({"rows": [row]}, None))[0]
