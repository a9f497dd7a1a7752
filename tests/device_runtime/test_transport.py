"""The transport against real sockets: a server that misbehaves, and a proxy that counts independently of us."""

from __future__ import annotations

import hashlib
import random
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from device_runtime.bundle import BlobStore, FileRef
from device_runtime.connection import Address
from device_runtime.counting import ByteCounter, Traffic
from device_runtime.errors import InputError, Refused, StoreError, TrustError, Unreachable, WireError
from device_runtime.identity import Signer, device_id, parse_authorization, request_text, verify
from device_runtime.messages import Problem, to_json
from device_runtime.transport import Transport, TransportLimits
from tests.device_runtime.peers import CountingProxy, Reply, Request, Server, reply

BLOB = random.Random(0).randbytes(200_000)
LIMITS = TransportLimits(connect_timeout_s=2, read_timeout_s=2, max_answer_bytes=1 << 20, attempts=3)


class Naps:
    """A sleep that only remembers."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)


def to(url: str, naps: Naps | None = None, limits: TransportLimits = LIMITS, **given: object) -> Transport:
    return Transport(url, ByteCounter(), limits=limits, sleep=naps or Naps(), uniform=lambda: 0.5, **given)  # type: ignore[arg-type]


def ok(request: Request) -> Reply:
    return reply(200, b'{"fine":true}')


def in_turn(*replies: Reply | Callable[[Request], Reply]) -> Callable[[Request], Reply]:
    """Each request gets the next of these; the last one serves for ever."""
    left = list(replies)

    def answer(request: Request) -> Reply:
        now = left.pop(0) if len(left) > 1 else left[0]
        return now if isinstance(now, Reply) else now(request)

    return answer


def ref_of(blob: bytes) -> FileRef:
    return FileRef(hashlib.sha256(blob).hexdigest(), len(blob), len(blob), "none")


def blobs(request: Request) -> Reply:
    """Serves BLOB as the cloud does: ETag, Range and If-Range."""
    etag = f'"{request.path.rpartition("/")[2]}"'
    wanted = request.headers.get("range", "")
    if wanted and request.headers.get("if-range") == etag:
        at = int(wanted.removeprefix("bytes=").removesuffix("-"))
        span = f"bytes {at}-{len(BLOB) - 1}/{len(BLOB)}"
        return reply(206, BLOB[at:], "application/octet-stream", ETag=etag, Content_Range=span)
    return reply(200, BLOB, "application/octet-stream", ETag=etag)


def part(store: BlobStore, ref: FileRef) -> Path:
    return store.folder / f".part-{ref.sha256}"


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


# Bytes


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(2 * len(body)))
        self.end_headers()
        self.wfile.write(body + body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Connections are broken here on purpose."""


@pytest.fixture
def echo() -> Iterator[ThreadingHTTPServer]:
    """Python's own HTTP server, so that not only our test's idea of HTTP is met."""
    with _QuietServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _count_calls(transport: Transport, proxy: CountingProxy) -> None:
    """Every call's bytes, by its label, are those that the proxy relayed for it; one connection serves all."""
    with transport:
        for label, size in (("enrol", 10), ("match", 100_000), ("report", 0), ("report", 1)):
            before, up, down = transport.counter.total, proxy.relayed.up, proxy.relayed.down
            at_label = transport.counter.by_label.get(label, Traffic())
            body = b"x" * size
            answer = transport.request(
                "POST", "/v1/echo", body, label=label, headers={"X-Filler": "y" * min(size, 5000)}
            )
            assert answer.body == body + body
            relayed = Traffic(proxy.relayed.up - up, proxy.relayed.down - down)
            assert transport.counter.total - before == relayed
            assert transport.counter.by_label[label] - at_label == relayed
            assert relayed.up > size and relayed.down > 2 * size
        assert transport.counter.total == Traffic(proxy.relayed.up, proxy.relayed.down)
        assert proxy.connections == 1


