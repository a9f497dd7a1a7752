"""The API page: bodies are declared by the types that decode them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import FastAPI

from device_runtime.messages import (
    Announcement,
    BundleRef,
    Enrolled,
    Enrolment,
    Metrics,
    Problem,
    Rotation,
    RoundReport,
    Task,
)

FRAME = "application/vnd.coda.frame"
JSON = "application/json"
BYTES = "application/octet-stream"
SIGNED: dict[str, Any] = {"security": [{"device": []}]}
_TYPES = (Enrolment, Enrolled, Rotation, BundleRef, Announcement, RoundReport, Task, Metrics, Problem)


def takes(name: str, *media: str) -> dict[str, Any]:
    """A body: of a message's type where it is JSON, bytes otherwise."""
    content = {kind: {"schema": _reference(name if kind == JSON else "")} for kind in media}
    return SIGNED | {"requestBody": {"required": True, "content": content}}


def gives(media: str, name: str, *others: int) -> dict[int | str, dict[str, Any]]:
    """The answer, by its media type ("": 204), and the other statuses that a call may have."""
    content = {media: {"schema": _reference(name)}} if media else {}
    found: dict[int | str, dict[str, Any]] = {200 if media else 204: {"description": "Done", "content": content}}
    for status in others:
        if status == 206:
            found[status] = {"description": "The range asked for", "content": content}
            continue
        problem = {"application/problem+json": {"schema": _reference("Problem")}} if status >= 400 else {}
        found[status] = {"description": "See the problem" if status >= 400 else "", "content": problem}
    return found


def described(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """The document with our types and the way of signing in it."""
    plain = app.openapi

    def document() -> dict[str, Any]:
        made = plain()
        _, components = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
        known = made.setdefault("components", {})
        known.setdefault("schemas", {}).update(components)
        known["securitySchemes"] = {
            "device": {
                "type": "apiKey",
                "in": "header",
                "name": "Authorization",
                "description": "CoDA device:time:nonce:signature, Ed25519; see docs/wire.md, Signed requests",
            }
        }
        return made

    return document


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"} if name else {"type": "string", "format": "binary"}
