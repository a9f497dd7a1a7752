"""A fleet of 200 devices over real HTTP: releases that crash, are slow or rank worse are stopped, a good one is not.

Two servers share one catalog, each with a keeper that asks the gates. A device here has a home, a key and the real
transport: it asks what is new, pulls and verifies the manifest, matches, and reports. Only what it reports is made up,
because no training would go wrong on demand.
"""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace

import httpx
import msgspec
import numpy as np
import pytest
import uvicorn

from cloud.catalog import Catalog
from cloud.http import ServerLimits, create_app
from cloud.http.keeper import ReleaseKeeper
from cloud.rollout import Gate, Rung
from device_runtime.bundle import FileRef, pack_file
from device_runtime.counting import ByteCounter
from device_runtime.engines import open_engine
from device_runtime.home import DeviceHome
from device_runtime.identity import Signer, key_id
from device_runtime.messages import BundleRef, to_json
from device_runtime.pull import announced
from device_runtime.round import FRAME
from device_runtime.wire import encode_report
from tests.cloud.http.conftest import clock, query, services  # noqa: F401
from tests.cloud.releases import told

DEVICES = 200
SEEN_S = 1.1
"""A server sees what another one did within a second."""
LADDER = (
    Rung(name="simulation"),
    Rung(name="named devices", named=True, least=3),
    Rung(name="25 %", share=0.25, named=True, least=25),
    Rung(name="50 %", share=0.5, named=True, least=60),
    Rung(name="100 %", share=1.0, named=True),
)
GATE = Gate(quality_margin=0.1, sizes=10, failure_bound=0.5, silence_s=0)
"""Fifty devices a group cannot exclude a loss of 0.01 AUC, nor failures of a tenth; and nobody waits for days here."""


@dataclass(frozen=True)
class Bundle:
    """What a bundle does to the devices that run it."""

    failing: float = 0.01
    cpu_s: float = 0.4
    auc: float = 0.6


BUNDLES = {3: Bundle(), 4: Bundle(failing=0.6), 5: Bundle(cpu_s=1.2), 6: Bundle(auc=0.45), 7: Bundle(auc=0.62)}
BAD = {4: "failures", 5: "cpu_s", 6: "quality"}


class Device:
    """Each round opens its home anew, as a process of its own would."""

    def __init__(self, folder, url, trust, number):
        self.folder, self.number, self.counter = folder, number, ByteCounter()
        self.made_up, self.rounds = np.random.default_rng(number), 0
        with DeviceHome(folder) as home:
            self.id = home.enrol(url, trust, self.counter)

    def round(self):
        """What `run_round` says to a server, in its order. Returns the version that it ran."""
        self.rounds += 1
        with DeviceHome(self.folder) as home, home.transport(self.counter) as transport:
            serving = home.store.bundle()
            transport.bundle = serving[0].version if serving else 0
            found = announced(home, transport, open_engine("onnx"), time.time())
            ref = found.ref
            transport.fetch_blob(FileRef(ref.manifest, ref.size, ref.size, "none"), home.blobs, "manifest")
            home.manifest(ref, found.trusted)
            home.store.use_bundle(ref, found.etag)
            transport.bundle = ref.version
            transport.request("POST", "/v1/match", query(), label="match", content_type=FRAME, accept=FRAME)
            body = encode_report(self.report(ref.version))
            transport.request("POST", "/v1/reports", body, label="report", content_type=FRAME, accept_status=(204,))
        return ref.version

    def report(self, version):
        kind = BUNDLES[version]
        failed = self.made_up.random() < kind.failing
        return told(
            f"{self.number}-{self.rounds}", version, "failed" if failed else "kept",
            cpu_s=kind.cpu_s * float(np.exp(self.made_up.normal(0, 0.2))),
            auc=kind.auc + float(self.made_up.normal(0, 0.02)),
        )  # fmt: skip