def test_counts_are_what_an_independent_proxy_relays(echo: ThreadingHTTPServer) -> None:
    with CountingProxy(echo.server_port) as proxy:
        _count_calls(to(proxy.url), proxy)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    if not (openssl := shutil.which("openssl")):
        pytest.skip("the openssl program, which makes this test's certificate, is not installed")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    files = ["-keyout", str(key), "-out", str(chain), "-nodes"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    subprocess.run([openssl, "req", "-x509", *curve, *files, *subject], check=True, capture_output=True)
    return key, chain


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_over_tls_the_records_and_handshakes_themselves_are_counted(
    echo: ThreadingHTTPServer, certificate: tuple[Path, Path], version: ssl.TLSVersion
) -> None:
    key, chain = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(chain, key)
    echo.socket = context.wrap_socket(echo.socket, server_side=True)
    with CountingProxy(echo.server_port) as proxy:
        _count_calls(to(proxy.url.replace("http:", "https:"), ca_file=chain), proxy)


def test_a_certificate_of_an_unknown_authority_is_not_trusted(
    echo: ThreadingHTTPServer, certificate: tuple[Path, Path]
) -> None:
    key, chain = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    echo.socket = context.wrap_socket(echo.socket, server_side=True, do_handshake_on_connect=False)
    naps = Naps()
    with (
        to(f"https://127.0.0.1:{echo.server_port}", naps) as transport,
        pytest.raises(TrustError, match="does not verify: self-signed certificate"),
    ):
        transport.request("GET", "/", label="any")
    assert not naps.taken


def test_an_answer_cut_under_tls_is_noticed(echo: ThreadingHTTPServer, certificate: tuple[Path, Path]) -> None:
    key, chain = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    echo.socket = context.wrap_socket(echo.socket, server_side=True)
    with (
        CountingProxy(echo.server_port, (50_000,) * 3) as proxy,
        to(proxy.url.replace("http:", "https:"), ca_file=chain) as transport,
    ):
        with pytest.raises(Unreachable, match=r"cut short after [0-9]+ of 200000 bytes"):
            transport.request("POST", "/", bytes(100_000), label="any")
        assert transport.counter.total.down == proxy.relayed.down
        assert transport.request("POST", "/", bytes(100_000), label="any").body == bytes(200_000)


def test_https_to_a_server_without_tls_says_so() -> None:
    with Server(lambda _: Reply(b"what?")) as server:
        listening = socket.create_server(("127.0.0.1", 0))

        def chatter() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(b"220 this is no TLS\r\n")
                connection.recv(4096)

        thread = threading.Thread(target=chatter)
        thread.start()
        url = f"https://127.0.0.1:{listening.getsockname()[1]}"
        limits = TransportLimits(attempts=1)
        with listening, to(url, limits=limits) as transport, pytest.raises(Unreachable, match="does not speak TLS"):
            transport.request("GET", "/", label="any")
        thread.join()
        assert not server.requests


# Connections


def test_a_connection_that_the_server_closed_meanwhile_is_reopened_silently() -> None:
    naps = Naps()
    with Server(lambda r: Reply(ok(r).data, "close")) as server, to(server.url, naps) as transport:
        for _ in range(3):
            assert transport.request("GET", "/healthz", label="health").status == 200
        assert server.connections == 3 and not naps.taken


def test_a_connection_lost_under_the_request_is_reopened_once_and_signed_anew() -> None:
    signer = Signer(SigningKey(bytes(32)))
    naps = Naps()
    with (
        Server(in_turn(ok, Reply(b"", "close"), ok)) as server,
        to(server.url, naps, signer=signer, device=device_id(signer.public)) as transport,
    ):
        transport.request("GET", "/a", label="a")
        answer = transport.request("GET", "/b", label="b")
        nonces = [parse_authorization(r.headers["authorization"])[2] for r in server.requests]
    assert [r.path for r in server.requests] == ["/a", "/b", "/b"]
    assert len(set(nonces)) == 3 and answer.nonce == nonces[-1]
    assert not naps.taken


def test_requests_are_signed_as_the_server_will_check_and_a_prefix_is_not_covered() -> None:
    signer = Signer(SigningKey(bytes(32)))
    with (
        Server(ok) as server,
        to(server.url + "/coda/", signer=signer, device=device_id(signer.public), clock=lambda: 1e9) as transport,
    ):
        answer = transport.request("POST", "/v1/match", b"query", label="match", content_type="application/x-coda")
    (request,) = server.requests
    device, at, nonce, signature = parse_authorization(request.headers["authorization"])
    assert (request.path, device, at) == ("/coda/v1/match", device_id(signer.public), 10**9)
    assert nonce == answer.nonce
    assert request.headers["content-type"] == "application/x-coda"
    verify(signer.public, request_text("POST", "/v1/match", at, nonce, b"query"), signature)


def test_bytes_beyond_the_stated_length_poison_no_later_answer() -> None:
    stray = Reply(ok(Request("", "", {}, b"")).data + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")
    with Server(in_turn(stray, ok)) as server, to(server.url) as transport:
        for _ in range(3):
            assert transport.request("GET", "/", label="any").body == b'{"fine":true}'


def test_a_connection_with_an_unread_answer_on_it_is_not_used_again() -> None:
    page = Reply(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\n", "hang")
    naps = Naps()
    with Server(in_turn(page, ok)) as server, to(server.url, naps) as transport:
        with pytest.raises(Unreachable, match="web page"):
            transport.request("GET", "/", label="any")
        assert transport.request("GET", "/", label="any").status == 200
        assert server.connections == 2 and not naps.taken


# Failures that may pass


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (Reply(b"", "close"), "broke the connection off before it had answered"),
        (Reply(b"", "reset"), "broke the connection off"),
        (Reply(b"HTTP/1.1 200 OK\r\nContent-Le", "close"), "does not state its length, so it may have been cut"),
        (Reply(reply(200, b"x" * 100).data[:-40], "close"), "cut short after 60 of 100 bytes"),
        (Reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "close"), "middle of a chunk"),
        (Reply(b"SSH-2.0-OpenSSH_9.6\r\n", "close"), "does not answer in HTTP/1.1"),
    ],
)
def test_broken_answers_are_tried_again_and_then_unreachable(failure: Reply, words: str) -> None:
    naps = Naps()
    with Server(in_turn(failure, failure, ok)) as server, to(server.url, naps) as transport:
        assert transport.request("GET", "/", label="any", accept="application/json").status == 200
        assert naps.taken == [0.375, 0.75]  # doubled, a quarter taken off by this test's chance
        assert len(server.requests) == 3
    with Server(lambda _: failure) as server, to(server.url) as transport:
        with pytest.raises(Unreachable, match=words):
            transport.request("GET", "/", label="any")
        assert len(server.requests) == 3


