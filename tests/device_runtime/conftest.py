from __future__ import annotations

import pytest

from tests.device_runtime.phones import Phone


@pytest.fixture
def phone(serving, published, tmp_path):
    with serving() as (url, services):
        made = Phone(tmp_path, published, url)
        made.services = services
        with made.home:
            yield made
