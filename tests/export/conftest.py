from __future__ import annotations

import pytest

from device_runtime.engines import Engine, open_engine
from export.models.din import DIN
from tests import toy


@pytest.fixture(scope="session")
def small_din() -> DIN:
    return toy.din()


@pytest.fixture(scope="session")
def engines() -> list[Engine]:
    """Both engines that bundles are lowered for; a missing one is a failure, not a skip."""
    return [open_engine("onnx"), open_engine("executorch")]
