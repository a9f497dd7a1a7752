"""Building the ExecuTorch shim: once, by whoever comes first, and with a plain reason when it cannot be."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from device_runtime.engines import available, open_engine, shim
from device_runtime.errors import EngineUnavailable


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODA_CACHE", raising=False)
    monkeypatch.delenv("CXX", raising=False)


def reason(cache: Path) -> str:
    with pytest.raises(EngineUnavailable) as unavailable:
        open_engine("executorch", cache=cache)
    assert available(cache)["executorch"] == str(unavailable.value)
    return str(unavailable.value)


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert shim.cache_folder() == Path("/home/someone/.cache/coda")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert shim.cache_folder() == Path("/caches/coda")
    assert shim.cache_folder(tmp_path) == tmp_path
    monkeypatch.setenv("CODA_CACHE", "/named")
    assert shim.cache_folder(tmp_path) == Path("/named")


def test_many_processes_build_it_once_and_then_no_compiler_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log, compiler = tmp_path / "log", tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\necho built >> {log}\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    command = [sys.executable, "-c", "from device_runtime.engines import open_engine; open_engine('executorch')"]
    env = os.environ | {"CXX": str(compiler), "CODA_CACHE": str(tmp_path / "cache")}
    children = [subprocess.Popen(command, env=env) for _ in range(3)]
    assert [child.wait(120) for child in children] == [0, 0, 0]
    assert log.read_text().splitlines() == ["built"]
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".lock", ".so"]
    monkeypatch.setenv("PATH", "")
    assert shim.shim_path(tmp_path / "cache").exists()


def test_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install --no-deps executorch==1.5.1" in reason(tmp_path)


def test_another_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.4.0")
    assert "executorch 1.4.0 is installed, but 1.5.1 is needed" in reason(tmp_path)


def test_a_wheel_without_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shim, "LIBRARIES", ("absent.so",))
    assert f"no C++ libraries for {platform.system()} on {platform.machine()}" in reason(tmp_path)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    assert "apt install g++" in reason(tmp_path)
    monkeypatch.setenv("CXX", "/opt/cross/g++ -O3")
    assert "CXX names '/opt/cross/g++', which is not installed" in reason(tmp_path)


def test_a_build_that_fails_says_why_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "shim.cpp"
    source.write_text('#error "the reason"\n')
    monkeypatch.setattr(shim, "SOURCE", source)
    assert "the reason" in reason(tmp_path / "cache")
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "set CODA_CACHE" in reason(tmp_path / "file" / "cache")
