"""Calls through proxies: one that spoils answers in every way that networks know, and ordinary ones."""

from __future__ import annotations

import base64
import hashlib
import random
import ssl
import subprocess
import time
from email.utils import formatdate

import pytest
from nacl.signing import SigningKey

from device_runtime.bundle import BlobStore, FileRef
from device_runtime.counting import ByteCounter, Traffic
from device_runtime.errors import CodaError, InputError, Refused, TrustError, Unreachable, Yielded
from device_runtime.identity import Signer, device_id, parse_authorization
from device_runtime.proxies import Proxy, from_environment
from device_runtime.transport import Transport, TransportLimits
from tests.device_runtime.peers import ForwardProxy, MisbehavingProxy, Reply, Server, reply

BLOB = random.Random(1).randbytes(40_000)
REF = FileRef(hashlib.sha256(BLOB).hexdigest(), len(BLOB), len(BLOB), "none")
LIMITS = TransportLimits(connect_timeout_s=2, read_timeout_s=2, attempts=3)
PORTAL = reply(200, b"<html>Welcome to our hotel</html>", "text/html")


def served(request):
    etag = f'"{REF.sha256}"'
    if request.headers.get("if-range") == etag:
        at = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
        span = f"bytes {at}-{len(BLOB) - 1}/{len(BLOB)}"
        return reply(206, BLOB[at:], "application/octet-stream", ETag=etag, Content_Range=span)
    if request.path.startswith("/v1/blobs/"):
        return reply(200, BLOB, "application/octet-stream", ETag=etag)
    return reply(200, b'{"echo":"%s"}' % request.body)


def to(url, counter=None, **given):
    given = {"limits": LIMITS, "sleep": lambda _: None, "proxy": "", **given}
    return Transport(url, counter or ByteCounter(), **given)


@pytest.fixture(scope="module")
def server():
    with Server(served) as running:
        yield running


def cut(at, then="close"):
    return lambda data: Reply(data[:at], then)


def stating(length):
    """A Content-Length that is not the body's."""

    def spoil(data):
        head, _, body = data.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
        return Reply(b"\r\n".join([*lines, b"Content-Length: %d" % length(len(body))]) + b"\r\n\r\n" + body, "close")

    return spoil


@pytest.mark.parametrize("then", ["close", "reset"])
def test_an_answer_cut_at_any_kilobyte_is_made_whole_and_no_byte_is_kept_twice(server, tmp_path, then):
    for at in range(0, len(BLOB) + 200, 1024):
        store = BlobStore(tmp_path / str(at))
        with MisbehavingProxy(server.port, cut(at, then)) as proxy, to(proxy.url) as transport:
            received = transport.fetch_blob(REF, store)
            assert store.read(REF) == BLOB
            assert received == len(BLOB), f"cut at {at}"
            call = transport.request("POST", "/v1/x", b"%d" % at, label="x")
            assert call.body == b'{"echo":"%d"}' % at


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (cut(0), Unreachable),
        (cut(30), Unreachable),
        (cut(90, "reset"), Unreachable),
        (stating(lambda n: n + 5), Unreachable),
        (lambda data: PORTAL, Unreachable),
        (lambda data: reply(302, Location="http://portal.example/login"), Unreachable),
        (lambda data: reply(511, b"sign in"), Refused),
        (lambda data: Reply(b"SSH-2.0-OpenSSH\r\n", "close"), Unreachable),
    ],
)
def test_what_is_spoilt_for_good_is_an_error_that_says_so_and_once_well_again_it_works(server, spoil, error):
    with MisbehavingProxy(server.port, *[spoil] * LIMITS.attempts) as proxy, to(proxy.url) as transport:
        with pytest.raises(error) as raised:
            transport.request("POST", "/v1/x", b"1", label="x")
        assert proxy.url in str(raised.value)
        proxy.faults.clear()
        assert transport.request("POST", "/v1/x", b"2", label="x").body == b'{"echo":"2"}'


