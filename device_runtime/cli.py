"""`coda`: one command whose sub-commands belong to the floors. Only the module of the one called is imported."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, cast

from device_runtime import __version__
from device_runtime.errors import CodaError, EngineUnavailable

# name: (module with a class `Command`, extra that it needs, help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": (
        "cloud.commands.demo",
        "cloud",
        "watch the whole loop on real data: train, export, serve, devices, report",
    ),
    "data": ("cloud.commands.data", "cloud", "read interactions tables, and feed the pool"),
    "train": ("cloud.commands.train", "cloud", "train the cloud model and its sample encoder"),
    "nightly": (
        "cloud.commands.nightly",
        "cloud",
        "train, compare with the released model, export, sign and propose: the job of a night",
    ),
    "export": ("export.command", "export", "turn a trained model into a signed bundle of graphs that train"),
    "release": ("cloud.commands.release", "cloud", "publish bundles on a server"),
    "trust": ("device_runtime.commands.trust", "", "make and sign what says whose bundles devices believe"),
    "federated": ("cloud.commands.federated", "cloud", "have devices compare configurations; only figures come back"),
    "serve": ("cloud.commands.serve", "cloud", "run the matching server"),
    "devices": ("cloud.commands.devices", "cloud", "list and revoke a server's devices, have them make new keys"),
    "backup": ("cloud.commands.backup", "cloud", "back up a server's home while it serves"),
    "evaluate": ("cloud.commands.evaluate", "cloud", "compare methods on a table of your own: accuracy and cost"),
    "profile": ("cloud.commands.profile", "cloud", "measure rounds on a real device, over ssh or adb"),
    "bench": ("benchmarks.command", "cloud", "measure what CoDA costs on this machine"),
    "device": ("device_runtime.commands.device", "", "run rounds on this device, rank, and see what it holds"),
}

DESCRIPTION = """\
Device-cloud collaborative learning for recommenders: the cloud matches samples that resemble a user's, the device
filters them, fine-tunes its recommender on them, and keeps the result only if it helps.
"""
EPILOG = """\
start here:
  coda demo --report demo-report      the whole loop on a data set that comes with CoDA
  coda COMMAND --help                 each command explains itself, with an example

exit status: 0 done, 2 bad input, 3 an engine or an extra is missing, 4 server or network, 5 something is not
authentic, 6 local storage, 7 put aside and to be taken up again, 8 a new model is not good enough, 1 anything else.
"""


class CommandModule(Protocol):
    """What each command's module offers as `Command`."""

    help: str

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        """Add description and arguments."""

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        """Do it. Raises: CodaError: its text is printed and its exit status returned."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn errors into one sentence and an exit status."""
    # NumPy's products are small here, and whoever has much to do runs processes: a second thread of OpenBLAS only spins
    # (0.13 ms became 16 on two busy cores). Read when NumPy is imported, which no command has done by now
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # OpenMP's threads (PyTorch, FAISS) wait asleep: where another process has a core, spinning made a training step of
    # 9 ms take 220. Read when the library is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or os.environ.get("CODA_DEBUG") == "1"
    words = [word for word in words if word != "--debug"]
    try:
        return _run(words)
    except CodaError as error:
        if debug:
            traceback.print_exc()
        print(f"coda: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("coda: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        return 141
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(
            f"coda: an error that should not happen: {type(error).__name__}: {error}. "
            "Run again with --debug for the traceback, and please report it",
            file=sys.stderr,
        )
        return 1


def _run(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="coda", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"coda {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    chosen = next((word for word in words if not word.startswith("-")), "")
    for name, (module, _, summary) in COMMANDS.items():
        sub = commands.add_parser(name, help=summary)
        if name == chosen:
            command = _load(name, module)
            command.configure(sub)
            sub.set_defaults(run=command.run)
    args = parser.parse_args(words)
    if not args.command:
        parser.print_help()
        return 2
    with _explained(args.command):
        return int(args.run(args))


def _load(name: str, module: str) -> CommandModule:
    with _explained(name):
        return cast(CommandModule, importlib.import_module(module).Command)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """A module that is missing is one of the extra that the command belongs to."""
    extra = COMMANDS[name][1]
    try:
        yield
    except ModuleNotFoundError as error:
        if not extra:
            raise
        raise EngineUnavailable(
            f"`coda {name}` needs the {extra} extra ({error.name} is missing): pip install 'coda-loop[{extra}]'"
        ) from None
