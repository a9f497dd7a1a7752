"""A trained model -> a signed bundle: lowered graphs, their parity, weights, item shards, manifest."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors.numpy import save as save_safetensors
from torch import nn

from device_runtime.bundle import (
    FORMAT,
    BlobStore,
    FileRef,
    Found,
    Golden,
    GraphEntry,
    GraphFile,
    Manifest,
    RoundSettings,
    TableEntry,
    Training,
    WeightForm,
    pack_file,
    read_tensors,
    write_atomically,
)
from device_runtime.directory import TENSOR
from device_runtime.engines import Array, Engine
from device_runtime.engines.selftest import golden_steps, self_test, trial
from device_runtime.engines.spec import GraphSpec
from device_runtime.errors import InputError
from device_runtime.identity import Signer, check_public_key, key_id
from device_runtime.messages import BundleRef, to_json
from device_runtime.model import TASTE
from device_runtime.quantized import SCALE, widened
from device_runtime.samples import Float32, SampleBatch
from device_runtime.tables import Shard, shard_of
from export.audit import audited
from export.checkpoint import Trained
from export.directory import LEAST, directory_of
from export.graphs import GraphPlan, classifier_plans, logits_of, recommender_plans
from export.lowering import to_executorch, to_onnx
from export.models.base import Recommender
from export.models.classifier import SampleClassifier
from export.parity import Oracle, check
from export.quantize import loss_of, narrowed
from export.scan import scan_steps
from export.step import Adam, Step
from export.training import EPSILON, prepare

SHARD_ITEMS = 1024
"""Items in a shard, about: the anonymity set of a device that asks for one."""
STEPS_IN_A_CALL = {"step": 16, "classifier_step": 64}
"""Training steps that a call takes at most, where the engine has a loop of its own (ADR 0006). A device that is to give
way does so between calls, so that the recommender's steps, which take longer, are fewer."""
CLIP = Training().clip
"""Global norm at which fine-tuning clips unless the bundle's declaration says otherwise."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """What there is to package.

    keys: external item keys by vocabulary id; keys[0] is padding and ignored. rank_weights: how weights are stored.
    held_out: labelled samples that the model was not trained on, on which the cost of that in AUC is measured. tastes:
    float32 [items, width], rows that no graph takes (`cloud/tastes.py`).
    """

    name: str
    model_name: str
    model: Recommender
    keys: Sequence[str]
    positive_at: float | None
    metrics: Mapping[str, float]
    settings: RoundSettings
    training: Training = field(default_factory=Training)
    rank_weights: WeightForm = "fp32"
    held_out: SampleBatch | None = None
    tastes: Float32 | None = None
    found: Found = field(default_factory=Found)

    @classmethod
    def of(
        cls,
        trained: Trained,
        settings: RoundSettings,
        training: Training | None = None,
        rank_weights: WeightForm = "fp32",
    ) -> Source:
        """What `coda train` made."""
        state = trained.state
        return cls(
            state.dataset,
            state.settings.model,
            trained.model,
            state.keys,
            state.positive_at,
            trained.metrics,
            settings,
            training or Training(),
            rank_weights,
            trained.held_out,
            trained.tastes,
            trained.found,
        )


def build(
    source: Source,
    out: Path,
    *,
    version: int,
    signer: Signer,
    answer_key: str,
    engines: Sequence[Engine],
    progress: Progress,
) -> Manifest:
    """Write a bundle folder: `bundle.json`, `release.pub`, `blobs/`.

    engines: the graphs are lowered to each one's format and checked on it against autograd.

    Raises:
        InputError: the folder holds a bundle already, a version or key is not usable, the training declaration does
            not hold for the model, or a weight cannot be stored as asked.
        EngineError: an engine lacks an operator, or a graph fails parity or a device's self-test. Nothing is
            announced: `bundle.json` comes last.
    """
    answer_key = check_public_key(answer_key)
    if version < 1:
        raise InputError(f"a bundle's version counts from 1; given: {version}")
    if (out / "bundle.json").exists():
        raise InputError(f"{out} holds a bundle already; a bundle never changes: choose another folder")
    blobs: dict[str, bytes] = {}

    def keep(data: bytes, changes: bool = False) -> FileRef:
        ref, stored = pack_file(data, changes)
        blobs[ref.sha256] = stored
        return ref

    model, step = prepare(source.model.eval(), source.training)
    held = {n: t.detach().numpy() for n, t in (*model.named_parameters(), *model.named_buffers())}
    dense = narrowed({n: t for n, t in held.items() if n not in model.sliced}, source.rank_weights, rows=False)
    rows = narrowed({n: held[n] for n in model.sliced}, source.rank_weights, rows=True)
    rank_weights = loss_of(model, dense | rows, source.rank_weights, source.held_out)
    if source.tastes is not None:
        rows |= narrowed({TASTE: source.tastes}, "int8", rows=True)
    torch.manual_seed(1)  # the same in every version: devices have these weights already
    classifier = SampleClassifier(model.width - model.filter_from)
    trials = {
        "step": (widened(dense), source.settings.rate),
        "classifier_step": (
            {n: p.detach().numpy() for n, p in classifier.named_parameters()},
            source.settings.classifier_rate,
        ),
    }
    largest = {n: int(t.max(initial=0)) for n, t in rows.items() if held.get(n, t).dtype.kind == "i"}
    graphs = _lower(model, step, classifier, engines, trials, largest, keep, progress)
    progress("packing weights")
    parts = _directory(model, source) if source.settings.matching == "directory" else {}
    weights = keep(_tensors(dense | {f"padding:{n}": t[:1] for n, t in rows.items()} | parts), changes=True)
    encode = graphs["encode"]
    used = {t.name for t in encode.spec.of("param", "attribute")}
    manifest = Manifest(
        format=FORMAT,
        name=source.name,
        version=version,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        model=source.model_name,
        schema=model.schema,
        encoder=_digest({n: t for n, t in (dense | rows).items() if n.removeprefix(SCALE) in used}),
        width=model.width,
        filter_from=model.filter_from,
        graphs=graphs,
        weights=weights,
        classifier=keep(_tensors({n: p.detach().numpy() for n, p in classifier.named_parameters()})),
        tables={"item": TableEntry(len(source.keys), tuple(rows), _shards(source.keys, rows, keep))},
        settings=source.settings,
        answer_key=answer_key,
        found=source.found,
        training=source.training,
        rank_weights=rank_weights,
        positive_at=source.positive_at,
        metrics=dict(source.metrics),
    )
    for sha256, data in blobs.items():
        write_atomically(out / "blobs" / sha256, data)
    _announce(manifest, out, signer)
    return manifest


def _directory(model: Recommender, source: Source) -> dict[str, Array]:
    """Raises: InputError: it cannot be made."""
    found = directory_of(model, source.held_out)
    if found is None:
        raise InputError(
            "a directory is made of samples that the model was validated on, and beside the model there are too few of "
            f"them, or no {LEAST} alike; train on more, or export with another matching"
        )
    return {TENSOR: found}


def _lower(
    model: Recommender,
    tune: Step,
    classifier: SampleClassifier,
    engines: Sequence[Engine],
    trials: Mapping[str, tuple[Mapping[str, Array], float]],
    largest: Mapping[str, int],
    keep: Callable[[bytes], FileRef],
    progress: Progress,
) -> dict[str, GraphEntry]:
    """trials: step graph -> (its unsliced weights, the rate that devices train at). largest: see `Golden`."""
    separate = Step(logits_of(classifier), tuple(n for n, _ in classifier.named_parameters()), Adam(epsilon=EPSILON))
    plans: list[tuple[GraphPlan, nn.Module, Step]] = [(p, model, tune) for p in recommender_plans(model, tune)]
    plans += [(p, classifier, separate) for p in classifier_plans(classifier, separate)]
    lower = {"onnx": to_onnx, "executorch": to_executorch}
    entries = {}
    with tempfile.TemporaryDirectory(prefix="coda-export-") as folder:
        for plan, module, step in plans:
            oracle = Oracle(module, step if plan.spec.carry else None)
            traced = audited(plan, [engine.format for engine in engines])
            files: dict[str, GraphFile] = {}
            golden: Golden | None = None
            for engine in engines:
                progress(f"lowering {plan.name} for {engine.name}")
                steps = STEPS_IN_A_CALL[plan.name] if plan.spec.carry else 0
                loop = steps and engine.format == "onnx"  # ExecuTorch's shim runs a graph of one step as often
                data = scan_steps(traced) if loop else lower[engine.format](traced)
                path = Path(folder) / f"{plan.name}.{engine.format}"
                path.write_bytes(data)
                files[engine.format] = GraphFile(keep(data), check(traced.plan, oracle, engine, path, steps), steps)
                if plan.name in trials:
                    golden = _try(traced.plan.spec, steps, engine, path, *trials[plan.name], largest, golden)
            entries[plan.name] = GraphEntry(traced.plan.spec, files, golden)
    return entries


def _try(
    spec: GraphSpec,
    steps: int,
    engine: Engine,
    path: Path,
    held: Mapping[str, Array],
    rate: float,
    largest: Mapping[str, int],
    golden: Golden | None,
) -> Golden:
    """The golden steps of a device's self-test: made on the first engine, and the same on the others.

    Raises:
        SelfTestFailed: no device would accept the graph.
    """
    graph = engine.load(path, spec.stacked(steps) if steps else spec)
    values, batch = trial(spec, held, largest)
    if golden is not None:
        self_test(engine, graph, values, batch, rate, golden)
        return golden
    bounds = {t.name: largest[t.name] for t in spec.of("attribute") if t.table and t.name in largest}
    return msgspec.structs.replace(golden_steps(engine, graph, values, batch, rate), largest=bounds)


def _shards(keys: Sequence[str], rows: Mapping[str, Array], keep: Callable[..., FileRef]) -> tuple[FileRef, ...]:
    count = max(1, round((len(keys) - 1) / SHARD_ITEMS))
    of = np.array([-1] + [shard_of(key, count) for key in keys[1:]])
    refs = []
    for number in range(count):
        ids = np.flatnonzero(of == number).astype(np.int32)
        shard = Shard(ids, tuple(keys[int(i)] for i in ids), {n: t[ids] for n, t in rows.items()})
        refs.append(keep(_tensors(shard.encode()), changes=True))
    return tuple(refs)


def _tensors(tensors: Mapping[str, Array]) -> bytes:
    data: bytes = save_safetensors({n: np.ascontiguousarray(t) for n, t in tensors.items()})
    return data


def _digest(tensors: Mapping[str, Array]) -> str:
    """Names an encoder by the weights that it embeds with: 16 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()[:16]


