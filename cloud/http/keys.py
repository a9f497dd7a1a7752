"""Enrolment and rotation: which key speaks for a device."""

from __future__ import annotations

import msgspec
from fastapi import Request

from cloud.catalog import Device
from cloud.http.auth import Authenticator, unauthenticated
from cloud.http.problems import Refusal
from cloud.http.services import Services
from device_runtime.errors import TrustError
from device_runtime.identity import check_public_key, device_id, rotation_text, verify
from device_runtime.messages import Enrolled, Enrolment, Rotation


def enrol(
    services: Services, authenticator: Authenticator, request: Request, body: bytes, message: Enrolment
) -> Enrolled:
    """Take in a device by the key that it announces, or renew what is known of one whose key has been rotated.

    Raises:
        Refusal: 401. InputError: not a key. TrustError: the key was rotated away.
    """
    key, now = check_public_key(message.public_key), services.clock()
    capability, device = msgspec.to_builtins(message.capability), authenticator.claimed(request)
    if device == device_id(key):
        authenticator.announced(request, body, key, device)
        services.catalog.enrol(key, capability, now)
    else:
        known = services.catalog.device(device)
        if known is None or known.public_key != key:
            raise unauthenticated("the signature is for another device than the announced key's")
        authenticator.announced(request, body, key, device)
        services.catalog.renew(device, key, capability, now)
    return Enrolled(device=device, server_time=int(now))


def rotate(
    services: Services, authenticator: Authenticator, request: Request, body: bytes, message: Rotation
) -> Enrolled:
    """Replace a device's key by one that it proves to hold. Doing it again with the same keys is harmless.

    Raises:
        Refusal: 401, 403, 409, 429. InputError: not a key.
    """
    key = check_public_key(message.public_key)
    signers: list[str] = []

    def accepted(known: Device) -> list[str]:
        signers.append(known.public_key)
        # the answer to an earlier try may have been lost, and the device knows only that it asked
        if known.previous_key and known.public_key == key:
            signers[:] = [known.previous_key]
        return signers

    asker = authenticator.authenticate(request, body, accepted)
    try:
        verify(key, rotation_text(asker.device, key), message.proof)
    except TrustError:
        raise unauthenticated("the new key's proof does not verify: it must sign this device's id and itself") from None
    if signers[0] == key:
        raise Refusal(409, "That is this device's key", "make a new one")
    now = services.clock()
    if not services.catalog.rotate(asker.device, signers[0], key, now):
        raise Refusal(409, "The key was replaced meanwhile", "sign with the newer one")
    return Enrolled(device=asker.device, server_time=int(now))
