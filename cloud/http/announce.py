"""Telling devices what is new: by the release that each should have, in as few bytes as may be.

Push-then-pull: a device names its bundle on every request that it makes anyway, and an answer says more only where
something is stale. What it is, the device asks when its schedule allows, by a signed call. A device that has nothing
else to say asks by `CHECK`, which is unsigned and small: it tells nothing but that something is new, and a lie in it is
found out by the signed call, or by the expiry of what the device holds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
from fastapi import Request
from fastapi.responses import Response

from cloud.catalog import Device
from cloud.http.auth import Asker
from cloud.http.openapi import JSON
from cloud.http.problems import Refusal
from cloud.http.services import Services
from device_runtime.errors import InputError, StoreError
from device_runtime.identity import answer_text
from device_runtime.messages import MAX_PROFILE, Announcement, BundleRef, Profile, profile_digest, to_json

ROTATE = "CoDA-Rotate-Key"
"""A header of announcements: the operator wants this device to make a new key."""
PROFILE = "CoDA-Profile"
"""A header of questions for the bundle: what an app tells of itself, as JSON."""
STALE = "CoDA-Stale"
"""A header of answers: the tasks that have something newer."""
SIGNATURE = "CoDA-Signature"
CHECK = "/v1/stale/{device}/{bundle}/{profile}"
_PARTS = {"device": "[0-9a-f]{32}", "bundle": "[0-9]{1,9}", "profile": "[0-9a-f]{8}"}
CHECKED: dict[str, Any] = {
    "parameters": [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": f"^{form}$"}}
        for name, form in _PARTS.items()
    ]
}
"""What stands in such a path, for the API page."""
DOCUMENT = "/v1/metadata/{role}/{version}"
DOCUMENTED: dict[str, Any] = {
    "parameters": [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in (
            ("role", {"type": "string", "enum": ["root", "bundles"]}),
            ("version", {"type": "integer", "minimum": 1, "maximum": 999_999_999}),
        )
    ]
}
"""Likewise."""


def bundle(services: Services, asker: Asker, request: Request) -> Response:
    """The signed pointer, or 304.

    Raises:
        InputError: the profile is none.
    """
    known = _with_profile(services, asker.known, request.headers.get(PROFILE, ""))
    version = services.releases.meet(services.releases.facts(known, asker.bundle)).bundle
    ref = services.ref if version == services.ref.version else services.catalog.bundle(version)
    if ref is None:
        raise StoreError(f"bundle {version} is not in the catalog")
    announcement = to_json(_announcement(services, ref, known.id))
    etag = f'"{hashlib.sha256(to_json(ref)).hexdigest()[:16]}"'
    headers = {"ETag": etag} | ({ROTATE: "due"} if known.rotation_due else {})
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    headers |= {SIGNATURE: services.answer_signer.sign(answer_text(asker.nonce, announcement))}
    return Response(announcement, media_type=JSON, headers=headers | {"Cache-Control": "no-store"})


def _announcement(services: Services, ref: BundleRef, device: str) -> Announcement:
    """With the newest documents, where the publisher has any."""
    plain = {name: getattr(ref, name) for name in BundleRef.__struct_fields__}
    root, listing = services.releases.newest("root"), services.releases.newest("bundles")
    if root is None or listing is None:
        return Announcement(**plain)
    return Announcement(
        **plain,
        device=device,
        expires=int(services.clock() + services.limits.statement_s),
        root=root[0],
        listing_version=listing[0],
        listing=hashlib.sha256(listing[1]).hexdigest(),
    )


def document(services: Services, role: str, version: str) -> Response:
    """A document of the publisher's: immutable, and anybody's.

    Raises:
        Refusal: 404.
    """
    found = None
    if re.fullmatch("[1-9][0-9]{0,8}", version):
        found = services.catalog.rollouts.document(role[:16], int(version))
    if found is None:
        raise Refusal(404, "No such document", "there are root and bundles, by their versions")
    return Response(found, media_type=JSON, headers={"Cache-Control": "public, max-age=31536000, immutable"})


def check(services: Services, asked: Mapping[str, str]) -> Response:
    """204, or the tasks that are stale, as a JSON list. Of a device that is not enrolled everything is.

    Raises:
        InputError: not such a path.
    """
    if not all(re.fullmatch(form, asked[name]) for name, form in _PARTS.items()):
        raise InputError("write /v1/stale/DEVICE/BUNDLE/PROFILE: 32 hex digits, a version, 8 hex digits")
    runs, profile = int(asked["bundle"]), asked["profile"]
    known = services.catalog.device(asked["device"])
    if known is None:
        stale = ["bundle"]
    else:
        stale = ["bundle"] if services.releases.decide(known, runs).bundle != runs else []
        newest = [found[0] if (found := services.releases.newest(role)) else 0 for role in ("root", "bundles")]
        digests = {profile_digest(known.profile), profile_digest(known.profile, *newest)}
        stale += ["profile"] if profile not in digests else []
        stale += ["key"] if known.rotation_due or known.revoked else []
    if not stale:
        return Response(status_code=204)
    return Response(msgspec.json.encode(stale), media_type=JSON, headers={"Cache-Control": "no-store"})


def news(services: Services, asker: Asker) -> dict[str, str]:
    """A header for an answer to a device that says what it runs; {} where nothing is new."""
    if not asker.bundle:
        return {}
    facts = services.releases.facts(asker.known, asker.bundle)
    tasks = ["bundle"] if services.releases.meet(facts).bundle != asker.bundle else []
    tasks += ["evaluation"] if services.federated.asked(facts) else []
    return {STALE: ",".join(tasks)} if tasks else {}


def _with_profile(services: Services, known: Device, told: str) -> Device:
    """The device as it is by what it tells now."""
    if not told:
        return known
    try:
        profile = msgspec.json.decode(told if len(told) <= MAX_PROFILE else "", type=Profile)
    except msgspec.DecodeError as error:
        raise InputError(f"the header {PROFILE} is no profile of at most {MAX_PROFILE} bytes: {error}") from None
    if profile != known.profile:
        services.catalog.note_profile(known.id, profile)
    return replace(known, profile=profile)
