"""The app factory and its routes."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import numpy as np
from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.responses import Response

from cloud.http import auth, blobs, problems
from cloud.http.logs import LogRequests
from cloud.http.problems import Refusal
from cloud.http.services import Services
from cloud.matching import match, pooled
from device_runtime import __version__
from device_runtime.errors import InputError, WireError
from device_runtime.identity import answer_text, check_public_key, device_id
from device_runtime.messages import BundleRef, Enrolled, Enrolment, Problem, RoundReport, from_json, to_json
from device_runtime.wire import (
    MatchAnswer,
    MatchQuery,
    decode_contribution,
    decode_query,
    decode_report,
    encode_answer,
)

FRAME = "application/vnd.coda.frame"
JSON = "application/json"
BYTES = "application/octet-stream"
_ROUND = re.compile("[!-~]{1,64}")
_MAX_VERSION = (1 << 31) - 1
_Message = TypeVar("_Message")
DESCRIPTION = """\
Devices enrol with a key, pull signed bundles, ask for samples that match a query, and report.
All calls but blobs, health and this page carry `Authorization: CoDA device:time:nonce:signature` (docs/wire.md).
"""


def create_app(services: Services) -> FastAPI:
    """An app over these services. It owns none of them: close them after it."""
    # no redirects of /v1/match/: a signature holds for the path as written, and devices follow none
    app = FastAPI(
        title="CoDA",
        version=__version__,
        description=DESCRIPTION,
        redirect_slashes=False,
        default_response_class=Response,
    )
    problems.install(app)
    app.add_middleware(LogRequests)
    started = services.clock()
    matching = asyncio.Semaphore(services.limits.concurrent_matches)
    limits = services.limits
    announcement = to_json(services.ref)
    etag = f'"{hashlib.sha256(announcement).hexdigest()[:16]}"'

    @app.post(
        "/v1/devices", openapi_extra=_takes(JSON, "Enrolment"), responses=_gives(JSON, "Enrolled", 400, 401, 413, 503)
    )
    async def enrol(request: Request) -> Response:
        """Announce a device's key. Signed by that key; doing it again is harmless."""
        body = await auth.read_body(request, limits.max_report_bytes)
        message = _message(body, Enrolment, "the enrolment")
        key = check_public_key(message.public_key)
        now = services.clock()
        auth.announced(request, body, key, device_id(key), now, limits.clock_skew_s)
        capability = msgspec.to_builtins(message.capability)
        device = await to_thread.run_sync(services.catalog.enrol, key, capability, now)
        return _json(Enrolled(device=device, server_time=int(now)))

    @app.get("/v1/bundle", responses=_gives(JSON, "BundleRef", 304, 401, 403, 413, 503))
    async def bundle(request: Request) -> Response:
        """The current release, as a pointer to its signed manifest."""
        body = await auth.read_body(request, 0)
        await to_thread.run_sync(auth.authenticate, request, body, services)
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers={"ETag": etag})
        return Response(announcement, media_type=JSON, headers={"ETag": etag, "Cache-Control": "no-cache"})

    in_path: dict[str, Any] = {"name": "sha256", "in": "path", "required": True}
    named = {"parameters": [in_path | {"schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"}}]}

    @app.get("/v1/blobs/{sha256}", openapi_extra=named, responses=_gives(BYTES, "", 206, 304, 404, 416))
    async def blob(request: Request) -> Response:
        """A file of a bundle, by the hash of its stored form."""
        return blobs.serve_blob(request, request.path_params["sha256"], services.blobs)

    @app.head("/v1/blobs/{sha256}", openapi_extra=named, responses=_gives(BYTES, "", 304, 404))
    async def blob_head(request: Request) -> Response:
        """Whether the blob is there, and how large it is."""
        return blobs.serve_blob(request, request.path_params["sha256"], services.blobs)

    @app.post("/v1/match", openapi_extra=_takes(FRAME, ""), responses=_gives(FRAME, "", 400, 401, 403, 409, 413, 503))
    async def find(request: Request) -> Response:
        """Samples of others that resemble the query, and the rows of their items. The answer is signed."""
        body = await auth.read_body(request, limits.max_query_bytes)
        if matching.locked():
            raise Refusal(503, "The server is busy", "try again later", {"Retry-After": str(limits.retry_after_s)})
        async with matching:
            asker = await to_thread.run_sync(auth.authenticate, request, body, services)
            data = await to_thread.run_sync(_matched, services, body, f"device:{asker.device}")
        signature = services.answer_signer.sign(answer_text(asker.nonce, data))
        return Response(data, media_type=FRAME, headers={"CoDA-Signature": signature, "Cache-Control": "no-store"})

    @app.post(
        "/v1/contributions",
        status_code=204,
        openapi_extra=_takes(FRAME, ""),
        responses=_gives("", "", 400, 401, 403, 413, 503),
    )
    async def contribute(request: Request) -> Response:
        """Samples that a user hands to the pool. They are durable once this is answered."""
        body = await auth.read_body(request, limits.max_contribution_bytes)
        asker = await to_thread.run_sync(auth.authenticate, request, body, services)
        await to_thread.run_sync(_take_in, services, body, f"device:{asker.device}")
        return Response(status_code=204)

    @app.post(
        "/v1/reports",
        status_code=204,
        openapi_extra=_takes(JSON, "RoundReport"),
        responses=_gives("", "", 400, 401, 403, 413, 503),
    )
    async def report(request: Request) -> Response:
        """What a round did and cost, as JSON or as that in a frame. Sending it again counts once."""
        body = await auth.read_body(request, limits.max_report_bytes)
        asker = await to_thread.run_sync(auth.authenticate, request, body, services)
        framed = request.headers.get("content-type") == FRAME
        message = _message(decode_report(body) if framed else body, RoundReport, "the report")
        if not _ROUND.fullmatch(message.round) or not 0 <= message.bundle <= _MAX_VERSION:
            raise InputError("a report names its round in 1 to 64 visible ASCII characters, and a bundle version")
        await to_thread.run_sync(services.catalog.report, asker.device, message, services.clock())
        return Response(status_code=204)

    @app.get("/healthz", responses=_gives(JSON, "", 500))
    async def health() -> Response:
        """Whether the server is up, and what it serves."""
        facts = {
            "status": "ok",
            "release": services.manifest.version,
            "samples": len(services.pool),
            "uptime_s": round(services.clock() - started, 1),
        }
        return Response(msgspec.json.encode(facts), media_type=JSON)

    app.openapi = _openapi(app)  # type: ignore[method-assign]
    return app


