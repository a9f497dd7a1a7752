"""What all tests of the cloud's floor may use."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests import postgres


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgres.Cluster]:
    programs = postgres.binaries()
    if programs is None:
        assert not os.environ.get("CI"), "CI installs PostgreSQL; see .ci/run"
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with postgres.running(programs) as made:
        yield made
