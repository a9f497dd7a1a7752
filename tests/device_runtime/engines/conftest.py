from __future__ import annotations

from pathlib import Path

import pytest

from device_runtime.engines import ENGINES, Engine, open_engine
from tests.device_runtime.engines.tiny import GRAPHS, Load, Tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def shim_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, shim_cache: Path) -> Engine:
    """Each engine in turn. One that is missing fails the tests, with the reason."""
    return open_engine(request.param, cache=shim_cache)


@pytest.fixture
def load(engine: Engine, tiny: Tiny) -> Load:
    return lambda name: engine.load(tiny.path(engine.format, name), GRAPHS[name][1])