def _matched(services: Services, body: bytes, asker: str) -> bytes:
    """The answer's frame. Decoding is here too: a small body may unpack to much.

    Raises:
        Refusal: 400, 409. WireError: the body is no query.
    """
    manifest, limits, query = services.manifest, services.limits, decode_query(body)
    if query.encoder != manifest.encoder:
        raise Refusal(409, "The query's encoder is outdated", f"pull bundle {manifest.version} and encode again")
    count, width = query.centroids.shape
    if width != manifest.width or count > limits.max_centroids:
        raise Refusal(
            400,
            "The query does not fit",
            f"it may have {limits.max_centroids} centroids of width {manifest.width}; given {count} of {width}",
        )
    norms = np.maximum(np.linalg.norm(query.centroids, axis=1, keepdims=True), 1e-6)
    wanted = min(query.limit, limits.max_candidates)
    capped = MatchQuery(query.encoder, query.centroids / norms, wanted, query.held)
    pool, store, token = services.pool, services.store, services.contributor(asker)
    if manifest.settings.matching == "pooled":
        candidates, shortfall = pooled(pool, store, capped, token, manifest.settings, services.residuals)
    else:
        candidates, shortfall = match(pool, store, capped, token)
    if wanted < query.limit and not shortfall:
        shortfall = f"this server gives at most {wanted} samples at a time"
    rows = services.encoder.rows(candidates.ids("item"), query.held)
    return encode_answer(MatchAnswer(candidates, {"item": rows} if len(rows.ids) else {}, shortfall))


def _take_in(services: Services, body: bytes, asker: str) -> None:
    """Raises: Refusal: 413. WireError, InputError: not to be used. StoreError: nothing was kept."""
    samples = decode_contribution(body, services.manifest.schema)
    if not len(samples):
        raise InputError("the contribution holds no samples")
    most = services.limits.max_contribution_samples
    if len(samples) > most:
        raise Refusal(413, "The contribution is too large", f"it may hold {most} samples; given {len(samples)}")
    embeddings = services.encoder.encode(samples)
    timestamps = np.full(len(samples), int(services.clock()), np.int64)
    tokens = np.full(len(samples), services.contributor(asker), np.uint64)
    services.pool.append(samples, timestamps, tokens, embeddings)


def _message(body: bytes, kind: type[_Message], what: str) -> _Message:
    """Raises: WireError: also for what msgspec has other errors for: bytes that are not UTF-8, nesting without end."""
    try:
        return from_json(body, kind, what)
    except (UnicodeDecodeError, RecursionError):
        raise WireError(f"{what}: not UTF-8, or nested too deeply") from None


def _json(message: object) -> Response:
    return Response(to_json(message), media_type=JSON)


# -- the API page: bodies are declared by the types that decode them -----------------------------------------------

_TYPES = (Enrolment, Enrolled, BundleRef, RoundReport, Problem)


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"} if name else {"type": "string", "format": "binary"}


def _takes(media: str, name: str) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {media: {"schema": _reference(name)}}}}


def _gives(media: str, name: str, *others: int) -> dict[int | str, dict[str, Any]]:
    content = {media: {"schema": _reference(name)}} if media else {}
    found: dict[int | str, dict[str, Any]] = {200 if media else 204: {"description": "Done", "content": content}}
    for status in others:
        problem = {"application/problem+json": {"schema": _reference("Problem")}} if status >= 400 else {}
        found[status] = {"description": "See the problem" if status >= 400 else "", "content": problem}
    return found


def _openapi(app: FastAPI) -> Callable[[], dict[str, Any]]:
    plain = app.openapi

    def described() -> dict[str, Any]:
        document = plain()
        _, components = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
        document.setdefault("components", {}).setdefault("schemas", {}).update(components)
        return document

    return described
