import dataclasses
import shutil
import time

import msgspec
import numpy as np
import pytest

from cloud.datasets import Dataset
from cloud.encoding import Encoder
from cloud.home import ServerHome, ingest, publish
from cloud.releases import Releases
from cloud.rollout import Rung
from device_runtime.cli import main
from device_runtime.errors import InputError, StoreError, TrustError
from device_runtime.messages import to_json
from export.package import read_ref
from tests.conftest import reversion


@pytest.fixture
def home(published, tmp_path):
    """A server that has the published bundle's answer key but no release yet."""
    (tmp_path / "server").mkdir()
    shutil.copy(published.home / "answer.key", tmp_path / "server" / "answer.key")
    with ServerHome(tmp_path / "server") as made:
        yield made


@pytest.fixture
def bundle(published, tmp_path):
    return shutil.copytree(published.bundle, tmp_path / "bundle")


def test_a_bundle_is_published_once(home, bundle):
    with pytest.raises(InputError, match="has no release yet; run `coda release publish"):
        home.release()
    assert publish(home, bundle).version == 2
    assert home.release()[1].name == "tastes"
    with pytest.raises(InputError, match="version 2, but 2 is out already; export with --bundle-version 3"):
        publish(home, bundle)


def test_a_staged_bundle_is_not_served_and_a_release_under_way_is_not_overtaken(home, bundle, published):
    publish(home, bundle)
    for version in (3, 4):
        reversion(bundle, published, version)
        if version == 3:
            publish(home, bundle, staged=True)
    assert home.release()[0].version == 2 and home.release(3)[1].version == 3
    with pytest.raises(InputError, match="no bundle of version 9"):
        home.release(9)
    me = {"who": "me", "why": "because"}
    releases = Releases(home.catalog, time.time)
    releases.create("next", 3, ladder=(Rung(name="100 %", share=1.0),), **me)
    with pytest.raises(InputError, match="release next is running and means every device"):
        publish(home, bundle)
    releases.act("next", "stop", **me)
    assert publish(home, bundle).version == 4 and home.release()[0].version == 4
    assert releases.policy().courses == {}, "the ended release would keep the newer bundle from its devices"


def test_a_pool_is_filled_for_a_bundle_before_its_release(home, bundle, published):
    publish(home, bundle)
    reversion(bundle, published, 3, encoder="e" * 16)
    publish(home, bundle, staged=True)
    dataset = Dataset.load(published.data)
    assert ingest(home, dataset, version=3) == len(dataset.events)
    assert len(home.pool(home.release(3)[1])) == len(dataset.events) and len(home.pool(home.release()[1])) == 0


def test_a_bundle_for_another_server_is_refused(bundle, tmp_path):
    with ServerHome(tmp_path / "other") as other, pytest.raises(InputError, match="another server's answer key"):
        publish(other, bundle)


def test_a_damaged_bundle_is_refused_whole(home, bundle):
    ref = read_ref(bundle)
    victim = next(path for path in sorted((bundle / "blobs").iterdir()) if path.name != ref.manifest)
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(TrustError, match="damaged"):
        publish(home, bundle)
    victim.unlink()
    with pytest.raises(TrustError, match="lacks the blob"):
        publish(home, bundle)
    assert home.catalog.current() is None and not home.blobs.folder.exists()
    victim.write_bytes(whole)
    (bundle / "bundle.json").write_bytes(to_json(msgspec.structs.replace(ref, signature="11" * 64)))
    with pytest.raises(TrustError, match="signature"):
        publish(home, bundle)
    (bundle / "bundle.json").unlink()
    with pytest.raises(InputError, match="not a whole bundle folder"):
        publish(home, bundle)


def test_the_pool_holds_every_sample_and_no_name(home, bundle, published):
    publish(home, bundle)
    dataset = Dataset.load(published.data)
    seen = []
    assert ingest(home, dataset, lambda done, total: seen.append((done, total))) == len(dataset.events)
    assert seen[-1] == (len(dataset.events), len(dataset.events))
    pool = home.pool(home.release()[1])
    assert len(pool) == len(dataset.events)
    tokens = np.concatenate([segment.contributors for segment in pool.segments])
    assert len(np.unique(tokens)) == len(np.unique(dataset.events.contributor))
    assert home.contributor("user:u1") in tokens and home.contributor("user:u0") not in tokens
    np.testing.assert_allclose(np.linalg.norm(pool.segments[0].embeddings, axis=1), 1, atol=1e-5)


