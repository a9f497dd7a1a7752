"""The console: who may see and do what, that no other site can do it for them, and how it looks in a real browser."""

from __future__ import annotations

import http.server
import math
import re
import threading
from urllib.parse import urlencode

import pytest
from PIL import Image

from cloud.dashboard.console import wilson
from cloud.http.console import COOKIE, csrf_of
from tests.cloud.http.chromium import browsing
from tests.cloud.releases import LENIENT, QUICK, Fleet, enrolled, ref
from tests.cloud.report.test_looks import _chromium, browser, scrolled

FORM = "application/x-www-form-urlencoded"
ME = {"who": "me", "why": "because"}


class Operator:
    def __init__(self, peer, name, role):
        self.peer, self.token = peer, peer.services.catalog.operators.add(name, role, now=1.0)
        reply = self.post("/console/login", {"token": self.token})
        assert reply.status == 303 and reply.headers["Location"] == "/console"
        self.cookie = re.match(rf"{COOKIE}=([^;]+);", reply.headers["Set-Cookie"])[1]
        self.set_cookie = reply.headers["Set-Cookie"]

    def get(self, path):
        return self.peer.send("GET", path, Cookie=f"{COOKIE}={self.cookie}")

    def post(self, path, fields, **headers):
        cookie = {"Cookie": f"{COOKIE}={self.cookie}"} if hasattr(self, "cookie") else {}
        return self.peer.send("POST", path, urlencode(fields).encode(), Content_Type=FORM, **cookie | headers)

    def acts(self, action, why="because", **headers):
        fields = {"csrf": csrf_of(self.cookie), "why": why}
        return self.post(f"/console/releases/next/{action}", fields, **headers)


@pytest.fixture
def busy(peer, clock, rng):
    """A release on a quarter of 80 devices, with a round of reports, half a failure more than there should be."""
    catalog, services = peer.services.catalog, peer.services
    catalog.release("tiny", services.ref, now=1.0)
    catalog.release("next", ref(4), now=2.0, staged=True)
    enrolled(catalog, 80)
    fleet = Fleet(catalog, rng, clock)
    fleet.round()
    services.releases.create("next", 4, ladder=QUICK, gate=LENIENT, **ME)
    services.releases.act("next", "promote", **ME)
    clock.now += 5
    fleet.releases = services.releases
    fleet.round()
    return peer


@pytest.fixture
def releaser(busy):
    return Operator(busy, "ada", "releaser")


@pytest.fixture
def viewer(busy):
    return Operator(busy, "bob", "viewer")


def state(peer):
    return peer.services.catalog.rollouts.course("next").rollout.state


def said(reply):
    return re.sub(r"\s+", " ", re.sub(r"<style.*?</style>|<[^>]+>", " ", reply.body.decode(), flags=re.S))


@pytest.mark.parametrize("path", ["/console", "/console/releases/next", "/console/releases/next/rollback"])
def test_who_is_not_logged_in_sees_the_log_in_and_nothing_else(busy, path):
    for cookie in ({}, {"Cookie": f"{COOKIE}=guess"}):
        reply = busy.send("GET", path, **cookie)
        assert reply.status == 401 and "Log in" in said(reply) and "next" not in said(reply)
    busy.send("POST", "/console/releases/next/rollback", b"csrf=x&why=y", Content_Type=FORM).problem(401)
    wrong = busy.send("POST", "/console/login", b"token=wrong", Content_Type=FORM)
    assert wrong.status == 401 and "There is no such token" in said(wrong) and "Set-Cookie" not in wrong.headers
    assert state(busy) == "running"


def test_a_session_is_for_this_site_and_not_for_scripts(releaser):
    words = releaser.set_cookie.lower()
    assert "httponly" in words and "samesite=strict" in words and "path=/console" in words and "secure" not in words
    behind = Operator.post(releaser, "/console/login", {"token": releaser.token}, X_Forwarded_Proto="https")
    assert "secure" in behind.headers["Set-Cookie"].lower()
    page = releaser.get("/console")
    assert (
        page.headers["Cache-Control"] == "no-store" and "default-src 'none'" in page.headers["Content-Security-Policy"]
    )
    assert "form-action 'self'" in page.headers["Content-Security-Policy"] and b"<script" not in page.body


def test_a_release_is_shown_with_its_evidence_and_intervals(viewer):
    words = said(viewer.get("/console/releases/next"))
    assert "bundle 4, in place of 3" in words and "every device" in words and "25 %, since" in words
    assert re.search(
        r"groups now \d+ devices treated, \d+ as control, \d+ as reference for quality, \d+ in none", words
    ), words
    assert re.search(r"failures \d+ of \d+ \([\d.]+ %\) [\d.]+ % to [\d.]+ %", words), words
    assert "cpu_s" in words and "The gate says" in words and "at all looks together" in words
    assert "me next promote 25 % because" in words
    assert "next" in said(viewer.get("/console")) and "because" in said(viewer.get("/console"))


def test_a_viewer_may_look_and_finds_no_button(viewer, busy):
    assert "roll back" not in said(viewer.get("/console/releases/next"))
    assert viewer.get("/console/releases/next/rollback").problem(403)
    assert viewer.acts("rollback").problem(403)
    assert state(busy) == "running"


def test_a_releaser_acts_after_a_confirmation_and_it_is_logged(releaser, busy):
    assert "Stop for good, and roll back" in said(releaser.get("/console/releases/next"))
    asked = said(releaser.get("/console/releases/next/rollback"))
    assert "3 is what everyone gets then" in asked and "Why?" in asked
    assert state(busy) == "running", "looking at the question changes nothing"
    done = releaser.acts("rollback", why="it looks odd")
    assert done.status == 303 and done.headers["Location"] == "/console/releases/next"
    assert state(busy) == "stopped"
    line = busy.services.catalog.rollouts.audit("next")[0]
    assert (line.who, line.action, line.why) == ("ada", "stop", "it looks odd")
    assert "roll back" not in said(releaser.get("/console/releases/next")).lower()


