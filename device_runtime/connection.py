"""One kept HTTP/1.1 connection to one server, and what can go wrong on it in our words.

Whether to try again is decided in `transport`; here a failure that may pass is only marked so (`MayPassError`).
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from device_runtime.counting import ByteCounter, CountingSocket, Traffic, connect
from device_runtime.errors import InputError, TransportError, TrustError, Unreachable, WireError
from device_runtime.proxies import Proxy, ProxyError

_CHUNK = 64 << 10
_QUOTED = 300
"""Characters of a peer's own words that an error repeats, at most."""


class MayPassError(Exception):
    """Trying again may help. error: what to raise otherwise. wait_s: what the server asked for, if it did."""

    def __init__(self, error: TransportError, wait_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_s = wait_s


@dataclass(frozen=True)
class Address:
    """Where a server is. prefix: a path that goes before that of every call. url: as given, for messages."""

    url: str
    host: str
    port: int
    prefix: str
    tls: bool

    @staticmethod
    def parse(url: str) -> Address:
        """Raises: InputError: not an http or https address, or one with more in it than host, port and path."""
        url = url.rstrip("/")
        try:
            parts = urlsplit(url)
            port, host = parts.port, parts.hostname or ""
            host.encode("idna")  # as name look-up will
        except ValueError:  # UnicodeError included
            parts, port, host = urlsplit(""), None, ""
        plain = re.fullmatch(r"[!-~]*", url) and not parts.query and not parts.fragment and parts.username is None
        if parts.scheme not in ("http", "https") or not host or port == 0 or not plain:
            raise InputError(f"{clip(url)!r} is not a server's address; write it like https://coda.example:8443")
        tls = parts.scheme == "https"
        return Address(url, host, port or (443 if tls else 80), parts.path, tls)


class Connection:
    """Opens when first needed and again whenever the old one cannot be used; all bytes go to the counter."""

    def __init__(
        self,
        address: Address,
        counter: ByteCounter,
        *,
        connect_timeout_s: float,
        read_timeout_s: float,
        answer_timeout_s: float,
        ca_file: Path | None,
        proxy: Proxy | None = None,
        pulse: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """answer_timeout_s: for a whole answer, from its first byte. pulse: called while an answer arrives. clock: in
        seconds, from anywhere.

        Raises:
            InputError: the CA file cannot be used.
        """
        self._address = address
        self._proxy, self._pulse = proxy, pulse
        self._answer_timeout_s, self._clock = answer_timeout_s, clock
        self._counter = counter
        self._connect_timeout_s, self._read_timeout_s = connect_timeout_s, read_timeout_s
        self._tls = _tls(ca_file) if address.tls else None
        self._http = http.client.HTTPConnection(address.host, address.port)
        self._http.default_port = 443 if address.tls else 80
        self._socket: CountingSocket | None = None

    def close(self) -> None:
        self._http.close()
        self._socket = None

    @contextmanager
    def exchange(
        self, method: str, path: str, body: bytes, headers: Callable[[], Mapping[str, str]], label: str
    ) -> Iterator[tuple[http.client.HTTPResponse, Mapping[str, str]]]:
        """Send a request; gives its answer, the body to be read with `chunks`, and the headers that it was sent with.

        headers: called for each sending, so that each can be signed anew. On leaving, the connection is kept only if
        the body was read to its end.

        Raises:
            MayPassError: no connection, or no answer on it.
            TrustError: the server's certificate does not verify.
        """
        response, sent = self._send(method, path, body, headers, label)
        try:
            yield response, sent
        finally:
            whole = response.length == 0 or response.isclosed()
            response.close()
            if not whole:
                self.close()

    def chunks(self, response: http.client.HTTPResponse, limit: int) -> Iterator[bytes]:
        """An answer's body as it arrives.

        Raises:
            MayPassError: it ends before it should, or does not say where it should end.
            WireError: it has, or says it has, more than `limit` bytes; they are not read.
        """
        stated, received = response.length, 0
        if stated is None and not response.chunked:  # also what http.client makes of headers that were cut
            vague = f"the answer of {self._address.url} does not state its length, so it may have been cut short"
            raise MayPassError(Unreachable(f"{vague}; try again"))
        until = self._clock() + self._answer_timeout_s
        while stated is None or stated <= limit:
            if self._pulse is not None:
                self._pulse()
            with self._mapped():
                chunk = response.read1(_CHUNK)
            self._counter.add_body(Traffic(down=len(chunk)))
            received += len(chunk)
            if self._clock() > until:
                late = f"sent only {received} bytes of its answer in {self._answer_timeout_s:g} s"
                raise MayPassError(Unreachable(f"{self._address.url} {late}; try again on a better connection"))
            if received > limit:
                break
            if chunk:
                yield chunk
            elif stated is not None and received < stated:
                cut = f"the answer of {self._address.url} was cut short after {received} of {stated} bytes; try again"
                raise MayPassError(Unreachable(cut))
            else:
                return
        raise WireError(
            f"{self._address.url} answers with more than the {limit} bytes that are allowed here; "
            "the rest was not read: check that this is the right server"
        )

    def _send(
        self, method: str, path: str, body: bytes, headers: Callable[[], Mapping[str, str]], label: str
    ) -> tuple[http.client.HTTPResponse, Mapping[str, str]]:
        # http.client lets go of its socket after an answer that ends with the connection.
        kept = self._socket if self._socket is not None and self._http.sock is self._socket else None
        if kept is None or not kept.is_quiet():
            self.close()
            kept = None
        with self._mapped():
            if kept is not None:
                try:
                    return self._send_on(kept, method, path, body, headers(), label)
                except ConnectionError:  # the server closed the idle connection while the request was on its way
                    self.close()
            return self._send_on(self._open(label), method, path, body, headers(), label)

    def _send_on(
        self, opened: CountingSocket, method: str, path: str, body: bytes, headers: Mapping[str, str], label: str
    ) -> tuple[http.client.HTTPResponse, Mapping[str, str]]:
        opened.label = label
        target, also = self._address.prefix + path, {}
        if self._proxy is not None and not self._address.tls:
            target, also = self._address.url.removesuffix("/") + path, self._proxy.headers
        self._http.request(method, target, body or None, {**headers, **also})
        self._counter.add_body(Traffic(up=len(body)))
        return self._http.getresponse(), headers

    def _open(self, label: str) -> CountingSocket:
        try:
            opened = connect(
                self._address.host,
                self._address.port,
                self._counter,
                label,
                connect_timeout_s=self._connect_timeout_s,
                read_timeout_s=self._read_timeout_s,
                tls=self._tls,
                proxy=self._proxy,
            )
        except TimeoutError:
            problem = f"cannot be reached within {self._connect_timeout_s:g} s; check the address and the network"
            raise MayPassError(Unreachable(f"{self._address.url} {problem}")) from None
        self._socket = self._http.sock = opened
        return opened

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        """Errors of the socket and of http.client, as ours; the connection is then closed."""
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if isinstance(error, ssl.SSLCertVerificationError):
                raise TrustError(
                    f"the certificate of {self._address.url} does not verify: {error.verify_message}; check this "
                    "machine's date and the address, or name the CA file of a private authority"
                ) from None
            raise MayPassError(Unreachable(f"{self._address.url} {self._reason(error)}")) from None

    def _reason(self, error: OSError | http.client.HTTPException) -> str:
        peer = self._proxy or self._address
        match error:
            case ProxyError():
                return f"cannot be reached: {error}"
            case socket.gaierror():
                return f"cannot be reached: no address is known for {peer.host!r}; check name and network"
            case ConnectionRefusedError():
                return f"cannot be reached: nothing listens on port {peer.port} of {peer.host}; check that it runs"
            case TimeoutError():
                return f"sent nothing for {self._read_timeout_s:g} s; try again on a better connection"
            case http.client.IncompleteRead():
                return "cut its answer short in the middle of a chunk; try again"
            case ConnectionError():
                return "broke the connection off before it had answered; try again"
            case ssl.SSLError():
                return f"does not speak TLS as it should ({error.reason}); check that this is an https address"
            case OSError():
                return f"cannot be reached: {error.strerror or error}; check the network"
        return f"does not answer in HTTP/1.1 ({type(error).__name__}); check the address"


def clip(text: str) -> str:
    """A peer's words, fit to stand in an error: printable and not too long."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain if len(plain) <= _QUOTED else plain[: _QUOTED - 1] + "…"


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else os.fspath(ca_file))
    except OSError as error:  # ssl.SSLError included
        raise InputError(f"cannot use {ca_file} as trusted certificates: {error.strerror}; give a PEM file") from None
