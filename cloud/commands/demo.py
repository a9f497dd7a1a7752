"""`coda demo`: the whole loop on one machine, on real data, with real processes."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from device_runtime.errors import InputError

DESCRIPTION = """\
Watch the whole of CoDA happen: a cloud model is trained on other people's events, exported as graphs that train,
signed and served; device processes match, filter, fine-tune, judge, rank and report; then each is tested on later
events of its user, under the cloud's, locally tuned and CoDA's weights. Nothing is downloaded.

example:
  coda demo --report demo-report
  coda demo --data ratings.csv --items movies.csv --devices 20 --report my-report
"""


class Command:
    help = "watch the whole loop on real data: train, export, serve, devices, report"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.description = DESCRIPTION
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.add_argument("--quick", action="store_true", help="fewer devices, rounds and epochs: under a minute")
        parser.add_argument(
            "--data", type=Path, metavar="F", help="your own interactions table (see `coda data --help`)"
        )
        parser.add_argument("--items", type=Path, metavar="F", help="your items table")
        parser.add_argument("--positive-at", type=float, metavar="X", help="least rating that counts as a like")
        parser.add_argument("--devices", type=int, metavar="N", help="default: 12, or 4 if quick")
        parser.add_argument("--rounds", type=int, metavar="N", help="of each device; default: 3, or 2 if quick")
        parser.add_argument("--seed", type=int, default=0, metavar="N")
        parser.add_argument("--report", type=Path, default=Path("demo-report"), metavar="DIR", help="(%(default)s)")
        parser.add_argument("--work", type=Path, metavar="DIR", help="keep server, devices and logs here to look at")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        devices = args.devices if args.devices is not None else 4 if args.quick else 12
        rounds = args.rounds if args.rounds is not None else 2 if args.quick else 3
        if devices < 1 or rounds < 1:
            raise InputError("--devices and --rounds are at least 1")
        if args.work and args.work.exists() and any(args.work.iterdir()):
            raise InputError(f"{args.work} is not empty; choose another folder for --work")
        work = args.work or Path(tempfile.mkdtemp(prefix="coda-demo-"))
        try:
            return _run(args, devices, rounds, work)
        finally:
            if not args.work:
                shutil.rmtree(work, ignore_errors=True)


def _run(args: argparse.Namespace, devices: int, rounds: int, work: Path) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from cloud.datasets import example, read
    from cloud.demo.run import Demo, DemoOptions
    from cloud.report import terminal_table, write

    # a log file has no width of its own, and rich would cut the table to 80 columns
    console = Console() if sys.stdout.isatty() else Console(width=132)
    with console.status("reading the data"):
        how = {"positive_at": args.positive_at, "seed": args.seed}
        dataset = read(args.data, args.items, **how) if args.data else example()
    for reason, count in dataset.report.dropped.items():
        console.print(f"{count} rows dropped: {reason}", style="yellow")
    bar = Progress(
        TextColumn("{task.description:34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    tasks: dict[str, object] = {}

    def show(name: str, done: int, total: int) -> None:
        # one line a stage: epochs and graphs take turns on theirs
        stage = name.split(",")[0].split(" ")[0]
        task = tasks.get(stage)
        if task is None:
            task = tasks[stage] = bar.add_task(name, total=total)
        bar.update(task, description=name, completed=done, total=total)  # type: ignore[arg-type]

    command = shlex.join(["coda", *sys.argv[1:]])
    options = DemoOptions(devices, rounds, args.seed, args.quick, work, command)
    with bar:
        report = Demo(dataset, options, show).run()
    write(report, args.report)
    console.print(terminal_table(report))
    for note in report.notes:
        console.print(f"! {note}", style="bold red")
    console.print(f"{report.seconds:.0f} s. Look at {args.report / 'report.html'}; the same as JSON is beside it.")
    failed = [device for device in report.devices if device.error]
    return 1 if failed else 0
