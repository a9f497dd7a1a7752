"""Who is asking: every request is signed by a device's key, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request

from cloud.catalog import Device
from cloud.http.limits import Buckets
from cloud.http.problems import Refusal
from cloud.http.services import Services
from device_runtime.errors import TrustError
from device_runtime.identity import SCHEME, parse_authorization, request_text, verify

BUNDLE = "CoDA-Bundle"
"""A header of any request: the version of the bundle that the device runs."""
_TITLE = "The request is not authenticated"


@dataclass(frozen=True)
class Asker:
    """known: what the catalog has of it. nonce: of this request, which a signed answer repeats. bundle: that it says it
    runs, 0 if it says nothing."""

    known: Device
    nonce: str
    bundle: int = 0

    @property
    def device(self) -> str:
        return self.known.id


async def read_body(request: Request, limit: int, timeout_s: float) -> bytes:
    """The body, read no further than the limit. Raises: Refusal: 408, 413."""
    too_large = Refusal(413, "The body is too large", f"this call takes at most {limit} bytes", {"Connection": "close"})
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and int(stated) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise too_large
                body += chunk
    except TimeoutError:
        detail = f"the body did not arrive within {timeout_s:g} s"
        raise Refusal(408, "The request took too long", detail, {"Connection": "close"}, "too slow") from None
    return bytes(body)


class Authenticator:
    """Checks signatures against the catalog, and keeps devices within their rates."""

    def __init__(self, services: Services) -> None:
        limits = services.limits
        self._services = services
        self._each = Buckets(limits.device_requests_per_minute / 60, limits.device_burst)
        self._all = Buckets(limits.requests_per_s, limits.burst, most=1)

    def admit(self) -> None:
        """Before anything is read or checked. Raises: Refusal: 429: all devices together ask for too much."""
        self._spend(self._all, "", "total rate", "the server has reached its rate; try again later")

    def announced(self, request: Request, body: bytes, public_key: str, device: str) -> None:
        """Check a request that is signed by the key that it announces. Raises: Refusal: 401."""
        self._check(request, body, device, [public_key])

    def claimed(self, request: Request) -> str:
        """The device that a request says it is of, unchecked. Raises: Refusal: 401: it says none."""
        try:
            return parse_authorization(request.headers.get("authorization", ""))[0]
        except TrustError as error:
            raise unauthenticated(str(error)) from None

    def authenticate(
        self, request: Request, body: bytes, keys: Callable[[Device], list[str]] = lambda known: [known.public_key]
    ) -> Asker:
        """Check a request of an enrolled device, and use up its nonce.

        keys: those that may have signed it.

        Raises:
            Refusal: 401, 403 or 429, with what to do.
        """
        device = self.claimed(request)
        known = self._services.catalog.device(device)
        if known is None:
            raise unauthenticated("this device is not enrolled here; run `coda device enrol` again")
        nonce = self._check(request, body, device, keys(known))
        if known.revoked:
            detail = "ask the operator; local weights go on serving"
            raise Refusal(403, "This device has been revoked", detail, reason="revoked")
        # after the signature: nobody can spend what is another's
        self._spend(self._each, device, "device rate", "this device asks for too much; its own schedule is enough")
        # a nonce is remembered for as long as its signature could pass the clock check
        window_s = 2 * self._services.limits.clock_skew_s
        if not self._services.catalog.use_nonce(device, nonce, self._services.clock(), window_s, known.seen):
            raise unauthenticated("this request has been made before (same nonce)")
        return Asker(known, nonce, _bundle(request.headers.get(BUNDLE, "")))

    def _spend(self, buckets: Buckets, name: str, reason: str, detail: str) -> None:
        wait_s = buckets.take(name, self._services.clock())
        if wait_s:
            raise Refusal(429, "Too many requests", detail, {"Retry-After": str(int(wait_s) + 1)}, reason)

    def _check(self, request: Request, body: bytes, device: str, keys: list[str]) -> str:
        skew_s, now = self._services.limits.clock_skew_s, self._services.clock()
        try:
            claimed, at, nonce, signature = parse_authorization(request.headers.get("authorization", ""))
            if claimed != device:
                raise TrustError("the signature is for another device than the announced key's")
            if abs(now - at) > skew_s:
                raise TrustError(
                    f"the request's time {at} is more than {skew_s} s from the server's, {int(now)}; "
                    "set the device's clock"
                )
            # as it was written: neither decoded, nor rebuilt from the Host header
            written = request.scope.get("raw_path", b"").decode("latin-1")
            text = request_text(request.method, written, at, nonce, body)
            for key in keys[:-1]:
                try:
                    verify(key, text, signature)
                    return nonce
                except TrustError:
                    continue
            verify(keys[-1], text, signature)
        except TrustError as error:
            raise unauthenticated(str(error)) from None
        return nonce


def _bundle(stated: str) -> int:
    return int(stated) if stated.isdecimal() and stated.isascii() and len(stated) < 10 else 0


def unauthenticated(detail: str) -> Refusal:
    return Refusal(401, _TITLE, detail, {"WWW-Authenticate": SCHEME}, "not authenticated")
