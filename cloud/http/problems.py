"""Errors as answers (RFC 9457). Only sentences meant for a client get out; the rest goes to the log."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from device_runtime.errors import CodaError, InputError, StoreError, TrustError, WireError
from device_runtime.messages import Problem, to_json

log = logging.getLogger("coda.http")

STATUS: dict[type[CodaError], tuple[int, str]] = {
    WireError: (400, "The body does not decode"),
    InputError: (400, "The request cannot be used"),
    TrustError: (401, "The request is not authenticated"),
}
"""Errors whose text is meant for the client. Any other is an incident: its text stays in the log."""


class Refusal(Exception):
    """An answer that is an error. headers: beside the usual ones. reason: what it counts as in the metrics, one of
    `cloud.telemetry.families.REFUSALS`; "" counts it nowhere but by its status."""

    def __init__(
        self, status: int, title: str, detail: str, headers: dict[str, str] | None = None, reason: str = ""
    ) -> None:
        super().__init__(detail)
        self.problem = Problem(title=title, status=status, detail=detail)
        self.headers = headers or {}
        self.reason = reason


def answer(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    return Response(
        to_json(problem), status_code=problem.status, media_type="application/problem+json", headers=headers
    )


def install(app: FastAPI, count: Callable[[str], None]) -> None:
    """Make every error of the app a problem. count: told the reason of each refusal that has one."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> Response:
        if error.reason:
            count(error.reason)
        return answer(error.problem, error.headers)

    @app.exception_handler(CodaError)
    async def deliberate(request: Request, error: CodaError) -> Response:
        for kind, (status, title) in STATUS.items():
            if isinstance(error, kind):
                return answer(Problem(title=title, status=status, detail=str(error)))
        if isinstance(error, StoreError):
            return incident(request, error, 503, "The server's storage refused; nothing of this request was kept")
        return incident(request, error, 500, "Something went wrong on the server")

    @app.exception_handler(HTTPException)
    async def by_framework(_: Request, error: HTTPException) -> Response:
        return answer(Problem(title=str(error.detail), status=error.status_code), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def unfit(_: Request, __: RequestValidationError) -> Response:
        return answer(Problem(title="The request does not fit this call", status=422, detail="see the API page"))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return answer(Problem(title="The request was cut short", status=400))  # for the log: nobody reads it

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return incident(request, error, 500, "Something went wrong on the server")


def incident(request: Request, error: Exception, status: int, title: str) -> Response:
    """Log the error in full under a random number, and tell the client only that number."""
    number = secrets.token_hex(6)
    log.error("incident", extra={"facts": {"incident": number, "path": request.url.path}}, exc_info=error)
    headers = {"Retry-After": "10"} if status == 503 else {}
    return answer(
        Problem(title=title, status=status, detail=f"incident {number}; the operator's log has more"), headers
    )
