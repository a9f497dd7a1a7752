"""Comparing versions of onnxruntime: what is refused, and what is said where a version cannot be had."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from benchmarks import ort_versions
from device_runtime.errors import InputError

PINNED = metadata.version("onnxruntime")


def test_the_version_beside_coda_comes_first() -> None:
    assert ort_versions.versions_of("1.24.4, newest") == [PINNED, "1.24.4", "newest"]
    assert ort_versions.versions_of(f"1.24.4,{PINNED}") == [PINNED, "1.24.4"]


@pytest.mark.parametrize("text", ["latest", "1", "1.24.4,", "1.24;id"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--versions takes versions such as"):
        ort_versions.versions_of(text)


def test_a_version_without_an_environment_is_said_and_the_pinned_one_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "1.0.0").write_text("a file where the environment would be")
    python, reason = ort_versions.environment(tmp_path / "1.0.0", "1.0.0")
    assert reason and not python.exists()
    monkeypatch.setattr(ort_versions, "environment", lambda folder, version: (folder / "python", f"no {version}"))
    with pytest.raises(
        InputError, match=f"onnxruntime {PINNED}, which CoDA uses here, has no environment: no {PINNED}"
    ):
        ort_versions.environments([PINNED, "1.0.0"], tmp_path)


def test_the_switch_is_looked_for_in_the_library(tmp_path: Path) -> None:
    library = tmp_path / "lib" / "python3.11" / "site-packages" / "onnxruntime" / "capi" / "onnxruntime.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"\x7fELF" + bytes(99))
    assert not ort_versions.has_switch(tmp_path)
    library.write_bytes(b"\x7fELF" + ort_versions.SWITCH)
    assert ort_versions.has_switch(tmp_path)