def test_a_length_that_is_too_small_leaves_no_damaged_blob(server, tmp_path):
    store = BlobStore(tmp_path)
    with MisbehavingProxy(server.port, stating(lambda n: n - 5)) as proxy, to(proxy.url) as transport:
        with pytest.raises(TrustError, match="damaged"):
            transport.fetch_blob(REF, store)
        assert not store.has(REF)
        transport.fetch_blob(REF, store)
        assert store.read(REF) == BLOB


def test_an_answer_that_comes_twice_is_not_taken_for_the_next_one(server):
    with MisbehavingProxy(server.port, *[lambda data: Reply(data + data)] * 5) as proxy, to(proxy.url) as transport:
        for n in range(6):
            assert transport.request("POST", "/v1/x", b"%d" % n, label="x").body == b'{"echo":"%d"}' % n


def test_an_answer_that_drips_in_ends_some_time_and_what_came_is_kept(tmp_path):
    """Each piece comes well within the read timeout; only the clock for the whole answer can end it."""

    class Dripping(Server):
        def serve(self, connection):
            try:
                with connection.makefile("rb") as stream:
                    while stream.readline().strip():
                        pass
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(BLOB)}\r\nContent-Type: a/b\r\n\r\n".encode()
                connection.sendall(head)
                for at in range(0, len(BLOB), 100):
                    connection.sendall(BLOB[at : at + 100])
                    time.sleep(0.01)
            except OSError:
                pass
            connection.close()

    store = BlobStore(tmp_path)
    limits = TransportLimits(answer_timeout_s=0.2, attempts=1)
    late = pytest.raises(Unreachable, match=r"only [0-9]+ bytes of its answer in 0.2 s")
    with Dripping(served) as server, to(server.url, limits=limits) as transport, late:
        transport.fetch_blob(REF, store)
    assert 0 < (tmp_path / f".part-{REF.sha256}").stat().st_size < len(BLOB)


@pytest.mark.parametrize("years", [-56, 12])
def test_a_clock_that_is_years_off_is_corrected_by_the_servers(years, tmp_path):
    now, key = 1_800_000_000, SigningKey(bytes(32))
    signer = Signer(key)

    def strict(request):
        at = parse_authorization(request.headers["authorization"])[1]
        date = {"Date": formatdate(now, usegmt=True)}
        return reply(200, b"{}", **date) if abs(at - now) <= 300 else reply(401, b"", **date)

    with Server(strict) as server:
        clock = lambda: now + years * 31_557_600.0  # noqa: E731
        with to(server.url, signer=signer, device=device_id(signer.public), clock=clock) as transport:
            for _ in range(2):
                assert transport.request("GET", "/v1/bundle", label="bundle").status == 200
        assert len(server.requests) == 3, "once it has learnt the time, it keeps it"


def test_a_refusal_whose_clock_agrees_is_final(server):
    with Server(lambda _: reply(401, b"", Date=formatdate(1000, usegmt=True))) as strict:
        with to(strict.url, clock=lambda: 1010.0) as transport, pytest.raises(Refused):
            transport.request("GET", "/v1/bundle", label="bundle")
        assert len(strict.requests) == 1


# -- budget and pulse -----------------------------------------------------------------------------------------------


def test_a_byte_budget_ends_a_transfer_which_the_next_day_goes_on(server, tmp_path):
    store, passed, days = BlobStore(tmp_path), 0, 0
    while not store.has(REF):
        counter = ByteCounter(limit=15_000)
        with to(server.url, counter) as transport:
            try:
                transport.fetch_blob(REF, store)
            except Yielded as reason:
                assert "byte budget is used up" in str(reason)
            with pytest.raises(Yielded) if counter.total.down >= 15_000 else pytest.MonkeyPatch.context():
                transport.request("POST", "/v1/x", b"1", label="x")
        passed, days = passed + counter.total.down, days + 1
        assert counter.total.down < 15_000 + 70_000, "at most one arrival beyond it"
    assert store.read(REF) == BLOB
    assert passed < len(BLOB) + 400 * days + 20, "nothing came twice but headers"


