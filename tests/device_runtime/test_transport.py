"""The transport against real sockets: a server that misbehaves, and a proxy that counts independently of us."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from device_runtime.connection import Address
from device_runtime.counting import Traffic
from device_runtime.errors import InputError, Refused, TrustError, Unreachable, WireError
from device_runtime.identity import Signer, device_id, parse_authorization, request_text, verify
from device_runtime.messages import Problem, to_json
from device_runtime.transport import Transport, TransportLimits
from tests.device_runtime.peers import CountingProxy, Naps, Reply, Request, Server, in_turn, ok, reply, to

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
