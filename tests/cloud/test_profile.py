"""`coda profile` over stand-ins for ssh, scp and adb that execute what they are told, on this machine."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path

import pytest

from device_runtime.cli import main

SSH = """#!/bin/sh
# the last word is a shell command, the one before it the host
echo "ssh $*" >> "$STAND_IN_LOG"
while [ $# -gt 2 ]; do shift; done
[ "$1" = pi@board ] || { echo "ssh: Could not resolve hostname $1" >&2; exit 255; }
exec sh -c "$2"
"""
SCP = """#!/bin/sh
echo "scp $*" >> "$STAND_IN_LOG"
shift 2
for word; do target=$word; done
set -- "$@"
while [ $# -gt 1 ]; do cp "${1#pi@board:}" "${target#pi@board:}" || exit 1; shift; done
"""
ADB = """#!/bin/sh
echo "adb $*" >> "$STAND_IN_LOG"
[ "$2" = 1A2B ] || { echo "adb: device '$2' not found" >&2; exit 1; }
verb=$3; shift 3
case $verb in
  shell) exec sh -c "$(echo "$1" | sed "s#/data/local/tmp#$ANDROID_TMP#g")" ;;
  push) for word; do target=$word; done
    while [ $# -gt 1 ]; do cp "$1" "$target" || exit 1; shift; done ;;
  pull) cp "$1" "$2" ;;
  reverse) ;;
esac
"""


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Their log: what they were asked to do."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("ssh", SSH), ("scp", SCP), ("adb", ADB)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tmp_path / "android").mkdir()
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("ANDROID_TMP", str(tmp_path / "android"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path / "log"


@pytest.fixture
def wheel(tmp_path):
    """The ground floor as a wheel is: what matters here is that it is unpacked and used there."""
    root = Path(__file__).resolve().parents[2]
    path = tmp_path / "coda_loop-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((root / "device_runtime").rglob("*")):
            if file.suffix in (".py", ".cpp"):
                archive.write(file, file.relative_to(root))
    return path


def words(where, wheel, published, url, report):
    return [
        "profile", *where, "--server", url, "--trust", str(published.bundle / "release.pub"),
        "--history", str(published.history), "--python", sys.executable, "--wheel", str(wheel),
        "--engine", "onnx", "--rounds", "2", "--report", str(report),
    ]  # fmt: skip


@pytest.mark.parametrize("where", [["--ssh", "pi@board"], ["--adb", "1A2B"]])
def test_rounds_there_become_a_report_here(where, stand_ins, wheel, serving, published, tmp_path, capsys):
    with serving() as (url, services):
        assert main(words(where, wheel, published, url, tmp_path / "report")) == 0
        delivered = [report for _, report in services.catalog.reports()]
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [row["first"] for row in found["rows"]] == [True, False]
    assert [one["round"] for one in found["rounds"]] == [one.round for one in delivered], "the rounds really happened"
    assert found["rows"][0]["bytes_down"] > found["rows"][1]["bytes_down"] > 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "What was not measured" in page and "Energy" in page
    assert ("ART" in page) == (where[0] == "--adb")
    asked = stand_ins.read_text()
    port = url.rsplit(":", 1)[1]
    assert (f"-R {port}:127.0.0.1:{port}" if where[0] == "--ssh" else f"reverse tcp:{port} tcp:{port}") in asked
    assert not list(tmp_path.rglob("phone")), "nothing is left there"
    assert "not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("where", "reason"),
    [(["--ssh", "pi@elsewhere"], "Could not resolve hostname"), (["--adb", "ffff"], "device 'ffff' not found")],
)
def test_a_device_that_is_not_there(where, reason, stand_ins, wheel, published, tmp_path, capsys):
    assert main(words(where, wheel, published, "http://127.0.0.1:9", tmp_path / "report")) == 4
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_a_round_that_fails_there_says_why_and_leaves_nothing(stand_ins, wheel, published, tmp_path, capsys):
    assert main(words(["--ssh", "pi@board"], wheel, published, "http://127.0.0.1:9", tmp_path / "report")) == 4
    assert "nothing listens on port 9" in capsys.readouterr().err
    assert not list(tmp_path.rglob("phone"))


def test_what_cannot_be_is_refused_before_anything_is_asked(stand_ins, published, tmp_path, capsys):
    trust, history = str(published.bundle / "release.pub"), str(published.history)
    common = ["--server", "http://x", "--trust", trust, "--history", history]
    assert main(["profile", "--adb", "1A2B", *common]) == 2
    assert "--python" in capsys.readouterr().err
    assert main(["profile", "--ssh", "pi@board", *common, "--rounds", "0"]) == 2
    assert main(["profile", "--ssh=-oProxyCommand=x", *common]) == 2
    assert main(["profile", "--ssh", "pi@board", *common, "--wheel", str(tmp_path / "no.whl")]) == 2
    assert not stand_ins.exists()
