import dataclasses
import json
import shutil

import msgspec
import numpy as np
import pytest
import torch

from device_runtime.bundle import BlobStore, RoundSettings, files_of, open_manifest, unpack_file
from device_runtime.directory import TENSOR
from device_runtime.engines import open_engine
from device_runtime.engines.selftest import self_test, trial
from device_runtime.errors import InputError, TrustError, WireError
from device_runtime.identity import Signer
from device_runtime.messages import to_json
from device_runtime.model import TASTE, Model
from device_runtime.query import centroids
from device_runtime.samples import Ragged, SampleBatch
from export.command import read_settings
from export.directory import clustered
from export.models.base import Catalogue
from export.models.lr import LR
from export.package import Source, build, read_ref, restate
from tests.toy import CATEGORIES, HISTORY, ITEMS, random_features


def _opened(folder):
    ref = read_ref(folder)
    stored = (folder / "blobs" / ref.manifest).read_bytes()
    return open_manifest(ref, stored, (folder / "release.pub").read_text().strip())


def test_a_bundle_opens_with_the_release_key_and_with_no_other(bundle, tmp_path):
    folder, manifest = bundle
    assert _opened(folder) == manifest
    ref = read_ref(folder)
    stored = (folder / "blobs" / ref.manifest).read_bytes()
    stranger = Signer.create(tmp_path / "key").public
    with pytest.raises(TrustError, match="but this device trusts"):
        open_manifest(ref, stored, stranger)


def test_a_changed_manifest_or_announcement_is_refused(bundle):
    folder, _ = bundle
    ref = read_ref(folder)
    trusted = (folder / "release.pub").read_text().strip()
    stored = (folder / "blobs" / ref.manifest).read_bytes()
    flipped = bytes([stored[0]]) + bytes([stored[1] ^ 1]) + stored[2:]
    with pytest.raises(TrustError, match="damaged"):
        open_manifest(ref, flipped, trusted)
    with pytest.raises(TrustError, match="says version 3, its announcement 4"):
        open_manifest(msgspec.structs.replace(ref, version=4), stored, trusted)
    with pytest.raises(TrustError, match="signature"):
        open_manifest(msgspec.structs.replace(ref, signature="00" * 64), stored, trusted)


def test_a_manifest_of_another_format_asks_for_an_update(bundle, tmp_path):
    from device_runtime.bundle import parse_manifest

    _, manifest = bundle
    other = json.loads(to_json(manifest)) | {"format": 4, "something": "new"}
    with pytest.raises(WireError, match="format 4; this program reads format 3"):
        parse_manifest(json.dumps(other).encode(), 3)


def test_every_blob_is_whole_and_a_damaged_one_is_refused(bundle, tmp_path):
    folder, manifest = bundle
    store = BlobStore(folder / "blobs")
    refs = {**files_of(manifest, "onnx"), **files_of(manifest, "executorch")}
    refs |= {f"shard {i}": ref for i, ref in enumerate(manifest.tables["item"].shards)}
    for ref in refs.values():
        assert len(store.read(ref)) == ref.raw_size
    ref = manifest.weights
    stored = bytearray(store.path(ref.sha256).read_bytes())
    stored[10] ^= 4
    with pytest.raises(TrustError, match="damaged"):
        unpack_file(ref, bytes(stored))
    with pytest.raises(TrustError, match="damaged"):
        unpack_file(ref, bytes(stored[:-1]))
    with pytest.raises(WireError, match="choose another engine"):
        files_of(manifest, "tensorflow")


def test_tastes_travel_as_bytes_beside_the_rows_that_graphs_take(small_din, tmp_path, rng):
    taste = rng.normal(size=(ITEMS, 5)).astype(np.float32)
    taste[0] = 0
    keys = ["", *(f"item-{i}" for i in range(1, ITEMS))]
    source = Source("toy", "DIN", small_din, keys, None, {}, RoundSettings(), tastes=taste)
    signer, onnx = Signer.create(tmp_path / "key"), open_engine("onnx")
    built = {"version": 1, "signer": signer, "answer_key": signer.public, "engines": [onnx]}
    built["progress"] = lambda _: None
    manifest = build(source, tmp_path / "bundle", **built)
    assert {TASTE, "scale:" + TASTE} < set(manifest.tables["item"].tensors)
    model = Model.open(manifest, onnx, BlobStore(tmp_path / "bundle" / "blobs"))
    table = model.table(np.arange(1, ITEMS, dtype=np.int32), model.base)
    np.testing.assert_allclose(table.tensors[TASTE], taste, atol=np.abs(taste).max() / 120)
    assert model.shard(0).tensors[TASTE].dtype == np.int8
    assert all(TASTE not in {t.name for t in entry.spec.inputs} for entry in manifest.graphs.values())
    plain = build(dataclasses.replace(source, tastes=None), tmp_path / "plain", **built)
    assert plain.encoder == manifest.encoder and TASTE not in plain.tables["item"].tensors