def test_what_cannot_be_done_is_said_where_it_was_asked(releaser, busy):
    refused = releaser.acts("advance", why="hurry")
    assert refused.status == 400 and "the gate lets next not climb yet" in said(refused) and "hurry" in said(refused)
    assert releaser.acts("pause", why=" ").status == 400
    releaser.acts("skip").problem(404)
    releaser.get("/console/releases/other").problem(404)
    assert state(busy) == "running"


@pytest.mark.parametrize(
    ("fields", "headers", "status"),
    [
        ({"why": "w"}, {}, 403),
        ({"why": "w", "csrf": ""}, {}, 403),
        ({"why": "w", "csrf": "0" * 64}, {}, 403),
        ({"why": "w", "csrf": "é"}, {}, 403),
        ({"why": "w", "csrf": "right"}, {"Origin": "http://evil.example"}, 403),
        ({"why": "w", "csrf": "right"}, {"Origin": "null"}, 403),
        ({"why": "w", "csrf": "right"}, {"Content_Type": "text/plain"}, 415),
        ({f"f{n}": "" for n in range(50)}, {}, 400),
        ({"why": "w" * 20_000, "csrf": "right"}, {}, 413),
    ],
)
def test_no_other_site_can_act_for_an_operator(releaser, busy, fields, headers, status):
    right = {name: csrf_of(releaser.cookie) if value == "right" else value for name, value in fields.items()}
    plain = {"Cookie": f"{COOKIE}={releaser.cookie}", "Content_Type": FORM} | headers
    busy.send("POST", "/console/releases/next/rollback", urlencode(right).encode(), **plain).problem(status)
    assert state(busy) == "running"
    if status == 403:
        busy.send("POST", "/console/logout", urlencode(right).encode(), **plain).problem(403)
        assert releaser.get("/console").status == 200


def test_a_session_does_not_outlive_its_log_out_or_its_time(releaser, clock):
    assert releaser.post("/console/logout", {"csrf": csrf_of(releaser.cookie)}).status == 303
    assert releaser.get("/console").status == 401
    again = Operator(releaser.peer, "eve", "viewer")
    clock.now += 13 * 3600
    assert again.get("/console").status == 401


def test_shares_have_intervals():
    share, low, high = wilson(0, 30)
    assert share == 0 and low == 0 and 0.1 < high < 0.15
    assert math.isnan(wilson(0, 0)[0]) and wilson(0, 0)[1:] == (0.0, 1.0)


# -- in a browser ---------------------------------------------------------------------------------------------------


@browser
def test_an_operator_stops_a_release_in_a_browser(busy):
    token = busy.services.catalog.operators.add("ada", "releaser", now=1.0)
    with browsing() as tab:
        assert "Your token" in tab.go(f"{busy.url}/console")
        tab.fill("token", token)
        assert "next" in tab.click("Log in")
        assert "The gate says" in tab.click("next")
        assert tab.js("document.cookie") == "", "no script could read the session"
        asked = tab.click("Stop for good, and roll back: everyone gets the previous bundle")
        assert "cannot be taken up again" in asked
        tab.fill("why", "seen in a browser")
        assert "stopped" in tab.click("Stop for good, and roll back: everyone gets the previous bundle")
        assert "seen in a browser" in tab.words() and state(busy) == "stopped"
        tab.click("Log out")
        assert "Your token" in tab.go(f"{busy.url}/console/releases/next")


@browser
def test_another_site_cannot_stop_a_release_through_a_browser_that_is_logged_in(busy):
    token = busy.services.catalog.operators.add("ada", "releaser", now=1.0)
    target = f"{busy.url}/console/releases/next/rollback"
    attack = f'<form method="post" action="{target}"><input name="why" value="x"><input name="csrf" value="x"></form>'

    class Evil(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f"<!doctype html><p>kittens</p>{attack}".encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Evil) as evil, browsing() as tab:
        threading.Thread(target=evil.serve_forever).start()
        try:
            tab.go(f"{busy.url}/console")
            tab.fill("token", token)
            tab.click("Log in")
            # another name of this machine is another site
            assert "kittens" in tab.go(f"http://localhost:{evil.server_port}/")
            words = tab.does("document.forms[0].submit()")
            assert "Not from this console" in words or "Log in first" in words
            assert state(busy) == "running"
            assert "Log out" in tab.go(f"{busy.url}/console"), "the session is as it was"
        finally:
            evil.shutdown()


@browser
@pytest.mark.parametrize("width", [320, 700, 1280])
@pytest.mark.parametrize("view", ["/console", "/console/releases/next", "/console/releases/next/rollback"])
def test_it_does_not_scroll_sideways(releaser, tmp_path, width, view):
    assert scrolled(releaser.get(view).body.decode(), width, tmp_path) == (width, width)


@browser
@pytest.mark.parametrize(("scheme", "setting"), [("light", 1), ("dark", 0)])
def test_it_renders_in_both_schemes(releaser, tmp_path, scheme, setting):
    (tmp_path / "page.html").write_bytes(releaser.get("/console/releases/next").body)
    shot = tmp_path / "shot.png"
    _chromium(
        tmp_path, f"--blink-settings=preferredColorScheme={setting}", f"--screenshot={shot}",
        "--window-size=1280,1600", (tmp_path / "page.html").as_uri(),
    )  # fmt: skip
    with Image.open(shot) as opened:
        colours = opened.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 60
    assert (sum(max(colours)[1]) > 600) == (scheme == "light")