def test_pseudonyms_depend_on_the_salt(home, tmp_path):
    assert home.contributor("user:u1") == home.contributor("user:u1") != home.contributor("user:u2")
    assert (home.path / "salt").stat().st_mode & 0o077 == 0
    with ServerHome(tmp_path / "other") as other:
        assert other.contributor("user:u1") != home.contributor("user:u1")


def test_data_of_another_vocabulary_is_refused(home, bundle, published):
    publish(home, bundle)
    dataset = Dataset.load(published.data)
    with pytest.raises(InputError, match="ingest the data that the model was trained on"):
        ingest(home, dataclasses.replace(dataset, items=dataset.items[:-1]))


def test_a_damaged_salt_is_refused_instead_of_used(tmp_path):
    with ServerHome(tmp_path / "server") as home:
        before = home.contributor("user:u1")
    with ServerHome(tmp_path / "server") as home:
        assert home.contributor("user:u1") == before
    (tmp_path / "server" / "salt").write_bytes(b"")
    with pytest.raises(StoreError, match="salt is damaged: it should have 32 bytes"):
        ServerHome(tmp_path / "server")


def test_secrets_are_readable_by_their_owner_only(tmp_path):
    with ServerHome(tmp_path / "server") as home:
        for name in ("salt", "answer.key"):
            assert (home.path / name).stat().st_mode & 0o777 == 0o600
        assert not list(home.path.glob(".new-*"))


def test_a_home_is_not_made_from_a_mistyped_folder(tmp_path):
    with pytest.raises(InputError, match="is not a server's home; make one with `coda release keys"):
        ServerHome(tmp_path / "typo", create=False)
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("key", [b"not hex", b"\xff\xfe", b""])
def test_a_release_key_that_is_none_is_refused(home, bundle, key):
    (bundle / "release.pub").write_bytes(key)
    with pytest.raises(InputError, match="not a whole bundle folder"):
        publish(home, bundle)


def test_publishing_mends_a_damaged_blob(home, bundle):
    ref = read_ref(bundle)
    home.blobs.write(ref.manifest, b"half")
    publish(home, bundle)
    assert home.release()[0] == ref


def test_rows_are_sent_only_for_shards_that_the_device_lacks(home, bundle):
    manifest = publish(home, bundle)
    encoder = Encoder(manifest, home.blobs)
    ids = np.array([1, 5, 9], np.int32)
    rows = encoder.rows(ids, np.zeros(0, np.int32))
    assert rows.ids.tolist() == [1, 5, 9] and set(rows.tensors) == set(manifest.tables["item"].tensors)
    every_shard = np.arange(len(manifest.tables["item"].shards), dtype=np.int32)
    assert len(encoder.rows(ids, every_shard).ids) == 0
    for outside in (0, manifest.tables["item"].rows):  # padding is the device's own
        with pytest.raises(InputError, match=f"id {outside} is not in the vocabulary"):
            encoder.rows(np.array([outside], np.int32), every_shard)


def test_the_pool_is_embedded_as_the_encoder_embeds_in_one_go(home, bundle, published):
    manifest = publish(home, bundle)
    ingest(home, Dataset.load(published.data))
    pool = home.pool(manifest)
    at = np.arange(0, len(pool), 97)
    again = Encoder(manifest, home.blobs).encode(pool.gather(at))
    np.testing.assert_allclose(again, pool.segments[0].embeddings[at], atol=1e-5)


def test_the_release_command(published, bundle, tmp_path, capsys):
    server = tmp_path / "server"
    assert main(["release", "publish", str(bundle), "--home", str(server)]) == 2
    assert main(["release", "keys", "--home", str(server)]) == 0
    with ServerHome(server) as made:
        assert capsys.readouterr().out == made.answer_signer.public + "\n"
    assert main(["release", "publish", str(bundle), "--home", str(server)]) == 2
    assert f"coda release keys --home {server}" in capsys.readouterr().err
    shutil.copy(published.home / "answer.key", server / "answer.key")
    assert main(["release", "publish", str(bundle), "--home", str(server)]) == 0
    assert main(["release", "list", "--home", str(server), "--json", str(tmp_path / "list.json")]) == 0
    assert "tastes  <- current" in capsys.readouterr().out
    rows = msgspec.json.decode((tmp_path / "list.json").read_bytes())["rows"]
    assert [row["ref"]["version"] for row in rows] == [2]