def validated(schema, rng, count):
    """Samples such as a model is validated on."""
    starts, lengths = rng.integers(0, 40, count).astype(np.int32), np.full(count, HISTORY, np.int32)
    history = Ragged(rng.integers(1, ITEMS, 60).astype(np.int32), starts, lengths)
    columns = {"item": rng.integers(1, ITEMS, count).astype(np.int32), "history": history}
    return SampleBatch(schema, columns, rng.integers(0, 2, count).astype(np.float32))


def test_only_a_bundle_that_matches_by_directory_has_one(small_din, tmp_path, rng):
    held_out = validated(small_din.schema, rng, 900)
    keys = ["", *(f"item-{i}" for i in range(1, ITEMS))]
    plain = Source("toy", "DIN", small_din, keys, None, {}, RoundSettings(), held_out=held_out)
    source = dataclasses.replace(plain, settings=RoundSettings(matching="directory"))
    signer, onnx = Signer.create(tmp_path / "key"), open_engine("onnx")
    built = {"version": 1, "signer": signer, "answer_key": signer.public, "engines": [onnx]}
    built["progress"] = lambda _: None
    manifest = build(source, tmp_path / "bundle", **built)
    blobs = BlobStore(tmp_path / "bundle" / "blobs")
    model = Model.open(manifest, onnx, blobs)
    found = model.directory.centroids
    assert 2 <= len(found) <= 900 // 32 and found.shape[1] == manifest.width
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)
    mine = model.encode(held_out, model.table(held_out.ids("item"), model.base))
    members = np.bincount((mine @ found.T).argmax(1), minlength=len(found))
    assert members.min() >= 8, "no centroid is of a few samples"
    assert TENSOR not in model.base.dense, "nothing trains it, and no personal weights carry it"

    again = build(source, tmp_path / "again", **built)
    assert again.weights == manifest.weights, "the same of the same model and samples"
    other = build(plain, tmp_path / "plain", **built)
    assert other.weights.raw_size < manifest.weights.raw_size and other.encoder == manifest.encoder
    opened = Model.open(other, onnx, BlobStore(tmp_path / "plain" / "blobs"))
    assert opened.directory is None
    changed = msgspec.structs.replace(other, settings=source.settings)
    with pytest.raises(InputError, match="has no directory to match by"):
        restate(changed, BlobStore(tmp_path / "plain" / "blobs"), tmp_path / "restated", signer)
    restate(msgspec.structs.replace(manifest, version=2), blobs, tmp_path / "restated", signer)
    with pytest.raises(InputError, match="beside the model there are too few"):
        build(dataclasses.replace(source, held_out=None), tmp_path / "none", **built)


