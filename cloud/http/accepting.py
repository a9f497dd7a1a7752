"""Connections spread over workers.

Workers listen on one socket, and the kernel wakes all of them for each connection; whoever is first would take all that
wait (libuv accepts until none is left), so that one of two idle workers often got every device. Here a worker takes one
at a time, and none while another has fewer, unless that one leaves it.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import socket
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger("coda.http")
_ABSENT = -1
_STEP_S, _PATIENCE_S = 0.001, 0.01
_NO_ROOM_S = 1.0


class Shares:
    """How many connections each worker has, in memory that forked processes share.

    workers: highest number of them, those that are being replaced included.
    """

    def __init__(self, workers: int) -> None:
        self._held = memoryview(mmap.mmap(-1, 4 * workers)).cast("i")
        for slot in range(workers):
            self._held[slot] = _ABSENT

    def of(self, slot: int) -> Share:
        return Share(self._held, slot)


@dataclass(frozen=True)
class Share:
    """One worker's. The others look at it; nobody else writes it, but for whoever found the worker dead."""

    _held: memoryview
    _slot: int

    def set(self, connections: int) -> None:
        self._held[self._slot] = connections

    def leave(self) -> None:
        """The worker takes no more connections."""
        self._held[self._slot] = _ABSENT

    @property
    def left(self) -> bool:
        return self._held[self._slot] == _ABSENT

    @property
    def fair(self) -> bool:
        """Whether no other worker has fewer connections."""
        own = self._held[self._slot]
        return all(own <= held for held in self._held if held != _ABSENT)


class Acceptor:
    """Takes connections from a socket that listens, within the running loop, until `close`.

    connections: how many this worker has. It stands in for an `asyncio.Server`.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        share: Share,
        connections: Callable[[], int],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener, self._protocol, self._share, self._connections = listener, protocol, share, connections
        self._starting: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        share.set(connections())
        self._watch()

    def _watch(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._offered, _PATIENCE_S)

    def _offered(self, patience_s: float) -> None:
        """A connection waits, for this worker or another."""
        self._share.set(self._connections() + len(self._starting))
        if patience_s > 0 and not self._share.fair:
            self._rest(_STEP_S, lambda: self._again(patience_s - _STEP_S))
            return
        try:
            taken, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return  # another worker was quicker, or the peer has left
        except OSError as error:
            log.error("cannot accept", extra={"facts": {"reason": error.strerror}})
            self._rest(_NO_ROOM_S, self._watch)
            return
        taken.setblocking(False)
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._protocol, taken))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        self._share.set(self._connections() + len(self._starting))

    def _rest(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(seconds, then)

    def _again(self, patience_s: float) -> None:
        self._watch()
        self._offered(patience_s)

    def close(self) -> None:
        """Take no more. Those that were taken are still begun with."""
        self._share.leave()
        self._loop.remove_reader(self._listener)
        if self._pause is not None:
            self._pause.cancel()

    async def wait_closed(self) -> None:
        if self._starting:
            await asyncio.wait(self._starting)
