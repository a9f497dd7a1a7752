"""For operators: `/metrics` and the dashboard. Figures only, none of a single device; still not everybody's.

Who asks from this machine itself may see them. A proxy on this machine asks for others: it gives itself away by a
forwarding header, or by a Host that is not this machine. Everybody else needs the token in HOME/watch.token, as
`Authorization: Bearer TOKEN` (Prometheus) or as the password of any user (browsers).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Mapping

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response

from cloud import dashboard
from cloud.http.problems import Refusal
from cloud.http.services import Services
from cloud.telemetry import Family
from cloud.telemetry.families import GAUGES
from device_runtime.errors import StoreError

_FORWARDING = ("forwarded", "via", "x-forwarded-for", "x-real-ip", "x-forwarded-host", "x-forwarded-proto")
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_DAY_S = 86_400


def install(app: FastAPI, services: Services, started: float) -> None:
    """Add the operators' pages. They are not on the API page: devices have no use for them."""

    @app.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        _check(request, services.watch_token)
        text = await to_thread.run_sync(lambda: services.metrics.text(_gauges(services, started)))
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/dashboard", include_in_schema=False)
    async def page(request: Request) -> Response:
        _check(request, services.watch_token)

        def made() -> str:
            return dashboard.page(dashboard.look(services, started))

        headers = {"Cache-Control": "no-store", "Content-Security-Policy": dashboard.POLICY}
        return Response(await to_thread.run_sync(made), media_type="text/html; charset=utf-8", headers=headers)

    @app.get("/", include_in_schema=False)
    async def home() -> Response:
        return RedirectResponse("/dashboard", status_code=307)


def _check(request: Request, token: str) -> None:
    """Raises: Refusal: 401."""
    if _is_local(request) or (token and hmac.compare_digest(_given(request.headers), token.encode())):
        return
    detail = "give the token in HOME/watch.token as a bearer token, or as the password of any user"
    raise Refusal(401, "For operators", detail, {"WWW-Authenticate": 'Basic realm="CoDA", charset="UTF-8"'})


def _is_local(request: Request) -> bool:
    if request.client is None or any(name in request.headers for name in _FORWARDING):
        return False
    name = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
    return name in _LOCAL_HOSTS and ipaddress.ip_address(request.client.host).is_loopback


def _given(headers: Mapping[str, str]) -> bytes:
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip().encode()
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2] if kind.lower() == "basic" else b""
    except binascii.Error:
        return b""


def _gauges(services: Services, started: float) -> list[tuple[Family, dict[tuple[str, ...], float]]]:
    now = services.clock()
    pool = services.current.pool
    found: dict[str, dict[tuple[str, ...], float]] = {
        "coda_pool_samples": {(): len(pool)},
        "coda_pool_segments": {(): len(pool.segments)},
        "coda_release_version": {(): services.releases.base},
        "coda_uptime_seconds": {(): now - started},
    }
    try:
        contributors, _, busiest = services.catalog.contributors_today(now)
        found |= {
            "coda_devices": {
                ("ever",): services.catalog.count_devices(),
                ("within a day",): services.catalog.count_devices(now - _DAY_S),
            },
            "coda_contributors_today": {(): contributors},
            "coda_busiest_contributor_samples_today": {(): busiest},
            "coda_catalog_up": {(): 1},
        }
    except StoreError:  # what can be told without it is told: this is when operators look
        found["coda_catalog_up"] = {(): 0}
    return [(GAUGES[name], values) for name, values in found.items()]
