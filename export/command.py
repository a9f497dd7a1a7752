"""`coda export`: a trained model becomes a signed bundle."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from device_runtime.bundle import Manifest, RoundSettings, write_atomically
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
        parser.add_argument("--settings", type=Path, metavar="FILE", help="JSON with round settings that differ")
        parser.add_argument("--json", type=Path, metavar="OUT", help="write sizes and parity as JSON")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        names = [n.strip() for n in args.engines.split(",") if n.strip()]
        if not names:
            raise InputError("--engines names no engine; try --engines onnx,executorch")
        engines = [open_engine(n) for n in names]
        answer_key = check_public_key(args.answer_key)
        settings = read_settings(args.settings) if args.settings else RoundSettings()
        signer = Signer.open_or_create(args.key)
        # torch is imported only now: a wrong argument should not cost seconds
        from export.checkpoint import load
        from export.package import Source, build

        trained = load(args.model)
        state = trained.state
        source = Source(
            name=state.dataset,
            model_name=state.settings.model,
            model=trained.model,
            keys=state.keys,
            positive_at=state.positive_at,
            metrics=trained.metrics,
            settings=settings,
        )
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
            f"{args.out}: bundle {manifest.version} of {manifest.name} ({manifest.model}), encoder {manifest.encoder}"
        )
        for row in rows:
            print(
                f"  {row['graph']:17}{row['engine']:11}{row['bytes']:>8} bytes   "
                f"off by {row['worst']:.1e} at most, in {row['tensor']}"
            )
        if args.json:
            write_atomically(args.json, msgspec.json.format(msgspec.json.encode({"command": "export", "rows": rows})))
        return 0


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


def read_settings(path: Path) -> RoundSettings:
    """Raises: InputError: the file cannot be read, or has a field that is not a setting."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=RoundSettings)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise InputError(f"{path}: {error}") from None