def test_silence_is_unreachable_after_the_read_timeout() -> None:
    limits = TransportLimits(read_timeout_s=0.1, attempts=2)
    with Server(lambda _: Reply(b"HTTP/1.1 200 OK\r\n", "hang")) as server, to(server.url, limits=limits) as transport:
        with pytest.raises(Unreachable, match=r"sent nothing for 0\.1 s"):
            transport.request("GET", "/", label="any")
        assert server.connections == 2


def test_a_port_where_nothing_listens_and_a_name_that_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    naps = Naps()
    with to(f"http://127.0.0.1:{port}", naps) as transport:
        with pytest.raises(Unreachable, match=f"nothing listens on port {port} of 127.0.0.1; check that it runs"):
            transport.request("GET", "/", label="any")
        assert len(naps.taken) == 2 and transport.counter.total == Traffic()

    def unknown(*_: object) -> None:  # what a look-up of .invalid does, without a name server
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with (
        to("http://coda.invalid") as transport,
        pytest.raises(Unreachable, match=r"no address is known for 'coda\.invalid'"),
    ):
        transport.request("GET", "/", label="any")


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry_After": "7"}, 7),
        ({"Retry_After": "Sun, 09 Sep 2001 01:46:52 GMT"}, 12),
        ({"Retry_After": "Sun, 09 Sep 2001 01:46:52 GMT", "Date": "Sun, 09 Sep 2001 01:46:47 GMT"}, 5),
        ({"Retry_After": "Sun, 09 Sep 2001 01:46:10 GMT"}, 0),
        ({"Retry_After": "soon"}, 0),
        ({}, 0),
    ],
)
@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_given_the_time_it_asks_for(status: int, headers: dict[str, str], wait: float) -> None:
    naps = Naps()
    with (
        Server(in_turn(reply(status, b"", "text/plain", **headers), ok)) as server,
        to(server.url, naps, clock=lambda: 1e9) as transport,
    ):
        assert transport.request("POST", "/", b"{}", label="any").status == 200
        assert server.connections == 1
    assert naps.taken == [wait + 0.375]


def test_a_server_that_asks_for_too_much_time_has_refused() -> None:
    naps = Naps()
    busy = reply(503, to_json(Problem(title="Busy", status=503, detail="back tomorrow")), Retry_After="86400")
    with Server(lambda _: busy) as server, to(server.url, naps) as transport:
        with pytest.raises(Refused, match="status 503: Busy: back tomorrow") as refused:
            transport.request("GET", "/", label="any")
        assert refused.value.status == 503 and len(server.requests) == 1 and not naps.taken


