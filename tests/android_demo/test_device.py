"""What a phone does beside its round: its key, its gifts to the pool, evaluations, and the way to its server."""

from __future__ import annotations

import shutil
import ssl
import subprocess

import msgspec
import pytest

from cloud.rollout import Rule
from device_runtime.counting import ByteCounter
from device_runtime.engines import open_engine
from device_runtime.history import read_history
from device_runtime.home import DeviceHome
from device_runtime.round import RoundOptions, run_round
from device_runtime.store import Store
from tests.conftest import reversion
from tests.device_runtime.peers import CountingProxy, ForwardProxy

SEED = 5


def python_home(folder, published, url):
    home = DeviceHome(folder)
    home.store.add_events(read_history(published.history).events)
    home.enrol(url, published.trust, ByteCounter())
    return home


def key_of(device):
    return (device.home / "device.key").read_text()


# -- the device's key ------------------------------------------------------------------------------------------------


def test_a_phone_takes_a_new_key_when_it_is_asked_to_and_stays_the_same_device(device, serving, published):
    with serving() as (url, services):
        device.run(server=url, history=published.history)
        first, [who] = key_of(device), [record.id for record in services.catalog.devices()]
        services.catalog.ask_for_rotation(None)
        device.run()
        assert key_of(device) != first and not (device.home / "device.next.key").exists()
        assert [record.id for record in services.catalog.devices()] == [who]
        assert device.run(server=url)[0]["error"] == "", "enrolling again knows it by its first key"
        with DeviceHome(device.home) as home, home.transport(ByteCounter()) as transport:
            assert transport.request("GET", "/v1/bundle", label="bundle").status == 200, "Python signs with the new key"


def test_a_rotation_that_was_cut_off_ends_with_the_same_new_key(device, serving, published):
    with serving() as (url, _):
        device.run(server=url, history=published.history)
        old = key_of(device)
        device.run(rotate="true")
        following = key_of(device)
        (device.home / "device.next.key").write_text(following)  # the phone died before it had moved the key
        (device.home / "device.key").write_text(old)
        assert device.run()[0]["error"] == ""
        assert key_of(device) == following != old


# -- what it gives ---------------------------------------------------------------------------------------------------


def test_a_user_who_wants_to_hands_training_samples_to_the_pool_once(device, serving, published, tmp_path):
    with serving() as (url, services):
        before = len(services.pool)
        report, _ = device.run(server=url, history=published.history, contribute="true")
        given = len(services.pool) - before
        assert given == report["local"] - report["verdict"]["samples"], "held-out samples stay"
        assert "contribute" in [phase["phase"] for phase in report["phases"]]
        device.run(contribute="true")
        assert len(services.pool) == before + given, "what was given is not given again"
        device.run(history=published.later, contribute="true")
        later = len(services.pool)
        assert later > before + given
        with python_home(tmp_path / "python", published, url) as home, home.transport(ByteCounter()) as transport:
            run_round(home, transport, open_engine("executorch"), RoundOptions(contribute=True))
        assert len(services.pool) - later == given, "Python gives as many"
        with Store(device.home / "coda.db") as store, Store(tmp_path / "python" / "coda.db") as other:
            assert int(store.setting("contributed_until")) > int(other.setting("contributed_until"))


def test_a_phone_compares_configurations_as_python_does(device, serving, published, tmp_path):
    tries = {"usual": {}, "slow": {"rate": 0.01, "epochs": 1, "label_correction": 0}, "wild": {"rate": 1e30}}
    with serving() as (url, services):
        services.federated.create("rates", tries, Rule(name="e", release="-"), most=9, days=1)
        report, _ = device.run(server=url, history=published.history, seed=SEED)
        with python_home(tmp_path / "python", published, url) as home, home.transport(ByteCounter()) as transport:
            meant = run_round(home, transport, open_engine("executorch"), RoundOptions(seed=SEED)).report
        ours, theirs = services.catalog.evaluations.answers("rates")
    assert [phase["phase"] for phase in report["phases"]] == [phase.phase for phase in meant.phases]
    ours, theirs = (msgspec.to_builtins(answer) for answer in (ours, theirs))
    assert ours["samples"] == theirs["samples"] == report["verdict"]["samples"]
    assert ours["outcomes"].keys() == theirs["outcomes"].keys() == tries.keys()
    assert ours["outcomes"]["wild"] == theirs["outcomes"]["wild"] == {"diverged": True}
    for name in ("usual", "slow"):
        assert ours["outcomes"][name] == pytest.approx(theirs["outcomes"][name], abs=2e-5)


