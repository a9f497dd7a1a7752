"""Rounds against a real server: how they end, and what is left when they fail."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from cloud.home import ServerHome, publish
from cloud.http import ServerLimits
from cloud.matching import ExactStore
from cloud.pool import Pool
from device_runtime import local
from device_runtime import round as round_module
from device_runtime.bundle import BlobStore, RoundSettings, open_manifest
from device_runtime.counting import ByteCounter
from device_runtime.engines import open_engine
from device_runtime.errors import InputError, Refused, StoreError, TrustError, Unreachable, Yielded
from device_runtime.history import read_history
from device_runtime.home import DeviceHome
from device_runtime.identity import Signer
from device_runtime.messages import RoundReport, from_json
from device_runtime.model import Model
from device_runtime.ranker import evaluate, rank
from device_runtime.round import RoundOptions, run_round
from device_runtime.store import Event
from device_runtime.transport import Transport, TransportLimits
from device_runtime.wire import DirectoryQuery, decode_query, decode_report, encode_report
from export.package import read_ref
from tests.conftest import reversion, with_directory
from tests.device_runtime.peers import CountingProxy

IMPATIENT = TransportLimits(attempts=2, base_backoff_s=0.01, max_backoff_s=0.05, read_timeout_s=20)


class Phone:
    """A device in this process."""

    def __init__(self, folder, published, url):
        self.home = DeviceHome(folder / "phone")
        self.engine = open_engine("onnx")
        self.home.store.add_events(read_history(published.history).events)
        self.published = published
        self.move_to(url)

    def move_to(self, url):
        self.home.enrol(url, self.published.trust, ByteCounter())

    def round(self, pulse=None, **options):
        signer = self.home.signer()
        device = self.home.store.setting("device")
        with Transport(self.home.server, ByteCounter(), signer=signer, device=device, limits=IMPATIENT) as transport:
            return run_round(self.home, transport, self.engine, RoundOptions(**options), pulse=pulse)

    def ranking(self):
        model = self.home.model(self.engine)
        return rank(self.home, model, self.home.active_weights(model), None, 10)

    def states(self):
        return [row.state for row in self.home.store.rounds()]


@pytest.fixture
def phone(serving, published, tmp_path):
    with serving() as (url, services):
        made = Phone(tmp_path, published, url)
        made.services = services
        with made.home:
            yield made


def always(monkeypatch, activate):
    """Let the judge decide as the test needs it."""
    real = round_module.personalize.judge

    def judged(*given):
        return msgspec.structs.replace(real(*given), activate=activate)

    monkeypatch.setattr(round_module.personalize, "judge", judged)


def test_new_weights_serve_if_the_judge_says_so_and_else_do_not(phone, monkeypatch):
    always(monkeypatch, False)
    assert phone.round().report.outcome == "kept"
    base = phone.ranking()
    assert phone.home.store.weights() is None
    always(monkeypatch, True)
    first = phone.round()
    assert first.report.outcome == "activated"
    assert phone.home.store.weights() == (first.report.round, 2)
    assert phone.ranking() != base
    second = phone.round()
    files = {path.name for path in (phone.home.path / "weights").iterdir()}
    now = second.report.round
    assert files == {f"{now}.safetensors", f"{now}.judged.safetensors"}, "superseded weights are removed"


def test_weights_that_serve_have_learned_from_what_the_judge_saw(phone, monkeypatch):
    real, seen = round_module.personalize.learn_held_out, []

    def learn(model, tuned, table, everything, *rest):
        seen.append((tuned, real(model, tuned, table, everything, *rest), len(everything)))
        return seen[-1][1]

    monkeypatch.setattr(round_module.personalize, "learn_held_out", learn)
    always(monkeypatch, True)
    report = phone.round().report
    [(tuned, learned, count)] = seen
    assert count == report.local > report.verdict.samples and [one.phase for one in report.phases].count("tune") == 2
    serving = phone.home.active_weights(phone.home.model(phone.engine))
    for name, tensor in learned.dense.items():
        np.testing.assert_array_equal(serving.dense[name], tensor)
    assert any((learned.dense[name] != before).any() for name, before in tuned.dense.items())
    judged = phone.home.judged_weights(phone.home.model(phone.engine))
    for name, tensor in tuned.dense.items():
        np.testing.assert_array_equal(judged.dense[name], tensor, "the next ones are compared with what saw as little")
    always(monkeypatch, False)
    again = phone.round().report.verdict
    assert len(seen) == 1, "what is refused learns nothing more"
    assert again.auc_before == report.verdict.auc_after, "the same samples, judged by weights that never saw them"
    for path in (phone.home.path / "weights").glob("*.judged.*"):
        path.write_bytes(b"damaged")
    assert phone.round().report.outcome == "kept", "those that serve are the yardstick then"


@pytest.mark.parametrize("learn", [True, False])
def test_where_all_of_the_way_harms_half_of_it_serves(phone, monkeypatch, learn):
    personalize, seen = round_module.personalize, {}
    real_tune, real_learn, real_judge = personalize.tune, personalize.learn_held_out, personalize.judge

    def tuned(*given):
        return seen.setdefault("tuned", real_tune(*given))

    def learned(*given):
        return seen.setdefault("learned", real_learn(*given))

    def half_alone(*given):
        seen["asked"] = seen.get("asked", 0) + 1
        return msgspec.structs.replace(real_judge(*given), activate=seen["asked"] == 2)

    for name, one in (("tune", tuned), ("learn_held_out", learned), ("judge", half_alone)):
        monkeypatch.setattr(personalize, name, one)
    model = phone.home.model
    monkeypatch.setattr(type(phone.home), "model", lambda self, engine: with_settings(model(engine), learn))
    report = phone.round().report
    assert report.outcome == "activated" and report.verdict.share == 0.5 and "50% of the way" in report.verdict.reason
    opened = phone.home.model(phone.engine)
    serving, judged = phone.home.active_weights(opened), phone.home.judged_weights(opened)
    for whole, half in ((seen["learned" if learn else "tuned"], serving), (seen["tuned"], judged)):
        for name, tensor in whole.dense.items():
            np.testing.assert_allclose(half.dense[name], (opened.base.dense[name] + tensor) / 2, atol=1e-6)


def with_settings(model, learn):
    settings = msgspec.structs.replace(model.manifest.settings, learn_held_out=learn)
    model.manifest = msgspec.structs.replace(model.manifest, settings=settings)
    return model


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


def test_a_round_by_directory_sends_weights_and_no_vector(serving, published, tmp_path, monkeypatch):
    with ServerHome(tmp_path / "server") as home:
        publish(home, with_directory(published, tmp_path / "bundle"))
    seen = keep_bodies(monkeypatch)
    with serving() as (url, services):
        made = Phone(tmp_path, published, url)
        with made.home:
            report = made.round().report
            model = made.home.model(made.engine)
        assert (report.bundle, report.candidates) == (3, 60) and 0 < report.kept <= 30
        assert report.outcome in ("activated", "kept")
        assert services.manifest.settings.matching == "directory"
    [body] = seen
    asked = decode_query(body)
    assert isinstance(asked, DirectoryQuery) and len(body) < 1024
    assert (asked.directory, len(asked.weights)) == (model.directory.id, len(model.directory.centroids))
    assert asked.weights.max() == 255


def test_another_directory_is_pulled_once(serving, published, tmp_path, monkeypatch):
    """The server has moved on to a directory that devices were not told of in time."""
    with ServerHome(tmp_path / "server") as home:
        publish(home, with_directory(published, tmp_path / "bundle"))
    moved = with_directory(published, tmp_path / "moved", 4, order=-1)
    seen = keep_bodies(monkeypatch)
    with serving() as (url, services):
        made, real = Phone(tmp_path, published, url), round_module.Round._match

        def released_meanwhile(self):
            if not seen:
                with ServerHome(tmp_path / "server") as home:
                    publish(home, moved)
                services.releases._forget()
            return real(self)

        monkeypatch.setattr(round_module.Round, "_match", released_meanwhile)
        with made.home:
            report = made.round().report
    first, second = (decode_query(body) for body in seen)
    assert first.directory != second.directory and first.encoder == second.encoder
    assert report.bundle == 4 and report.candidates == 60
    assert [phase.phase for phase in report.phases].count("pull") == 2


def test_a_bundle_that_lacks_its_directory_serves_nobody(published, tmp_path):
    bundle = shutil.copytree(published.bundle, tmp_path / "bundle")
    reversion(bundle, published, 3, settings=RoundSettings(matching="directory"))
    manifest = open_manifest((ref := read_ref(bundle)), (bundle / "blobs" / ref.manifest).read_bytes(), published.trust)
    with pytest.raises(InputError, match="asks for matching by directory, and has none"):
        Model.open(manifest, open_engine("onnx"), BlobStore(bundle / "blobs"))


def keep_bodies(monkeypatch):
    """The bodies of matches that are asked for, as they go out."""
    real, seen = Transport.request, []

    def request(self, method, path, body=b"", **named):
        if path == "/v1/match":
            seen.append(body)
        return real(self, method, path, body, **named)

    monkeypatch.setattr(Transport, "request", request)
    return seen


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
