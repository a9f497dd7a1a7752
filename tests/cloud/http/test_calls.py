"""Matches, contributions and reports from peers that mean harm or have bad luck; what gets out and what is logged."""

from __future__ import annotations

import io
import json
import logging
import socket
import struct
import threading
import time

import msgspec
import numpy as np
import pytest
import zstandard

from cloud.http import ServerLimits
from cloud.http.logs import JsonLines
from device_runtime.errors import StoreError
from device_runtime.framing import MAX_BODY, digest
from device_runtime.identity import answer_text, verify
from device_runtime.messages import RoundReport, to_json
from device_runtime.samples import Ragged, SampleBatch
from device_runtime.wire import decode_answer, encode_contribution
from tests.cloud.http.conftest import ENCODER, SCHEMA, START, WIDTH, query, some_samples

FRAME = "application/vnd.coda.frame"


def frame(kind: int, body: object, payload: bytes | None = None) -> bytes:
    """A frame with a right checksum over a body that need not be right."""
    payload = msgspec.msgpack.encode(body) if payload is None else payload
    head = b"CoDA" + bytes([kind, 1, 1 if payload[:4] == zstandard.MAGIC_NUMBER.to_bytes(4, "little") else 0])
    return head + digest(head + payload) + payload


def report(**changes: object) -> bytes:
    plain = RoundReport(
        round="r1", bundle=3, engine="onnx", outcome="kept", local=9, candidates=5, kept=1, verdict=None, phases=[]
    )
    return to_json(msgspec.to_builtins(plain) | changes)


def test_a_match_is_signed_and_leaves_out_held_shards(peer):
    reply = peer.signed("POST", "/v1/match", body := query(limit=30, held=(0, 1)))
    assert (reply.status, reply.kind) == (200, FRAME) and body
    assert reply.headers["Cache-Control"] == "no-store"
    ids = decode_answer(reply.body, SCHEMA).rows["item"].ids
    assert len(ids) and set(ids % 4) == {2, 3}
    with pytest.raises(Exception, match="does not verify"):
        verify(peer.services.answer_signer.public, answer_text("0" * 16, reply.body), reply.headers["CoDA-Signature"])


def test_more_candidates_than_allowed_are_cut_with_a_reason(serve):
    peer = serve(limits=ServerLimits(max_candidates=7))
    peer.enrol()
    found = decode_answer(peer.signed("POST", "/v1/match", query(limit=2**40)).body, SCHEMA)
    assert len(found.candidates) == 7 and "7" in found.shortfall


def test_an_answer_keeps_to_the_bytes_that_the_bundle_allows_with_a_reason(serve, services):
    frames = {}
    for most in (0, 300):
        settings = msgspec.structs.replace(services.manifest.settings, answer_bytes=most)
        peer = serve(manifest=msgspec.structs.replace(services.manifest, settings=settings))
        peer.enrol()
        frames[most] = peer.signed("POST", "/v1/match", query(limit=40)).body
    free, bound = (decode_answer(frame, SCHEMA) for frame in frames.values())
    assert len(frames[300]) <= 300 < len(frames[0])
    assert 0 < len(bound.candidates) < len(free.candidates) == 40
    assert "300 bytes" in bound.shortfall and not free.shortfall


HALF = np.ones((1, WIDTH), np.float16).tobytes()
NOTHING = b"\x00\x00"


