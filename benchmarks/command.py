"""`coda bench …`: one module a question. Each prints a table and writes the same as JSON."""

from __future__ import annotations

import argparse
import importlib
from typing import Protocol, cast

BENCHES = {
    "agent": (
        "benchmarks.agent",
        "what the idle agent costs, how fast events become samples, how soon a round gives way",
    ),
    "engines": ("benchmarks.engines", "how long a training step takes on each engine, beside PyTorch eager"),
    "ort-versions": ("benchmarks.ort_versions", "how fast, large and talkative each version of onnxruntime is"),
    "matching": ("benchmarks.matching", "how fast, exact and large matching is, beside other vector stores"),
    "ingest": ("benchmarks.ingest", "how many samples a second join a pool: from a table, over HTTP, and their index"),
    "round": ("benchmarks.round", "what a whole round costs a device: CPU, memory, bytes, by phase"),
    "serve": ("benchmarks.serve", "how many matches a second a server answers over HTTP, how late, in how much memory"),
    "training": (
        "benchmarks.training",
        "how fast events stream into training, in how much memory, by how many processes",
    ),
    "wire": ("benchmarks.wire", "how many bytes candidates and weights take on the wire, beside other formats"),
    "delta": ("benchmarks.delta", "how many bytes a device fetches that has the bundle before"),
    "fleet": ("benchmarks.fleet", "how fast a release reaches a million devices, and how far a bad one comes"),
    "emulated-pi": ("benchmarks.emulated_pi", "what a round takes on an emulated Raspberry Pi, in instructions"),
}
"""name: (module, the question that it answers)"""

DESCRIPTION = """\
Measure what CoDA costs, on this machine. Every benchmark prints a table, takes --quick for a short run and --json OUT
for a file, and exits with 0 only if the work was done.

example:
  coda bench engines --quick --json engines.json
"""


class Bench(Protocol):
    """What each benchmark's module offers: DESCRIPTION, `configure` and `run`."""

    DESCRIPTION: str

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        """Add arguments; --quick and --json are there already."""

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        """Measure, print, write. Raises: CodaError: it could not be measured."""


class Command:
    help = "measure what CoDA costs on this machine"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.description = DESCRIPTION
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        listed = "\n".join(f"  {name:13}{summary}" for name, (_, summary) in BENCHES.items())
        parser.epilog = f"questions:\n{listed}\n\n`coda bench QUESTION --help` says more of each."
        parser.add_argument("question", choices=BENCHES, metavar="QUESTION")
        parser.add_argument("words", nargs=argparse.REMAINDER, metavar="…", help="its own arguments")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        # only the module of the one asked for is imported, so its arguments are parsed here
        bench = cast(Bench, importlib.import_module(BENCHES[args.question][0]))
        parser = argparse.ArgumentParser(
            prog=f"coda bench {args.question}",
            description=bench.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--quick", action="store_true", help="a short run: the figures are rough")
        parser.add_argument("--json", metavar="OUT", help="write the rows to this file")
        bench.configure(parser)
        return bench.run(parser.parse_args(args.words))