def test_while_an_answer_arrives_the_pulse_is_felt(server, tmp_path):
    def stop():
        raise Yielded("the app is in front")

    with to(server.url, pulse=stop) as transport, pytest.raises(Yielded, match="in front"):
        transport.fetch_blob(REF, BlobStore(tmp_path))
    with to(server.url) as transport:
        transport.fetch_blob(REF, BlobStore(tmp_path))


# -- ordinary proxies -----------------------------------------------------------------------------------------------


def test_requests_go_through_a_proxy_with_credentials_if_it_wants_some(server, tmp_path):
    basic = "Basic " + base64.b64encode(b"me:pass word").decode()
    with ForwardProxy(basic) as proxy:
        url = f"http://me:pass%20word@127.0.0.1:{proxy.port}"
        with to(server.url, proxy=url) as transport:
            assert transport.request("POST", "/v1/x", b"7", label="x").body == b'{"echo":"7"}'
            transport.fetch_blob(REF, BlobStore(tmp_path))
        assert proxy.asked[0] == f"POST {server.url}/v1/x"
        with to(server.url, proxy=proxy.url) as transport, pytest.raises(Refused, match="407"):
            transport.request("POST", "/v1/x", b"7", label="x")


def test_https_goes_through_a_tunnel_and_every_byte_is_split(tmp_path):
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    also = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(chain)]
    subprocess.run(["openssl", *words.split(), *also], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)

    class Secure(Server):
        def serve(self, connection):
            super().serve(context.wrap_socket(connection, server_side=True))

    with Secure(served) as server, ForwardProxy() as proxy:
        url = server.url.replace("http:", "https:")
        with to(url, proxy=proxy.url, ca_file=chain) as transport:
            transport.fetch_blob(REF, BlobStore(tmp_path / "blobs"))
            transport.request("POST", "/v1/x", b"12345", label="x")
        assert proxy.asked == [f"CONNECT 127.0.0.1:{server.port}"]
        split, total = transport.counter.split(), transport.counter.total
        assert split.bodies == Traffic(up=5, down=len(BLOB) + len(b'{"echo":"12345"}'))
        assert split.headers + split.bodies + split.tls == total
        assert min(split.tls.up, split.tls.down, split.headers.up, split.headers.down) > 100
        refused = pytest.raises(Unreachable, match=r"refuses a tunnel .* 407; give user and password")
        with ForwardProxy("Basic nobody") as strict, to(url, proxy=strict.url, ca_file=chain) as transport, refused:
            transport.request("POST", "/v1/x", label="x")


def test_without_tls_nothing_is_tls(server):
    with to(server.url) as transport:
        transport.request("POST", "/v1/x", b"12345", label="x")
    split = transport.counter.split()
    assert split.tls == Traffic() and split.bodies == Traffic(5, 16)
    assert split.headers + split.bodies == transport.counter.total


@pytest.mark.parametrize(
    ("environment", "tls", "expected"),
    [
        ({}, False, None),
        ({"http_proxy": "http://p:3128"}, False, Proxy("p", 3128)),
        ({"http_proxy": "p"}, True, None),
        ({"HTTPS_PROXY": "p:1"}, True, Proxy("p", 1)),
        ({"https_proxy": "http://p", "no_proxy": "other, .example"}, True, None),
        ({"https_proxy": "http://p", "NO_PROXY": "*"}, True, None),
        ({"https_proxy": "http://p", "no_proxy": "coda.example:8443"}, True, None),
        ({"https_proxy": "http://p", "no_proxy": "a.example"}, True, Proxy("p", 80)),
        ({"HTTP_PROXY": "http://p", "REQUEST_METHOD": "GET"}, False, None),
    ],
)
def test_which_proxy_the_environment_names(environment, tls, expected):
    assert from_environment("coda.example", 8443, tls, environment) == expected


@pytest.mark.parametrize("url", ["ftp://p", "http://", "http://p:port", "https://me:secret@p"])
def test_proxies_that_cannot_be_used_are_named_without_their_password(url):
    with pytest.raises(InputError, match="not a proxy's address") as raised:
        Proxy.parse(url)
    assert "secret" not in str(raised.value)
    assert isinstance(raised.value, CodaError)
