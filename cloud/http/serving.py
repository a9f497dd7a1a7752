"""Listening: connections that dawdle are closed, and several worker processes share one socket.

The supervisor forks workers before anything in it has started a thread, watches them, replaces one that died, and
passes signals on: SIGTERM and SIGINT drain and end, SIGHUP replaces the workers one by one, which is how a new release
comes into service without a pause.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from cloud.http.accepting import Acceptor, Share, Shares
from cloud.http.limits import ServerLimits
from device_runtime.errors import CodaError

log = logging.getLogger("coda.http")
DRAIN_S = 20
"""Requests under way are given so long to end."""
_ARRIVAL_S = 0.5
_START_S = 300
_BACKLOG = 2048
_QUICK_S = 5.0
_QUICK_DEATHS = 3


def run(
    app: FastAPI,
    listener: socket.socket,
    limits: ServerLimits,
    ready: Callable[[], None],
    share: Share | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. ready: called once requests are answered. share: of the connections,
    where there are other workers."""
    own = share or Shares(1).of(0)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup([])
            connections = self.server_state.connections
            acceptor = Acceptor(listener, self._protocol, own, lambda: len(connections))
            self.servers = [acceptor]  # type: ignore[list-item]
            listener.listen(_BACKLOG)
            ready()

        def _protocol(self) -> asyncio.Protocol:
            made: asyncio.Protocol = protocol(config, self.server_state, self.lifespan.state)
            return made

    protocol = guarded(limits, own)

    config = uvicorn.Config(
        app, http=protocol, ws="none", lifespan="off", log_config=None, access_log=False,
        timeout_graceful_shutdown=DRAIN_S,
        server_header=False,  # 17 bytes of every answer
        loop="uvloop", proxy_headers=False,  # whoever the request comes from is who asks: see watch.py
    )  # fmt: skip
    # uvicorn raises the signal anew once it has stopped; the default would end us before the home is closed
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    Server(config).run([listener])


def supervise(workers: int, work: Work, ready: Callable[[], None]) -> None:
    """Run workers in processes of their own until SIGTERM or SIGINT.

    work: what a worker does, given its slot (below twice the number of workers: replacements take the other half), its
    share of the connections, and what to call once it answers; returns when it was told to end by SIGTERM. ready:
    called once all answer.

    Raises:
        CodaError: workers do not come up, or die as soon as they do; none is left running.
    """
    Supervisor(workers, work, ready).run()


Work = Callable[[int, Share, Callable[[], None]], None]


@dataclass
class _Worker:
    slot: int
    pid: int
    since: float


class Supervisor:
    """See `supervise`."""

    def __init__(self, workers: int, work: Work, ready: Callable[[], None]) -> None:
        self._count, self._work, self._ready = workers, work, ready
        self._shares = Shares(2 * workers)
        self._workers: list[_Worker] = []
        self._told: set[int] = set()
        self._quick_deaths = 0
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)

    def run(self) -> None:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
        before = {number: signal.signal(number, self._note) for number in numbers}
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        try:
            for slot in range(self._count):
                self._start(slot)
            self._ready()
            while not self._told & {signal.SIGTERM, signal.SIGINT}:
                self._replace_the_dead()
                if signal.SIGHUP in self._told:
                    self._told.discard(signal.SIGHUP)
                    self._replace_all()
                _readable(self._wake, 1.0)
                while _readable(self._wake, 0):
                    os.read(self._wake, 64)
        finally:
            self._stop(self._workers)
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._wake)
            os.close(self._waker)

    def _note(self, number: int, _: object) -> None:
        self._told.add(number)

    def _start(self, slot: int) -> None:
        """Fork a worker and wait until it answers. Raises: CodaError: it does not."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._be_worker(slot, reading, writing)
        os.close(writing)
        worker = _Worker(slot, pid, time.monotonic())
        self._workers.append(worker)
        try:
            if not _readable(reading, _START_S) or os.read(reading, 1) != b"+":
                raise CodaError("a worker did not come up; what it said is above")
        finally:
            os.close(reading)

    def _be_worker(self, slot: int, reading: int, writing: int) -> None:
        status = 1
        try:
            os.close(reading)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal's goes to all of the group

            def answering() -> None:
                os.write(writing, b"+")

            self._work(slot, self._shares.of(slot), answering)
            status = 0
        except CodaError as error:
            log.error("worker", extra={"facts": {"slot": slot, "error": str(error)}})
        except BaseException:
            log.exception("worker")
        finally:
            os._exit(status)  # what the parent registered to do at its end is not the worker's to do

    def _replace_the_dead(self) -> None:
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            for worker in [one for one in self._workers if one.pid == pid]:
                self._workers.remove(worker)
                self._shares.of(worker.slot).leave()
                ended = os.waitstatus_to_exitcode(status)
                log.error("worker died", extra={"facts": {"pid": pid, "status": ended}})
                quick = time.monotonic() - worker.since < _QUICK_S
                self._quick_deaths = self._quick_deaths + 1 if quick else 0
                if self._quick_deaths >= _QUICK_DEATHS:
                    raise CodaError("workers die as soon as they are up; the log above says of what")
                self._start(worker.slot)

    def _replace_all(self) -> None:
        for old in list(self._workers):
            try:
                self._start((old.slot + self._count) % (2 * self._count))
            except CodaError as error:  # the old ones go on: a release that does not load must not stop the service
                log.error("not replaced", extra={"facts": {"reason": str(error)}})
                self._stop(self._workers[-1:])
                return
            self._stop([old])
        log.info("replaced all workers")

    def _stop(self, workers: Sequence[_Worker]) -> None:
        """Tell workers to drain, wait, and end by force those that do not."""
        going = {worker.pid: worker for worker in workers}
        for pid in going:
            _kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + DRAIN_S + 5
        while going:
            for pid in list(going):
                try:
                    gone, _ = os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    gone = pid
                if gone:
                    self._workers.remove(going.pop(pid))
            if going and time.monotonic() > deadline:
                for pid in going:
                    _kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def _readable(descriptor: int, within_s: float) -> bool:
    poll = select.poll()  # select() cannot take descriptors from 1024 on
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(within_s * 1000))


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def guarded(limits: ServerLimits, share: Share | None = None) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, which by itself waits for ever for a request's head, and takes any number of connections.

    share: where the number of connections is told.
    """
    wait = str(limits.retry_after_s).encode()
    full = (
        b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: "
        + wait
        + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )

    class Guarded(HttpToolsProtocol):
        _ending = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._patience = self.loop.call_later(limits.head_timeout_s, self._give_up)
            if len(self.connections) > limits.max_connections:
                transport.write(full)
                transport.close()
            elif share is not None and share.left:
                self.shutdown()  # it was taken just before the end, and the server has told the others already

        def shutdown(self) -> None:
            begun: RequestResponseCycle | None = self.cycle
            if begun is not None:
                super().shutdown()
                return
            # it was accepted a moment ago: the request is on its way, and nobody else can answer it
            self._ending = True
            self.loop.call_later(_ARRIVAL_S, self._give_up)

        def on_headers_complete(self) -> None:
            super().on_headers_complete()
            if self._ending:
                self.cycle.keep_alive = False

        def connection_lost(self, exc: Exception | None) -> None:
            self._patience.cancel()
            super().connection_lost(exc)
            if share is not None and not share.left:
                share.set(len(self.connections))

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._patience.cancel()
            self._patience = self.loop.call_later(limits.head_timeout_s, self._give_up)

        def _give_up(self) -> None:
            if self.cycle is None or self.cycle.response_complete:  # while a request is worked on, its own limits hold
                self.transport.close()

    return Guarded
