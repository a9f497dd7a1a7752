"""Several workers behind one port: they share metrics, are replaced when they die or when told, and drain."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fastapi import FastAPI

from cloud.http import ServerLimits, serving
from cloud.telemetry import Family, Metrics
from device_runtime.errors import CodaError

ASKED = Family("asked_total", "counter", "Requests.")


def get(port: int, path: str = "/") -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


@contextmanager
def supervised(workers: int) -> Iterator[tuple[int, int, Metrics]]:
    """(port, pid of the supervisor, metrics): the supervisor is a process of its own, forked off the test."""
    metrics = Metrics([ASKED], 2 * workers)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)

        def work(slot: int, share, ready) -> None:
            app, own = FastAPI(), metrics.of(slot)

            @app.get("/")
            def who() -> int:
                own.add("asked_total")
                return os.getpid()

            @app.get("/slow")
            def slow() -> str:
                time.sleep(1.0)
                return "done"

            serving.run(app, listener, ServerLimits(), ready, share)

        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                serving.supervise(workers, work, lambda: os.write(writing, b"+") and None)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        try:
            assert os.read(reading, 1) == b"+"
            yield listener.getsockname()[1], pid, metrics
        finally:
            os.close(reading)
            with suppress(ProcessLookupError, ChildProcessError):  # the test has ended it
                os.kill(pid, signal.SIGTERM)
                os.waitpid(pid, 0)


def seen(port: int, most: int = 200) -> set[int]:
    return {int(get(port)) for _ in range(most)}


def children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_workers_share_a_port_and_one_set_of_metrics():
    with supervised(2) as (port, pid, metrics):
        assert seen(port) <= children(pid) and len(children(pid)) == 2
        assert metrics.total("asked_total") == 200


def test_connections_that_come_at_once_and_stay_are_spread_over_workers():
    with supervised(2) as (port, pid, _):
        for _ in range(3):
            kept = [http.client.HTTPConnection("127.0.0.1", port, timeout=20) for _ in range(16)]
            for connection in kept:
                connection.connect()
            answers = []
            for connection in kept:
                connection.request("GET", "/")
                answers.append(int(connection.getresponse().read()))
            assert set(answers) == children(pid)
            assert min(answers.count(one) for one in set(answers)) >= 5, answers
            for connection in kept:
                connection.close()


def test_a_worker_that_is_killed_is_replaced():
    with supervised(2) as (port, pid, _):
        victim, *_ = children(pid)
        os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while victim in children(pid) or len(children(pid)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert int(get(port)) in children(pid)


def test_hangup_replaces_all_without_a_pause_and_without_losing_counts():
    with supervised(2) as (port, pid, metrics):
        before, failures, asked, stop = children(pid), [], [0], threading.Event()

        def keep_asking() -> None:
            while not stop.is_set():
                try:
                    get(port)
                    asked[0] += 1
                except (OSError, http.client.HTTPException) as error:
                    failures.append(error)

        asking = threading.Thread(target=keep_asking)
        asking.start()
        os.kill(pid, signal.SIGHUP)
        deadline = time.monotonic() + 20
        while children(pid) & before or len(children(pid)) != 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        stop.set()
        asking.join()
        assert failures == [] and asked[0] > 0
        assert metrics.total("asked_total") == asked[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_under_way_is_finished_before_the_end(number):
    with supervised(2) as (port, pid, _):
        found = []
        asking = threading.Thread(target=lambda: found.append(get(port, "/slow")))
        asking.start()
        time.sleep(0.3)
        os.kill(pid, number)
        asking.join(20)
        assert found == ['"done"']
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_workers_that_do_not_come_up_are_an_error():
    def work(slot: int, share, ready) -> None:
        raise CodaError("the pool is damaged")

    with pytest.raises(CodaError, match="did not come up"):
        serving.supervise(1, work, lambda: None)
