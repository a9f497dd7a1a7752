"""Rounds against a real server: how they end, and what is left when they fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import msgspec
import pytest

from cloud.http import ServerLimits
from cloud.matching import ExactStore
from cloud.pool import Pool
from device_runtime import local
from device_runtime.errors import InputError, Refused, StoreError, TrustError, Unreachable, Yielded
from device_runtime.history import read_history
from device_runtime.home import DeviceHome
from device_runtime.identity import Signer
from device_runtime.messages import RoundReport, from_json
from device_runtime.ranker import evaluate
from device_runtime.store import Event
from device_runtime.wire import decode_report, encode_report
from tests.device_runtime.peers import CountingProxy
from tests.device_runtime.phones import Phone, always


def test_the_server_learns_counts_and_costs_only(phone):
    result = phone.round()
    [(device, report)] = phone.services.catalog.reports()
    assert device == phone.home.store.setting("device")
    assert 0 < report.age_s < 600
    sent = msgspec.structs.replace(result.report, age_s=report.age_s)
    assert report == from_json(decode_report(encode_report(sent)), RoundReport, "the report")
    words = msgspec.json.encode(report).decode()
    assert not any(f'"{event.item}"' in words for event in phone.home.store.events())
    assert result.filter is not None and sum(result.filter.kept) == report.kept


def test_the_same_seed_and_data_give_the_same_weights(serving, published, tmp_path):
    with serving() as (url, _):
        rankings = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            made = Phone(tmp_path / name, published, url)
            with made.home:
                made.round(seed=3)
                rankings.append(made.ranking())
    assert rankings[0] == rankings[1]


def test_local_training_alone_asks_for_nothing(phone):
    result = phone.round(match=False)
    assert result.report.candidates == 0 and result.filter is None
    assert "match" not in result.traffic
    assert [phase.phase for phase in result.report.phases][2:] == [
        "encode",
        "tune",
        "judge",
        "tune",
        "activate",
        "clean",
    ]


def test_a_user_with_hardly_any_history_waits(serving, published, tmp_path):
    with serving() as (url, _):
        made = Phone(tmp_path, published, url)
        made.home.store.close()
        (tmp_path / "phone" / "coda.db").unlink()
        with DeviceHome(tmp_path / "phone") as made.home:
            made.move_to(url)
            made.home.store.add_events([Event("i3", 5, 1.0), Event("no such item", 6, 1.0)])
            report = made.round().report
            assert report.outcome == "too few samples" and report.verdict is None
            assert made.ranking(), "the cloud's weights rank all the same"


def test_an_empty_pool_leaves_local_tuning(serving, published, tmp_path):
    def emptied(services):
        pool = Pool(tmp_path / "empty", services.pool.schema, services.pool.width)
        return replace(services, pool=pool, store=ExactStore(pool))

    with serving(emptied) as (url, _):
        made = Phone(tmp_path, published, url)
        with made.home:
            report = made.round().report
    assert (report.candidates, report.kept) == (0, 0) and report.verdict is not None


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_blob_is_not_used_and_a_repaired_one_is_pulled(phone, damage):
    ref = phone.services.manifest.graphs["step"].files["onnx"].file
    path = phone.services.blobs.path(ref.sha256)
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[:-1] if damage == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(Refused if damage == "gone" else (TrustError, Unreachable)):
        phone.round()
    assert phone.states() == ["failed"] and phone.home.store.bundle() is None
    path.write_bytes(whole)
    assert phone.round().report.outcome in ("activated", "kept")


def test_an_answer_that_the_server_did_not_sign_is_refused(serving, published, tmp_path):
    stranger = Signer.create(tmp_path / "stranger.key")
    with serving(lambda services: replace(services, answer_signer=stranger)) as (url, services):
        made = Phone(tmp_path, published, url)
        with made.home:
            with pytest.raises(TrustError, match="signature does not verify"):
                made.round()
            assert made.states() == ["failed"]
            assert made.ranking(), "the bundle itself was good and serves"
            [(_, report)] = services.catalog.reports()
            assert (report.outcome, report.error) == ("failed", "TrustError")


def test_an_older_bundle_is_refused(phone):
    phone.round()
    before = phone.ranking()
    ref, _ = phone.home.store.bundle()
    phone.home.store.use_bundle(msgspec.structs.replace(ref, version=9), "")
    with pytest.raises(TrustError, match="announces bundle 2, but this device already has 9"):
        phone.round()
    phone.home.store.use_bundle(ref, "")
    assert phone.ranking() == before


def test_an_outdated_encoder_is_pulled_again_once(serving, published, tmp_path):
    def moved_on(services):
        return replace(services, manifest=msgspec.structs.replace(services.manifest, encoder="f" * 16))

    with serving(moved_on) as (url, _):
        made = Phone(tmp_path, published, url)
        with made.home:
            with pytest.raises(Refused, match="encoder is outdated"):
                made.round()
            phases = [phase.phase for phase in made.home.store.rounds()[0].report.phases]
            assert phases.count("pull") == phases.count("match") == 2


def test_a_full_disk_keeps_the_weights_that_serve(phone, monkeypatch):
    always(monkeypatch, True)
    phone.round()
    before, serving_weights = phone.ranking(), phone.home.store.weights()

    def full(*_):
        raise StoreError("no space left on device; free some space")

    with monkeypatch.context() as patch:
        patch.setattr("device_runtime.home.move_durably", full)
        with pytest.raises(StoreError, match="free some space"):
            phone.round()
    assert phone.home.store.weights() == serving_weights and phone.ranking() == before
    assert phone.states() == ["done", "judged"]
    result = phone.round()
    assert result.resumed == 1 and phone.states() == ["done", "done"], "once there is room, it goes on where it was"
    assert [phase.phase for phase in result.report.phases].count("match") == 1


def test_a_round_that_the_disk_fails_again_and_again_is_begun_anew(phone, monkeypatch):
    def full(*_):
        raise StoreError("no space left on device; free some space")

    always(monkeypatch, True)
    with monkeypatch.context() as patch:
        patch.setattr("device_runtime.home.move_durably", full)
        for _ in range(5):
            with pytest.raises(StoreError):
                phone.round()
    assert phone.states() == ["judged"]
    phone.round()
    assert phone.states() == ["interrupted", "done"]


def test_the_files_of_an_older_bundle_are_removed_once_another_serves(phone):
    phone.round()
    blobs = phone.home.blobs.folder
    held = {path.name for path in blobs.iterdir()}
    (blobs / ("ab" * 32)).write_bytes(b"of an older bundle")
    (blobs / (".part-" + "cd" * 32)).write_bytes(b"never finished")
    (blobs / "unpacked" / ("ab" * 32)).write_bytes(b"a graph")
    phone.round()
    assert {path.name for path in blobs.iterdir()} == held
    assert not (blobs / "unpacked" / ("ab" * 32)).exists()


def test_a_server_that_dies_in_mid_answer_is_survived(phone):
    port = int(phone.home.server.rsplit(":", 1)[1])
    with CountingProxy(port, cuts=(900, 5000, 20000, 40000)) as proxy:
        phone.home.store.set(server=proxy.url)
        for _ in range(6):
            try:
                outcome = phone.round().report.outcome
                break
            except Unreachable:
                continue
    assert outcome in ("activated", "kept")
    assert phone.states()[-1] == "done"


def test_reports_wait_until_the_server_is_back(serving, published, tmp_path):
    with serving() as (url, _):
        made = Phone(tmp_path, published, url)
    with made.home:
        with pytest.raises(Unreachable):
            made.round()
        assert [row.delivered for row in made.home.store.rounds()] == [False]
        with serving() as (url, services):
            made.move_to(url)
            made.round()
            assert next(report.outcome for _, report in services.catalog.reports()) == "failed"
            assert [row.delivered for row in made.home.store.rounds()] == [True, True]


def test_one_round_at_a_time(phone):
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with phone.home.locked():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(20)
    try:
        with pytest.raises(StoreError, match="another process runs a round"):
            phone.round()
    finally:
        leave.set()
        thread.join()


def test_killed_at_any_instant_the_last_good_weights_rank(phone, monkeypatch, rng):
    always(monkeypatch, True)
    phone.round()
    command = [sys.executable, "-m", "device_runtime", "device", "run", "--home", str(phone.home.path),
               "--engine", "onnx", "--rounds", "200"]  # fmt: skip
    for _ in range(6):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.5 + 0.5 * rng.random())
        assert process.poll() is None, "it was to be killed while running"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert len(phone.ranking()) == 10
    assert phone.round().report.outcome == "activated"
    assert set(phone.states()) == {"done"}, "each that was cut off was taken up again"


def test_held_out_events_must_come_later(phone, published):
    phone.round()
    model = phone.home.model(phone.engine)
    found = evaluate(phone.home, model, read_history(published.later).events, seed=0)
    assert found.held_out == 20
    with pytest.raises(InputError, match="that would be a leak"):
        evaluate(phone.home, model, phone.home.store.events()[:3], seed=0)


def test_of_a_history_of_years_the_newest_part_is_used(phone):
    phone.round()
    model = phone.home.model(phone.engine)
    [first, *_] = phone.home.store.events()
    phone.home.store.add_events([Event(first.item, n + 1, 1.0) for n in range(local.NEWEST)])
    stream, _ = local.known_events(phone.home, model)
    assert len(stream) == local.NEWEST and stream.timestamp.max() > 1_600_000_000
    assert len(local.known_events(phone.home, model, until=60)[0]) == 60, "a round that was cut off sees what it saw"


def test_events_that_come_while_a_round_is_cut_off_are_the_next_ones(phone):
    calls = []

    def stop():
        if not calls and phone.states() == ["matched"]:
            calls.append(1)
            raise Yielded("enough")

    with pytest.raises(Yielded):
        phone.round(pulse=stop)
    [row] = phone.home.store.rounds()
    assert row.state not in ("started", "done") and row.progress.traffic["match"][1] > 0
    phone.home.store.add_events([Event("i3", 1_900_000_000, 1.0)])
    result = phone.round()
    assert (result.report.round, result.resumed, result.report.local) == (row.id, 1, 60)
    assert phone.round().report.local == 61


def test_a_round_that_cannot_go_on_is_begun_anew_and_leaves_nothing(phone):
    def stop():
        raise Yielded("enough")

    with pytest.raises(Yielded):
        phone.round(pulse=stop)
    [row] = phone.home.store.rounds()
    assert phone.round(seed=5).report.round != row.id
    assert phone.states() == ["interrupted", "done"] and not list(phone.home.rounds.iterdir())


@pytest.mark.parametrize("damage", ["gone", "flip"])
def test_a_damaged_working_file_costs_the_round_and_nothing_else(phone, damage):
    def stop():
        if any(phone.home.rounds.glob("*/answer")):
            raise Yielded("enough")

    phone.round()
    with pytest.raises(Yielded):
        phone.round(pulse=stop)
    row = phone.home.store.unfinished()
    path = phone.home.rounds / row.id / "answer"
    if damage == "gone":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert phone.round().report.round != row.id
    assert phone.states() == ["done", "interrupted", "done"]


def test_a_quota_that_is_used_up_does_not_fail_the_round(serving, published, tmp_path):
    """The samples wait for a day on which the server takes them."""
    limits = ServerLimits(device_samples_per_day=1)
    with serving(lambda services: replace(services, limits=limits)) as (url, services):
        phone, before = Phone(tmp_path, published, url), len(services.pool)
        result = phone.round(contribute=True)
        assert (result.report.error, result.report.outcome in ("activated", "kept")) == ("", True)
        assert phone.home.store.setting("contributed_until") is None and len(services.pool) == before
        phone.home.store.close()
