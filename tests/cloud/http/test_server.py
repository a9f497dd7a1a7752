"""A real server on loopback, friends and hostile peers."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace

import httpx
import numpy as np
import pytest

from cloud.http import ServerLimits
from device_runtime import wire
from device_runtime.arrays import Scaled
from device_runtime.counting import ByteCounter
from device_runtime.errors import Refused, StoreError
from device_runtime.identity import Signer, answer_text, device_id, verify
from device_runtime.messages import Capability, Enrolment, RoundReport, to_json
from device_runtime.packing import pack
from device_runtime.transport import Transport, TransportLimits
from device_runtime.wire import MatchQuery, decode_answer, encode_contribution, encode_query, encode_report
from tests.device_runtime.batches import assert_same

FRAME = "application/vnd.coda.frame"
PROBLEM = "application/problem+json"


class Device:
    """A device by hand: it signs what it is told to."""

    def __init__(self, url, folder, name="device"):
        self.signer = Signer.open_or_create(folder / f"{name}.key")
        self.id = device_id(self.signer.public)
        self.client = httpx.Client(base_url=url, timeout=20)

    def call(self, method, path, body=b"", kind="", now=None, signer=None, device=None, **headers):
        sign = (signer or self.signer).authorization
        headers["Authorization"] = sign(device or self.id, method, path, body, now)
        if kind:
            headers["Content-Type"] = kind
        return self.client.request(method, path, content=body, headers=headers)

    def enrol(self):
        message = Enrolment(public_key=self.signer.public, capability=Capability(runtime="test"))
        return self.call("POST", "/v1/devices", to_json(message), "application/json")

    def match(self, services, limit=50, held=(), **changes):
        manifest = services.manifest
        centroids = np.random.default_rng(3).normal(size=(4, manifest.width)).astype(np.float32)
        query = MatchQuery(manifest.encoder, centroids, limit, np.array(held, np.int32))
        body = encode_query(replace(query, **changes))
        return self.call("POST", "/v1/match", body, FRAME)


@pytest.fixture
def running(serving):
    with serving() as (url, services):
        yield url, services


@pytest.fixture
def device(running, tmp_path):
    made = Device(running[0], tmp_path)
    assert made.enrol().json()["device"] == made.id
    yield made
    made.client.close()


def problem(answer, status, words):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    said = answer.json()
    assert said["status"] == status and words in f"{said['title']} {said['detail']}", said
    return said


def test_health_needs_no_key(running):
    url, services = running
    said = httpx.get(f"{url}/healthz").json()
    assert (said["status"], said["release"], said["samples"]) == ("ok", 2, len(services.pool))


def test_the_api_page_declares_every_call_and_its_bodies(running):
    document = httpx.get(f"{running[0]}/openapi.json").json()
    calls = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert calls == {
        ("/v1/devices", "post"), ("/v1/keys", "post"), ("/v1/bundle", "get"),
        ("/v1/stale/{device}/{bundle}/{profile}", "get"), ("/v1/metadata/{role}/{version}", "get"),
        ("/v1/evaluation", "get"), ("/v1/evaluation", "post"),
        ("/v1/blobs/{sha256}", "get"), ("/v1/blobs/{sha256}", "head"), ("/v1/deltas/{base}/{target}", "get"),
        ("/v1/match", "post"), ("/v1/contributions", "post"), ("/v1/reports", "post"), ("/healthz", "get"),
    }  # fmt: skip
    body = document["paths"]["/v1/reports"]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert "phases" in document["components"]["schemas"][body.rsplit("/", 1)[1]]["properties"]
    assert "swagger" in httpx.get(f"{running[0]}/docs").text.lower()


# -- bundles and blobs ----------------------------------------------------------------------------------------------


def test_a_bundle_that_is_known_costs_a_304(device):
    first = device.call("GET", "/v1/bundle")
    assert first.json()["version"] == 2
    again = device.call("GET", "/v1/bundle", **{"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_blobs_are_immutable_resumable_and_open_to_caches(running):
    url, services = running
    ref = services.manifest.weights
    path = f"{url}/v1/blobs/{ref.sha256}"
    whole = httpx.get(path)
    assert hashlib.sha256(whole.content).hexdigest() == ref.sha256
    assert whole.headers["etag"] == f'"{ref.sha256}"' and "immutable" in whole.headers["cache-control"]
    assert httpx.head(path).headers["content-length"] == str(ref.size)
    assert httpx.get(path, headers={"If-None-Match": f'"{ref.sha256}"'}).status_code == 304
    for wanted, expected in [
        ("bytes=0-9", whole.content[:10]),
        ("bytes=100-", whole.content[100:]),
        ("bytes=-7", whole.content[-7:]),
        (f"bytes=5-{ref.size + 99}", whole.content[5:]),
    ]:
        part = httpx.get(path, headers={"Range": wanted})
        assert part.status_code == 206 and part.content == expected
        assert part.headers["content-range"].endswith(f"/{ref.size}")
    stale = httpx.get(path, headers={"Range": "bytes=5-", "If-Range": '"other"'})
    assert stale.status_code == 200 and stale.content == whole.content
    problem(httpx.get(path, headers={"Range": f"bytes={ref.size}-"}), 416, "outside the blob")


@pytest.mark.parametrize("name", ["0" * 64, "..%2f..%2fanswer.key", "..%2fcatalog.db", "zz", "A" * 64])
def test_only_blobs_are_served(running, name):
    assert httpx.get(f"{running[0]}/v1/blobs/{name}").status_code == 404


# -- matching -------------------------------------------------------------------------------------------------------


def test_an_answer_is_signed_for_its_request_and_complete(device, running):
    _, services = running
    answer = device.match(services, limit=50)
    assert answer.status_code == 200 and answer.headers["content-type"] == FRAME
    nonce = answer.request.headers["authorization"].split(":")[2]
    verify(services.manifest.answer_key, answer_text(nonce, answer.content), answer.headers["coda-signature"])
    found = decode_answer(answer.content, services.manifest.schema)
    assert len(found.candidates) == 50 and found.shortfall == ""
    np.testing.assert_array_equal(found.rows["item"].ids, found.candidates.ids("item"))
    assert set(found.rows["item"].tensors) == {"item.weight", "item_categories"}


def test_rows_of_shards_that_a_device_holds_are_not_sent(device, running):
    _, services = running
    every = range(len(services.manifest.tables["item"].shards))
    lean, full = device.match(services, held=every), device.match(services)
    assert decode_answer(lean.content, services.manifest.schema).rows == {}
    assert len(lean.content) < len(full.content) / 2


def test_what_a_device_contributed_never_comes_back_to_it(device, running, tmp_path):
    """A stranger with the same query hears of its samples, the contributor is told what it would have been told."""
    url, services = running

    def answered(asker):
        query = {"centroids": np.array(services.pool.segments[0].embeddings[:1]), "limit": len(services.pool)}
        return decode_answer(asker.match(services, **query).content, services.manifest.schema).candidates

    stranger = Device(url, tmp_path, "stranger")
    stranger.enrol()
    before = {asker.id: answered(asker) for asker in (device, stranger)}
    assert_same(before[device.id], before[stranger.id])
    mine = services.pool.gather(np.arange(30))
    assert device.call("POST", "/v1/contributions", encode_contribution(mine), FRAME).status_code == 204
    own = services.contributor(f"device:{device.id}")
    assert (services.pool.segments[-1].contributors == own).all() and len(services.pool.segments[-1]) == 30
    assert_same(answered(device), before[device.id])
    now = answered(stranger)
    stranger.client.close()
    earlier = before[stranger.id]
    told = [set(zip(one.columns["item"].tolist(), one.labels.tolist(), strict=True)) for one in (earlier, now)]
    assert {item for item, _ in told[0] ^ told[1]} & set(mine.columns["item"].tolist())


def test_hostile_queries_are_refused_with_a_reason(device, running):
    _, services = running
    width = services.manifest.width
    good = encode_query(
        MatchQuery(services.manifest.encoder, np.ones((1, width), np.float32), 5, np.zeros(0, np.int32))
    )
    for body, status, words in [
        (b"", 400, "not a CoDA frame"),
        (b"x" * 500, 400, "not a CoDA frame"),
        (good[:-3], 400, "damaged or truncated"),
        (good[:5] + b"\x09" + good[6:], 400, "version 9"),
        (b"x" * 100_000, 413, "at most"),
    ]:
        problem(device.call("POST", "/v1/match", body, FRAME), status, words)
    endless = Scaled((2, width), np.full(2, np.inf, "<f4").tobytes(), bytes(2 * width))
    body = wire._frame(1, wire._Query(services.manifest.encoder, endless, 5, pack(np.zeros(0, np.int32))))
    problem(device.call("POST", "/v1/match", body, FRAME), 400, "finite")
    problem(device.match(services, centroids=np.ones((2, 3), np.float32)), 400, "does not fit")
    problem(device.match(services, centroids=np.ones((500, width), np.float32)), 400, "does not fit")
    problem(device.match(services, encoder="0" * 16), 409, "pull bundle 2")
    assert device.match(services).status_code == 200, "the server is none the worse"


def test_a_busy_server_says_when_to_come_back(serving, tmp_path):
    with serving(
        lambda s: replace(s, limits=ServerLimits(concurrent_matches=0, waiting_matches=0, retry_after_s=7))
    ) as (url, services):
        device = Device(url, tmp_path)
        device.enrol()
        answer = device.match(services)
        problem(answer, 503, "busy")
        assert answer.headers["retry-after"] == "7"
        device.client.close()


# -- identity -------------------------------------------------------------------------------------------------------


def test_who_is_not_enrolled_or_not_who_they_say_is_refused(device, running, tmp_path):
    url, services = running
    stranger = Device(url, tmp_path, "stranger")
    problem(stranger.call("GET", "/v1/bundle"), 401, "not enrolled here; run `coda device enrol`")
    problem(device.call("GET", "/v1/bundle", signer=stranger.signer), 401, "signature")
    problem(device.client.get("/v1/bundle"), 401, "Authorization header")
    problem(device.call("GET", "/v1/bundle", now=services.clock() - 3600), 401, "set the device's clock")
    forged = Enrolment(public_key=device.signer.public, capability=Capability(runtime="test"))
    answer = stranger.call("POST", "/v1/devices", to_json(forged), device=device.id)
    problem(answer, 401, "signature")
    problem(device.call("POST", "/v1/devices", b'{"public_key": "zz"}'), 400, "capability")
    stranger.client.close()


def test_a_request_counts_once(device):
    headers = {"Authorization": device.signer.authorization(device.id, "GET", "/v1/bundle", b"")}
    assert device.client.get("/v1/bundle", headers=headers).status_code == 200
    problem(device.client.get("/v1/bundle", headers=headers), 401, "made before")
    moved = {"Authorization": device.signer.authorization(device.id, "GET", "/v1/bundle", b"")}
    problem(device.client.post("/v1/reports", content=b"{}", headers=moved), 401, "signature")


def test_a_revoked_device_is_told_so(device, running):
    running[1].catalog.revoke(device.id)
    problem(device.call("GET", "/v1/bundle"), 403, "revoked")


# -- what is taken in -----------------------------------------------------------------------------------------------


def test_contributions_outside_the_vocabulary_are_refused_whole(device, running):
    _, services = running
    mine = services.pool.gather(np.arange(5))
    item = np.array(mine.columns["item"])
    item[2] = 10_000
    stranger = replace(mine, columns={**mine.columns, "item": item})
    before = len(services.pool)
    problem(device.call("POST", "/v1/contributions", encode_contribution(stranger), FRAME), 400, "id 10000")
    nothing = mine.take(slice(0, 0))
    problem(device.call("POST", "/v1/contributions", encode_contribution(nothing), FRAME), 400, "no samples")
    assert len(services.pool) == before


def test_a_full_disk_is_503_and_loses_nothing(device, running, monkeypatch):
    _, services = running
    before = len(services.pool)

    def full(*_):
        raise StoreError("/secret/place: No space left on device")

    monkeypatch.setattr(services.pool, "append", full)
    body = encode_contribution(services.pool.gather(np.arange(5)))
    answer = device.call("POST", "/v1/contributions", body, FRAME)
    problem(answer, 503, "nothing of this request was kept")
    assert "secret" not in answer.text and answer.headers["retry-after"]
    assert len(services.pool) == before


def test_a_report_is_stored_once(device, running):
    report = RoundReport(
        round="r1", bundle=2, engine="onnx", outcome="kept", local=9, candidates=5, kept=1, verdict=None, phases=[]
    )
    for _ in range(2):
        assert device.call("POST", "/v1/reports", to_json(report)).status_code == 204
    assert device.call("POST", "/v1/reports", encode_report(report), FRAME).status_code == 204
    assert [(owner, kept) for owner, kept in running[1].catalog.reports()] == [(device.id, report)]
    problem(device.call("POST", "/v1/reports", b"no frame", FRAME), 400, "not a CoDA frame")
    problem(device.call("POST", "/v1/reports", b'{"round": 5}'), 400, "Expected `str`")
    problem(device.call("POST", "/v1/reports", b"x" * 300_000), 413, "at most")


def test_nothing_internal_leaks(device, running, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("password=hunter2 at /srv/secret")

    monkeypatch.setattr(running[1].catalog, "report", broken)
    report = RoundReport(
        round="r1", bundle=2, engine="onnx", outcome="kept", local=9, candidates=5, kept=1, verdict=None, phases=[]
    )
    with caplog.at_level(logging.ERROR, logger="coda.http"):
        answer = device.call("POST", "/v1/reports", to_json(report))
    said = problem(answer, 500, "incident")
    assert "hunter2" not in answer.text and "secret" not in answer.text
    number = said["detail"].split()[1].rstrip(";")
    assert any(getattr(record, "facts", {}).get("incident") == number for record in caplog.records)


def test_unknown_paths_and_methods_are_problems_too(running):
    problem(httpx.get(f"{running[0]}/v1/nothing"), 404, "Not Found")
    problem(httpx.delete(f"{running[0]}/v1/match"), 405, "Method Not Allowed")


def test_our_own_transport_understands_the_server(device, running, tmp_path):
    url, services = running
    limits = TransportLimits(attempts=1)
    with Transport(url, ByteCounter(), signer=device.signer, device=device.id, limits=limits) as transport:
        answer = transport.request("GET", "/v1/bundle", label="bundle", accept="application/json")
        assert json.loads(answer.body)["version"] == services.manifest.version
        with pytest.raises(Refused, match="not a CoDA frame") as refused:
            transport.request("POST", "/v1/match", b"nonsense", label="match", content_type=FRAME)
        assert refused.value.status == 400
