"""Bytes counted where they leave and enter: at the socket.

What is counted is what the program hands to and takes from TCP: request lines, headers, bodies, and over https the
TLS records and handshakes themselves, exactly. TCP and IP headers, acknowledgements, retransmissions and name
look-ups are the kernel's and are not in it, nor are bytes that arrived but were never read.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from device_runtime.errors import Yielded
from device_runtime.proxies import Proxy, open_tunnel

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_T = TypeVar("_T")
_RECORDS = 32 << 10
"""Bytes of ciphertext taken from the kernel at once: two of TLS's largest records."""


@dataclass(frozen=True)
class Traffic:
    """Bytes sent (up) and received (down)."""

    up: int = 0
    down: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.up + other.up, self.down + other.down)

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(self.up - other.up, self.down - other.down)


@dataclass(frozen=True)
class Split:
    """All bytes, by what they are. headers: request and status lines, framing of chunks and CONNECT included. tls:
    handshakes, and what records add to what they carry."""

    headers: Traffic
    bodies: Traffic
    tls: Traffic


class ByteCounter:
    """Sums of all bytes that passed the sockets given to it. Not for use from several threads at once.

    Attributes:
        by_label: the same bytes by message, such as "match" or "blob". What opens a connection (a TLS handshake)
            counts for the message that needed it.
        limit: bytes, up and down together, after which nothing more is sent or received; None: no limit.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.by_label: dict[str, Traffic] = {}
        self.limit = limit
        self._plain, self._bodies = Traffic(), Traffic()

    @property
    def total(self) -> Traffic:
        return sum(self.by_label.values(), Traffic())

    def split(self) -> Split:
        """What the total consists of; the three add up to it."""
        return Split(self._plain - self._bodies, self._bodies, self.total - self._plain)

    def add(self, label: str, traffic: Traffic) -> None:
        self.by_label[label] = self.by_label.get(label, Traffic()) + traffic

    def add_plain(self, traffic: Traffic) -> None:
        """Of the bytes counted, those that are HTTP: without TLS."""
        self._plain += traffic

    def add_body(self, traffic: Traffic) -> None:
        """Of the bytes of HTTP, those that are bodies."""
        self._bodies += traffic

    def check(self) -> None:
        """Raises: Yielded: the limit is reached."""
        total = self.total
        if self.limit is not None and total.up + total.down >= self.limit:
            raise Yielded(
                f"the byte budget is used up ({total.up} bytes sent, {total.down} received); what has arrived is kept, "
                "and the next round goes on from there"
            )


class CountingSocket(socket.socket):
    """A connected TCP socket that counts what http.client does with it: `sendall`, and `recv_into` by `makefile`.

    Attributes:
        label: the message that the next bytes belong to.
    """

    def __init__(self, connected: socket.socket, counter: ByteCounter, label: str) -> None:
        """Takes the connection over; the socket given is left detached."""
        timeout = connected.gettimeout()
        super().__init__(fileno=connected.detach())
        self.settimeout(timeout)
        self.counter = counter
        self.label = label

    def sendall(self, data: ReadableBuffer, flags: int = 0) -> None:
        self._send_counted(data)
        self.counter.add_plain(Traffic(up=memoryview(data).nbytes))

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        received = self._receive_counted(buffer, nbytes)
        self.counter.add_plain(Traffic(down=received))
        return received

    def _send_counted(self, data: ReadableBuffer) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            sent = self.send(rest)
            self.counter.add(self.label, Traffic(up=sent))
            rest = rest[sent:]

    def _receive_counted(self, buffer: WriteableBuffer, nbytes: int = 0) -> int:
        self.counter.check()
        received = super().recv_into(buffer, nbytes)
        self.counter.add(self.label, Traffic(down=received))
        return received

    def is_quiet(self) -> bool:
        """False where the peer has closed, or has sent bytes that nobody asked for: do not send requests on it."""
        timeout = self.gettimeout()
        self.setblocking(False)
        try:
            self.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            self.settimeout(timeout)
        return False


class TlsSocket(CountingSocket):
    """TLS over a counting socket. OpenSSL works in memory, so the records themselves are seen and counted."""

    def __init__(
        self, connected: socket.socket, counter: ByteCounter, label: str, context: ssl.SSLContext, host: str
    ) -> None:
        """Shakes hands. Raises: OSError (ssl.SSLError included); the connection is then closed."""
        super().__init__(connected, counter, label)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        try:
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
            self._drive(self._tls.do_handshake)
        except BaseException:
            self.close()
            raise

    def sendall(self, data: ReadableBuffer, flags: int = 0) -> None:
        rest = memoryview(data).cast("B")
        self.counter.add_plain(Traffic(up=len(rest)))
        while rest:
            rest = rest[self._drive(partial(self._tls.write, rest)) :]

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        view = memoryview(buffer).cast("B")
        try:
            plain = self._drive(partial(self._tls.read, len(view)))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):  # the peer closed, politely or not
            return 0
        view[: len(plain)] = plain
        self.counter.add_plain(Traffic(down=len(plain)))
        return len(plain)

    def _drive(self, step: Callable[[], _T]) -> _T:
        """Carry records between OpenSSL and the socket until the step is done."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                pass
            finally:  # also what a failing step leaves: the alert that tells the peer why
                self._send_counted(self._outgoing.read())
            records = bytearray(_RECORDS)
            received = self._receive_counted(records)
            if received:
                self._incoming.write(memoryview(records)[:received])
            else:
                self._incoming.write_eof()


def connect(
    host: str,
    port: int,
    counter: ByteCounter,
    label: str,
    *,
    connect_timeout_s: float,
    read_timeout_s: float,
    tls: ssl.SSLContext | None,
    proxy: Proxy | None = None,
) -> CountingSocket:
    """A new connection. read_timeout_s: between two arrivals of bytes, also during the TLS handshake. proxy: to connect
    to instead, and with TLS through.

    Raises:
        OSError: as the socket and ssl modules raise them.
    """
    at = (host, port) if proxy is None else (proxy.host, proxy.port)
    connected = socket.create_connection(at, connect_timeout_s)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.settimeout(read_timeout_s)
    if tls is None:
        return CountingSocket(connected, counter, label)
    if proxy is not None:
        through = CountingSocket(connected, counter, label)
        try:
            open_tunnel(through, proxy, host, port)
        except BaseException:
            through.close()
            raise
        connected = through
    return TlsSocket(connected, counter, label, tls, host)
