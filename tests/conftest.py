"""What every test may use: one seed, one place for the data sets, a thread's worth of torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
SEED = 20220110


@pytest.fixture
def rng() -> np.random.Generator:
    """The one source of chance in a test."""
    return np.random.default_rng(SEED)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the data sets that cannot be shipped."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the data sets that may not be redistributed are not at {SHARED_DATA}")
    return SHARED_DATA
