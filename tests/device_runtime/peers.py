"""Peers on loopback for the transport's tests: a server that misbehaves on request, and a proxy that counts.

Neither shares code with what it tests: they speak in raw sockets. `to` makes a transport that waits for nothing.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

from device_runtime.counting import ByteCounter
from device_runtime.transport import Transport, TransportLimits

WAIT_S = 10.0


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """Raw bytes, then: keep the connection, close it, reset it, or say nothing more until the peer leaves."""

    data: bytes
    then: Literal["keep", "close", "reset", "hang"] = "keep"


def reply(status: int, body: bytes = b"", kind: str = "application/json", /, **headers: str) -> Reply:
    """A well-formed answer. headers: underscores stand for hyphens."""
    fields = {"Content-Type": kind, "Content-Length": str(len(body))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} Some Reason", *(f"{name}: {value}" for name, value in fields.items())]
    return Reply("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


class _Listener(ABC):
    """Accepts on a free port; each connection is served in a thread of its own."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.connections = 0
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> _Listener:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(WAIT_S)
        self._listening.close()
        for connection in self._open:
            _hang_up(connection)
        for thread in self._threads[1:]:
            thread.join(WAIT_S)
        for connection in self._open:
            connection.close()

    @abstractmethod
    def serve(self, connection: socket.socket) -> None: ...

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            self._start(self.serve, connection)

    def _start(self, target: Callable[[socket.socket], None], connection: socket.socket) -> None:
        self._open.append(connection)
        thread = threading.Thread(target=target, args=(connection,))
        self._threads.append(thread)
        thread.start()


class Server(_Listener):
    """Answers each request with what `answer` gives; keeps the requests."""

    def __init__(self, answer: Callable[[Request], Reply]) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        super().__init__()

    def __enter__(self) -> Server:
        return self

    def serve(self, connection: socket.socket) -> None:
        try:
            with connection.makefile("rb") as stream:
                while request := _read_request(stream.readline, stream.read):
                    self.requests.append(request)
                    answer = self.answer(request)
                    connection.sendall(answer.data)
                    if answer.then == "close":
                        break
                    if answer.then == "reset":
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        break
                    if answer.then == "hang":
                        stream.read()
        except OSError:
            pass
        connection.close()  # with SO_LINGER 0 this is what resets


