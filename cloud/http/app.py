"""The app factory and its routes."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.responses import Response

from cloud.http import announce, blobs, console, keys, operators, problems, tables, watch, work
from cloud.http.auth import Authenticator, read_body
from cloud.http.limits import Gate
from cloud.http.logs import LogRequests
from cloud.http.openapi import BYTES, FRAME, JSON, SIGNED, described, gives, takes
from cloud.http.services import Services
from cloud.http.shelf import Served
from cloud.telemetry import RecallSampler
from device_runtime import __version__
from device_runtime.errors import InputError, WireError
from device_runtime.identity import answer_text
from device_runtime.messages import Enrolment, Metrics, Rotation, RoundReport, from_json, to_json
from device_runtime.wire import decode_report

_ROUND = re.compile("[!-~]{1,64}")
_MAX_VERSION = (1 << 31) - 1
_KEY_BYTES = 4 << 10
_METRICS_BYTES = 2 << 10
_Message = TypeVar("_Message")
DESCRIPTION = """\
Devices enrol with a key, pull signed bundles, ask for samples that match a query, and report.
All calls but blobs, health and this page carry `Authorization: CoDA device:time:nonce:signature` (docs/wire.md).
429 and 503 come with `Retry-After`.
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
    limits, metrics = services.limits, services.metrics
    problems.install(app, lambda reason: metrics.add("coda_refused_total", reason))
    app.add_middleware(LogRequests, metrics=metrics)
    started = services.clock()
    authenticator = Authenticator(services)
    matching = Gate(limits.concurrent_matches, limits.waiting_matches, limits.match_wait_s, limits.retry_after_s)
    contributing = Gate(limits.concurrent_contributions, 0, limits.match_wait_s, limits.retry_after_s)
    recalls: dict[int, RecallSampler] = {}

    def recall(served: Served) -> RecallSampler:
        def observe(value: float) -> None:
            metrics.observe("coda_match_recall", value=value)

        return recalls.setdefault(served.ref.version, RecallSampler(served.pool, served.nearest, served.depth, observe))

    usual = (401, 403, 408, 413, 429, 503)

    async def body_of(request: Request, most: int) -> bytes:
        authenticator.admit()
        return await read_body(request, most, limits.body_timeout_s)

    @app.post("/v1/devices", openapi_extra=takes("Enrolment", JSON), responses=gives(JSON, "Enrolled", 400, *usual))
    async def enrol(request: Request) -> Response:
        """Announce a device's key. Signed by that key; doing it again is harmless."""
        body = await body_of(request, limits.max_report_bytes)
        message = _message(body, Enrolment, "the enrolment")
        return _json(await to_thread.run_sync(keys.enrol, services, authenticator, request, body, message))

    @app.post("/v1/keys", openapi_extra=takes("Rotation", JSON), responses=gives(JSON, "Enrolled", 400, 409, *usual))
    async def rotate(request: Request) -> Response:
        """Replace a device's key. Signed by the old one, with a proof by the new one; repeating it is harmless."""
        body = await body_of(request, _KEY_BYTES)
        message = _message(body, Rotation, "the rotation")
        return _json(await to_thread.run_sync(keys.rotate, services, authenticator, request, body, message))

    @app.get("/v1/bundle", openapi_extra=SIGNED, responses=gives(JSON, "Announcement", 304, 400, *usual))
    async def bundle(request: Request) -> Response:
        """The release that this device should have, as a pointer to its signed manifest. The answer is signed."""
        body = await body_of(request, 0)

        def answer() -> Response:
            return announce.bundle(services, authenticator.authenticate(request, body), request)

        return await to_thread.run_sync(answer)

    @app.get(announce.CHECK, openapi_extra=announce.CHECKED, responses=gives(JSON, "", 204, 400, 429, 503))
    async def stale(request: Request) -> Response:
        """Which tasks of a device are stale: none (204) or a list. Unsigned, and small: what is stale is then asked for
        by a signed call."""
        await body_of(request, 0)
        return await to_thread.run_sync(announce.check, services, request.path_params)

    @app.get(announce.DOCUMENT, openapi_extra=announce.DOCUMENTED, responses=gives(JSON, "", 404, 429, 503))
    async def document(request: Request) -> Response:
        """A signed document of the publisher: a root, or the list of bundles."""
        await body_of(request, 0)
        asked = request.path_params
        return await to_thread.run_sync(announce.document, services, asked["role"], asked["version"])

    in_path: dict[str, Any] = {"name": "sha256", "in": "path", "required": True}
    named = {"parameters": [in_path | {"schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"}}]}

    @app.get("/v1/blobs/{sha256}", openapi_extra=named, responses=gives(BYTES, "", 206, 304, 404, 416))
    async def blob(request: Request) -> Response:
        """A file of a bundle, by the hash of its stored form."""
        return await to_thread.run_sync(blobs.serve_blob, request, request.path_params["sha256"], services.blobs)

    @app.head("/v1/blobs/{sha256}", openapi_extra=named, responses=gives(BYTES, "", 304, 404))
    async def blob_head(request: Request) -> Response:
        """Whether the blob is there, and how large it is."""
        return await to_thread.run_sync(blobs.serve_blob, request, request.path_params["sha256"], services.blobs)

    ends: dict[str, Any] = {
        "parameters": [named["parameters"][0] | {"name": name} for name in ("base", "target")],
    }

    @app.get("/v1/deltas/{base}/{target}", openapi_extra=ends, responses=gives(BYTES, "", 206, 304, 404, 416))
    async def delta(request: Request) -> Response:
        """What makes one file of a bundle of another one's, both by the hash of their stored form. Empty where the
        whole file is shorter."""
        return await to_thread.run_sync(blobs.serve_delta, request, services.blobs)

    @app.post("/v1/match", openapi_extra=takes("", FRAME), responses=gives(FRAME, "", 400, 409, *usual))
    async def find(request: Request) -> Response:
        """Samples of others that resemble the query, and the rows of their items. The answer is signed."""
        body = await body_of(request, limits.max_query_bytes)

        def answer() -> Response:
            asker = authenticator.authenticate(request, body)
            served = work.served_to(services, asker)
            data = work.matched(services, served, recall(served), body, f"device:{asker.device}")
            headers = {"Cache-Control": "no-store"} | announce.news(services, asker)
            headers |= {announce.SIGNATURE: services.answer_signer.sign(answer_text(asker.nonce, data))}
            return Response(data, media_type=FRAME, headers=headers)

        async with matching.turn():
            return await to_thread.run_sync(answer)

    @app.post(
        "/v1/contributions", status_code=204, openapi_extra=takes("", FRAME), responses=gives("", "", 400, *usual)
    )
    async def contribute(request: Request) -> Response:
        """Samples that a user hands to the pool. They are durable once this is answered."""
        body = await body_of(request, limits.max_contribution_bytes)

        def take_in() -> None:
            asker = authenticator.authenticate(request, body)
            work.take_in(services, work.served_to(services, asker), body, asker.device)

        async with contributing.turn():
            await to_thread.run_sync(take_in)
        return Response(status_code=204)

    @app.post(
        "/v1/reports",
        status_code=204,
        openapi_extra=takes("RoundReport", JSON, FRAME),
        responses=gives("", "", 400, *usual),
    )
    async def report(request: Request) -> Response:
        """What a round did and cost, as JSON or as that in a frame. Sending it again counts once."""
        body = await body_of(request, limits.max_report_bytes)
        asker = await to_thread.run_sync(authenticator.authenticate, request, body)
        framed = request.headers.get("content-type") == FRAME
        message = _message(decode_report(body) if framed else body, RoundReport, "the report")
        if not _ROUND.fullmatch(message.round) or not 0 <= message.bundle <= _MAX_VERSION:
            raise InputError("a report names its round in 1 to 64 visible ASCII characters, and a bundle version")
        await to_thread.run_sync(work.note, services, asker.known, message)
        return Response(status_code=204, headers=await to_thread.run_sync(announce.news, services, asker))

    @app.get("/v1/evaluation", openapi_extra=SIGNED, responses=gives(JSON, "Task", 204, *usual))
    async def evaluation(request: Request) -> Response:
        """A federated evaluation for this device, if there is one that it has not answered."""
        body = await body_of(request, 0)

        def asked() -> Response:
            asker = authenticator.authenticate(request, body)
            task = services.federated.asked(services.releases.facts(asker.known, asker.bundle))
            return Response(status_code=204) if task is None else _json(task)

        return await to_thread.run_sync(asked)

    @app.post(
        "/v1/evaluation", status_code=204, openapi_extra=takes("Metrics", JSON), responses=gives("", "", 400, *usual)
    )
    async def evaluated(request: Request) -> Response:
        """How a device's configurations fared: figures alone. Sending it again counts once."""
        body = await body_of(request, _METRICS_BYTES)

        def take() -> None:
            asker = authenticator.authenticate(request, body)
            facts = services.releases.facts(asker.known, asker.bundle)
            services.federated.take(facts, _message(body, Metrics, "the metrics"))

        await to_thread.run_sync(take)
        return Response(status_code=204)

    @app.get("/healthz", responses=gives(JSON, "", 500))
    async def health() -> Response:
        """Whether the server is up, and what it serves."""
        facts = {
            "status": "ok",
            "release": services.releases.base,
            "samples": len(services.current.pool),
            "uptime_s": round(services.clock() - started, 1),
        }
        return Response(msgspec.json.encode(facts), media_type=JSON)

    watch.install(app, services, started)
    operators.install(app, services)
    tables.install(app, services)
    console.install(app, services)
    app.openapi = described(app)  # type: ignore[method-assign]
    return app


def _message(body: bytes, kind: type[_Message], what: str) -> _Message:
    """Raises: WireError: also for what msgspec has other errors for: bytes that are not UTF-8, nesting without end."""
    try:
        return from_json(body, kind, what)
    except (UnicodeDecodeError, RecursionError):
        raise WireError(f"{what}: not UTF-8, or nested too deeply") from None


def _json(message: object) -> Response:
    return Response(to_json(message), media_type=JSON)