def test_waits_stay_below_their_maximum() -> None:
    naps = Naps()
    limits = TransportLimits(attempts=6, base_backoff_s=1, max_backoff_s=4)
    with Server(lambda _: reply(502)) as server, to(server.url, naps, limits) as transport, pytest.raises(Refused):
        transport.request("GET", "/", label="any")
    assert naps.taken == [0.75, 1.5, 3, 3, 3]


# Answers that are a "no", or not from our server


def test_a_refusal_carries_the_servers_words() -> None:
    problem = to_json(Problem(title="Stale encoder", status=409, detail="pull the\nbundle" + "!" * 1000))
    with Server(lambda _: reply(409, problem, "application/problem+json")) as server, to(server.url) as transport:
        with pytest.raises(
            Refused, match="refused POST /v1/match with status 409: Stale encoder: pull the bundle!"
        ) as no:
            transport.request("POST", "/v1/match", b"q", label="match")
        assert no.value.status == 409 and len(str(no.value)) < 500
        assert len(server.requests) == 1
        assert transport.request("POST", "/v1/match", b"q", label="match", accept_status=(200, 409)).body == problem


def test_a_refusal_without_a_problem_is_described_not_quoted() -> None:
    with Server(lambda _: reply(404, b"<html>SECRET", "text/html")) as server, to(server.url) as transport:
        with pytest.raises(Refused, match="status 404: text/html instead of a reason") as refused:
            transport.request("GET", "/v1/bundle", label="bundle")
        assert "SECRET" not in str(refused.value)


def test_a_captive_portal_is_recognised(store: BlobStore) -> None:
    naps = Naps()
    page = reply(200, b"<html>Welcome to Hotel WLAN", "text/html; charset=utf-8")
    with Server(lambda _: page) as server, to(server.url, naps) as transport:
        with pytest.raises(Unreachable, match=r"a web page instead of application/json: .*captive portal"):
            transport.request("GET", "/v1/bundle", label="bundle", accept="application/json")
        with pytest.raises(Unreachable, match="captive portal"):
            transport.fetch_blob(ref_of(BLOB), store)
        assert server.requests[0].headers["accept"] == "application/json"
    redirect = reply(302, Location="http://login.hotel.example/")
    with (
        Server(lambda _: redirect) as server,
        to(server.url, naps) as transport,
        pytest.raises(Unreachable, match=r"redirects GET /v1/bundle to http://login\.hotel\.example/"),
    ):
        transport.request("GET", "/v1/bundle", label="bundle")
    assert not naps.taken and not store.has(ref_of(BLOB))


def test_another_media_type_than_asked_for_is_not_taken() -> None:
    with (
        Server(lambda _: reply(200, b"fine", "text/plain")) as server,
        to(server.url) as transport,
        pytest.raises(Unreachable, match="with text/plain instead of application/json"),
    ):
        transport.request("GET", "/", label="any", accept="application/json")


