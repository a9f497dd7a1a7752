"""`coda serve` as a process: it says where it is, and it stops when told."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloud.commands.serve import _listening
from device_runtime.errors import InputError


@pytest.mark.parametrize("workers", [1, 2])
def test_it_announces_itself_serves_and_stops_on_sigterm(published, tmp_path: Path, workers):
    home, port_file = tmp_path / "server", tmp_path / "port"
    shutil.copytree(published.home, home)
    words = ["serve", "--home", home, "--port", "0", "--port-file", port_file, "--workers", workers]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "device_runtime", *map(str, words)], stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            deadline = time.monotonic() + 60
            while not port_file.exists():
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.02)
            port = int(port_file.read_text())
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/healthz")
            assert json.loads(connection.getresponse().read())["release"] == 2
            connection.close()
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 0, "the home is closed before the process ends"
    assert out.count("\n") == 1 and f"http://127.0.0.1:{port}" in out
    logged = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["status"] for line in logged if line["event"] == "request"] == [200]


def test_a_port_in_use_is_a_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="in use; choose another"):
            _listening("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("127.0.0.1", -1), ("192.0.2.1", 0)])
def test_an_address_that_cannot_be_had_is_a_sentence(host, port):
    with pytest.raises(InputError, match="cannot listen on"):
        _listening(host, port)


def test_two_servers_cannot_both_bind_before_they_listen():
    with _listening("127.0.0.1", 0) as first, pytest.raises(InputError):
        _listening("127.0.0.1", first.getsockname()[1])