@pytest.mark.parametrize(
    "body",
    [
        frame(1, None), frame(1, []), frame(1, {"encoder": 1}), frame(1, None, b""), frame(1, None, b"\xc1"),
        frame(1, None, b"\x91" * 60_000), frame(2, [ENCODER, ["float16", [1, WIDTH], HALF], 5, NOTHING]),
        frame(1, [ENCODER, ["float16", [-1, WIDTH], HALF], 5, NOTHING]),
        frame(1, [ENCODER, ["float16", [2**63, WIDTH], HALF], 5, NOTHING]),
        frame(1, [ENCODER, ["float16", [1] * 100 + [WIDTH], HALF], 5, NOTHING]),
        frame(1, [ENCODER, ["float16", [1, WIDTH], b"\x00\x7c" * WIDTH], 5, NOTHING]),
        frame(1, [ENCODER, ["object", [1, WIDTH], HALF], 5, NOTHING]),
        frame(1, [ENCODER, ["float16", [1, WIDTH], HALF], -1, NOTHING]),
        frame(1, [ENCODER, ["float16", [1, WIDTH], HALF], 5, b""]),
        frame(1, [ENCODER, ["float16", [1, WIDTH], HALF], 5, b"\x00" + b"\xff" * 20]),
        frame(1, [ENCODER, ["float16", [1, 0], b""], 5, NOTHING]),
        frame(1, None, zstandard.compress(b"\x00" * (MAX_BODY + 1))), frame(1, None, zstandard.compress(b"\x00" * 9)),
    ],
)  # fmt: skip
def test_a_frame_that_lies_is_400_and_never_an_incident(peer, body):
    peer.signed("POST", "/v1/match", body).problem(400)
    assert peer.signed("POST", "/v1/match", query()).status == 200


def test_a_stale_encoder_is_409(peer):
    peer.signed("POST", "/v1/match", query(encoder="old")).problem(409)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_is_read_no_further_than_its_limit(peer, chunked):
    head = "Transfer-Encoding: chunked" if chunked else "Content-Length: 99999999999"
    sent = b"%x\r\n" % 200_000 + b"x" * 200_000 + b"\r\n" if chunked else b""
    with socket.create_connection(("127.0.0.1", peer.port), timeout=10) as wire:
        wire.sendall(f"POST /v1/match HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode() + sent)
        assert wire.recv(4096).split()[1] == b"413"


def test_bad_contributions_leave_the_pool_as_it_was(peer):
    before = len(peer.services.pool)
    outside = some_samples([5, 101])
    behind = SampleBatch(
        SCHEMA,
        {
            "item": np.array([5], np.int32),
            "history": Ragged(np.array([-4], np.int32), np.zeros(1, np.int32), np.ones(1, np.int32)),
        },
        np.ones(1, np.float32),
    )
    for body in (
        encode_contribution(outside),
        encode_contribution(behind),
        encode_contribution(some_samples([])),
        query(),
        b"",
    ):
        peer.signed("POST", "/v1/contributions", body).problem(400)
    assert len(peer.services.pool) == before


def test_a_contribution_that_unpacks_to_too_many_samples_is_413(serve):
    peer = serve(limits=ServerLimits(max_contribution_samples=10))
    peer.enrol()
    peer.signed("POST", "/v1/contributions", encode_contribution(some_samples([5] * 11))).problem(413)
    assert peer.signed("POST", "/v1/contributions", encode_contribution(some_samples([5] * 10))).status == 204


def test_contributions_are_stamped_with_the_servers_time_and_the_devices_token(peer):
    reply = peer.signed("POST", "/v1/contributions", encode_contribution(some_samples([50, 51])))
    assert (reply.status, reply.body) == (204, b"")
    last = peer.services.pool.segments[-1]
    assert (last.timestamps == int(START)).all()
    assert (last.contributors == peer.services.contributor(f"device:{peer.device}")).all()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b'{"round": "\xff"}', b'{"round": "\\ud800"}', b'{"x":' + b"[" * 100_000, report(round=""),
     report(round="x" * 65), report(round="a\x00"), report(bundle=2**63), report(bundle=2**70), report(bundle=-1)],
)  # fmt: skip
def test_a_report_that_lies_is_400(peer, body):
    peer.signed("POST", "/v1/reports", body).problem(400)
    assert peer.services.catalog.reports() == []


