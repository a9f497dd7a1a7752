"""A real browser, driven by its DevTools protocol over a WebSocket of our own: fifty lines instead of a package."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import struct
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cloud.report.test_looks import _CHROMIUM, _FLAGS


class Tab:
    """One page."""

    def __init__(self, url: str) -> None:
        host, port, path = re.fullmatch(r"ws://([^:/]+):(\d+)(/.*)", url).groups()
        self.wire = socket.create_connection((host, int(port)), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        self.wire.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.stream = self.wire.makefile("rb")
        while self.stream.readline() not in (b"\r\n", b""):
            pass
        self.number = 0
        self.call("Page.enable")

    def call(self, method: str, **params: object) -> dict:
        self.number += 1
        data, mask = json.dumps({"id": self.number, "method": method, "params": params}).encode(), os.urandom(4)
        size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
        self.wire.sendall(b"\x81" + size + mask + bytes(c ^ mask[i % 4] for i, c in enumerate(data)))
        while (said := self._receive()).get("id") != self.number:
            pass
        assert "error" not in said, said
        return said["result"]

    def _receive(self) -> dict:
        text = b""
        while True:
            head = self.stream.read(2)
            size = head[1] & 0x7F
            if size >= 126:
                width = 2 if size == 126 else 8
                size = int.from_bytes(self.stream.read(width), "big")
            text += self.stream.read(size)
            if head[0] & 0x80:
                return json.loads(text)

    def js(self, expression: str) -> object:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def words(self) -> str:
        return re.sub(r"\s+", " ", str(self.js("document.body.innerText")))

    def go(self, url: str) -> str:
        self.js("window.old = 1")
        self.call("Page.navigate", url=url)
        return self._arrived()

    def does(self, expression: str) -> str:
        """Something that leads to another page; what is on it."""
        self.js("window.old = 1")
        self.js(expression)
        return self._arrived()

    def click(self, label: str) -> str:
        """A button or link by its words."""
        there = f"[...document.querySelectorAll('button, a')].find(e => e.innerText.trim() === {json.dumps(label)})"
        assert self.js(f"!!{there}"), (label, self.words())
        return self.does(f"{there}.click()")

    def fill(self, name: str, value: str) -> None:
        self.js(f"document.querySelector('[name={name}]').value = {json.dumps(value)}")

    def _arrived(self) -> str:
        deadline = time.monotonic() + 30
        while self.js("window.old === undefined && document.readyState === 'complete'") is not True:
            assert time.monotonic() < deadline, self.words()
            time.sleep(0.02)
        return self.words()


@contextmanager
def browsing() -> Iterator[Tab]:
    # helper processes of the browser may still write while its folder is removed
    with tempfile.TemporaryDirectory(prefix="coda-browser-", ignore_cleanup_errors=True) as folder:
        words = [*_FLAGS, f"--user-data-dir={folder}", "--remote-debugging-port=0", "about:blank"]
        process = subprocess.Popen([_CHROMIUM, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            told, deadline = Path(folder) / "DevToolsActivePort", time.monotonic() + 60
            while not told.exists() or "\n" not in told.read_text():
                assert process.poll() is None and time.monotonic() < deadline, "the browser did not come up"
                time.sleep(0.05)
            port = int(told.read_text().split()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
                tab = Tab(next(one["webSocketDebuggerUrl"] for one in json.load(answer) if one["type"] == "page"))
            try:
                yield tab
            finally:
                tab.stream.close()
                tab.wire.close()
        finally:
            process.terminate()
            process.wait(30)
