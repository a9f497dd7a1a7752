"""The operators' console in a browser: `/console`. Log in with a token; a viewer looks, a releaser acts.

A session is a random cookie that scripts cannot read and other sites' requests do not carry (HttpOnly,
SameSite=Strict). What changes anything is a POST with a word that follows from the cookie, from this very origin; and
it is confirmed on a page of its own.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from urllib.parse import parse_qs, quote, urlsplit

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response

from cloud.catalog import Operator
from cloud.dashboard import console
from cloud.http.auth import read_body
from cloud.http.operators import ACTIONS, allow
from cloud.http.problems import Refusal
from cloud.http.services import Services
from cloud.rollout import Course
from device_runtime.errors import InputError

COOKIE = "coda_console"
_FORM = "application/x-www-form-urlencoded"
_FORM_BYTES = 16 << 10
_LINES = 200


def install(app: FastAPI, services: Services) -> None:
    """Add the console's pages; they are not on the API page."""
    releases, catalog = services.releases, services.catalog

    def page(made: Callable[[Operator, str], str], role: str = "viewer") -> Callable[[Request], Response]:
        """A page for who is logged in; the log-in for who is not."""

        def shown(request: Request) -> Response:
            who, cookie = _session(services, request)
            if who is None:
                return _html(console.page("login", title="log in", trouble=""), 401)
            allow(who, role)
            return _html(made(who, csrf_of(cookie)))

        return shown

    @app.get("/console", include_in_schema=False)
    async def listed(request: Request) -> Response:
        def made(who: Operator, csrf: str) -> str:
            found = [releases.shown(course) for course in catalog.rollouts.courses()]
            lines = catalog.rollouts.audit(limit=_LINES)
            return console.page("list", title="all", releases=found, lines=lines, who=who, csrf=csrf)

        return await to_thread.run_sync(page(made), request)

    @app.post("/console/login", include_in_schema=False)
    async def log_in(request: Request) -> Response:
        form = await _form(request, services.limits.body_timeout_s)

        def done() -> Response:
            cookie = catalog.operators.log_in(form.get("token", "").strip(), services.clock())
            if cookie is None:
                services.metrics.add("coda_refused_total", "not authenticated")
                return _html(console.page("login", title="log in", trouble="There is no such token."), 401)
            answer = RedirectResponse("/console", status_code=303)
            answer.set_cookie(
                COOKIE, cookie, path="/console", httponly=True, samesite="strict", secure=_is_https(request)
            )
            return answer

        return await to_thread.run_sync(done)

    @app.post("/console/logout", include_in_schema=False)
    async def log_out(request: Request) -> Response:
        form = await _form(request, services.limits.body_timeout_s)

        def done() -> Response:
            _, cookie = _acting(services, request, form)
            catalog.operators.log_out(cookie)
            answer = RedirectResponse("/console", status_code=303)
            answer.delete_cookie(COOKIE, path="/console")
            return answer

        return await to_thread.run_sync(done)

    @app.get("/console/releases/{name}", include_in_schema=False)
    async def one(request: Request, name: str) -> Response:
        def made(who: Operator, csrf: str) -> str:
            course = _course(services, name)
            sizes, exact = releases.sizes()
            lines = catalog.rollouts.audit(name, limit=_LINES)
            return console.release(releases.shown(course), sizes.get(name, {}), exact, lines, who, csrf)

        return await to_thread.run_sync(page(made), request)

    @app.get("/console/releases/{name}/{action}", include_in_schema=False)
    async def confirm(request: Request, name: str, action: str) -> Response:
        def made(who: Operator, csrf: str) -> str:
            return _confirmation(services, name, action, who, csrf, "", "")

        return await to_thread.run_sync(page(made, "releaser"), request)

    @app.post("/console/releases/{name}/{action}", include_in_schema=False)
    async def act(request: Request, name: str, action: str) -> Response:
        form = await _form(request, services.limits.body_timeout_s)

        def done() -> Response:
            who, cookie = _acting(services, request, form)
            allow(who, "releaser")
            _confirmable(services, name, action)
            why = form.get("why", "")
            try:
                releases.act(name, ACTIONS[action], who=who.name, why=why)
            except InputError as refused:
                words = _confirmation(services, name, action, who, csrf_of(cookie), str(refused), why)
                return _html(words, 400)
            return RedirectResponse(f"/console/releases/{quote(name, safe='')}", status_code=303)

        return await to_thread.run_sync(done)


def csrf_of(cookie: str) -> str:
    """The word that a session's forms carry: another site can neither read nor guess it."""
    return hmac.digest(cookie.encode(), b"coda-console", "sha256").hex()


def _session(services: Services, request: Request) -> tuple[Operator | None, str]:
    cookie = request.cookies.get(COOKIE, "")
    return (services.catalog.operators.by_cookie(cookie, services.clock()) if cookie else None), cookie


def _acting(services: Services, request: Request, form: dict[str, str]) -> tuple[Operator, str]:
    """Raises: Refusal: 401, 403: nobody is logged in, or the form is not one of this console's."""
    who, cookie = _session(services, request)
    if who is None:
        raise Refusal(401, "Log in first", "the session has ended; go to /console", {}, "not authenticated")
    given = hashlib.sha256(form.get("csrf", "").encode()).digest()
    if not hmac.compare_digest(given, hashlib.sha256(csrf_of(cookie).encode()).digest()):
        raise _foreign()
    return who, cookie


def _foreign() -> Refusal:
    return Refusal(403, "Not from this console", "load the page anew, and send its own form", {}, "not authenticated")


def _confirmation(services: Services, name: str, action: str, who: Operator, csrf: str, trouble: str, why: str) -> str:
    shown = services.releases.shown(_confirmable(services, name, action))
    return console.page("confirm", title=name, r=shown, action=action, who=who, csrf=csrf, trouble=trouble, why=why)


def _confirmable(services: Services, name: str, action: str) -> Course:
    if action not in ACTIONS:
        raise Refusal(404, "No such action", f"there are {', '.join(ACTIONS)}")
    return _course(services, name)


def _course(services: Services, name: str) -> Course:
    found = services.catalog.rollouts.course(name)
    if found is None:
        raise Refusal(404, "No such release", f"there is no release {name[:100]!r}")
    return found


async def _form(request: Request, timeout_s: float) -> dict[str, str]:
    """The fields of a form of this origin. Raises: Refusal: 403, 415, and those of `read_body`."""
    body = await read_body(request, _FORM_BYTES, timeout_s)
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host", ""):
        raise _foreign()
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise Refusal(415, "Not a form", f"send {_FORM}")
    try:
        found = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=20)
    except (UnicodeDecodeError, ValueError):
        raise Refusal(400, "Not a form", f"send {_FORM}, with at most 20 fields") from None
    return {name: values[0] for name, values in found.items()}


def _is_https(request: Request) -> bool:
    """As the browser sees it: a proxy that speaks TLS says so, and who lies about it harms only himself."""
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto", "") == "https"


def _html(text: str, status: int = 200) -> Response:
    headers = {"Cache-Control": "no-store", "Content-Security-Policy": console.POLICY, "Referrer-Policy": "same-origin"}
    headers |= {"X-Content-Type-Options": "nosniff"}
    return Response(text, status_code=status, media_type="text/html; charset=utf-8", headers=headers)
