"""One JSON object a line on stderr: who asked for what, how it ended, how long it took. Never keys or bodies."""

from __future__ import annotations

import json
import logging
import re
import sys
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
    """ASGI middleware that logs each request once it has been answered."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

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

        try:
            await self.app(scope, counted_receive, counted_send)
        except Exception:  # answered further out, as a 500 with an incident
            facts["status"] = facts["status"] or 500
            raise
        finally:
            facts["route"] = getattr(scope.get("route"), "path", "")
            facts |= {"ms": round(1e3 * (time.perf_counter() - begin), 1), "bytes_in": bytes_in, "bytes_out": bytes_out}
            log.info("request", extra={"facts": facts})
