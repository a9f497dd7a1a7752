"""`coda release …`, as operators type it."""

from __future__ import annotations

import json

import msgspec
import pytest

from cloud.home import ServerHome
from device_runtime.cli import main
from tests.cloud.releases import LENIENT, QUICK, enrolled, stocked


@pytest.fixture
def home(tmp_path):
    with ServerHome(tmp_path / "server") as made:
        stocked(made.catalog)
        enrolled(made.catalog, 5)
    (tmp_path / "ladder.json").write_bytes(msgspec.json.encode(QUICK))
    (tmp_path / "gate.json").write_bytes(msgspec.json.encode(LENIENT))
    return tmp_path


@pytest.fixture
def coda(home, capsys):
    def call(*words, status=0):
        assert main(["release", *words, "--home", str(home / "server")]) == status
        said = capsys.readouterr()
        return said.out + said.err

    return call


@pytest.fixture
def next_week(coda, home):
    files = ("--ladder", str(home / "ladder.json"), "--gate", str(home / "gate.json"))
    return coda("create", "next", "--bundle", "3", "--why", "week 2", "--who", "ada", *files)


def device(home, number=0):
    with ServerHome(home / "server") as opened:
        return opened.catalog.devices()[number].id


def result(coda, home, *words):
    coda(*words, "--json", str(home / "out.json"))
    return json.loads((home / "out.json").read_text())


def test_a_release_climbs_pauses_and_is_rolled_back(coda, home, next_week):
    assert "release next: bundle 3, running, on simulation" in next_week
    assert "running, on 25 %" in coda("advance", "next", "--why", "simulated well")
    assert "0 of 20 devices have reported" in coda("advance", "next", "--why", "hurry", status=2)
    assert "on 100 %" in coda("advance", "next", "--why", "hurry", "--override")
    assert "paused" in coda("pause", "next", "--why", "lunch")
    assert "running" in coda("resume", "next", "--why", "fed")
    assert "stopped" in coda("rollback", "next", "--why", "no")
    assert "to resume it is not possible" in coda("resume", "next", "--why", "yes", status=2)
    log = coda("audit", "next")
    assert [line.split(": ")[1].split(",")[0] for line in log.splitlines()] == [
        "stop", "resume", "pause", "promote", "promote", "create",
    ]  # fmt: skip
    assert "(hurry (the gate would wait: 0 of 20" in log and "  ada  next: create" in log


def test_it_is_shown_with_what_the_gate_says(coda, home, next_week):
    coda("advance", "next", "--why", "simulated well")
    said = coda("show", "next")
    assert "means every device; everyone else of these has bundle 2" in said
    assert "-> 25 %" in said and "the gate says wait: 0 of 20" in said
    assert "costs are not compared: too few reports of bundle 2" in said
    [row] = result(coda, home, "show", "next")["rows"]
    assert (row["share"], row["control_share"], row["heard"]["control"]["devices"]) == (0.25, 0.25, 0)


def test_bundles_and_releases_are_listed(coda, home, next_week):
    said = coda("list")
    assert "     2" in said and "<- current" in said and said.count("staged") == 2
    found = result(coda, home, "list")
    assert [row["ref"]["version"] for row in found["rows"]] == [4, 3, 2]
    assert [one["name"] for one in found["rollouts"]] == ["next"]


def test_why_a_device_gets_what_it_gets_is_explained(coda, home, next_week):
    one = device(home)
    coda("advance", "next", "--why", "w")
    said = coda("explain", one)
    assert "rule next means this device" in said and "its place 0." in said and "os linux" in said
    coda("pin", one, "--bundle", "4", "--why", "to try")
    assert "it pins bundle 4" in coda("explain", one)
    row = result(coda, home, "explain", one)["rows"][0]
    assert row["decision"]["bundle"] == 4 and row["facts"]["device"] == one
    coda("unpin", one, "--why", "tried")
    assert "bundle 4" not in coda("explain", one)
    assert "has no pin" in coda("unpin", one, "--why", "again", status=2)
    assert "no device 'nobody'" in coda("explain", "nobody", status=2)


def test_a_release_to_a_cohort_reaches_the_cohort(coda, home):
    mine, other = device(home, 0), device(home, 1)
    (home / "ladder.json").write_bytes(msgspec.json.encode(QUICK[2:]))
    said = coda("cohort", "staff", mine)
    assert said == "staff: 1 devices\n"
    coda("create", "inside", "--bundle", "4", "--why", "w", "--cohort", "staff", "--ladder", str(home / "ladder.json"))
    assert coda("explain", mine).endswith("bundle 4\n") and coda("explain", other).endswith("bundle 2\n")
    coda("cohort", "staff", mine, "--leave")
    assert coda("explain", mine).endswith("bundle 2\n")
    assert "no device" in coda("cohort", "staff", "f" * 32, status=2)


def test_the_usual_ladder_wants_three_devices_by_name(coda, home):
    plan = ("create", "next", "--bundle", "3", "--why", "w")
    assert "name as many" in coda(*plan, status=2)
    named = [word for number in range(3) for word in ("--named", device(home, number))]
    assert "on simulation" in coda(*plan, *named)


def test_operators_get_a_token_and_lose_it(coda, home):
    token = coda("operator", "ada", "--role", "releaser").strip()
    with ServerHome(home / "server") as opened:
        assert opened.catalog.operators.by_token(token).role == "releaser"
    assert "no operator any more" in coda("operator", "ada", "--remove")
    assert "no operator 'ada'" in coda("operator", "ada", "--remove", status=2)


@pytest.mark.parametrize("text", ["{", "[]", '[{"name": "a"}, {"nam": 1}]'])
def test_a_ladder_that_is_none_is_refused_by_name(coda, home, text):
    (home / "ladder.json").write_text(text)
    words = ("create", "x", "--bundle", "3", "--why", "w", "--ladder", str(home / "ladder.json"))
    assert "ladder" in coda(*words, status=2)
