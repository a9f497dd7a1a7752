"""Devices that ask a server to match, in a process of their own: asyncio, kept connections, every request signed.

It is told what to do as JSON on stdin, and says how it went as JSON on stdout. With a rate, requests start on time
whether or not earlier ones are answered, and a wait for a free connection counts as latency; without one, each
connection asks again as soon as it is answered.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Sequence
from urllib.parse import urlsplit

import msgspec
from nacl.signing import SigningKey

from device_runtime.identity import Signer, device_id
from device_runtime.messages import Capability, Enrolment, to_json

FRAME = "application/vnd.coda.frame"


class Plan(msgspec.Struct, frozen=True):
    """url: of the server. path, bodies: what is posted, base64, in turn. keys: the devices' private keys, hex. seconds:
    for how long. rate: requests a second, 0: as many as the connections can."""

    url: str
    path: str
    bodies: list[str]
    keys: list[str]
    connections: int
    seconds: float
    rate: float
    enrol: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """latencies_ms: of the answers that were as they should be, in their order. statuses: status -> answers; 0: none
    came. cpu_s: of this process. seconds: that it took."""

    latencies_ms: list[float]
    statuses: dict[str, int]
    seconds: float
    cpu_s: float
    bytes_in: int


class Device:
    """Signs, and posts over one kept connection."""

    def __init__(self, host: str, port: int, signer: Signer) -> None:
        self._host, self._port, self._signer = host, port, signer
        self.id = device_id(signer.public)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes, kind: str) -> tuple[int, bytes]:
        """(status, body) of the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        signed = self._signer.authorization(self.id, "POST", path, body)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\nAuthorization: {signed}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        answer = await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection") == "close":
            self.close()
        return int(lines[0].split()[1]), answer

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()
            self._streams = None


async def carry_out(plan: Plan) -> Outcome:
    """Do what the plan says."""
    address = urlsplit(plan.url)
    assert address.hostname and address.port
    signers = [Signer(SigningKey(bytes.fromhex(key))) for key in plan.keys]
    devices = [Device(address.hostname, address.port, signer) for signer in signers]
    if plan.enrol:
        for device, signer in zip(devices, signers, strict=True):
            body = to_json(Enrolment(public_key=signer.public, capability=Capability(runtime="bench")))
            status, answer = await device.post("/v1/devices", body, "application/json")
            assert status == 200, answer
    bodies = [b64decode(body) for body in plan.bodies]
    free: asyncio.Queue[Device] = asyncio.Queue()
    for device in devices[: plan.connections]:
        free.put_nowait(device)
    latencies: list[float] = []
    statuses: Counter[str] = Counter()
    received = 0
    began, used = time.perf_counter(), time.process_time()
    end = began + plan.seconds

    async def ask(number: int, since: float) -> None:
        nonlocal received
        device = await free.get()
        status, answer = 0, b""
        try:
            status, answer = await device.post(plan.path, bodies[number % len(bodies)], FRAME)
        except (OSError, asyncio.IncompleteReadError):
            device.close()
        free.put_nowait(device)
        statuses[str(status)] += 1
        received += len(answer)
        if status in (200, 204):
            latencies.append(1e3 * (time.perf_counter() - since))

    async def keep_asking(first: int) -> None:
        number = first
        while (now := time.perf_counter()) < end:
            await ask(number, now)
            number += plan.connections

    if plan.rate:
        asked = []
        for number in range(int(plan.rate * plan.seconds)):
            due = began + number / plan.rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked.append(asyncio.create_task(ask(number, due)))
        await asyncio.gather(*asked)
    else:
        await asyncio.gather(*(keep_asking(first) for first in range(plan.connections)))
    seconds = time.perf_counter() - began
    for device in devices:
        device.close()
    return Outcome(latencies, dict(statuses), seconds, time.process_time() - used, received)


def main(words: Sequence[str]) -> int:
    assert not words, "it reads its plan from stdin"
    outcome = asyncio.run(carry_out(msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)))
    json.dump(msgspec.to_builtins(outcome), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
