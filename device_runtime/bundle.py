"""Bundles: a signed manifest and the content-addressed files that it names.

A blob is stored and sent under the sha256 of its stored form (mostly zstd), so that it can be checked while it
arrives, resumed by Range and cached for ever. Verification is pure: bytes in, verdict out.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import zstandard
from safetensors.numpy import load as load_safetensors

from device_runtime.engines.spec import GraphSpec
from device_runtime.errors import StoreError, TrustError, WireError
from device_runtime.identity import key_id, verify
from device_runtime.messages import BundleRef
from device_runtime.samples import Schema

FORMAT = 3
MAX_FILE = 256 << 20
"""Bytes of one file after decompression, at most."""


class FileRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A blob. sha256 and size are of its stored form; raw_size of the file itself.

    raw_sha256: of the file itself, where it may be made on the device of another one (`delta`); "" where it may not.
    """

    sha256: str
    size: int
    raw_size: int
    codec: Literal["zstd", "none"]
    raw_sha256: str = ""

    @property
    def plain(self) -> FileRef | None:
        """The file itself as a blob, which is what a device keeps of one that it has made; None without its hash."""
        return FileRef(self.raw_sha256, self.raw_size, self.raw_size, "none") if self.raw_sha256 else None


class Parity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the exporter measured of a graph on an engine against autograd in float64.

    worst: the largest difference, relative to the tensor's largest magnitude where that exceeds 1; tensor: where.
    """

    engine_version: str
    worst: float
    tensor: str
    tolerance: float
    steps: int


class GraphFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """steps: training steps that one call takes, at most; 0 where the file takes a batch as the entry's spec has it."""

    file: FileRef
    parity: Parity
    steps: int = 0


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the exporter saw of a step graph in a self-test (`engines.selftest`), which a device takes again.

    losses: before each step. moved: carried tensor -> its largest change in all of them. largest: attribute of a
    table's rows -> the largest number in it, which bounds made-up rows.
    """

    losses: tuple[float, ...]
    moved: dict[str, float]
    largest: dict[str, int] = {}


class GraphEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One graph, lowered for several engines. files: by an engine's `format`. golden: of a step graph."""

    spec: GraphSpec
    files: dict[str, GraphFile]
    golden: Golden | None = None

    def spec_of(self, engine_format: str) -> GraphSpec:
        """What the file for an engine takes and gives."""
        steps = self.files[engine_format].steps
        return self.spec.stacked(steps) if steps else self.spec


class TableEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows of a vocabulary, in shards by hash of the external key (`shard_of`).

    A device that wants the rows of its own items asks for whole shards, so the cloud does not learn which items
    those are. Each shard is a safetensors file: `ids` int32 [n] ascending, `keys` uint8 (UTF-8, joined), `key_ends`
    int32 [n], and the sliced tensors [n, ...]: float16 weights, or int8 with `scale:NAME` float16 [n] (`quantized`) and
    int32 attributes. tensors: names of all of these, scales too. rows: of the whole vocabulary, padding included.
    """

    rows: int
    tensors: tuple[str, ...]
    shards: tuple[FileRef, ...]


class RoundSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a device runs a round. The defaults are those of the exporter; a bundle carries its own.

    min_local: fewer labelled local samples than this, and no round is run. holdout: share of the newest local samples
    that the judge sees and training never does.

    matching: what the cloud answers. "nearest": the samples nearest to `centroids` of the local ones, as they are.
    "pooled": one sample an item, which says by how much labels differ from the cloud model's predictions, contributors
    near the user's profile weighing most (docs/adr/0008). "directory": samples of those parts of the bundle's directory
    that the local ones are near to; the query has a weight for each part, and no vector (docs/adr/0018). candidates:
    samples in the answer, at most. cover: of pooled ones there are only as many as are needed for this share of what
    all would change (docs/adr/0023). answer_bytes: of the answer, for which the cloud sends fewer; 0 is no bound.
    neighbours: samples of the pool, nearest to the profile, that weigh in pooled labels. core: the rank up to which
    they weigh 1 each; after it weights fall as exp(-sharpness * lack of similarity), as do those of a directory's parts
    for a local sample, and the odds of a sample within its part. shrinkage, near_shrinkage, age_shrinkage: samples as
    predicted, at even odds, that an item's offset over the pool is shrunk by, and that over neighbours, and that of all
    items of an age, which the first is shrunk toward. half_life: days after which a sample of the pool counts half in
    an item's offset, 0 for never. fitted_until: seconds; samples of the pool up to then are what the model was fitted
    on, and count `fitted_weight` in an item's offset and nothing in that of an age (docs/adr/0029). None for shrinkage,
    age_shrinkage, half_life or fitted_until leaves it to what training found (`Found`). tastes: pooled candidates are
    also moved by what the user's own labels say of them (docs/adr/0010).

    classifier_epochs, classifier_rate: of the filter's training; 0 epochs leave the classifier out. classifier_label:
    it sees labels, so that its boundary is one of what the user meets and likes, not only meets. calibration: its
    scores are calibrated on local samples that it has not seen. threshold: candidates below this probability of being
    the user's own are dropped. keep: share of the candidates that is kept, at most: those that are worth most
    (`filtering`). ratio_bound: how many times as likely, or as unlikely, the classifier may call a candidate.
    density_weights: kept samples weigh by their probability of being the user's own, instead of 1 each.

    outside_weight: of a kept sample, before its density weight, a local one being 1. label_correction: before tuning,
    the mean of the labels is moved to that of the model's own predictions, for local and kept samples apart, so that
    tuning does not drift to a user's click rate (arXiv 2211.01163). epochs, rate: passes, at most, and learning rate.
    patience: passes end early, this many after the one that predicted held-out samples best, and its weights are taken;
    0 is never. table_rate: learning rate of the items' rows: a batch mentions an item hardly more than once, so its
    mean gradient is small.
    interpolation: share of the way from the cloud's weights to the tuned ones that is gone.
    freeze_histories: tuning moves an item's row as the item that is shown, not as a part of histories, and rows of
    the user's own items are put back: their labels are known, and every later history would carry the change.
    row_steps: kept samples do not join the passes; instead, this many secant steps afterwards move the rows of their
    items toward their soft labels, by `table_rate` as a probe (docs/adr/0010). 0: they join the passes. row_share: how
    far, in logits: a part of the way gives most of the gain, and scatters less over users.
    judge: whether held-out samples may refuse the result. tolerance: standard errors by which the held-out loss may be
    worse without that being taken as evidence of harm, for many samples. partial: where there is such evidence, weights
    at this share of the way from the bundle's to the tuned ones are judged in their place; 0 is all or nothing.
    learn_held_out: weights that may serve are tuned anew on all local samples, the held-out ones too, which are the
    newest.
    """

    matching: Literal["nearest", "pooled", "directory"] = "pooled"
    centroids: int = 8
    candidates: int = 8000
    cover: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.98
    answer_bytes: int = 0
    neighbours: int = 4096
    core: int = 500
    sharpness: float = 12.0
    shrinkage: Annotated[float, msgspec.Meta(ge=0)] | None = None
    near_shrinkage: float = 30.0
    age_shrinkage: Annotated[float, msgspec.Meta(ge=0)] | None = None
    half_life: Annotated[float, msgspec.Meta(ge=0)] | None = None
    fitted_until: Annotated[float, msgspec.Meta(ge=0)] | None = None
    fitted_weight: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    tastes: bool = True
    min_local: int = 4
    holdout: float = 0.2
    classifier_epochs: int = 5
    classifier_rate: float = 0.01
    classifier_label: bool = True
    calibration: bool = False
    threshold: float = 0.0
    keep: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.9
    ratio_bound: float = 20.0
    density_weights: bool = False
    outside_weight: float = 2.0
    label_correction: bool = False
    epochs: int = 3
    patience: Annotated[int, msgspec.Meta(ge=0)] = 0
    rate: float = 0.05
    table_rate: float = 0.05
    interpolation: float = 1.0
    freeze_histories: bool = True
    row_steps: int = 2
    row_share: float = 0.75
    judge: bool = True
    tolerance: float = 2.0
    partial: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.5
    learn_held_out: bool = True


