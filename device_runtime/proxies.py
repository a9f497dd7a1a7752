"""The HTTP proxy between a device and its server, if there is one: which, and how it is spoken to.

Plain http goes through it as requests for absolute addresses; https as a tunnel that it opens (CONNECT, RFC 9110,
section 9.3.6) and cannot look into.
"""

from __future__ import annotations

import base64
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from device_runtime.errors import InputError

_MOST = 16 << 10
"""Bytes of a proxy's answer to CONNECT, at most."""


class ProxyError(ConnectionError):
    """The proxy did not open the tunnel. Its text is for a person."""


@dataclass(frozen=True)
class Proxy:
    """authorization: the value of Proxy-Authorization, "" for none; it is never shown."""

    host: str
    port: int
    authorization: str = ""

    @staticmethod
    def parse(url: str) -> Proxy:
        """Raises: InputError: not `http://[user:password@]host[:port]`."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname or "", parts.port
        except ValueError:
            host, port = "", None
        if not host or parts.scheme != "http":
            shown = re.sub(r"//[^/@]*@", "//…@", url)
            raise InputError(f"{shown!r} is not a proxy's address; write it like http://proxy.example:3128")
        who = ""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            who = "Basic " + base64.b64encode(pair.encode()).decode()
        return Proxy(host, port or 80, who)

    @property
    def headers(self) -> dict[str, str]:
        return {"Proxy-Authorization": self.authorization} if self.authorization else {}


def from_environment(host: str, port: int, tls: bool, environment: Mapping[str, str] | None = None) -> Proxy | None:
    """The proxy that `https_proxy` or `http_proxy` name, unless `no_proxy` lists the host; upper case counts too.

    `no_proxy` is a comma-separated list of hosts, domains (which stand for all below them), `host:port`, or `*`.

    Raises:
        InputError: the variable does not hold an address.
    """
    given = os.environ if environment is None else environment
    url = _lookup(given, "https_proxy" if tls else "http_proxy")
    if not url:
        return None
    for entry in _lookup(given, "no_proxy").split(","):
        name = entry.strip().lower().lstrip("*").lstrip(".")
        if entry.strip() == "*" or (name and (name in (host, f"{host}:{port}") or host.endswith(f".{name}"))):
            return None
    return Proxy.parse(url)


def _lookup(environment: Mapping[str, str], name: str) -> str:
    # HTTP_PROXY in capitals can be set by a request's header in a CGI program; there it must not count
    upper = "" if name == "http_proxy" and "REQUEST_METHOD" in environment else environment.get(name.upper(), "")
    return environment.get(name, "") or upper


def open_tunnel(connected: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    """Have the proxy connect to a server; afterwards the socket is a connection to that server.

    Raises:
        ProxyError: it refuses. OSError: it does not answer.
    """
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", *(f"{n}: {v}" for n, v in proxy.headers.items())]
    connected.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
    answer = bytearray()
    one = bytearray(1)
    while not answer.endswith(b"\r\n\r\n"):  # byte by byte: what follows belongs to the server
        if not connected.recv_into(one) or len(answer) > _MOST:
            raise ProxyError(f"the proxy {proxy.host}:{proxy.port} broke off instead of opening a tunnel to {target}")
        answer += one
    status = re.match(rb"HTTP/1\.[01] (\d{3})", bytes(answer))
    if status is None or status[1][:1] != b"2":
        said = status[1].decode() if status else "something that is not HTTP"
        hint = "; give user and password in its address" if said == "407" else ""
        raise ProxyError(f"the proxy {proxy.host}:{proxy.port} refuses a tunnel to {target}: {said}{hint}")
