"""What one device, and all together, may ask for; and how many wait when the server is busy."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from cloud.http.problems import Refusal
from cloud.settings import Settings
from device_runtime.errors import InputError


@dataclass(frozen=True)
class ServerLimits:
    """`HOME/server.toml` can set each of them.

    max_query_bytes, max_report_bytes, max_contribution_bytes: of a request's body. max_table_bytes: of a table that an
    operator sends. max_contribution_samples: in one contribution, whose frame may unpack to far more than its bytes
    suggest. max_candidates: in one answer. max_centroids: in one query. clock_skew_s: seconds that a device's clock may
    differ. body_timeout_s: for a body to arrive, and for each part of a table; head_timeout_s: for a connection's next
    request's head, the wait for it included.

    concurrent_matches, waiting_matches: that are worked on, and that wait their turn, for match_wait_s at most; others
    are turned away with 503. A match holds the interpreter, so more at once take longer each: raise it where a Milvus
    server is waited for. concurrent_contributions: likewise, without waiting. retry_after_s: seconds that those
    are told to wait. max_connections: more are answered with 503. All of these are of each worker process.

    device_requests_per_minute, device_burst: of one device, beyond which it gets 429. requests_per_s, burst: of all
    devices together. They are token buckets in the memory of each worker process, so with N workers a device that
    spreads its connections may get N times as much; the catalog is not asked.

    statement_s: seconds for which a device may go by what it was told of its bundle, before it must ask by a signed
    call again; only for devices that were given a root.

    device_samples_per_day, samples_per_day: contributed, of one device and of all; days are UTC, counted in the
    catalog, and hold over all workers and machines.

    report_days, sample_days: after so many days, reports are deleted, and samples of this server's pool are in no
    answer and leave the disk by the next compaction; 0: never.
    """

    max_query_bytes: int = 64 << 10
    max_report_bytes: int = 256 << 10
    max_contribution_bytes: int = 8 << 20
    max_table_bytes: int = 256 << 20
    max_contribution_samples: int = 20_000
    max_candidates: int = 10_000
    max_centroids: int = 64
    clock_skew_s: int = 300
    body_timeout_s: float = 30.0
    head_timeout_s: float = 60.0
    concurrent_matches: int = 1
    waiting_matches: int = 32
    match_wait_s: float = 2.0
    concurrent_contributions: int = 4
    retry_after_s: int = 2
    max_connections: int = 4_000
    device_requests_per_minute: float = 120.0
    device_burst: int = 60
    requests_per_s: float = 2_000.0
    burst: int = 4_000
    statement_s: int = 7 * 86_400
    device_samples_per_day: int = 50_000
    samples_per_day: int = 50_000_000
    report_days: float = 180.0
    sample_days: float = 0.0


def limits_of(settings: Settings) -> ServerLimits:
    """The defaults, but for what the settings say. Raises: InputError: an unknown name, or nonsense."""
    known = {field.name: field.default for field in fields(ServerLimits)}
    for name, value in settings.limits.items():
        if name not in known:
            raise InputError(f"server.toml: no limit is called {name!r}; there are {', '.join(known)}")
        if not math.isfinite(value) or value < 0 or (isinstance(known[name], int) and value != int(value)):
            raise InputError(f"server.toml: the limit {name} cannot be {value}; the default is {known[name]}")
    changed: dict[str, Any] = {
        name: int(value) if isinstance(known[name], int) else value for name, value in settings.limits.items()
    }
    return replace(ServerLimits(), **changed)


class Buckets:
    """Token buckets by name, full at first. At most so many are kept: the one unused for longest is dropped, as if it
    had filled up.

    per_s: tokens that flow in. burst: that it holds.
    """

    def __init__(self, per_s: float, burst: int, most: int = 100_000) -> None:
        self._per_s, self._burst, self._most = per_s, float(burst), most
        self._known: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, now: float) -> float:
        """Take a token. Returns 0 if there was one, else the seconds until there will be."""
        held, at = self._known.pop(name, (self._burst, now))
        held = min(self._burst, held + max(now - at, 0.0) * self._per_s)
        wait = 0.0 if held >= 1 else (1 - held) / self._per_s if self._per_s > 0 else 3600.0
        self._known[name] = (held if wait else held - 1, max(now, at))
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        return wait


class Gate:
    """Lets so many in at once, and so many wait; the others are refused rather than queued without end."""

    def __init__(self, inside: int, waiting: int, wait_s: float, retry_after_s: int) -> None:
        self._turns = asyncio.Semaphore(inside)
        self._room, self._wait_s, self._retry_after_s = inside + waiting, wait_s, retry_after_s
        self._here = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Raises: Refusal: 503, with Retry-After."""
        if self._here >= self._room:
            raise self._busy()
        self._here += 1
        try:
            try:
                async with asyncio.timeout(self._wait_s):
                    await self._turns.acquire()
            except TimeoutError:
                raise self._busy() from None
            try:
                yield
            finally:
                self._turns.release()
        finally:
            self._here -= 1

    def _busy(self) -> Refusal:
        wait = {"Retry-After": str(self._retry_after_s)}
        return Refusal(503, "The server is busy", "try again later", wait, reason="busy")
