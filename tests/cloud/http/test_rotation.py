"""A device that replaces its key, and power that fails while it does."""

from __future__ import annotations

import time

import pytest

from device_runtime.cli import main
from device_runtime.counting import ByteCounter
from device_runtime.errors import Unreachable
from device_runtime.home import DeviceHome
from device_runtime.identity import device_id
from device_runtime.transport import Transport

TRUST = "ab" * 32


@pytest.fixture
def server(serve):
    peer = serve()
    return peer.url, peer.services


@pytest.fixture
def home(server, clock, tmp_path):
    clock.now = time.time()
    with DeviceHome(tmp_path / "phone") as made:
        made.enrol(server[0], TRUST, ByteCounter())
        yield made


def ask(home):
    with home.transport(ByteCounter()) as transport:
        return transport.request("GET", "/v1/bundle", label="bundle").status


def test_it_stays_the_same_device(home, server):
    old = home.signer().public
    device = device_id(old)
    for _ in range(2):
        home.rotate_key(ByteCounter())
        assert server[1].catalog.device(device).public_key == home.signer().public != old
        assert ask(home) == 200
    assert home.enrol(server[0], TRUST, ByteCounter()) == device, "enrolling again does not make another"
    assert server[1].catalog.count_devices() == 1


@pytest.mark.parametrize("lost", ["request", "answer", "rename"])
def test_a_rotation_that_was_cut_off_is_ended_with_the_same_key(home, server, monkeypatch, lost):
    device = device_id(home.signer().public)

    def cut(*_, **__):
        raise Unreachable("the power failed")

    with monkeypatch.context() as patch:
        if lost == "rename":
            patch.setattr("device_runtime.home.move_durably", cut)
        else:
            whole = Transport.request

            def half(self, *words, **named):
                if lost == "answer":
                    whole(self, *words, **named)
                cut()

            patch.setattr(Transport, "request", half)
        with pytest.raises(Unreachable):
            home.rotate_key(ByteCounter())
    assert home.rotation_due
    following = (home.path / "device.next.key").read_bytes()
    home.rotate_key(ByteCounter())
    assert not home.rotation_due and (home.path / "device.key").read_bytes() == following
    assert ask(home) == 200 and server[1].catalog.device(device).public_key == home.signer().public


def test_another_server_knows_a_rotated_key_by_its_own_name(home, server, monkeypatch):
    home.rotate_key(ByteCounter())
    first = home.store.setting("device")
    monkeypatch.setattr(home, "_enrolled", lambda name: {"device": first, "server": server[0]}[name])
    assert home._id_of(home.signer(), "http://elsewhere.example") == device_id(home.signer().public) != first
    assert home._id_of(home.signer(), server[0]) == first


def test_the_operator_asks_and_the_next_round_does_it(serving, published, tmp_path, capsys):
    with serving() as (url, services):
        _asks(url, services, published, tmp_path, capsys)


def _asks(url, services, published, tmp_path, capsys):
    phone, key = tmp_path / "phone", tmp_path / "release.pub"
    key.write_text(published.trust)
    words = ["device", "run", "--home", str(phone), "--server", url, "--trust", str(key), "--engine", "onnx"]
    assert main([*words, "--import", str(published.history)]) == 0
    with DeviceHome(phone) as home:
        before = home.signer().public
    device = device_id(before)
    operator = ["--home", str(tmp_path / "server")]
    assert main(["devices", "rotate", *operator, device]) == 0
    assert "will make a new key" in capsys.readouterr().out
    assert main(words) == 0
    with DeviceHome(phone) as home:
        assert home.signer().public != before and not home.rotation_due
        assert services.catalog.device(device).public_key == home.signer().public
    assert main(["device", "rotate-key", "--home", str(phone)]) == 0
    assert f"still device {device}" in capsys.readouterr().out
    assert main(["devices", "revoke", *operator, device]) == 0
    assert main(words) == 4
    assert "revoked" in capsys.readouterr().err
    assert main(["devices", "list", *operator, "--json", str(tmp_path / "list.json")]) == 0
    assert device in (listed := capsys.readouterr().out) and listed.rstrip().endswith("revoked")
    for wrong in (["revoke", *operator, "f" * 32], ["revoke", *operator], ["rotate", *operator, "--all", device]):
        assert main(["devices", *wrong]) == 2
    assert main(["devices", "rotate", *operator, "--all"]) == 0
    assert "0 devices" in capsys.readouterr().out, "revoked ones are not asked"