def test_an_empty_answer_needs_no_type_and_keeps_the_connection() -> None:
    answers = in_turn(
        Reply(b"HTTP/1.1 204 No Content\r\n\r\n"), Reply(b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\n\r\n')
    )
    with Server(answers) as server, to(server.url) as transport:
        transport.request("POST", "/", b"{}", label="report", accept="application/json", accept_status=(204,))
        answer = transport.request("GET", "/", label="bundle", accept_status=(200, 304))
        assert (answer.status, answer.headers["etag"], answer.body, answer.nonce) == (304, '"1"', b"", "")
        assert server.connections == 1


@pytest.mark.parametrize("stated", [True, False])
def test_an_answer_larger_than_the_limit_is_not_read(stated: bool) -> None:
    size = 8 << 20
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    head = f"Content-Length: {size}" if stated else "Transfer-Encoding: chunked"
    body = bytes(size) if stated else chunk * (size >> 16)
    answer = Reply(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + body, "close")
    with Server(lambda _: answer) as server, to(server.url) as transport:
        with pytest.raises(WireError, match="more than the 1048576 bytes that are allowed"):
            transport.request("GET", "/", label="any")
        assert transport.counter.total.down < (1 << 16 if stated else 2 << 20)
        assert len(server.requests) == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_answers_up_to_the_limit_are_taken(chunked: bool) -> None:
    body = bytes(1 << 20)
    framed = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100000\r\n" + body + b"\r\n0\r\n\r\n"
    with Server(lambda _: Reply(framed) if chunked else reply(200, body)) as server, to(server.url) as transport:
        for _ in range(2):
            assert transport.request("GET", "/", label="any").body == body
        assert server.connections == 1


@pytest.mark.parametrize(
    "address",
    ["", "coda.example", "ftp://coda.example", "http://", "http://:80", "http://host:port", "http://host:0",
     "http://host:99999", "http://user:pw@host", "http://host/?q", "http://host/#f", "http://ho st", "http://h\nost",
     "http://a..b", "http://[::1", "https://" + "a" * 64],
)  # fmt: skip
def test_addresses_that_cannot_be_used(address: str) -> None:
    with pytest.raises(InputError, match=r"is not a server's address; write it like https://"):
        to(address)


def test_addresses_that_can_be_used() -> None:
    assert Address.parse("https://coda.example/") == Address("https://coda.example", "coda.example", 443, "", True)
    assert Address.parse("http://[::1]:8000/a/b/") == Address("http://[::1]:8000/a/b", "::1", 8000, "/a/b", False)


def test_ca_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    for name in ("empty.pem", "missing.pem"):
        with pytest.raises(InputError, match=name):
            to("https://coda.example", ca_file=tmp_path / name)


# Blobs


def test_a_blob_is_fetched_once_and_then_costs_nothing(store: BlobStore) -> None:
    with Server(blobs) as server, CountingProxy(server.port) as proxy, to(proxy.url) as transport:
        assert transport.fetch_blob(ref_of(BLOB), store) == len(BLOB)
        assert store.read(ref_of(BLOB)) == BLOB
        assert transport.counter.by_label == {"blob": Traffic(proxy.relayed.up, proxy.relayed.down)}
        assert proxy.relayed.up + proxy.relayed.down < len(BLOB) + 600
        before = transport.counter.total
        assert transport.fetch_blob(ref_of(BLOB), store) == 0
        assert transport.counter.total == before and len(server.requests) == 1
    assert [path.name for path in store.folder.iterdir()] == [ref_of(BLOB).sha256]


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, len(BLOB) + 400), max_size=2), st.integers(0, len(BLOB)))
def test_a_transfer_cut_anywhere_goes_on_where_it_stopped(cuts: list[int], held: int) -> None:
    with tempfile.TemporaryDirectory() as folder, Server(blobs) as server:
        store, ref = BlobStore(Path(folder)), ref_of(BLOB)
        part(store, ref).write_bytes(BLOB[:held])  # left by an earlier run
        with CountingProxy(server.port, tuple(cuts)) as proxy, to(proxy.url) as transport:
            assert transport.fetch_blob(ref, store) == len(BLOB) - held
            assert transport.counter.total.down == proxy.relayed.down  # up, a cut may swallow what we sent
            assert proxy.relayed.down <= len(BLOB) - held + 400 * (1 + len(cuts))
        assert store.read(ref) == BLOB
        assert not part(store, ref).exists()


def test_a_transfer_that_fails_for_good_is_taken_up_by_the_next_call(store: BlobStore) -> None:
    ref = ref_of(BLOB)
    with Server(blobs) as server:
        with (
            CountingProxy(server.port, (50_000,) * 3) as proxy,
            to(proxy.url) as transport,
            pytest.raises(Unreachable, match="cut short"),
        ):
            transport.fetch_blob(ref, store)
        arrived = part(store, ref).stat().st_size
        assert 140_000 < arrived < 150_000 and not store.has(ref)
        with to(server.url) as transport:
            assert transport.fetch_blob(ref, store) == len(BLOB) - arrived
    assert store.read(ref) == BLOB


def test_a_server_that_ignores_range_sends_all_again(store: BlobStore) -> None:
    ref = ref_of(BLOB)
    store.folder.mkdir()
    part(store, ref).write_bytes(b"\0" * 1000)
    with Server(lambda _: reply(200, BLOB, "application/octet-stream")) as server, to(server.url) as transport:
        assert transport.fetch_blob(ref, store) == len(BLOB)
        assert server.requests[0].headers["range"] == "bytes=1000-" and len(server.requests) == 1
    assert store.read(ref) == BLOB


