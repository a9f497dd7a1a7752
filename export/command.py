"""`coda export`: a trained model becomes a signed bundle."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import msgspec

from device_runtime.bundle import Manifest, RankWeights, RoundSettings, Training, write_atomically
from device_runtime.engines import open_engine
from device_runtime.errors import InputError
from device_runtime.identity import Signer, check_public_key

DESCRIPTION = """\
Turn a trained model into a signed bundle: inference graphs and training-step graphs for each engine, checked against
autograd, with weights, item rows and a manifest.

The release key signs the bundle; devices must be given its public half (BUNDLE/release.pub). Keep it off the server.
The answer key belongs to the server (`coda release keys --home DIR` prints it) and is named in the manifest.

example:
  coda export --model runs/model --out runs/bundle-1 --key runs/release.key \\
      --answer-key $(coda release keys --home runs/server)
  coda export … --optimizer adamw --train lowrank:4     # personal weights of some kilobytes
"""


class Command:
    help = "turn a trained model into a signed bundle of graphs that infer and train"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.description = DESCRIPTION
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="what `coda train` wrote")
        parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle folder to write")
        parser.add_argument(
            "--key", type=Path, required=True, metavar="FILE", help="release key; made if it is not there"
        )
        parser.add_argument("--answer-key", required=True, metavar="HEX", help="the server's public answer key")
        parser.add_argument("--bundle-version", type=int, default=1, metavar="N", help="must rise with every release")
        parser.add_argument("--engines", default="onnx,executorch", metavar="LIST", help="default: %(default)s")
        training = parser.add_argument_group("what trains on a device, and how (stated in the manifest)")
        training.add_argument("--optimizer", choices=("sgd", "adam", "adamw", "adagrad"), default="sgd")
        training.add_argument("--momentum", type=float, default=0.0, metavar="X", help="of sgd (%(default)s)")
        training.add_argument("--weight-decay", type=float, default=0.0, metavar="X", help="(%(default)s)")
        training.add_argument(
            "--clip",
            type=float,
            default=5.0,
            metavar="X",
            help="global norm of gradients, at most; 0: none (%(default)s)",
        )
        training.add_argument(
            "--train",
            default="all",
            metavar="WHAT",
            help="all (default), embeddings, head, patch (a scale and a shift per dense layer), or lowrank:R",
        )
        training.add_argument(
            "--rate", type=float, metavar="X", help="learning rate; default: by the optimizer, or the settings file's"
        )
        parser.add_argument(
            "--rank-weights",
            choices=("fp32", "fp16", "int8"),
            default="fp32",
            help="how weights are stored and sent (item rows at most as fp16); the manifest states the measured loss",
        )
        parser.add_argument("--settings", type=Path, metavar="FILE", help="JSON with round settings that differ")
        parser.add_argument("--json", type=Path, metavar="OUT", help="write sizes and parity as JSON")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        names = [n.strip() for n in args.engines.split(",") if n.strip()]
        if not names:
            raise InputError("--engines names no engine; try --engines onnx,executorch")
        engines = [open_engine(n) for n in names]
        answer_key = check_public_key(args.answer_key)
        training = Training(args.optimizer, args.momentum, args.weight_decay, args.clip, args.train)
        settings = settings_of(args.settings, args.rate, args.optimizer)
        signer = Signer.open_or_create(args.key)
        # torch is imported only now: a wrong argument should not cost seconds
        from export.checkpoint import load
        from export.package import Source, build

        trained = load(args.model)
        source = Source.of(trained, settings, training, args.rank_weights)
        manifest = build(
            source,
            args.out,
            version=args.bundle_version,
            signer=signer,
            answer_key=answer_key,
            engines=engines,
            progress=lambda what: print(f"  {what}", file=sys.stderr, flush=True),
        )
        rows = summary(manifest)
        print(
            f"{args.out}: bundle {manifest.version} of {manifest.name} ({manifest.model}), encoder {manifest.encoder}; "
            f"trains {training.train} by {training.optimizer}"
        )
        print(f"  weights as {told(manifest.rank_weights)}")
        for row in rows:
            print(
                f"  {row['graph']:17}{row['engine']:11}{row['bytes']:>8} bytes   "
                f"off by {row['worst']:.1e} at most, in {row['tensor']}"
            )
        if args.json:
            made = {"command": "export", "rank_weights": manifest.rank_weights, "rows": rows}
            write_atomically(args.json, msgspec.json.format(msgspec.json.encode(made)))
        return 0


def told(found: RankWeights) -> str:
    """What the form of the weights costs, in words."""
    change = "no held-out samples to measure AUC on" if found.auc_change is None else f"AUC {found.auc_change:+.5f}"
    return f"{found.form}: logits move by {found.max_logit_difference:.1e} at most on {found.samples} samples; {change}"


def summary(manifest: Manifest) -> list[dict[str, str | int | float]]:
    """One row a graph and engine: stored bytes and parity."""
    return [
        {
            "graph": name,
            "engine": engine,
            "bytes": graph.file.size,
            "engine_version": graph.parity.engine_version,
            "worst": graph.parity.worst,
            "tensor": graph.parity.tensor,
            "tolerance": graph.parity.tolerance,
            "steps": graph.parity.steps,
        }
        for name, entry in manifest.graphs.items()
        for engine, graph in entry.files.items()
    ]


RATES = {"sgd": 0.05, "adam": 1e-3, "adamw": 1e-3, "adagrad": 0.01}
"""Learning rates that fine-tuning starts from where nobody names one."""


def settings_of(path: Path | None, rate: float | None, optimizer: str) -> RoundSettings:
    """Round settings from a file, if there is one. The learning rate is the one given, else the file's, else the
    optimizer's customary one.

    Raises:
        InputError: the file cannot be read or has a field that is not a setting, or the rate is not above 0.
    """
    given, names = (read_settings(path), msgspec.json.decode(path.read_bytes())) if path else (RoundSettings(), {})
    if rate is None:
        rate = given.rate if "rate" in names else RATES[optimizer]
    if not (math.isfinite(rate) and rate > 0):
        raise InputError(f"the learning rate must be a finite number above 0, not {rate}")
    return msgspec.structs.replace(given, rate=rate)


def read_settings(path: Path) -> RoundSettings:
    """Raises: InputError: the file cannot be read, or has a field that is not a setting."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=RoundSettings)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise InputError(f"{path}: {error}") from None
