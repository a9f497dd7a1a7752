import dataclasses
import shutil

import msgspec
import numpy as np
import pytest

from cloud.datasets import Dataset
from cloud.home import ServerHome, ingest, publish
from device_runtime.errors import InputError, TrustError
from device_runtime.messages import to_json
from export.package import read_ref


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