class Found(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What training found of a pool's offsets, in days and in samples (`cloud/drift.py`, `cloud/shrinkage.py`), and
    the time in seconds up to which it fitted the model's weights.

    Every model has its own: beside the settings, which one bundle takes over from another. The defaults are for a model
    that nobody has measured.
    """

    half_life: float = 0.0
    shrinkage: float = 10.0
    age_shrinkage: float = 1000.0
    fitted_until: float = 0.0

    def completing(self, settings: RoundSettings) -> RoundSettings:
        """The settings, with these numbers where they leave them to training."""
        left = {n: getattr(self, n) for n in self.__struct_fields__ if getattr(settings, n) is None}
        return msgspec.structs.replace(settings, **left)


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the bundle's `step` graph trains the recommender: fixed at export, and stated for whoever runs it.

    momentum: of sgd, 0 for none. weight_decay: adamw decouples it, the others add it to the gradient. clip: global norm
    of the gradient, at most (5: MPDA, KDD 2022); 0 for no clipping. train: what moves: `all`, `embeddings`, `head`,
    `lowrank:R` (patches of rank R beside dense layers) or `patch` (a scale and a shift for each dense layer).
    """

    optimizer: Literal["sgd", "adam", "adamw", "adagrad"] = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float = 5.0
    train: str = "all"


WeightForm = Literal["fp32", "fp16", "int8"]
"""How weights are stored; `quantized` says how bytes are. Item rows are never stored wider than fp16."""


class RankWeights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the recommender's weights are stored, and what the exporter measured that to cost, against float32.

    samples: that logits were compared on. max_logit_difference: the largest. auc_change: of the AUC on held-out
    samples; None where none were given, or of one class only.
    """

    form: WeightForm = "fp32"
    samples: int = 0
    max_logit_difference: float = 0.0
    auc_change: float | None = None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything a device needs to know about a model.

    encoder: digest of the encode graph's meaning; queries and pools carry it. width: of an embedding; its columns from
    filter_from on describe the impression itself, and they are what the filter sees. answer_key: the public key under
    which the server signs per-user answers. positive_at: the least rating that is labelled 1, for events that carry
    ratings. weights: safetensors of the recommender's unsliced tensors by name, and `padding:NAME`, row 0 of each
    sliced tensor; as narrow as rank_weights says; and `directory.TENSOR` where the settings match by it. classifier:
    the filter's initial weights. metrics: of the cloud model on its validation period, for information.
    """

    format: int
    name: str
    version: int
    created: str
    model: str
    schema: Schema
    encoder: str
    width: int
    filter_from: int
    graphs: dict[str, GraphEntry]
    weights: FileRef
    classifier: FileRef
    tables: dict[str, TableEntry]
    settings: RoundSettings
    answer_key: str
    found: Found = Found()
    training: Training = Training()
    rank_weights: RankWeights = RankWeights()
    positive_at: float | None = None
    metrics: dict[str, float] = {}


def pack_file(data: bytes, changes: bool = False) -> tuple[FileRef, bytes]:
    """The reference and the stored form of a file. changes: it is one that may be made of another one by a delta."""
    squeezed = zstandard.ZstdCompressor(level=19, write_content_size=True).compress(data)
    codec: Literal["zstd", "none"] = "zstd" if len(squeezed) < len(data) else "none"
    stored = squeezed if codec == "zstd" else data
    raw = hashlib.sha256(data).hexdigest() if changes else ""
    return FileRef(hashlib.sha256(stored).hexdigest(), len(stored), len(data), codec, raw), stored


def unpack_file(ref: FileRef, stored: bytes) -> bytes:
    """The file itself, after checking that the blob is the one named.

    Raises:
        TrustError: it is not.
    """
    if len(stored) != ref.size or hashlib.sha256(stored).hexdigest() != ref.sha256:
        raise TrustError(
            f"blob {ref.sha256[:12]}… is damaged or is another file: {len(stored)} bytes, {ref.size} expected"
        )
    if ref.codec == "none":
        return stored
    if ref.raw_size > MAX_FILE:
        raise TrustError(f"blob {ref.sha256[:12]}… claims {ref.raw_size} bytes; at most {MAX_FILE} are allowed")
    try:
        data = zstandard.ZstdDecompressor().decompress(stored, max_output_size=ref.raw_size)
    except zstandard.ZstdError as error:
        raise TrustError(f"blob {ref.sha256[:12]}… does not decompress: {error}") from None
    if len(data) != ref.raw_size:
        raise TrustError(f"blob {ref.sha256[:12]}… holds {len(data)} bytes; the manifest says {ref.raw_size}")
    return data


def open_manifest(ref: BundleRef, stored: bytes, trusted: str) -> Manifest:
    """Decode a manifest after verifying that the trusted key signed it.

    stored: the manifest's blob. trusted: the public key that this device was given, hex.

    Raises:
        TrustError: another key, another blob, a bad signature, or a manifest that is not what the reference says.
        WireError: a signed manifest in a format that this program does not read.
    """
    if ref.key != key_id(trusted):
        raise TrustError(
            f"the bundle is signed by key {ref.key}, but this device trusts {key_id(trusted)}; "
            "if the publisher changed keys, enrol the device again with the new one"
        )
    if hashlib.sha256(stored).hexdigest() != ref.manifest:
        raise TrustError("the manifest is damaged, or is not the one that was announced")
    try:
        data = zstandard.ZstdDecompressor().decompress(stored, max_output_size=16 << 20)
    except zstandard.ZstdError as error:
        raise TrustError(f"the manifest does not decompress: {error}") from None
    verify(trusted, data, ref.signature)
    return parse_manifest(data, ref.version)


def parse_manifest(data: bytes, version: int) -> Manifest:
    """Decode a manifest whose bytes are already trusted. Raises: WireError, TrustError."""
    try:
        stated = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        found = msgspec.json.decode(stated.get("format", msgspec.Raw(b"null")))
        if found != FORMAT:
            raise WireError(f"the bundle has format {found}; this program reads format {FORMAT}: update the older side")
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise WireError(f"the manifest does not decode: {error}") from None
    if manifest.version != version:
        raise TrustError(f"the manifest says version {manifest.version}, its announcement {version}")
    return manifest


def files_of(manifest: Manifest, engine_format: str) -> dict[str, FileRef]:
    """What a device with this engine must hold before it can use the bundle; shards come later, as needed."""
    needed = {"weights": manifest.weights, "classifier": manifest.classifier}
    for name, graph in manifest.graphs.items():
        if engine_format not in graph.files:
            raise WireError(f"the bundle has no {engine_format} file for the graph {name!r}; choose another engine")
        needed[f"graph {name}"] = graph.files[engine_format].file
    return needed


def read_tensors(data: bytes, what: str) -> dict[str, npt.NDArray[np.generic]]:
    """Raises: WireError: not safetensors."""
    try:
        tensors: Mapping[str, npt.NDArray[np.generic]] = load_safetensors(data)
    except Exception as error:  # the library raises its own SafetensorError, KeyError and ValueError
        raise WireError(f"{what} is not a readable safetensors file: {error}") from None
    return dict(tensors)


class BlobStore:
    """Blobs in a folder, by sha256. Written under a temporary name and renamed, so a blob that exists is whole. A file
    may be there as its blob, or in plain where a device has made it of another one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, sha256: str) -> Path:
        return self.folder / sha256

    def has(self, ref: FileRef) -> bool:
        return self._has(ref) or (ref.plain is not None and self._has(ref.plain))

    def _has(self, ref: FileRef) -> bool:
        path = self.path(ref.sha256)
        return path.exists() and path.stat().st_size == ref.size

    def read(self, ref: FileRef) -> bytes:
        """The file itself, verified. Raises: TrustError, StoreError."""
        if ref.plain is not None and not self._has(ref) and self._has(ref.plain):
            ref = ref.plain
        try:
            stored = self.path(ref.sha256).read_bytes()
        except OSError as error:
            raise StoreError(f"cannot read blob {ref.sha256[:12]}… in {self.folder}: {error.strerror}") from None
        return unpack_file(ref, stored)

    def write(self, sha256: str, stored: bytes) -> None:
        """Raises: StoreError: the disk refused; nothing else in the store has changed."""
        write_atomically(self.path(sha256), stored)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut.

    Raises:
        StoreError: the disk refused; a file that was there before is unchanged.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
            temporary = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error.strerror}; free some space or choose another folder") from None


def move_durably(source: Path, target: Path) -> None:
    """Rename a whole file within one disk; it is at one of the two places also after a power cut.

    Raises:
        StoreError: the disk refused, or there is no such file.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise StoreError(f"cannot move {source} to {target}: {error.strerror}; check that it can be written") from None


def sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder durable. Raises: OSError."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