def test_a_flipped_bit_is_noticed_and_nothing_is_kept(store: BlobStore) -> None:
    bad = bytearray(BLOB)
    bad[1234] ^= 1
    with Server(lambda _: reply(200, bytes(bad))) as server, to(server.url) as transport:
        with pytest.raises(TrustError, match="damaged blob"):
            transport.fetch_blob(ref_of(BLOB), store)
        assert len(server.requests) == 1
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize("held", [700, len(BLOB)])
def test_bytes_left_damaged_by_a_power_cut_are_fetched_again(store: BlobStore, held: int) -> None:
    ref = ref_of(BLOB)
    store.folder.mkdir()
    part(store, ref).write_bytes(bytes(held))
    with Server(blobs) as server, to(server.url) as transport:
        assert transport.fetch_blob(ref, store) == 2 * len(BLOB) - held
    assert store.read(ref) == BLOB


@pytest.mark.parametrize("served", [BLOB + b"more", BLOB[:-1], b""])
def test_a_blob_of_another_size_is_not_taken(store: BlobStore, served: bytes) -> None:
    with Server(lambda _: reply(200, served)) as server, to(server.url) as transport:
        with pytest.raises(TrustError):
            transport.fetch_blob(ref_of(BLOB), store)
        assert transport.counter.total.down < len(BLOB) + 400
    assert list(store.folder.iterdir()) == []


def test_a_server_whose_blob_is_shorter_than_what_is_held_or_that_sends_another_range(store: BlobStore) -> None:
    ref = ref_of(BLOB)
    store.folder.mkdir()
    part(store, ref).write_bytes(BLOB[:1000])
    other = reply(206, BLOB[999:], Content_Range=f"bytes 999-{len(BLOB) - 1}/{len(BLOB)}")
    with Server(in_turn(other, reply(416), blobs)) as server, to(server.url) as transport:
        with pytest.raises(Unreachable, match="sent other bytes"):
            transport.fetch_blob(ref, store)
        assert part(store, ref).exists()
        with pytest.raises(TrustError, match="another file"):
            transport.fetch_blob(ref, store)
        assert not part(store, ref).exists()
        assert transport.fetch_blob(ref, store) == len(BLOB)


def test_a_blob_that_the_server_lacks_or_cannot_give_now(store: BlobStore) -> None:
    naps = Naps()
    with (
        Server(in_turn(reply(503, Retry_After="3"), reply(404))) as server,
        to(server.url, naps) as transport,
        pytest.raises(Refused, match=r"refused GET /v1/blobs/[0-9a-f]{64} with status 404"),
    ):
        transport.fetch_blob(ref_of(BLOB), store)
    assert naps.taken == [3.375]


@pytest.mark.parametrize("ref", [FileRef("../../etc/passwd", 1, 1, "none"), FileRef("0" * 64, 1 << 40, 1, "none")])
def test_a_reference_that_no_store_can_hold(store: BlobStore, ref: FileRef) -> None:
    with to("http://coda.invalid") as transport, pytest.raises(WireError):
        transport.fetch_blob(ref, store)
    assert not store.folder.exists()


def test_an_empty_blob(store: BlobStore) -> None:
    with Server(lambda _: reply(200, b"")) as server, to(server.url) as transport:
        assert transport.fetch_blob(ref_of(b""), store) == 0
    assert store.read(ref_of(b"")) == b""


def test_a_blob_that_does_not_fit_is_not_asked_for(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 30, 1 << 30, 1000))
    with Server(blobs) as server, to(server.url) as transport:
        with pytest.raises(StoreError, match="1000 bytes free; 200000 are needed"):
            transport.fetch_blob(ref_of(BLOB), store)
        assert not server.requests


def test_a_disk_that_fills_up_on_the_way_gets_its_bytes_back(store: BlobStore) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full, which plays the full disk, does not exist here")
    store.folder.mkdir()
    part(store, ref_of(BLOB)).symlink_to("/dev/full")
    with Server(blobs) as server, to(server.url) as transport, pytest.raises(StoreError, match="No space left"):
        transport.fetch_blob(ref_of(BLOB), store)
    assert list(store.folder.iterdir()) == []


def test_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        Server(blobs) as server,
        to(server.url) as transport,
        pytest.raises(StoreError, match=r"cannot keep blob .* Not a directory"),
    ):
        transport.fetch_blob(ref_of(BLOB), BlobStore(tmp_path / "file" / "blobs"))