def test_the_database_is_down(peer, monkeypatch):
    def refuse(*_: object) -> None:
        raise StoreError("disk of /secret is full")

    monkeypatch.setattr(peer.services.catalog, "use_nonce", refuse)
    reply = peer.signed("GET", "/v1/bundle")
    assert "secret" not in str(reply.problem(503)) and int(reply.headers["Retry-After"]) > 0


def test_matches_beyond_the_limit_are_turned_away_and_the_server_stays_responsive(serve):
    entered, leave = threading.Event(), threading.Event()
    peer = serve(limits=ServerLimits(concurrent_matches=1, waiting_matches=0))
    peer.enrol()
    search = peer.services.store.search

    def slow(*given: object) -> object:
        entered.set()
        assert leave.wait(20)
        return search(*given)

    peer.services.store.search = slow
    first: list[int] = []
    waiting = threading.Thread(target=lambda: first.append(peer.signed("POST", "/v1/match", query()).status))
    waiting.start()
    try:
        assert entered.wait(10)
        reply = peer.signed("POST", "/v1/match", query())
        reply.problem(503)
        assert int(reply.headers["Retry-After"]) > 0
        assert peer.send("GET", "/healthz").status == 200
    finally:
        leave.set()
        waiting.join(20)
    assert first == [200]
    assert peer.signed("POST", "/v1/match", query()).status == 200


def lines(caplog: pytest.LogCaptureFixture) -> list[dict]:
    return [json.loads(JsonLines().format(r)) for r in caplog.records if r.name == "coda.http"]


def test_a_client_that_hangs_up_is_no_incident(peer, caplog):
    caplog.set_level(logging.INFO)
    with socket.create_connection(("127.0.0.1", peer.port)) as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.sendall(b"POST /v1/match HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\nCoDA")
        time.sleep(0.1)
    deadline = time.monotonic() + 5
    while not lines(caplog) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert [line["event"] for line in lines(caplog) if line.get("path") == "/v1/match"] == ["request"]
    assert peer.send("GET", "/healthz").status == 200


def test_a_crash_is_logged_as_500_and_secrets_never_are(peer, caplog, monkeypatch):
    caplog.set_level(logging.INFO)

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(peer.services.catalog, "report", broken)
    reply = peer.signed("POST", "/v1/reports", report())
    number = reply.problem(500)["detail"].split()[1].rstrip(";")
    peer.send("GET", "/v1/bundle", Authorization="Bearer sekret-token")
    ours = lines(caplog)
    requests = {line["path"]: line for line in ours if line["event"] == "request"}
    crashed = requests["/v1/reports"]
    assert (crashed["status"], crashed["device"], crashed["bytes_in"]) == (500, peer.device[:8], len(report()))
    assert [line["incident"] for line in ours if line["event"] == "incident"] == [number]
    assert "a bug" in next(line["traceback"] for line in ours if "traceback" in line)
    text = io.StringIO()
    print(ours, file=text)
    for secret in ("sekret", "r sek", peer.device, peer.signer.public):
        assert secret not in text.getvalue()


def test_other_addresses_are_problems(peer):
    peer.send("GET", "/v1/nothing").problem(404)
    peer.send("POST", "/v1/match/").problem(404)
    reply = peer.send("DELETE", "/v1/match")
    reply.problem(405)
    assert reply.headers["Allow"] == "POST"
    peer.signed("GET", "/v1/bundle", b"a body").problem(413)


def test_the_api_page_names_exactly_the_bodies_that_are_sent(peer):
    document = json.loads(peer.send("GET", "/openapi.json").body)
    match = document["paths"]["/v1/match"]["post"]
    assert set(match["responses"]["200"]["content"]) == {FRAME} == set(match["requestBody"]["content"])
    assert {"400", "401", "403", "409", "413", "503"} <= set(match["responses"])
    assert "422" not in document["paths"]["/v1/blobs/{sha256}"]["get"]["responses"]
    operations = [call["operationId"] for path in document["paths"].values() for call in path.values()]
    assert len(operations) == len(set(operations))
