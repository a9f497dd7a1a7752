"""One JSON object a line on stderr: who asked for what, how it ended, how long it took. Never keys or bodies.

The same goes to the metrics, and to a trace where that is configured.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud.telemetry import Metrics
from cloud.telemetry.families import ROUTES
from cloud.telemetry.tracing import request_span

log = logging.getLogger("coda.http")
_DEVICE = re.compile(rb"CoDA ([0-9a-f]{8})[0-9a-f]{24}:")
"""Of other Authorization headers nothing is logged: they may hold another service's secret."""


class JsonLines(logging.Formatter):
    """`facts` of a record beside time, level and event."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(level: str) -> None:
    """Send our records, and uvicorn's, to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("coda", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper())


class LogRequests:
    """ASGI middleware that logs and counts each request once it has been answered."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        facts: dict[str, object] = {"method": scope["method"], "path": scope["path"], "status": 0}
        for name, value in scope["headers"]:
            if name == b"authorization" and (device := _DEVICE.match(value)):
                facts["device"] = device[1].decode()
        bytes_in = bytes_out = 0
        begin = time.perf_counter()

        async def counted_receive() -> Message:
            nonlocal bytes_in
            message = await receive()
            bytes_in += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            nonlocal bytes_out
            if message["type"] == "http.response.start":
                facts["status"] = message["status"]
            bytes_out += len(message.get("body", b""))
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        status, route = 0, ""
        try:
            with request_span(scope["method"], headers) as attributes:
                try:
                    await self.app(scope, counted_receive, counted_send)
                except Exception:  # answered further out, as a 500 with an incident
                    facts["status"] = facts["status"] or 500
                    raise
                finally:
                    status, route = int(str(facts["status"])), getattr(scope.get("route"), "path", "")
                    attributes |= {"http.route": route, "http.response.status_code": status}
        finally:
            taken = time.perf_counter() - begin
            facts |= {"route": route, "ms": round(1e3 * taken, 1), "bytes_in": bytes_in, "bytes_out": bytes_out}
            log.info("request", extra={"facts": facts})
            self._count(route, status, taken, bytes_in, bytes_out)

    def _count(self, route: str, status: int, seconds: float, bytes_in: int, bytes_out: int) -> None:
        name = route if route in ROUTES else "other"
        if 200 <= status < 600:  # 0: the client hung up before there was an answer
            self._metrics.add("coda_http_requests_total", name, f"{status // 100}xx")
        self._metrics.observe("coda_http_request_seconds", name, value=seconds)
        self._metrics.add("coda_http_received_bytes_total", name, by=bytes_in)
        self._metrics.add("coda_http_sent_bytes_total", name, by=bytes_out)
