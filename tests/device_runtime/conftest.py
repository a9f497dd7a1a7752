from __future__ import annotations

import pytest

from device_runtime.bundle import BlobStore
from device_runtime.engines import open_engine
from device_runtime.model import Model
from tests.device_runtime.phones import Phone


@pytest.fixture
def model(bundle):
    """Of the small, untrained bundle."""
    folder, manifest = bundle
    return Model.open(manifest, open_engine("onnx"), BlobStore(folder / "blobs"))


@pytest.fixture
def phone(serving, published, tmp_path):
    with serving() as (url, services):
        made = Phone(tmp_path, published, url)
        made.services = services
        with made.home:
            yield made
