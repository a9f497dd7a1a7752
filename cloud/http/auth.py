"""Who is asking: every request is signed by a device's key, once."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from cloud.http.problems import Refusal
from cloud.http.services import Services
from device_runtime.errors import TrustError
from device_runtime.identity import SCHEME, parse_authorization, request_text, verify

_TITLE = "The request is not authenticated"
_CHALLENGE = {"WWW-Authenticate": SCHEME}


@dataclass(frozen=True)
class Asker:
    """device: its id. nonce: of this request, which a signed answer repeats."""

    device: str
    nonce: str


async def read_body(request: Request, limit: int) -> bytes:
    """The body, read no further than the limit. Raises: Refusal: 413."""
    too_large = Refusal(413, "The body is too large", f"this call takes at most {limit} bytes", {"Connection": "close"})
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and int(stated) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > limit:
            raise too_large
        body += chunk
    return bytes(body)


def announced(request: Request, body: bytes, public_key: str, device: str, now: float, skew_s: int) -> str:
    """Check a request that is signed by the key that it announces. Returns its nonce.

    Raises:
        Refusal: 401.
    """
    return _check(request, body, device, public_key, now, skew_s)


def authenticate(request: Request, body: bytes, services: Services) -> Asker:
    """Check a request of an enrolled device, and use up its nonce.

    Raises:
        Refusal: 401 or 403, with what to do.
    """
    try:
        device = parse_authorization(request.headers.get("authorization", ""))[0]
    except TrustError as error:
        raise Refusal(401, _TITLE, str(error), _CHALLENGE) from None
    known = services.catalog.device(device)
    if known is None:
        raise Refusal(401, _TITLE, "this device is not enrolled here; run `coda device enrol` again", _CHALLENGE)
    now = services.clock()
    nonce = _check(request, body, device, known.public_key, now, services.limits.clock_skew_s)
    if known.revoked:
        raise Refusal(403, "This device has been revoked", "ask the operator; local weights go on serving")
    # a nonce is remembered for as long as its signature could pass the clock check
    if not services.catalog.use_nonce(device, nonce, now, 2 * services.limits.clock_skew_s):
        raise Refusal(401, _TITLE, "this request has been made before (same nonce)", _CHALLENGE)
    return Asker(device, nonce)


def _check(request: Request, body: bytes, device: str, public_key: str, now: float, skew_s: int) -> str:
    try:
        claimed, at, nonce, signature = parse_authorization(request.headers.get("authorization", ""))
        if claimed != device:
            raise TrustError("the signature is for another device than the announced key's")
        if abs(now - at) > skew_s:
            raise TrustError(
                f"the request's time {at} is more than {skew_s} s from the server's, {int(now)}; set the device's clock"
            )
        # as it was written: neither decoded, nor rebuilt from the Host header
        written = request.scope.get("raw_path", b"").decode("latin-1")
        verify(public_key, request_text(request.method, written, at, nonce, body), signature)
    except TrustError as error:
        raise Refusal(401, _TITLE, str(error), _CHALLENGE) from None
    return nonce