def test_centroids_of_a_few_samples_are_left_out(rng):
    """Three heaps, and five samples that are like nobody's, of which k-means makes centroids of their own."""
    heaps = np.eye(8)[rng.integers(0, 3, 251)] + 0.01 * rng.normal(size=(251, 8))
    lonely = np.eye(8)[3:]
    points = np.concatenate((heaps, lonely)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    assert (centroids(points, 8, np.random.default_rng(0)) @ lonely.T).max() > 0.99
    found = clustered(points)
    assert found.dtype == np.float16 and (found @ lonely.T).max() < 0.9
    assert (found @ np.eye(8)[:3].T).max(0).min() > 0.99, "the heaps are there"
    assert clustered(np.eye(7, dtype=np.float32)) is None, "seven samples are nobody's crowd"


def test_rows_may_carry_fractions_that_do_not_train(small_din, tmp_path):
    """As LR's codes of items do."""
    catalogue = Catalogue(ITEMS, CATEGORIES, small_din.item_categories)
    keys = ["", *(f"item-{i}" for i in range(1, ITEMS))]
    source = Source("toy", "LR", LR(catalogue, history=HISTORY, code=4), keys, 4.0, {}, RoundSettings())
    signer = Signer.create(tmp_path / "release.key")
    onnx = open_engine("onnx")
    manifest = build(
        source,
        tmp_path / "bundle",
        version=1,
        signer=signer,
        answer_key=signer.public,
        engines=[onnx],
        progress=lambda _: None,
    )
    golden = manifest.graphs["step"].golden
    assert set(golden.largest) == {"item_categories"} and "code" in manifest.tables["item"].tensors
    model = Model.open(manifest, onnx, BlobStore(tmp_path / "bundle" / "blobs"))
    values, batch = trial(manifest.graphs["step"].spec, model.base.dense, golden.largest)
    self_test(onnx, model.graph("step"), values, batch, source.settings.rate, golden)


def test_a_bundle_without_weights_is_small(published):
    """DIN as `coda train` and `coda export` make it by default, but for the length of histories, which does not count:
    41,118 bytes at 50. To stay below 60 KB with room for what graphs may need."""
    manifest = _opened(published.bundle)
    assert manifest.model == "DIN"
    graphs = sum(f.file.size for g in manifest.graphs.values() for f in g.files.values())
    assert {form for g in manifest.graphs.values() for form in g.files} == {"onnx", "executorch"}
    assert graphs + read_ref(published.bundle).size < 50_000


def test_the_manifest_says_what_a_self_test_should_see(bundle):
    _, manifest = bundle
    golden = {name: entry.golden for name, entry in manifest.graphs.items() if entry.golden}
    assert set(golden) == {"step", "classifier_step"}
    for name, one in golden.items():
        assert one.losses[-1] < one.losses[0], name
        assert set(one.moved) == set(manifest.graphs[name].spec.carry.values())
        assert min(one.moved.values()) >= 0 < max(one.moved.values())
    assert set(golden["step"].largest) == {"item_categories"} and not golden["classifier_step"].largest


@pytest.mark.parametrize("engine", ["onnx", "executorch", "reference"])
def test_an_opened_model_scores_as_the_module_does(bundle, small_din, rng, engine):
    folder, manifest = bundle
    model = Model.open(manifest, open_engine(engine), BlobStore(folder / "blobs"))
    features = random_features(rng, 150)
    lengths = (features["history"] != 0).sum(1)
    flat = features["history"][features["history"] != 0].astype(np.int32)
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    samples = SampleBatch(
        manifest.schema,
        {
            "item": features["item"].astype(np.int32),
            "history": Ragged(flat, starts.astype(np.int32), lengths.astype(np.int32)),
        },
        np.zeros(150, np.float32),
    )
    table = model.table(samples.ids("item"), model.base)
    given = {n: torch.from_numpy(v) for n, v in features.items()}
    with torch.no_grad():
        # rows travel in half precision, so the module is compared with its rows rounded likewise
        rounded = {"item.weight": small_din.item.weight.half().float()}
        logit = torch.func.functional_call(small_din, rounded, (), given).numpy()
    np.testing.assert_allclose(model.logits(samples, table, model.base), logit, atol=1e-5)
    embedding = model.encode(samples, table)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-5)


def test_every_item_is_in_the_shard_that_its_key_names(bundle):
    folder, manifest = bundle
    model = Model.open(manifest, open_engine("onnx"), BlobStore(folder / "blobs"))
    keys = [f"item-{i}" for i in range(1, ITEMS)]
    assert model.ids_of([*keys, "no such item"]) == {key: i + 1 for i, key in enumerate(keys)}


def test_what_cannot_be_packaged_is_refused(bundle, small_din, tmp_path):
    folder, _ = bundle
    source = Source("toy", "DIN", small_din, [""], None, {}, RoundSettings())
    signer = Signer.create(tmp_path / "key")
    common = {"signer": signer, "engines": [], "progress": print}
    with pytest.raises(InputError, match="holds a bundle already"):
        build(source, folder, version=1, answer_key="ab" * 32, **common)
    with pytest.raises(InputError, match="counts from 1"):
        build(source, tmp_path / "new", version=0, answer_key="ab" * 32, **common)
    with pytest.raises(InputError, match="64 hex digits"):
        build(source, tmp_path / "new", version=1, answer_key="nonsense", **common)
    shutil.rmtree(tmp_path / "empty", ignore_errors=True)
    with pytest.raises(InputError, match="coda export"):
        read_ref(tmp_path / "empty")


def test_settings_come_from_a_file_that_is_checked(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"candidates": 50}')
    assert read_settings(path) == RoundSettings(candidates=50)
    path.write_text('{"candidate": 50}')
    with pytest.raises(InputError, match="candidate"):
        read_settings(path)
    with pytest.raises(InputError, match="cannot read"):
        read_settings(tmp_path / "absent")
