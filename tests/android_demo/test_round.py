"""Whole rounds by the Java core, on a JVM, against a real server, with graphs run by a real ExecuTorch."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from nacl.signing import SigningKey
from safetensors.numpy import load_file

from cloud.home import ServerHome, publish
from cloud.rollout import Rung
from device_runtime import round as round_module
from device_runtime import wire
from device_runtime.bundle import RoundSettings
from device_runtime.counting import ByteCounter
from device_runtime.engines import open_engine
from device_runtime.history import read_history
from device_runtime.home import DeviceHome
from device_runtime.identity import Signer
from device_runtime.ranker import rank
from device_runtime.round import RoundOptions, RoundResult, run_round
from device_runtime.store import Store
from tests.android_demo.conftest import serving_weights
from tests.cloud.http.test_trust import Publisher
from tests.conftest import reversion, with_directory
from tests.device_runtime.peers import CountingProxy

SEED = 5


def weights(home: Path) -> dict[str, np.ndarray]:
    return load_file(serving_weights(home))


def python_device(folder: Path, published, url: str, monkeypatch, kept: Path) -> tuple[RoundResult, DeviceHome]:
    """The same round by the Python runtime; its working files are copied to `kept`."""
    real = round_module.WorkingFiles.write

    def copied(files, name, data):
        kept.mkdir(exist_ok=True)
        (kept / name).write_bytes(data)
        return real(files, name, data)

    monkeypatch.setattr(round_module.WorkingFiles, "write", copied)
    home = DeviceHome(folder)
    home.store.add_events(read_history(published.history).events)
    home.enrol(url, published.trust, ByteCounter())
    with home.transport(ByteCounter()) as transport:
        return run_round(home, transport, open_engine("executorch"), RoundOptions(seed=SEED)), home


@pytest.mark.parametrize("recipe", ["pooled", "directory", "early stop", "early stop, joined"])
def test_both_runtimes_end_a_round_with_the_same_samples_and_weights(
    device, serving, published, tmp_path, monkeypatch, recipe
):
    if recipe != "pooled":
        with ServerHome(tmp_path / "server") as home:
            publish(home, bundle_of(recipe, published, tmp_path / "bundle"))
    keep = tmp_path / "kept-java"
    with serving() as (url, services):
        report, ranked = device.run(server=url, history=published.history, seed=SEED, keep=keep)
        meant, home = python_device(tmp_path / "python", published, url, monkeypatch, tmp_path / "kept-python")
        reports = [report for _, report in services.catalog.reports()]
    mine, theirs = ({f.name: f for f in folder.iterdir()} for folder in (keep, tmp_path / "kept-python"))
    ours, encoded = load_file(mine["encoded"]), load_file(theirs["encoded"])
    np.testing.assert_array_equal(ours["embeddings"], encoded["embeddings"])
    assert asked(ours["query"]) == asked(encoded["query"]), "the same body goes to the server"
    assert mine["answer"].read_bytes() == theirs["answer"].read_bytes()
    ours, filtered = load_file(mine["filter"]), load_file(theirs["filter"])
    np.testing.assert_array_equal(ours["kept"], filtered["kept"])
    for name in ("weights", "labels"):
        np.testing.assert_allclose(ours[name], filtered[name], rtol=0, atol=1e-5)
    ours, tuned = weights(device.home), weights(home.path)
    assert ours.keys() == tuned.keys()
    for name, tensor in tuned.items():
        assert ours[name].dtype == tensor.dtype
        np.testing.assert_allclose(ours[name], tensor, rtol=0, atol=1e-5, err_msg=name)

    assert report["verdict"]["reason"] == meant.report.verdict.reason
    assert report["verdict"]["loss_after"] == pytest.approx(meant.report.verdict.loss_after, abs=1e-5)
    assert report["verdict"]["auc_after"] == meant.report.verdict.auc_after
    for name in ("bundle", "engine", "outcome", "local", "candidates", "kept"):
        assert report[name] == getattr(meant.report, name)
    assert [phase["phase"] for phase in report["phases"]] == [phase.phase for phase in meant.report.phases]
    with Store(device.home / "coda.db") as store:
        [row] = store.rounds()
    with Store(home.path / "coda.db") as store:
        assert row.progress.passes == store.rounds()[0].progress.passes
    assert row.progress.passes < 40
    pulled = ("bundle", "manifest", "weights", "graphs", "item rows")
    assert {n: row.traffic[n] for n in pulled} == {n: meant.traffic[n] for n in pulled}, "requests are as long, too"
    more = {n: row.traffic[n][0] - meant.traffic[n][0] for n in ("match", "report") if n in row.traffic}
    assert all(bytes_up < 64 for bytes_up in more.values()), "the plain compressor costs little"
    assert [each.round for each in reports] == [report["round"], meant.report.round], "the server took both reports"
    with home:
        model = home.model(open_engine("executorch"))
        best = rank(home, model, home.active_weights(model), None, 10)
    assert list(ranked) == [each.item for each in best]
    assert list(ranked.values()) == pytest.approx([each.score for each in best], abs=1e-5)


def bundle_of(recipe: str, published, folder: Path) -> Path:
    if recipe == "directory":
        return with_directory(published, folder)
    settings = RoundSettings(epochs=40, patience=1, row_steps=0 if "joined" in recipe else 2)
    shutil.copytree(published.bundle, folder)
    reversion(folder, published, 3, settings=settings)
    return folder


def asked(frame: np.ndarray) -> tuple[object, ...]:
    query = wire.decode_query(frame.tobytes())
    if isinstance(query, wire.DirectoryQuery):
        return query.encoder, query.directory, query.weights.tobytes(), query.limit, query.held.tolist()
    return query.encoder, query.centroids.tobytes(), query.limit, query.held.tolist()


def test_a_phones_database_is_one_that_coda_reads(device, serving, published):
    with serving() as (url, _):
        report, _ = device.run(server=url, history=published.history)
    with Store(device.home / "coda.db") as store:
        [row] = store.rounds()
        assert row.state == "done" and row.delivered
        assert msgspec.to_builtins(row.report)["phases"][0]["phase"] == "pull"
        assert row.report.round == report["round"] and row.progress.view is not None
        assert sum(row.progress.view.kept) == report["kept"]
        assert store.count_events() == 60
        assert set(row.traffic) == {"bundle", "manifest", "weights", "graphs", "item rows", "match"}
    with DeviceHome(device.home) as home:
        model = home.model(open_engine("executorch"))
        assert rank(home, model, home.active_weights(model), None, 3), "Python goes on where Java stopped"


@pytest.mark.parametrize("kill", [1, 20, 75])
def test_a_round_that_is_killed_goes_on_and_ends_with_the_same_weights(device, serving, published, tmp_path, kill):
    with serving() as (url, _):
        device.start(server=url, history=published.history, seed=SEED, kill=kill)
        report, _ = device.run(seed=SEED)
        undisturbed = dataclasses.replace(device, home=tmp_path / "undisturbed")
        expected, _ = undisturbed.run(server=url, history=published.history, seed=SEED)
    assert report["resumed"] == 1
    assert report["verdict"] == expected["verdict"] and report["kept"] == expected["kept"]
    ours, meant = weights(device.home), weights(undisturbed.home)
    for name, tensor in meant.items():
        np.testing.assert_array_equal(ours[name], tensor)


def test_a_round_that_was_put_aside_goes_on(device, serving, published):
    with serving() as (url, _):
        told = device.told(**{"server": url, "history": published.history, "yield": 30})
        assert told == "Yielded: asked to stop"
        report, _ = device.run()
        assert report["resumed"] == 1 and report["outcome"] in ("activated", "kept")


def test_bytes_are_what_an_independent_proxy_saw(device, serving, published):
    with serving() as (url, _), CountingProxy(int(url.rsplit(":", 1)[1])) as proxy:
        device.run(server=proxy.url, history=published.history)
        before = (proxy.relayed.up, proxy.relayed.down)
        second, _ = device.run()
        assert (second["up"], second["down"]) == (proxy.relayed.up - before[0], proxy.relayed.down - before[1])
        assert second["up"] < 4000 and second["down"] < 4000, "a bundle is pulled once"


def test_a_phone_follows_a_release_and_its_roll_back(device, serving, published, tmp_path):
    bundle = shutil.copytree(published.bundle, tmp_path / "bundle")
    reversion(bundle, published, 3)
    with serving() as (url, services):
        first, _ = device.run(server=url, history=published.history)
        with ServerHome(tmp_path / "server") as home:
            publish(home, bundle, staged=True)
        services.releases.create("next", 3, ladder=(Rung(name="100 %", share=1.0),), who="me", why="because")
        services.releases._forget()
        second, _ = device.run()
        services.releases.act("next", "stop", who="me", why="because")
        services.releases._forget()
        third, _ = device.run()
        assert [report.bundle for _, report in services.catalog.reports()] == [2, 3, 2]
    assert [each["bundle"] for each in (first, second, third)] == [2, 3, 2]
    phases = [[phase["phase"] for phase in each["phases"]] for each in (first, second, third)]
    assert ["compare" in names for names in phases] == [False, True, True]
    assert second["auc_previous"] == pytest.approx(first["verdict"]["auc_after"]), "of what served until then"


def test_a_phone_that_was_given_a_root_follows_the_publishers_documents(device, serving, published, tmp_path):
    with serving() as (url, services):
        publisher = Publisher(services)
        publisher.bundle(3)
        for role, data in (("root", publisher.root()), ("bundles", publisher.listing())):
            publisher.tells(role, 1, data)
        services.releases._forget()
        root = publisher.root().decode()
        first, _ = device.run(server=url, trust=root, history=published.history)
        with DeviceHome(device.home) as home:
            assert (home.trusted_set().root.version, home.trusted_set().listing.version) == (1, 1)
            assert home.trusted == publisher.release.public
        second, _ = device.run()
        assert (first["bundle"], second["bundle"]) == (3, 3) and second["up"] < first["up"]

        publisher.release = Signer(SigningKey.generate())  # the old key was stolen, and is dropped by a new root
        publisher.listed.clear()
        publisher.bundle(4)
        publisher.tells("root", 2, publisher.root(2))
        publisher.tells("bundles", 2, publisher.listing(2))
        services.releases.create("next", 4, ladder=(Rung(name="100 %", share=1.0),), who="me", why="because")
        services.releases._forget()
        third, _ = device.run()
        assert third["bundle"] == 4
        with DeviceHome(device.home) as home:
            assert (home.trusted_set().root.version, home.trusted) == (2, publisher.release.public)


def test_a_phone_refuses_a_bundle_that_nobody_listed(device, serving, published):
    with serving() as (url, services):
        publisher = Publisher(services)
        publisher.bundle(3)
        publisher.listed[3] = "ab" * 32
        for role, data in (("root", publisher.root()), ("bundles", publisher.listing())):
            publisher.tells(role, 1, data)
        services.releases._forget()
        told = device.told(server=url, trust=publisher.root().decode(), history=published.history)
        assert told.startswith("TrustError: bundle 3 is not on the publisher's list")
        others = msgspec.json.decode(publisher.root())
        others["signatures"].popitem()
        told = device.told(server=url, trust=msgspec.json.encode(others).decode())
        assert told.startswith("TrustError: 1 of the keys that root 1 names for root have signed; it takes 2")


def test_the_screen_says_what_was_pulled_kept_gained_and_spent(device, serving, published, tmp_path):
    with serving() as (url, _):
        done = device.start(server=url, history=published.history, export=tmp_path / "export.json")
    report, _ = device.lines(done.stdout)
    for sentence in (
        f"Enrolled at {url}.",
        "60 events of yours are on this phone.",
        f"Kept: {report['kept']} of {report['candidates']} candidates, beside 60 samples of your own.",
        f"Gained: on {report['verdict']['samples']} held-out samples of yours ",
        "Pulled: bundle 2, ",
        "Spent: ",
    ):
        assert sentence in done.stdout
    assert f"{report['round'][:8]}  {report['outcome']}; {report['verdict']['reason']}" in done.stdout
    exported = json.loads((tmp_path / "export.json").read_text())
    assert len(exported["samples"]) == 60 and exported["rounds"][0]["report"]["kept"] == report["kept"]
    assert exported["settings"]["server"] == url
    key = (device.home / "device.key").read_text().strip()
    assert key not in (tmp_path / "export.json").read_text(), "the private key is not handed out"


# -- what goes wrong, in plain words ---------------------------------------------------------------------------------


def test_a_user_with_hardly_any_history_waits(device, serving, published, tmp_path):
    (tmp_path / "short.csv").write_text("item_id,timestamp,label\ni3,5,1\nno such item,6,1\n")
    with serving() as (url, _):
        report, ranked = device.run(server=url, history=tmp_path / "short.csv")
    assert report["outcome"] == "too few samples" and len(ranked) == 10


def test_no_room_is_said_and_the_round_goes_on_when_there_is_some(device, serving, published):
    with serving() as (url, _):
        assert "run a round first" in device.told(server=url, history=published.history, rounds=0)
        told = device.told(room_kib=50)  # less than the bundle's weights take
        assert told == "StoreError: cannot keep a blob: File too large; free some space"
        report, _ = device.run()
    assert report["resumed"] == 1 and report["outcome"] in ("activated", "kept")


def test_no_network_keeps_what_serves_and_the_report_waits(device, serving, published):
    with serving() as (url, _):
        _, ranked = device.run(server=url, history=published.history)
    told = device.told()
    assert told.startswith("Unreachable: ") and "nothing listens on port" in told
    with Store(device.home / "coda.db") as store:
        assert [(row.state, row.delivered) for row in store.rounds()] == [("done", True), ("failed", False)]
    *_, still = device.run(rounds=0)
    assert still == ranked


def test_a_damaged_blob_is_pulled_again_and_damaged_weights_are_named(device, serving, published):
    with serving() as (url, services):
        device.run(server=url, history=published.history)
        blob = device.home / "blobs" / services.manifest.weights.sha256
        whole = blob.read_bytes()
        blob.write_bytes(whole[:-1] + b"!")
        assert "TrustError: blob" in device.told()
        blob.unlink()
        device.run()
        serving_weights(device.home).write_bytes(b"junk")
        assert "'use the bundle's own weights' lets those serve" in device.told()


def test_a_revoked_device_is_told_so(device, serving, published):
    with serving() as (url, services):
        device.run(server=url, history=published.history)
        services.catalog.revoke(Store(device.home / "coda.db").setting("device"))
        assert "Refused: " in (told := device.told()) and "revoked" in told


def test_a_bundle_that_another_key_signed_is_refused_until_the_right_key_is_given(device, serving, published):
    with serving() as (url, _):
        told = device.told(server=url, history=published.history, trust="ab" * 32)
        assert told.startswith("TrustError: the bundle is signed by key")
        assert device.run(server=url)[0]["outcome"] in ("activated", "kept")