class CountingProxy(_Listener):
    """Relays TCP and counts the bytes of both directions, for each connection in order of arrival.

    cuts: bytes that may come down on the first, second… connection before it is closed; later ones are not cut.
    """

    def __init__(self, upstream: int, cuts: tuple[int, ...] = ()) -> None:
        self._upstream = upstream
        self._cuts = list(cuts)
        self.relayed = Relayed()
        super().__init__()

    def __enter__(self) -> CountingProxy:
        return self

    def serve(self, connection: socket.socket) -> None:
        left = self._cuts.pop(0) if self._cuts else None
        server = socket.create_connection(("127.0.0.1", self._upstream))
        self._start(lambda to: self._relay_up(connection, to), server)
        try:
            while left != 0 and (data := server.recv(65536 if left is None else left)):
                self.relayed.down += len(data)
                left = None if left is None else left - len(data)
                connection.sendall(data)
        except OSError:
            pass
        _hang_up(connection)
        _hang_up(server)

    def _relay_up(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := client.recv(65536):
                self.relayed.up += len(data)
                server.sendall(data)
        except OSError:
            pass
        _hang_up(server)


class LoggingProxy(_Listener):
    """Relays HTTP to an upstream port, answer by answer, and keeps the requests.

    drip: (bytes, seconds) sends answers in pieces of so many bytes, each after so long a pause.
    """

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self.requests: list[Request] = []
        self.drip: tuple[int, float] | None = None
        super().__init__()

    def __enter__(self) -> LoggingProxy:
        return self

    def serve(self, connection: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._upstream))
        self._start(lambda from_: self._relay_down(from_, connection), server)
        try:
            with connection.makefile("rb") as stream:
                while request := _read_request(stream.readline, stream.read):
                    self.requests.append(request)
                    lines = [f"{request.method} {request.path} HTTP/1.1"]
                    lines += [f"{name}: {value}" for name, value in request.headers.items()]
                    server.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + request.body)
        except (OSError, ValueError):  # the client was killed, also in the middle of a request
            pass
        _hang_up(server)
        connection.close()

    def _relay_down(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(65536 if self.drip is None else self.drip[0]):
                if self.drip is not None:
                    time.sleep(self.drip[1])
                client.sendall(data)
        except OSError:
            pass
        _hang_up(client)
        server.close()


class MisbehavingProxy(_Listener):
    """Relays HTTP, and spoils an answer with each of `faults` in turn: raw bytes in, what is sent instead out."""

    def __init__(self, upstream: int, *faults: Callable[[bytes], Reply]) -> None:
        self._upstream = upstream
        self.faults = list(faults)
        super().__init__()

    def __enter__(self) -> MisbehavingProxy:
        return self

    def serve(self, connection: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._upstream))
        try:
            with connection.makefile("rb") as stream, server.makefile("rb") as answers:
                while request := _read_request(stream.readline, stream.read):
                    lines = [f"{request.method} {request.path} HTTP/1.1"]
                    lines += [f"{name}: {value}" for name, value in request.headers.items()]
                    server.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + request.body)
                    data = _read_answer(answers.readline, answers.read)
                    spoiled = self.faults.pop(0)(data) if self.faults else Reply(data)
                    connection.sendall(spoiled.data)
                    if spoiled.then == "close":
                        break
                    if spoiled.then == "reset":
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        break
        except OSError:
            pass
        server.close()
        connection.close()


class ForwardProxy(_Listener):
    """A proxy as networks have them: absolute addresses, CONNECT, and if `credentials` are set, only with them.

    Attributes:
        asked: the request lines that it was given.
    """

    def __init__(self, credentials: str = "") -> None:
        self._credentials = credentials
        self.asked: list[str] = []
        super().__init__()

    def __enter__(self) -> ForwardProxy:
        return self

    def serve(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            while request := _read_request(stream.readline, stream.read):
                self.asked.append(f"{request.method} {request.path}")
                if request.headers.get("proxy-authorization", "") != self._credentials:
                    connection.sendall(reply(407).data)
                    continue
                if request.method == "CONNECT":
                    server = socket.create_connection(("127.0.0.1", int(request.path.rpartition(":")[2])))
                    connection.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                    self._start(lambda from_: _pump(from_, connection), server)
                    _pump(connection, server)
                    return
                host, _, path = request.path.removeprefix("http://").partition("/")
                with socket.create_connection(("127.0.0.1", int(host.rpartition(":")[2]))) as server:
                    lines = [f"{request.method} /{path} HTTP/1.1"]
                    lines += [f"{n}: {v}" for n, v in request.headers.items() if not n.startswith("proxy-")]
                    server.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + request.body)
                    with server.makefile("rb") as answers:
                        connection.sendall(_read_answer(answers.readline, answers.read))


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    _hang_up(sink)
    _hang_up(source)


def _read_answer(readline: Callable[[], bytes], read: Callable[[int], bytes]) -> bytes:
    """A whole answer that states its length, as raw bytes."""
    head, length = b"", 0
    while not head.endswith(b"\r\n\r\n") and (line := readline()):
        head += line
        if line.lower().startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return head + read(length)


@dataclass
class Relayed:
    up: int = field(default=0)
    down: int = field(default=0)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _read_request(readline: Callable[[], bytes], read: Callable[[int], bytes]) -> Request | None:
    first = readline()
    if not first:
        return None
    method, path, _ = first.decode().split()
    headers = {}
    while line := readline().strip():
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    return Request(method, path, headers, read(int(headers.get("content-length", 0))))


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
