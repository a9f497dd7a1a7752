"""Catalogs over each database that is supported; PostgreSQL's is a cluster of the test run's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloud.catalog import Catalog


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalog.db'}"
    made: str = request.getfixturevalue("cluster").database()
    return made


@pytest.fixture
def open_catalog(url: str) -> Iterator[Callable[[], Catalog]]:
    """Opens the database as another server process would."""
    made: list[Catalog] = []

    def open_it() -> Catalog:
        made.append(Catalog(url))
        return made[-1]

    yield open_it
    for catalog in made:
        catalog.close()


@pytest.fixture
def catalog(open_catalog: Callable[[], Catalog]) -> Catalog:
    return open_catalog()
