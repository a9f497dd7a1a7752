"""What all tests of the cloud's floor may use."""

from __future__ import annotations

import os
from collections.abc import Iterator

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from tests import postgres


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgres.Cluster]:
    programs = postgres.binaries()
    if programs is None:
        assert not os.environ.get("CI"), "CI installs PostgreSQL; see .ci/run"
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with postgres.running(programs) as made:
        yield made


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3 server of the test's own, on loopback, with a bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "anything")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # connected to an earlier module's server
    fsspec.filesystem("s3").mkdir("coda-test")
    yield "s3://coda-test"
    fsspec.filesystem("s3").rm("coda-test", recursive=True)  # what moto stores outlives its server
    patch.undo()
    server.stop()
