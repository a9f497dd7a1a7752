"""A night: from events to a proposed release, whatever cuts it off; a model that does worse goes no further."""

import csv
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time

import msgspec
import numpy as np
import pytest

from cloud import nightly as job
from cloud.home import ServerHome, publish
from cloud.locking import alone
from cloud.nightly import Comparison, NightlySettings, Record, compare, nightly
from device_runtime.cli import main
from device_runtime.errors import InputError, StoreError
from export.checkpoint import TrainSettings, load

TRAIN = TrainSettings(epochs=2, history=8, validation=0.1, seed=1, rate=5e-3, threads=1)


@pytest.fixture
def server(published, tmp_path):
    """A server with a release, in a folder of the test's own."""
    shutil.copytree(published.home, tmp_path / "server")
    return tmp_path / "server"


@pytest.fixture
def settings(published, server):
    made = published.home.parent
    return NightlySettings(
        home=str(server),
        interactions=str(made / "interactions.csv"),
        items=str(made / "items.csv"),
        key=str(made / "release.key"),
        held_out=0.1,
        margin=0.05,
        engines=("onnx",),
        train=TRAIN,
    )


def words(settings, work, *more):
    return [
        "nightly", "--home", settings.home, "--interactions", settings.interactions, "--items", settings.items,
        "--work", str(work), "--key", settings.key, "--held-out", "0.1", "--margin", "0.05", "--engines", "onnx",
        "--epochs", "2", "--history", "8", "--validation", "0.1", "--seed", "1", "--rate", "0.005", "--threads", "1",
        *more,
    ]  # fmt: skip


def record_of(work):
    (path,) = work.glob("*/run.json")
    return msgspec.json.decode(path.read_bytes(), type=Record)


