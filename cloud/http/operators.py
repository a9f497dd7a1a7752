"""Releases by HTTP, for operators: the same as `coda release`, by token and role.

`Authorization: Bearer TOKEN`, as `coda release operator` prints it. A viewer may look, a releaser may act. Not on the
API page: devices have no use for it.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec
from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.responses import Response

from cloud.catalog import Operator
from cloud.catalog.evaluations import Evaluation, Period
from cloud.http.auth import read_body
from cloud.http.openapi import JSON
from cloud.http.problems import Refusal
from cloud.http.services import Services
from cloud.releases import conditions
from cloud.rollout import LADDER, Course, Gate, Rule, Rung
from cloud.rollout.ladder import Action
from device_runtime.errors import InputError, WireError
from device_runtime.messages import from_json

_BODY_BYTES = 64 << 10
_Message = TypeVar("_Message")


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A release to create. means: the conditions of a rule, by their names."""

    name: str
    bundle: int
    why: str
    means: dict[str, Any] = {}
    named: tuple[str, ...] = ()
    ladder: tuple[Rung, ...] = LADDER
    gate: Gate = Gate()
    automatic: bool = False


class Act(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """override: advance although the gate would wait."""

    action: Literal["advance", "pause", "resume", "rollback"]
    why: str
    override: bool = False


class Pin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """bundle: 0 takes the pin away."""

    bundle: int
    why: str


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A federated evaluation to create. tries: configuration -> what it sets; the first is what others are compared
    with. tune: on the samples before those that the judge sees."""

    name: str
    tries: dict[str, dict[str, float]]
    means: dict[str, Any] = {}
    devices: int = 1000
    days: float = 14.0
    tune: bool = False


_PERIODS: dict[bool, Period] = {False: "judged", True: "validation"}
ACTIONS: dict[str, Action] = {"advance": "promote", "pause": "pause", "resume": "resume", "rollback": "stop"}


def install(app: FastAPI, services: Services) -> None:
    """Add the calls."""
    releases, catalog = services.releases, services.catalog

    async def asked(request: Request, role: str) -> tuple[Operator, bytes]:
        body = await read_body(request, _BODY_BYTES, services.limits.body_timeout_s)
        known = await identified(services, request)
        allow(known, role)
        return known, body

    @app.get("/v1/releases", include_in_schema=False)
    async def listed(request: Request) -> Response:
        await asked(request, "viewer")
        return await to_thread.run_sync(
            lambda: _json([releases.shown(course) for course in catalog.rollouts.courses()])
        )

    @app.post("/v1/releases", include_in_schema=False)
    async def create(request: Request) -> Response:
        who, body = await asked(request, "releaser")
        return await to_thread.run_sync(lambda: _json(created(services, who, body), 201))

    @app.get("/v1/releases/{name}", include_in_schema=False)
    async def one(request: Request, name: str) -> Response:
        await asked(request, "viewer")
        return await to_thread.run_sync(lambda: _json(releases.shown(_course(services, name))))

    @app.post("/v1/releases/{name}", include_in_schema=False)
    async def act(request: Request, name: str) -> Response:
        who, body = await asked(request, "releaser")

        def done() -> Response:
            wish = _decoded(body, Act, "the action")
            _course(services, name)
            action = ACTIONS[wish.action]
            after = releases.act(name, action, who=who.name, why=wish.why, override=wish.override)
            return _json(releases.shown(after))

        return await to_thread.run_sync(done)

    @app.get("/v1/audit", include_in_schema=False)
    async def audit(request: Request, release: str = "") -> Response:
        await asked(request, "viewer")
        return await to_thread.run_sync(lambda: _json(catalog.rollouts.audit(release)))

    @app.get("/v1/devices/{device}/release", include_in_schema=False)
    async def explain(request: Request, device: str) -> Response:
        await asked(request, "viewer")
        return await to_thread.run_sync(lambda: _json(releases.explain(device)))

    @app.get("/v1/evaluations", include_in_schema=False)
    async def evaluations(request: Request) -> Response:
        await asked(request, "viewer")
        federated = services.federated
        return await to_thread.run_sync(lambda: _json([_evaluation(services, one) for one in federated.all()]))

    @app.post("/v1/evaluations", include_in_schema=False)
    async def evaluate(request: Request) -> Response:
        _, body = await asked(request, "releaser")

        def done() -> Response:
            wish = _decoded(body, Question, "the evaluation")
            rule, period = _rule("evaluation", wish.means), _PERIODS[wish.tune]
            made = services.federated.create(wish.name, wish.tries, rule, wish.devices, wish.days, period)
            return _json(_evaluation(services, made), 201)

        return await to_thread.run_sync(done)

    @app.put("/v1/devices/{device}/pin", include_in_schema=False)
    async def pin(request: Request, device: str) -> Response:
        who, body = await asked(request, "releaser")

        def done() -> Response:
            wish = _decoded(body, Pin, "the pin")
            releases.pin(device, wish.bundle, who=who.name, why=wish.why)
            return _json(releases.explain(device))

        return await to_thread.run_sync(done)


async def identified(services: Services, request: Request) -> Operator:
    """Who asks, by token. Raises: Refusal: 401."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    known = None
    if kind.lower() == "bearer":
        known = await to_thread.run_sync(services.catalog.operators.by_token, token.strip())
    if known is None:
        detail = "give an operator's token; `coda release operator` makes one"
        raise Refusal(401, "For operators", detail, {"WWW-Authenticate": 'Bearer realm="CoDA"'}, "not authenticated")
    return known


def allow(operator: Operator, role: str) -> None:
    """Raises: Refusal: 403: the operator's role does not go so far."""
    if role == "releaser" and operator.role != "releaser":
        raise Refusal(403, "Not your role", f"{operator.name} is a {operator.role}; this takes a releaser")


def created(services: Services, who: Operator, body: bytes) -> dict[str, Any]:
    """Raises: InputError, WireError."""
    plan = _decoded(body, Plan, "the release")
    rule = _rule(plan.name, plan.means)
    course = services.releases.create(
        plan.name,
        plan.bundle,
        who=who.name,
        why=plan.why,
        rule=rule,
        named=plan.named,
        ladder=plan.ladder,
        gate=plan.gate,
        automatic=plan.automatic,
    )
    return services.releases.shown(course)


def _rule(name: str, means: dict[str, Any]) -> Rule:
    try:
        return msgspec.convert({"name": name, "release": name} | means, Rule)
    except msgspec.ValidationError as error:
        raise InputError(f"the conditions: {error}") from None


def _evaluation(services: Services, evaluation: Evaluation) -> dict[str, Any]:
    """With what has come back, and, of one that tunes, what is proposed."""
    federated = services.federated
    shown = {
        name: getattr(evaluation, name) for name in ("name", "configurations", "most", "created", "until", "period")
    }
    shown |= {"means": conditions(evaluation.rule), "compared": federated.compared(evaluation)}
    if evaluation.period == "validation":
        shown["proposal"] = federated.proposal(evaluation)
    return shown


def _course(services: Services, name: str) -> Course:
    found = services.catalog.rollouts.course(name)
    if found is None:
        raise Refusal(404, "No such release", f"there is no release {name[:100]!r}")
    return found


def _decoded(body: bytes, kind: type[_Message], what: str) -> _Message:
    try:
        return from_json(body, kind, what)
    except (UnicodeDecodeError, RecursionError):
        raise WireError(f"{what}: not UTF-8, or nested too deeply") from None


def _json(value: object, status: int = 200) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(msgspec.json.encode(value), status_code=status, media_type=JSON, headers=headers)