def restate(manifest: Manifest, blobs: BlobStore, out: Path, signer: Signer) -> BundleRef:
    """Write and sign a bundle folder of a manifest whose files are at hand: of a bundle that differs in it only.

    Raises:
        InputError: the folder holds a bundle already, or the settings match by a directory that the weights do not
            hold. TrustError, StoreError: a file is damaged or missing.
    """
    if (out / "bundle.json").exists():
        raise InputError(f"{out} holds a bundle already; a bundle never changes: choose another folder")
    weights = read_tensors(blobs.read(manifest.weights), "the bundle's weights")
    if manifest.settings.matching == "directory" and TENSOR not in weights:
        raise InputError("this bundle has no directory to match by; export the model with matching = directory")
    graphs = [made.file for graph in manifest.graphs.values() for made in graph.files.values()]
    shards = [shard for table in manifest.tables.values() for shard in table.shards]
    for file in (manifest.weights, manifest.classifier, *graphs, *shards):
        blobs.read(file)
        write_atomically(out / "blobs" / file.sha256, blobs.path(file.sha256).read_bytes())
    return _announce(manifest, out, signer)


def _announce(manifest: Manifest, out: Path, signer: Signer) -> BundleRef:
    """The manifest's blob, the public key, and the signed announcement last: a folder that has it is whole."""
    plain = to_json(manifest)
    file, stored = pack_file(plain)
    write_atomically(out / "blobs" / file.sha256, stored)
    write_atomically(out / "release.pub", signer.public.encode() + b"\n")
    key, signature = key_id(signer.public), signer.sign(plain)
    ref = BundleRef(version=manifest.version, manifest=file.sha256, size=file.size, key=key, signature=signature)
    write_atomically(out / "bundle.json", to_json(ref))
    return ref


def read_ref(folder: Path) -> BundleRef:
    """The announcement in a bundle folder. Raises: InputError: there is none."""
    try:
        return msgspec.json.decode((folder / "bundle.json").read_bytes(), type=BundleRef)
    except (OSError, msgspec.DecodeError):
        raise InputError(
            f"{folder} is not a bundle folder: it has no readable bundle.json; make one with `coda export`"
        ) from None