# -- the way to the server -------------------------------------------------------------------------------------------


def made_certificate(folder, of):
    """A certificate that is its own authority, and what serves with it."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("the openssl program, which makes this test's certificate, is not installed")
    chain, key = folder / "chain.pem", folder / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=coda"
    also = ["-addext", f"subjectAltName={of}", "-keyout", str(key), "-out", str(chain)]
    subprocess.run([openssl, *words.split(), *also], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    return chain, context


@pytest.fixture
def certificate(tmp_path):
    return made_certificate(tmp_path, "IP:127.0.0.1")


class Secure(CountingProxy):
    """TLS before a server that has none."""

    def __init__(self, upstream, context):
        self._context = context
        super().__init__(upstream)

    def serve(self, connection):
        with self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as secure:
            try:
                secure.do_handshake()
            except (ssl.SSLError, ConnectionError):  # the device does not trust the certificate
                return
            super().serve(secure)


def test_a_server_with_a_private_authority_is_trusted_by_its_certificate_alone(
    device, serving, published, certificate, tmp_path
):
    chain, context = certificate
    with serving() as (plain, _), Secure(int(plain.rsplit(":", 1)[1]), context) as front:
        url = front.url.replace("http:", "https:")
        told = device.told(server=url, history=published.history)
        assert told.startswith(f"TrustError: the certificate of {url} does not verify"), told
        (device.home / "ca.pem").write_text("no certificate")
        told = device.told(server=url)
        assert told.startswith("InputError: ") and "holds no certificates" in told
        shutil.copy(chain, device.home / "ca.pem")
        report, _ = device.run(server=url, history=published.history)
        assert report["outcome"] in ("activated", "kept")
    chain, context = made_certificate(tmp_path, "DNS:other.example")
    shutil.copy(chain, device.home / "ca.pem")
    with serving() as (plain, _), Secure(int(plain.rsplit(":", 1)[1]), context) as front:
        url = front.url.replace("http:", "https:")
        told = device.told(server=url)
        assert told.startswith(f"TrustError: the certificate of {url} does not verify"), "it is another server's"


def test_requests_go_through_the_systems_proxy(device, serving, published, certificate):
    chain, context = certificate
    with serving() as (plain, _), Secure(int(plain.rsplit(":", 1)[1]), context) as front, ForwardProxy() as proxy:
        through = {"http.nonProxyHosts": "", **{f"{kind}.proxyHost": "127.0.0.1" for kind in ("http", "https")}}
        through |= {f"{kind}.proxyPort": proxy.port for kind in ("http", "https")}
        report, _ = device.run(server=plain, history=published.history, **through)
        assert report["outcome"] in ("activated", "kept") and proxy.asked[0] == f"POST {plain}/v1/devices"
        shutil.copy(chain, device.home / "ca.pem")
        proxy.asked.clear()
        assert device.run(server=front.url.replace("http:", "https:"), **through)[0]["error"] == ""
        assert set(proxy.asked) == {f"CONNECT {front.url.removeprefix('http://')}"}
    with ForwardProxy("Basic nobody") as strict:
        through |= {f"{kind}.proxyPort": strict.port for kind in ("http", "https")}
        told = device.told(**through)
        assert told.startswith("Unreachable: ") and "a proxy that refuses a tunnel (HTTP/1.1 407" in told


# -- bundles that are not for this phone -----------------------------------------------------------------------------


def test_a_bundle_without_graphs_for_this_engine_is_refused_and_what_served_stays(device, serving, published, tmp_path):
    from cloud.home import ServerHome, publish
    from cloud.rollout import Rung

    bundle = shutil.copytree(published.bundle, tmp_path / "bundle")
    with serving() as (url, services):
        _, ranked = device.run(server=url, history=published.history)
        graphs = {
            name: msgspec.structs.replace(entry, files={"onnx": entry.files["onnx"]})
            for name, entry in services.manifest.graphs.items()
        }
        reversion(bundle, published, 3, graphs=graphs)
        with ServerHome(tmp_path / "server") as home:
            publish(home, bundle, staged=True)
        services.releases.create("next", 3, ladder=(Rung(name="100 %", share=1.0),), who="me", why="because")
        services.releases._forget()
        told = device.told()
        assert told.startswith("WireError: the bundle has no executorch file for the graph") and "export" in told
        assert device.run(rounds=0)[-1] == ranked, "what served still does"
