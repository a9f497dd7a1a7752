"""Tables by HTTP, over `coda serve` as a process: what an operator sends is matched, once, and whoever is nobody sends
nothing."""

from __future__ import annotations

import http.client
import io
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from cloud.datasets import Dataset
from cloud.home import ServerHome

PARQUET = "application/vnd.apache.parquet"


class Server:
    def __init__(self, home: Path, port: int, pid: int) -> None:
        self.home, self.port, self.pid = home, port, pid
        with ServerHome(home) as opened:
            self.tokens = {role: opened.catalog.operators.add(role, role, now=1.0) for role in ("viewer", "releaser")}

    def send(self, body: object, kind: str = PARQUET, role: str = "releaser", query: str = "") -> tuple[int, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            headers = {"Content-Type": kind, "Authorization": f"Bearer {self.tokens.get(role, 'made up')}"}
            connection.request("POST", f"/v1/interactions{query}", body, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def samples(self) -> int:
        with ServerHome(self.home) as opened:
            return len(opened.pool(opened.release()[1]))


@pytest.fixture
def server(published, tmp_path: Path) -> Iterator[Server]:
    home, port_file = tmp_path / "server", tmp_path / "port"
    shutil.copytree(published.home, home)
    (home / "server.toml").write_text("[limits]\nmax_table_bytes = 100000\nbody_timeout_s = 2\n")
    words = ["serve", "--home", home, "--port", "0", "--port-file", port_file, "--workers", 1]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "device_runtime", *map(str, words)], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while not port_file.exists():
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.02)
            yield Server(home, int(port_file.read_text()), process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@pytest.fixture
def rows(published) -> pa.Table:
    """Of people who are not in the pool yet: 40 rows, one of an unknown item."""
    items = Dataset.load(published.data).items
    return pa.table(
        {
            "user_id": [f"new {i % 4}" for i in range(40)],
            "item_id": [items[1 + i % 30] for i in range(39)] + ["never heard of"],
            "timestamp": np.arange(1_600_000_000, 1_600_000_040),
            "rating": np.where(np.arange(40) % 3 == 0, 5.0, 2.0),
        }
    )


def parquet(table: pa.Table) -> bytes:
    into = io.BytesIO()
    pq.write_table(table, into)
    return into.getvalue()


def test_an_operators_table_joins_the_pool_once(server, rows):
    before = server.samples()
    status, told = server.send(parquet(rows))
    assert (status, told["rows"], told["added"], told["before"]) == (200, 40, 39, 0), told
    assert told["dropped"] == {"an item that the released model does not know": 1}
    assert server.samples() == before + 39
    status, told = server.send(parquet(rows))
    assert (status, told["added"], told["before"]) == (200, 0, 39)
    csv = io.BytesIO()
    pyarrow.csv.write_csv(rows, csv)
    status, told = server.send(csv.getvalue(), "text/csv; charset=utf-8")
    assert (status, told["added"], told["before"]) == (200, 0, 39), "the same rows in another format"
    assert not [path for path in (server.home / "received").iterdir() if path.name != ".lock"]


def test_what_is_no_table_or_nobodys_is_refused_and_nothing_stays(server, rows):
    before, good = server.samples(), parquet(rows)
    for status, said, body, kind, role in [
        (401, "operator's token", good, PARQUET, "nobody"),
        (403, "takes a releaser", good, PARQUET, "viewer"),
        (415, "text/csv", good, "application/json", "releaser"),
        (400, "cannot use the table", b"PAR1, or is it?", PARQUET, "releaser"),
        (400, "it lacks user_id; it has", parquet(rows.drop(["user_id"])), PARQUET, "releaser"),
        (413, "at most|may have 100000 bytes", b"x" * 100_001, "text/csv", "releaser"),
    ]:
        found, told = server.send(body, kind, role)
        assert found == status and any(part in told["detail"] for part in said.split("|")), (found, told)
        assert str(server.home) not in json.dumps(told)
    assert server.send(good, query="?positive_at=high")[0] == 422
    assert server.samples() == before
    assert not [path for path in (server.home / "received").iterdir() if path.name != ".lock"]


def test_tables_take_turns_and_one_that_stops_arriving_makes_room(server, rows):
    def slowly() -> Iterator[bytes]:
        yield b"user_id,"
        going.set()
        time.sleep(6.0)
        yield b"item_id"

    going, found = threading.Event(), []

    def send() -> None:
        try:
            found.append(server.send(slowly(), "text/csv")[0])
        except OSError:  # the server has answered and hung up before the rest came
            found.append(408)

    slow = threading.Thread(target=send)
    slow.start()
    assert going.wait(20)
    time.sleep(0.3)
    status, told = server.send(parquet(rows))
    assert status == 503 and told["title"] == "Another table is being taken in"
    slow.join(30)
    assert found == [408]
    assert server.send(parquet(rows))[0] == 200
