"""Tables of interactions by HTTP, for operators: the same as `coda data ingest --interactions`, by token.

A table is written to disk as it arrives, and taken in by a process of its own, of low priority, so that no match waits
for it. What was added is durable when the answer comes. A table that is sent again adds nothing: it is known by what is
in it, so who got no answer sends it once more.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.responses import Response

from cloud.http.openapi import JSON
from cloud.http.operators import allow, identified
from cloud.http.problems import Refusal
from cloud.http.services import Services
from device_runtime.errors import InputError, StoreError

KINDS = {"application/vnd.apache.parquet": "table.parquet", "text/csv": "table.csv"}
_NICE = 10


def install(app: FastAPI, services: Services) -> None:
    """Add the call, where the server has a home of its own."""
    home = services.home
    if home is None:
        return

    @app.post("/v1/interactions", include_in_schema=False)
    async def take_in(request: Request, positive_at: float | None = None) -> Response:
        allow(await identified(services, request), "releaser")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in KINDS:
            raise Refusal(415, "Not a table", f"send one as {' or '.join(KINDS)}", {"Connection": "close"})
        with _alone(home, services.limits.retry_after_s) as folder:
            table = folder / KINDS[kind]
            await _received(request, table, services.limits.max_table_bytes, services.limits.body_timeout_s)
            found = await to_thread.run_sync(_ingested, home, table, positive_at)
        return Response(found, media_type=JSON, headers={"Cache-Control": "no-store"})


@contextmanager
def _alone(home: Path, wait_s: int) -> Iterator[Path]:
    """A folder for one table at a time, of all workers. Raises: Refusal: 503. StoreError."""
    try:
        place = home / "received"
        place.mkdir(exist_ok=True)
        with (place / ".lock").open("ab") as turn:
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wait = {"Retry-After": str(wait_s), "Connection": "close"}
                raise Refusal(503, "Another table is being taken in", "try again later", wait, "busy") from None
            with tempfile.TemporaryDirectory(dir=place) as folder:
                yield Path(folder)
    except OSError as error:
        raise StoreError(f"no table can be received: {error.strerror}") from None


async def _received(request: Request, path: Path, most: int, timeout_s: float) -> None:
    """Raises: Refusal: 408: nothing came for so long; 413."""
    size, parts = 0, request.stream()
    with path.open("wb") as file:
        while True:
            try:
                async with asyncio.timeout(timeout_s):
                    part = await anext(parts, None)
            except TimeoutError:
                detail = f"nothing of the table arrived for {timeout_s:g} s"
                raise Refusal(408, "The request took too long", detail, {"Connection": "close"}, "too slow") from None
            if part is None:
                return
            size += len(part)
            if size > most:
                detail = f"it may have {most} bytes; send it in parts, a user's rows in one of them"
                raise Refusal(413, "The table is too large", detail, {"Connection": "close"})
            file.write(part)


def _ingested(home: Path, table: Path, positive_at: float | None) -> bytes:
    """What `coda data ingest --json` says. Raises: InputError: the table cannot be used. StoreError."""
    told = table.with_name("told.json")
    words = ["data", "ingest", "--home", home, "--interactions", table, "--json", told]
    if positive_at is not None:
        words += ["--positive-at", positive_at]
    process = subprocess.Popen(
        [sys.executable, "-m", "device_runtime", *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
    _, said = process.communicate()
    if process.returncode == 0:
        return msgspec.json.encode(msgspec.json.decode(told.read_bytes()))
    reason = said.decode(errors="replace").strip().rpartition("coda: ")[2]
    if process.returncode == InputError.exit_status:
        raise InputError(reason.replace(str(table), "the table").replace(str(home), "the server's home"))
    raise StoreError(f"the table was not taken in (exit code {process.returncode}): {reason[-2000:]}")