def flipped(settings, folder):
    """The same log with every label but those of the newest events turned round."""
    with open(settings.interactions, newline="") as file:  # noqa: PTH123
        rows = list(csv.DictReader(file))
    cut = np.quantile([int(row["timestamp"]) for row in rows], 0.9)
    for row in rows:
        if int(row["timestamp"]) <= cut:
            row["label"] = str(1 - int(row["label"]))
    with (folder / "flipped.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "flipped.csv"


def test_a_night_ends_with_a_signed_bundle_and_the_command_that_releases_it(settings, server, tmp_path, capsys):
    work = tmp_path / "nights"
    assert main(words(settings, work, "--json", str(tmp_path / "out.json"))) == 0
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["outcome"] == "proposed" and [stage["name"] for stage in told["stages"]] == list(job.STAGES)
    record = record_of(work)
    assert record.facts("train")["start"] == "from release 2", record.facts("train")["because"]
    compared = record.facts("evaluate")
    assert compared["released"] == 2 and compared["events"] > 0 and compared["unknown"] == 0
    assert compared["user_auc"]["new"] > 0.55
    low, high = compared["difference"]["ci95"]
    assert low <= compared["difference"]["mean"] <= high
    run = work / record.run
    assert not (run / "data").exists(), "events are not kept twice"
    with ServerHome(server) as home:
        assert home.catalog.current().version == 2, "nobody gets it yet"
    proposal = json.loads((run / "proposal.json").read_text())
    assert proposal["version"] == 3 and proposal["comparison"] == compared
    said = capsys.readouterr().out
    for command in proposal["commands"]:
        assert command in said
        assert main(shlex.split(command)[1:]) == 0
    with ServerHome(server) as home:
        assert home.catalog.current().version == 2, "it climbs its ladder first"
        assert home.catalog.rollouts.course(f"nightly-{record.run}").rollout.standing.name == "1 %"

    before = (run / "run.json").stat().st_mtime_ns
    assert main(words(settings, work)) == 0, "it is done, and stays so"
    assert (run / "run.json").stat().st_mtime_ns == before


def test_a_model_that_does_worse_is_not_proposed(settings, server, tmp_path, capsys):
    poisoned = msgspec.structs.replace(settings, interactions=str(flipped(settings, tmp_path)))
    work = tmp_path / "nights"
    assert main(words(poisoned, work, "--publish", "--json", str(tmp_path / "out.json"))) == 8
    said = capsys.readouterr().err
    assert "is not proposed: mean user AUC -" in said and "against release 2" in said
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["outcome"] == "declined" and told["reason"] in said
    run = work / record_of(work).run
    assert not (run / "bundle").exists() and not (run / "proposal.json").exists()
    with ServerHome(server) as home:
        assert home.catalog.current().version == 2
    assert main(words(poisoned, work, "--publish")) == 8, "asked again, it gives the same answer"


def test_a_planned_release_waits_on_the_server_for_whoever_releases(settings, server, tmp_path, monkeypatch):
    planned = msgspec.structs.replace(settings, then="plan")
    with monkeypatch.context() as patch:
        patch.setattr(job, "STAGES", job.STAGES[:-1])
        before = nightly(planned, tmp_path / "nights")
    run = tmp_path / "nights" / before.run
    job._propose(run, before, lambda what: None)  # it is killed before it can write down that it has done so
    record = nightly(planned, tmp_path / "nights")
    assert record.outcome == "proposed" and record.reason == ""
    with ServerHome(server) as home:
        assert [release.staged for release in home.catalog.releases()] == [True, False]
        (course,) = home.catalog.rollouts.courses()
        assert course.rollout.bundle == 3 and course.rollout.standing.name == "simulation"
        assert "against release 2" in home.catalog.rollouts.audit(course.name, limit=1)[0].why

    # the next night, nobody having advanced it: one release at a time to the same devices
    later = nightly(msgspec.structs.replace(planned, name="later"), tmp_path / "others")
    assert later.outcome == "proposed" and "its release is not planned" in later.reason
    with ServerHome(server) as home:
        assert home.catalog.current().version == 2 and home.catalog.releases()[0].ref.version == 4


@pytest.mark.parametrize("after", ["train", "evaluate"])
def test_a_night_that_is_killed_goes_on_with_the_stage_it_was_in(settings, tmp_path, after):
    work = tmp_path / "nights"
    command = [sys.executable, "-m", "device_runtime", *words(settings, work)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not list(work.glob("*/run.json")) or not record_of(work).facts(after):
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    before = record_of(work)
    assert not before.outcome and before.stages[-1].name == after
    ended = nightly(settings, work)
    assert ended.outcome == "proposed" and ended.run == before.run
    assert ended.stages[: len(before.stages)] == before.stages, "what was done is not done again"


def test_a_release_that_came_meanwhile_ends_the_night(settings, server, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "STAGES", job.STAGES[:-1])
    early = nightly(settings, tmp_path / "early")
    assert nightly(settings, tmp_path / "late").outcome == ""
    with ServerHome(server) as home:
        publish(home, tmp_path / "early" / early.run / "bundle")
    monkeypatch.undo()
    late = nightly(settings, tmp_path / "late")
    assert late.outcome == "overtaken" and "release 3 came after the comparison with 2" in late.reason
    with ServerHome(server) as home:
        assert home.catalog.current().version == 3 and len(home.catalog.releases()) == 2
        (_, before), (_, after) = home.release(2), home.release(3)
    assert after.settings == before.settings, "devices go on to train as they do"
    assert after.settings.half_life is None
    assert after.found == load(tmp_path / "early" / early.run / "model").found, "what was found is the new model's own"


def test_a_first_release_is_compared_with_nothing_but_chance_and_published_if_asked_for(settings, tmp_path):
    with ServerHome(tmp_path / "fresh"):
        pass
    first = msgspec.structs.replace(settings, home=str(tmp_path / "fresh"), then="publish")
    record = nightly(first, tmp_path / "nights")
    assert record.outcome == "published" and record.facts("train")["because"] == "there is no release yet"
    assert record.facts("evaluate")["released"] is None
    with ServerHome(tmp_path / "fresh") as home:
        assert home.release()[1].version == 1


def test_processes_on_this_machine_train_together(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    from cloud.datasets import columnar

    monkeypatch.setattr(columnar, "BLOCK", 100)
    monkeypatch.setattr(job, "STAGES", job.STAGES[:2])
    record = nightly(msgspec.structs.replace(settings, processes=2), tmp_path / "nights")
    assert record.facts("train")["processes"] == 2 and record.facts("train")["start"] == "from release 2"


def test_what_cannot_work_is_said_before_hours_are_spent(settings, tmp_path):
    for change, error, match in [
        ({"held_out": 0.7}, InputError, "held-out events must lie"),
        ({"key": str(tmp_path / "nothing")}, StoreError, "key"),
        ({"home": str(tmp_path / "nowhere")}, InputError, "not a server's home"),
        ({"interactions": str(tmp_path / "nothing")}, InputError, "there is no table"),
    ]:
        with pytest.raises(error, match=match):
            nightly(msgspec.structs.replace(settings, **change), tmp_path / "nights")
    assert not (tmp_path / "nothing").exists()
    with alone(tmp_path / "nights", "nightly job"), pytest.raises(InputError, match="another nightly job"):
        nightly(settings, tmp_path / "nights")


def test_a_model_that_does_not_fit_the_released_one_starts_from_scratch(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "STAGES", job.STAGES[:2])
    longer = msgspec.structs.replace(settings, train=msgspec.structs.replace(TRAIN, history=9, epochs=1))
    found = nightly(longer, tmp_path / "nights").facts("train")
    assert found["start"] == "from scratch" and "another history" in found["because"]


def scored(users, quality, rng):
    """Events of so many users, and scores of a model that is this good."""
    user = np.repeat(np.arange(users, dtype=np.int32), 20)
    labels = rng.integers(0, 2, len(user)).astype(np.float32)
    return user, labels, (quality * labels + rng.random(len(user))).astype(np.float32)


def test_worse_is_beyond_the_margin_or_beyond_chance(rng):
    user, labels, good = scored(200, 1.0, rng)
    slightly = (good - 0.05 * labels).astype(np.float32)
    bad = rng.random(len(user)).astype(np.float32)

    def verdict(new, released, margin):
        return compare(user, labels, {"new": new, "released": released}, 7, 0.0).verdict(margin)

    assert verdict(good, good, 0.0) == "" and verdict(good, bad, 0.0) == ""
    assert "worse by more than the margin" in verdict(bad, good, 0.01)
    assert "worse beyond chance" in verdict(slightly, good, 0.05)
    alone_ = compare(user, labels, {"new": good}, None, 0.0)
    assert isinstance(alone_, Comparison) and alone_.verdict(0.0) == ""
    assert "no better than chance" in compare(user, labels, {"new": -good}, None, 0.0).verdict(0.0)
    with pytest.raises(InputError, match="hold out more"):
        compare(user[:20], labels[:20], {"new": good[:20]}, None, 0.0)
