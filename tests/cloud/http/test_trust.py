"""A device that was given a root, against a server, a man in the middle, and thieves of keys, over real HTTP."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import msgspec
import pytest
from nacl.signing import SigningKey

from cloud.home import ServerHome, add_document
from cloud.rollout import Rung
from device_runtime.bundle import FileRef, pack_file
from device_runtime.cli import main
from device_runtime.counting import ByteCounter
from device_runtime.engines import open_engine
from device_runtime.errors import InputError, TransportError, TrustError
from device_runtime.home import DeviceHome
from device_runtime.identity import Signer, key_id
from device_runtime.messages import BundleRef, to_json
from device_runtime.pull import announced
from device_runtime.transport import Transport, TransportLimits
from device_runtime.trust import Listing, make_root, unsigned, with_signature
from tests.device_runtime.peers import Server, reply

ME = {"who": "me", "why": "because"}
DAY = 86_400
IMPATIENT = TransportLimits(attempts=1)


class Publisher:
    """Two people who sign roots together, a release key; the server's key is given."""

    def __init__(self, services):
        self.people = [Signer(SigningKey.generate()) for _ in range(2)]
        self.release, self.online = Signer(SigningKey.generate()), services.answer_signer
        self.services, self.listed, self.servers = services, {}, []

    def bundle(self, version):
        """Signed, taken in and listed, but on no list yet that devices see."""
        plain = to_json(msgspec.structs.replace(self.services.manifest, version=version))
        file, stored = pack_file(plain)
        self.services.blobs.write(file.sha256, stored)
        ref = BundleRef(
            version=version, manifest=file.sha256, size=file.size, key=key_id(self.release.public),
            signature=self.release.sign(plain),
        )  # fmt: skip
        self.services.catalog.release(f"bundle {version}", ref, now=1.0, staged=version > 3)
        self.listed[version] = ref.manifest
        return ref

    def root(self, version=1, expires=None):
        made = make_root(
            version, int(expires or time.time() + 300 * DAY), root=[one.public for one in self.people], threshold=2,
            bundles=[self.release.public], online=[self.online.public],
        )  # fmt: skip
        data = unsigned(made)
        for one in self.people:
            data = with_signature(data, "root", one)
        return data

    def listing(self, version=1, days=90.0):
        made = Listing(version=version, expires=int(time.time() + days * DAY), bundles=self.listed)
        return with_signature(unsigned(made), "bundles", self.release)

    def tells(self, role, version, data):
        self.services.catalog.rollouts.add_document(role, version, data, time.time())
        for services in self.servers:  # which would see it within a second
            services.releases._forget()


class Phone:
    def __init__(self, folder, url, root):
        self.home = DeviceHome(folder / "phone")
        self.home.enrol(url, root.decode(), ByteCounter())

    def follows(self, now=None, url=None):
        """What a round does first: find out what to run, pull its manifest, and let it serve."""
        signer = self.home.signer()
        server = url or self.home.server
        with Transport(server, ByteCounter(), signer=signer, device=self.home.device, limits=IMPATIENT) as transport:
            serving = self.home.store.bundle()
            transport.bundle = serving[0].version if serving else 0
            found = announced(self.home, transport, open_engine("onnx"), now or time.time())
            ref = found.ref
            transport.fetch_blob(FileRef(ref.manifest, ref.size, ref.size, "none"), self.home.blobs, "manifest")
            self.home.manifest(ref, found.trusted)
            self.home.store.use_bundle(ref, found.etag, found.trusted)
            self.asked = dict(transport.counter.by_label)
        return ref.version

    def serves(self):
        """What goes on serving, verified anew."""
        return self.home.manifest().version


@pytest.fixture
def publisher(services):
    made = Publisher(services)
    made.ref = made.bundle(3)
    for version, role, data in ((1, "root", made.root()), (1, "bundles", made.listing())):
        made.tells(role, version, data)
    return made


@pytest.fixture
def served(serve, services, publisher):
    def opener(version, others):
        return replace(others[0], manifest=msgspec.structs.replace(services.manifest, version=version))

    made = serve(clock=time.time, ref=publisher.ref, opener=opener)
    publisher.servers.append(made.services)
    return made


@pytest.fixture
def phone(served, publisher, tmp_path):
    made = Phone(tmp_path, served.url, publisher.root())
    with made.home:
        yield made


def release(served, publisher, version):
    publisher.bundle(version)
    publisher.tells("bundles", version, publisher.listing(version))
    served.services.releases._forget()
    return served.services.releases.create("next", version, ladder=(Rung(name="100 %", share=1.0),), **ME)


