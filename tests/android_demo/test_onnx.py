"""The app's adapter of ONNX Runtime's Java API, over a stand-in for that API whose graphs a real ONNX Runtime runs.

The library itself is on Maven alone, so neither it nor the Gradle project that takes it from there is run here.
"""

from __future__ import annotations

import re
import sys

import pytest

from device_runtime.counting import ByteCounter
from device_runtime.engines import open_engine
from device_runtime.history import read_history
from device_runtime.home import DeviceHome
from device_runtime.round import RoundOptions, run_round
from tests.android_demo.conftest import DEMO, HostDevice, javac

SOURCES = sorted((DEMO.parent / "tests/android_demo/onnx").rglob("*.java"))


@pytest.fixture
def onnx_device(classpath, published, tmp_path, tmp_path_factory):
    adapter = DEMO / "app/engines/onnx/org/coda/app/OnnxEngine.java"
    out = tmp_path_factory.mktemp("onnx")
    javac(out, [adapter, *SOURCES], classpath)
    helper = f"{sys.executable} {DEMO.parent / 'tests/android_demo/engine_helper.py'}"
    engine = f"{helper} {published.bundle} {published.trust} onnx"
    return HostDevice(f"{out}:{classpath}", tmp_path / "java", published, main="OnnxDevice", engine=engine)


def test_a_round_through_the_adapter_ends_as_pythons_does(onnx_device, serving, published, tmp_path):
    with serving() as (url, _):
        done = onnx_device.start(server=url, history=published.history, seed=5)
        assert done.returncode == 0, done.stdout + done.stderr
        report, _ = onnx_device.lines(done.stdout)
        with DeviceHome(tmp_path / "python") as home:
            home.store.add_events(read_history(published.history).events)
            home.enrol(url, published.trust, ByteCounter())
            with home.transport(ByteCounter()) as transport:
                meant = run_round(home, transport, open_engine("onnx"), RoundOptions(seed=5)).report
    assert (report["engine"], report["outcome"], report["kept"]) == ("onnx", meant.outcome, meant.kept)
    assert report["verdict"]["loss_after"] == pytest.approx(meant.verdict.loss_after, abs=1e-5)
    assert "open tensors: 0" in done.stdout, "what the adapter opens it closes"


def test_a_version_that_reports_on_its_use_is_refused(onnx_device, serving):
    with serving() as (url, _):
        told = onnx_device.told(server=url, ort="1.29.0")
    assert told.startswith("EngineUnavailable: ONNX Runtime 1.29.0 may report on its use")


def test_the_gradle_project_pins_a_version_without_telemetry():
    gradle = (DEMO / "studio/app/build.gradle").read_text()
    [version] = re.findall(r"onnxruntime-android:([\d.]+)'", gradle)
    assert tuple(map(int, version.split("."))) < (1, 29)
    for folder in re.findall(r"'\.\./\.\./([^']+)'", gradle):
        assert (DEMO / folder).exists(), folder