class Fleet:
    def __init__(self, devices, catalog, url, token):
        self.devices, self.catalog, self.url = devices, catalog, url
        self.headers = {"Authorization": f"Bearer {token}"}

    def round(self) -> dict[int, int]:
        """Every device runs one. Returns bundle -> devices."""
        with ThreadPoolExecutor(4) as threads:
            ran = list(threads.map(Device.round, self.devices))
        return {version: ran.count(version) for version in sorted(set(ran))}

    def call(self, path, message, status=200):
        answer = httpx.post(f"{self.url}{path}", headers=self.headers, json=message, timeout=20)
        assert answer.status_code == status, answer.text
        return answer.json()

    def plan(self, version, automatic=False):
        named = [device.id for device in self.devices[:3]]
        plan = {"name": f"r{version}", "bundle": version, "why": "a week older", "automatic": automatic, "named": named}
        plan |= {"ladder": msgspec.to_builtins(LADDER), "gate": msgspec.to_builtins(GATE)}
        self.call("/v1/releases", plan, 201)
        self.advance(version)

    def advance(self, version):
        self.call(f"/v1/releases/r{version}", {"action": "advance", "why": "the rung was passed"})
        time.sleep(SEEN_S)

    def state(self, version):
        return self.catalog.rollouts.course(f"r{version}").rollout

    def settles(self, version, reached):
        """Wait for the keepers."""
        deadline = time.monotonic() + 20
        while not reached(self.state(version)):
            assert time.monotonic() < deadline, self.state(version)
            time.sleep(0.05)
        time.sleep(SEEN_S)


@pytest.fixture
def fleet(services, tmp_path):  # noqa: F811
    """200 devices, enrolled half at each of two servers over one catalog; bundle 3 is everyone's, the others staged."""
    publisher, refs = Signer.create(tmp_path / "release.key"), {}
    for version in BUNDLES:
        plain = to_json(msgspec.structs.replace(services.manifest, version=version))
        file, stored = pack_file(plain)
        services.blobs.write(file.sha256, stored)
        key, signature = key_id(publisher.public), publisher.sign(plain)
        refs[version] = BundleRef(version=version, manifest=file.sha256, size=file.size, key=key, signature=signature)
        services.catalog.release(f"bundle {version}", refs[version], now=1.0, staged=version > 3)

    def opener(version, others):
        manifest = msgspec.structs.replace(services.manifest, version=version)
        return replace(others[0], ref=refs[version], manifest=manifest)

    brisk = ServerLimits(device_requests_per_minute=60_000.0, device_burst=10_000)
    with ExitStack() as stack:
        urls = []
        for _ in range(2):
            catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
            stack.callback(catalog.close)
            mine = replace(services, ref=refs[3], catalog=catalog, clock=time.time, limits=brisk, opener=opener)
            server = uvicorn.Server(uvicorn.Config(create_app(mine), port=0, log_config=None, lifespan="off"))
            thread = threading.Thread(target=server.run)
            thread.start()
            stack.callback(thread.join, 20)
            stack.callback(setattr, server, "should_exit", True)
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            urls.append(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
            stack.enter_context(ReleaseKeeper(mine, every_s=0.2))
        with ThreadPoolExecutor(4) as threads:
            devices = list(
                threads.map(
                    lambda n: Device(tmp_path / "devices" / str(n), urls[n % 2], publisher.public, n), range(DEVICES)
                )
            )
        token = services.catalog.operators.add("ada", "releaser", time.time())
        yield Fleet(devices, services.catalog, urls[0], token)
        shutil.rmtree(tmp_path / "devices")


def test_bad_releases_are_stopped_and_a_good_one_reaches_everyone(fleet):
    assert fleet.round() == {3: DEVICES}
    for version, words in BAD.items():
        fleet.plan(version)
        assert fleet.round()[version] == 3, "named devices only"
        fleet.advance(version)
        reached = fleet.round()[version]
        assert 3 < reached < 0.4 * DEVICES
        fleet.settles(version, lambda now: now.state == "stopped")
        stops = [line for line in fleet.catalog.rollouts.audit(f"r{version}") if line.action == "stop"]
        assert len(stops) == 1, "two keepers watch, one acts"
        assert stops[0].who == "gate" and words in stops[0].why, stops[0].why
        assert fleet.state(version).standing.name == "25 %"
        assert fleet.round() == {3: DEVICES}, "rolled back in each device's next round"

    fleet.plan(7, automatic=True)
    assert fleet.round() == {3: DEVICES - 3, 7: 3}
    fleet.advance(7)
    fleet.round()
    fleet.settles(7, lambda now: now.standing.share >= 0.5)
    assert fleet.round()[7] > 0.35 * DEVICES
    fleet.settles(7, lambda now: now.state == "complete")
    assert fleet.round() == {7: DEVICES}
    assert [line.rung for line in fleet.catalog.rollouts.audit("r7")][::-1] == [
        "simulation", "named devices", "25 %", "50 %", "100 %", "100 %",
    ]  # fmt: skip