def test_a_device_follows_releases_and_roll_backs_that_are_on_the_list(served, publisher, phone):
    assert phone.follows() == 3
    assert set(phone.asked) == {"bundle", "metadata", "manifest"}
    assert phone.follows() == 3 and set(phone.asked) == {"bundle"}
    assert phone.asked["bundle"].up + phone.asked["bundle"].down <= 200
    release(served, publisher, 4)
    assert phone.follows() == 4
    served.services.releases.act("next", "stop", **ME)
    assert phone.follows() == 3 == phone.serves()


def test_the_server_does_not_offer_what_devices_would_refuse(served, publisher, services):
    publisher.bundle(4)
    with pytest.raises(InputError, match="bundle 4 is not on the publisher's list of bundles, version 1"):
        served.services.releases.create("next", 4, ladder=(Rung(name="100 %", share=1.0),), **ME)


def test_a_thief_of_the_online_key_cannot_bring_a_bundle_of_their_own(served, publisher, phone):
    assert phone.follows() == 3
    thief = Publisher(served.services)
    thief.bundle(4)
    thief.servers = publisher.servers
    served.services.catalog.rollouts.pin(phone.home.device, 4, _line())
    served.services.releases._forget()
    with pytest.raises(TrustError, match="bundle 4 is not on the publisher's list"):
        phone.follows()
    thief.tells("bundles", 2, thief.listing(2))
    with pytest.raises(TrustError, match="0 of the keys that root 1 names for bundles have signed"):
        phone.follows()
    assert phone.serves() == 3


def test_an_older_list_from_a_server_that_was_restored_is_refused(served, publisher, phone):
    release(served, publisher, 4)
    assert phone.follows() == 4
    served.services.releases.act("next", "stop", **ME)
    with served.services.catalog._begin() as db:
        db.exec_driver_sql("DELETE FROM metadata WHERE role = 'bundles' AND version = 4")
    served.services.releases._forget()
    with pytest.raises(TrustError, match="has version 1; this device has seen 4"):
        phone.follows()
    assert phone.serves() == 4


def test_who_keeps_news_from_a_device_cannot_do_so_for_longer_than_a_statement_holds(served, phone):
    assert phone.follows() == 3
    with Server(lambda request: reply(204) if "stale" in request.path else reply(304)) as freezer:
        assert phone.follows(url=freezer.url) == 3
        held = served.services.limits.statement_s
        for later in (held + 10, 40 * DAY):
            with pytest.raises((TrustError, TransportError)):
                phone.follows(now=time.time() + later, url=freezer.url)
    assert phone.serves() == 3


def test_an_answer_that_was_recorded_is_refused(served, publisher, phone):
    assert phone.follows() == 3
    signer = phone.home.signer()
    path = "/v1/bundle"
    recorded = served.send("GET", path, Authorization=signer.authorization(phone.home.device, "GET", path, b""))
    assert recorded.status == 200
    release(served, publisher, 4)

    def replay(request):
        if "stale" in request.path:
            return reply(200, b'["bundle"]')
        return reply(200, recorded.body, CoDA_Signature=recorded.headers["CoDA-Signature"])

    with Server(replay) as middle, pytest.raises(TrustError, match="not signed by a key that the root names"):
        phone.follows(url=middle.url)
    assert phone.follows() == 4


def test_a_stolen_online_key_is_replaced_and_devices_follow(served, publisher, phone, serve, tmp_path):
    assert phone.follows() == 3
    thief, publisher.online = publisher.online, Signer.create(tmp_path / "new-answer.key")
    publisher.tells("root", 2, publisher.root(2))
    mended = serve(clock=time.time, ref=publisher.ref, answer_signer=publisher.online, opener=served.services.opener)
    release(mended, publisher, 4)
    assert phone.follows(url=mended.url) == 4
    assert phone.home.trusted_set().root.version == 2
    # the thief still runs a server with the old key, and knows the new documents, which are public
    assert served.services.answer_signer is thief
    mended.services.catalog.rollouts.pin(phone.home.device, 3, _line())
    served.services.releases._forget()
    with pytest.raises(TrustError, match="not signed by a key that the root names"):
        phone.follows(url=served.url)
    assert phone.serves() == 4


def test_a_stolen_release_key_is_replaced_and_devices_go_on_ranking_meanwhile(served, publisher, phone):
    assert phone.follows() == 3
    publisher.release, publisher.listed = Signer(SigningKey.generate()), {}
    publisher.tells("root", 2, publisher.root(2))
    with pytest.raises(TrustError, match="0 of the keys that root 2 names for bundles"):
        phone.follows()
    assert phone.serves() == 3, "it was believed when it came"
    release(served, publisher, 4)
    assert phone.follows() == 4 == phone.serves()


