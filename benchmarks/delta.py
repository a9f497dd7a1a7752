"""How many bytes a device fetches that has the bundle before: as deltas, and as whole files.

A model is trained on all but the newest events of the example data and released; a night later it is trained on with
all of them, from the released weights, as `coda nightly` does. Compared are the files of tensors, which are what
changes from release to release: all shards of item rows, and the weights.

  night          the retrained model
  1 % of rows    the released model with one row in a hundred, and the weights, taken from the retrained one
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from benchmarks import result
from benchmarks.prepared import HISTORY
from cloud.datasets import example
from cloud.released import ReleasedModel
from cloud.training import new_model, train
from device_runtime.bundle import BlobStore, Manifest, RoundSettings, pack_file
from device_runtime.delta import apply_delta, encode_delta
from device_runtime.engines import open_engine
from device_runtime.errors import StoreError
from device_runtime.identity import Signer
from export.checkpoint import Trained, TrainSettings
from export.package import Source, build

DESCRIPTION = __doc__ or ""
_COLUMNS = {"release": "", "files": "", "whole": "d", "delta": "d", "share": ".1%", "rows_touched": ".1%"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, default=6, help="of the training, at most (default: 6)")
    parser.add_argument("--new", type=float, default=0.01, help="share of the events that came in between")
    parser.add_argument("--threads", type=int, default=1)


def run(args: argparse.Namespace) -> int:
    started = result.now()
    dataset = example()
    if args.quick:
        dataset = dataset.take(dataset.events.contributor < 60)
    settings = TrainSettings(epochs=2 if args.quick else args.epochs, history=HISTORY, threads=args.threads)
    until = np.quantile(dataset.events.timestamp, 1 - args.new)
    with TemporaryDirectory(prefix="coda-delta-") as place:
        folder = Path(place)
        _say("training the model that is released")
        first = train(dataset.take(dataset.events.timestamp <= until), folder / "first", settings)
        before, blobs = _bundle(first, folder, 1)
        _say("training on, a night later")
        carried = ReleasedModel(before, blobs, dataset.items).carried_into(new_model(dataset, settings), settings.model)
        second = train(dataset, folder / "second", settings, initial=carried)
        after, others = _bundle(second, folder, 2)
        old, new = _files(before, blobs), _files(after, others)
        few = {name: data if name == "weights" else _mixed(data, new[name]) for name, data in old.items()}
        few["weights"] = new["weights"]
        rows = [row for name, made in (("night", new), ("1 % of rows", few)) for row in _compared(name, old, made)]
        size = (others.path(_manifest_of(folder / "bundle-2"))).stat().st_size
    print(f"Bytes from one release to the next; beside these comes the manifest, {size}")
    print(result.table(rows, _COLUMNS))
    result.write(args.json, "bench delta", started, rows, events=len(dataset.events), manifest=size)
    return 0


def _bundle(trained: Trained, folder: Path, version: int) -> tuple[Manifest, BlobStore]:
    out, signer = folder / f"bundle-{version}", Signer.open_or_create(folder / "release.key")
    engines = [open_engine("onnx")]
    source = Source.of(trained, RoundSettings())
    made = build(source, out, version=version, signer=signer, answer_key=signer.public, engines=engines, progress=_say)
    return made, BlobStore(out / "blobs")


def _manifest_of(bundle: Path) -> str:
    from export.package import read_ref

    return read_ref(bundle).manifest


def _files(manifest: Manifest, blobs: BlobStore) -> dict[str, bytes]:
    shards = {f"shard {number}": blobs.read(shard) for number, shard in enumerate(manifest.tables["item"].shards)}
    return shards | {"weights": blobs.read(manifest.weights)}


def _mixed(old: bytes, new: bytes) -> bytes:
    """A shard whose every hundredth row is the new one's."""
    tensors, others = load_safetensors(old), load_safetensors(new)
    rows = len(tensors["ids"])
    for name, value in tensors.items():
        if len(value) == rows and name not in ("ids", "key_ends", "keys"):
            value[::100] = others[name][::100]
    return bytes(save_safetensors(tensors))


def _compared(release: str, old: dict[str, bytes], new: dict[str, bytes]) -> list[dict[str, Any]]:
    """Raises: StoreError: a delta does not make the file that it should."""
    found: dict[str, list[int]] = {"item rows": [0, 0], "weights": [0, 0]}
    touched = total = 0
    for name, data in new.items():
        delta = encode_delta(old[name], data)
        if apply_delta(old[name], delta, len(data)) != data:
            raise StoreError(f"the delta of {name} does not make the file that it should")
        kind = "weights" if name == "weights" else "item rows"
        found[kind][0] += pack_file(data)[0].size
        found[kind][1] += len(delta)
        if kind == "item rows":
            mine, theirs = load_safetensors(data), load_safetensors(old[name])
            differs = np.zeros(len(mine["ids"]), bool)
            for tensor, value in mine.items():
                if tensor not in ("ids", "keys", "key_ends"):
                    apart = value.reshape(len(value), -1) != theirs[tensor].reshape(len(value), -1)
                    differs |= apart.any(axis=1)
            touched, total = touched + int(differs.sum()), total + len(differs)
    found["all"] = [sum(pair) for pair in zip(*found.values(), strict=True)]
    return [
        {
            "release": release,
            "files": kind,
            "whole": whole,
            "delta": delta,
            "share": delta / whole,
            "rows_touched": touched / total if kind == "item rows" else None,
        }
        for kind, (whole, delta) in found.items()
    ]


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