def test_the_same_root_given_again_takes_nothing_back(served, publisher, tmp_path):
    given = publisher.root()
    phone = Phone(tmp_path, served.url, given)
    with phone.home:
        publisher.tells("root", 2, publisher.root(2))
        assert phone.follows() == 3 and phone.home.trusted_set().root.version == 2
        phone.home.enrol(served.url, given.decode(), ByteCounter())
        assert phone.home.trusted_set().root.version == 2, "every run may name it"
        phone.home.enrol(served.url, publisher.root(1, time.time() + DAY).decode(), ByteCounter())
        assert phone.home.trusted_set().root.version == 1, "another one, by hand: the owner's word counts"


def test_a_root_that_its_own_people_have_not_signed_is_refused(served, publisher, phone):
    unfinished = publisher.root(2).replace(b'"version":2', b'"version":3')
    with pytest.raises(TrustError, match="it takes 2"):
        phone.home.enrol(served.url, unfinished.decode(), ByteCounter())
    assert phone.follows() == 3


def test_a_device_that_was_given_a_key_goes_on_as_before(served, publisher, tmp_path):
    phone = Phone(tmp_path, served.url, publisher.release.public.encode())
    with phone.home:
        assert phone.follows() == 3 and set(phone.asked) == {"bundle", "manifest"}
        assert phone.follows() == 3 and phone.asked["bundle"].down < 100, "a small no, though the server has documents"


def test_documents_are_for_caches_and_nothing_else_is_one(served, publisher):
    found = served.send("GET", "/v1/metadata/root/1")
    assert found.status == 200 and "immutable" in found.headers["Cache-Control"]
    for path in ("root/2", "root/0", "root/x", "other/1", "bundles/99999999999"):
        served.send("GET", f"/v1/metadata/{path}").problem(404)


def test_publisher_and_operator_do_it_by_hand(tmp_path, capsys):
    def coda(*words, status=0):
        assert main([str(word) for word in words]) == status, capsys.readouterr().err
        return capsys.readouterr()

    people = [coda("trust", "key", tmp_path / f"{name}.key").out.strip() for name in ("ada", "bob", "eve")]
    release_key = coda("trust", "key", tmp_path / "release.key").out.strip()
    answer = coda("release", "keys", "--home", tmp_path / "server").out.strip()
    keys = [word for public in people for word in ("--key", public)]
    root = tmp_path / "root-1.json"
    coda("trust", "root", *keys, "--threshold", 2, "--bundle-key", release_key, "--online", answer, "--out", root)
    assert "it takes 2" in coda("trust", "check", root, status=5).err
    for name in ("ada", "eve"):
        coda("trust", "sign", root, "--key", tmp_path / f"{name}.key")
    (tmp_path / "bundle").mkdir()
    ref = BundleRef(version=7, manifest="0" * 64, size=1, key=key_id(release_key), signature="")
    (tmp_path / "bundle" / "bundle.json").write_bytes(to_json(ref))
    listing = tmp_path / "bundles-1.json"
    assert "bundles 7" in coda("trust", "bundles", tmp_path / "bundle", "--out", listing).out
    home = ("--home", tmp_path / "server")
    assert "take in the root first" in coda("release", "trust", listing, *home, status=2).err
    assert "0 of the keys" in coda("release", "trust", root, listing, *home, status=5).err
    coda("trust", "sign", listing, "--key", tmp_path / "release.key")
    assert "list 1, until" in coda("trust", "check", root, "--bundles", listing).out
    assert "bundles 1" in coda("release", "trust", listing, *home).out
    second = tmp_path / "bundles-2.json"
    coda("trust", "bundles", "--after", listing, "--drop", 7, "--out", second)
    coda("trust", "sign", second, "--key", tmp_path / "release.key")
    coda("release", "trust", second, *home)
    assert "is not newer than 2" in coda("release", "trust", listing, *home, status=2).err
    with ServerHome(tmp_path / "server") as opened:
        stranger = Signer(SigningKey.generate()).public
        data = json.loads(root.read_text())["signed"]["roles"]["root"]["keys"]
        assert len(data) == 3 and list(opened.catalog.rollouts.documents("bundles")) == [1, 2]
        other = make_root(1, 2**40, root=[stranger], threshold=1, bundles=[stranger], online=[stranger])
        with pytest.raises(TrustError, match="does not follow"):
            add_document(opened, unsigned(other), time.time())


def _line():
    from cloud.catalog import AuditLine

    return AuditLine(1.0, "thief", "device", "pin", "", "", "theirs now")
