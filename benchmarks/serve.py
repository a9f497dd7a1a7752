"""How many matches a second a real server answers over HTTP, how late, and in how much memory.

A server process with a pool of the example data's samples, each taken many times by other contributors with its
embedding moved a little; devices in a second process, over loopback, that sign every request, and hold the rows of all
items, as in a later round. rps: with as many requests under way as there are connections. p50_ms, p99_ms: at half that
rate, requests starting on time whether or not earlier ones are answered. peak_mib: the highest proportional memory
(PSS) of all server processes: pages of the pool that they share count once. cpu_ms: of all server processes, for one
request. With `ingesting`, other devices hand in samples meanwhile, at a bounded rate, each contribution durable before
it is answered.

The devices run on the same machine: what they use is not left for the server.
"""

from __future__ import annotations

import argparse
import base64
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
from nacl.signing import SigningKey

from benchmarks import result
from benchmarks.load import Outcome, Plan
from benchmarks.prepared import Prepared, engines_here, prepared
from cloud.home import ServerHome
from cloud.pool import Pool
from device_runtime.bundle import write_atomically
from device_runtime.errors import CodaError, InputError
from device_runtime.wire import MatchQuery, encode_contribution, encode_query

DESCRIPTION = __doc__ or ""
_DEVICES = 64
_CONNECTIONS = 16
_QUERIES = 256
_SHIFT = 0.15
"""Length of what is added to a unit vector, so that copies of a sample are near it but not the same."""
_LIMITS = {
    "device_requests_per_minute": 1e6, "device_burst": 100_000, "requests_per_s": 1e6, "burst": 100_000,
    "device_samples_per_day": 10**9, "samples_per_day": 10**9,
}  # fmt: skip
_CONTRIBUTED, _CONTRIBUTIONS_PER_S = 200, 5.0
_REST_S = 900
_COLUMNS = {
    "workers": "d", "samples": "d", "ingesting": "", "rps": ".0f", "p50_ms": ".1f", "p99_ms": ".1f", "cpu_ms": ".2f",
    "peak_mib": ".0f", "failed": "d",
}  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, action="append", metavar="N", help="in the pool (1000000; quick: 20000)")
    parser.add_argument(
        "--workers", type=int, action="append", metavar="N", help="server processes (1 and 2; quick: 1)"
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="of each measurement (15; quick: 2)")
    parser.add_argument("--candidates", type=int, metavar="N", help="asked for (default: as the bundle says)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the prepared servers here, and use them again")


def run(args: argparse.Namespace) -> int:
    started = result.now()
    sizes = args.samples or ([20_000] if args.quick else [1_000_000])
    workers = args.workers or ([1] if args.quick else [1, 2])
    seconds = args.seconds or (2.0 if args.quick else 15.0)
    if min(sizes) < 1000 or min(workers) < 1 or seconds <= 0:
        raise InputError("--samples is at least 1000, --workers at least 1, --seconds above 0")
    rows: list[dict[str, object]] = []
    with TemporaryDirectory(prefix="coda-bench-") as temporary:
        work = args.work or Path(temporary)
        with prepared(work / "prepared", engines_here(["onnx"], _say), _say) as made:
            for samples in sizes:
                home = _grown(made, work / f"pool-{samples}", samples)
                rows += [
                    _measure(home, samples, count, ingesting, seconds, args.candidates)
                    for count in workers
                    for ingesting in (False, True)
                ]
    print(result.table(rows, _COLUMNS))
    result.write(args.json, "bench serve", started, rows, seconds=seconds, connections=_CONNECTIONS)
    return 0


def _measure(
    whole: Path, samples: int, workers: int, ingesting: bool, seconds: float, candidates: int | None
) -> dict[str, object]:
    _say(f"{samples} samples, {workers} workers{', while samples are handed in' if ingesting else ''}")
    with TemporaryDirectory(prefix="coda-bench-", dir=whole.parent) as temporary:
        home = Path(temporary) / "server"
        shutil.copytree(whole, home, copy_function=os.link if not ingesting else shutil.copy2)
        shutil.copy2(whole / "catalog.db", home / "fresh.db")  # written to: the copy must not be the same file
        (home / "fresh.db").replace(home / "catalog.db")
        set_limits(home)
        keys = [SigningKey.generate().encode().hex() for _ in range(_DEVICES)]
        queries, contributions = _bodies(home, candidates)
        with server(home, workers, Path(temporary) / "log") as (url, process):
            plan = Plan(url, "/v1/match", queries, keys, _CONNECTIONS, min(seconds, 3.0), 0.0, enrol=True)
            ask(plan)  # warms up: the pool's pages are in memory
            _settle(process.pid)
            with _handing_in(url, contributions, 2 * seconds + 5) if ingesting else _nothing():
                memory = _Memory(process.pid)
                cpu = cpu_s(process.pid)
                full = ask(msgspec.structs.replace(plan, seconds=seconds, enrol=False))
                cpu = cpu_s(process.pid) - cpu
                rps = len(full.latencies_ms) / full.seconds
                half = ask(msgspec.structs.replace(plan, seconds=seconds, rate=rps / 2, enrol=False))
                peak = memory.stop()
    failed = sum(n for one in (full, half) for status, n in one.statuses.items() if status != "200")
    return {
        "workers": workers,
        "samples": samples,
        "ingesting": "yes" if ingesting else "no",
        "rps": rps,
        "p50_ms": statistics.median(half.latencies_ms),
        "p99_ms": float(np.quantile(half.latencies_ms, 0.99)),
        "p50_full_ms": statistics.median(full.latencies_ms),
        "p99_full_ms": float(np.quantile(full.latencies_ms, 0.99)),
        "peak_mib": peak,
        "cpu_ms": 1e3 * cpu / len(full.latencies_ms),
        "client_cpu_ms": 1e3 * full.cpu_s / len(full.latencies_ms),
        "answer_bytes": full.bytes_in / len(full.latencies_ms),
        "failed": failed,
    }


def set_limits(home: Path) -> None:
    """Let a server answer as much as it can."""
    limits = "".join(f"{name} = {value:g}\n" for name, value in _LIMITS.items())
    (home / "server.toml").unlink(missing_ok=True)
    write_atomically(home / "server.toml", f"[limits]\n{limits}".encode())


def _grown(made: Prepared, home: Path, samples: int) -> Path:
    """A server's home whose pool has so many samples."""
    if home.exists():
        _say(f"using {home}")
        return home
    _say(f"growing a pool of {samples} samples")
    new = home.with_name(f".new-{home.name}")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(made.home, new, ignore=shutil.ignore_patterns("pool", "port", ".lock"))
    rng = np.random.default_rng(0)
    with ServerHome(made.home) as source, ServerHome(new) as target:
        _, manifest = source.release()
        few, many = source.pool(manifest), target.pool(manifest)
        while len(many) < samples:
            _take_over(few, many, samples - len(many), rng)
        _say("merging its segments")
        many.compact(full=True)
    _say("waiting until the server has prepared it")
    with server(new, 1, home.with_name(f"{home.name}.log")) as (_, process):
        _settle(process.pid)
    new.rename(home)
    return home


def _take_over(few: Pool, many: Pool, most: int, rng: np.random.Generator) -> None:
    """Every sample once more, for contributors that have not been there before."""
    other = np.uint64(rng.integers(1 << 63))
    for segment in few.segments:
        count = min(len(segment), most)
        if not count:
            return
        moved = np.asarray(segment.embeddings[:count])
        moved = moved + rng.normal(0, _SHIFT / moved.shape[1] ** 0.5, moved.shape).astype(np.float32)
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        tokens = segment.contributors[:count] ^ other
        many.append(segment.samples.take(slice(0, count)), segment.timestamps[:count], tokens, moved)
        most -= count


def _bodies(home: Path, candidates: int | None) -> tuple[list[str], list[str]]:
    """Frames of queries and of contributions, base64. A query's centroids are samples of one contributor."""
    rng = np.random.default_rng(1)
    with ServerHome(home) as opened:
        _, manifest = opened.release()
        pool = opened.pool(manifest)
        segment = pool.segments[0]
        shards = np.arange(len(manifest.tables["item"].shards), dtype=np.int32)
        limit = candidates or manifest.settings.candidates
        queries = []
        for token in rng.choice(np.unique(segment.contributors), _QUERIES):
            own = np.flatnonzero(segment.contributors == token)
            picked = segment.embeddings[rng.choice(own, manifest.settings.centroids)]
            queries.append(encode_query(MatchQuery(manifest.encoder, picked, limit, shards)))
        starts = rng.integers(0, len(segment) - _CONTRIBUTED, 8)
        given = [
            encode_contribution(pool.gather(np.arange(start, start + _CONTRIBUTED) + segment.base)) for start in starts
        ]
    return [base64.b64encode(q).decode() for q in queries], [base64.b64encode(g).decode() for g in given]


@contextmanager
def server(home: Path, workers: int, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Raises: CodaError: it did not come up."""
    port_file = home / "port"
    port_file.unlink(missing_ok=True)  # of an earlier server
    words = ["serve", "--home", home, "--port", "0", "--port-file", port_file, "--workers", workers]
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "device_runtime", *map(str, words), "--log-level", "warning"],
            stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not port_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise CodaError(f"the server did not come up: {log.read_text(errors='replace')[-300:]}")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port_file.read_text().strip()}", process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def ask(plan: Plan) -> Outcome:
    """Raises: CodaError: no request was answered as it should be."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"], input=msgspec.json.encode(plan), capture_output=True, check=False
    )
    if done.returncode:
        raise CodaError(f"the devices failed: {done.stderr.decode(errors='replace')[-300:]}")
    outcome = msgspec.json.decode(done.stdout, type=Outcome)
    if not outcome.latencies_ms:
        raise CodaError(f"no request was answered as it should be: {outcome.statuses}")
    return outcome


@contextmanager
def _handing_in(url: str, bodies: list[str], seconds: float) -> Iterator[None]:
    keys = [SigningKey.generate().encode().hex() for _ in range(4)]
    plan = Plan(url, "/v1/contributions", bodies, keys, len(keys), seconds, _CONTRIBUTIONS_PER_S, enrol=True)
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(msgspec.json.encode(plan))
    process.stdin.close()
    process.stdin = None
    try:
        yield
        out, _ = process.communicate(timeout=seconds + 60)
    finally:
        process.kill()
        process.wait()
    outcome = msgspec.json.decode(out, type=Outcome)
    refused = sum(n for status, n in outcome.statuses.items() if status != "204")
    if refused:
        raise CodaError(f"contributions were refused: {outcome.statuses}")


@contextmanager
def _nothing() -> Iterator[None]:
    yield


class _Memory:
    """Looks at a process and its children twice a second; `stop` gives the highest sum of their PSS, MiB."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._stop = pid, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while True:
            self._peak = max(self._peak, sum(map(_pss_mib, _tree(self._pid))))
            if self._stop.wait(0.5):
                return

    def stop(self) -> float:
        self._stop.set()
        self._thread.join()
        return self._peak


def _tree(pid: int) -> Sequence[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def _pss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _settle(pid: int) -> None:
    """Wait until a server that is asked nothing does nothing: indexes are built and segments merged in its background.

    Raises: CodaError: it does not come to rest.
    """
    deadline, quiet = time.monotonic() + _REST_S, 0
    while quiet < 3:
        used, since = cpu_s(pid), time.monotonic()
        time.sleep(1.0)
        busy = (cpu_s(pid) - used) / (time.monotonic() - since)
        quiet = quiet + 1 if busy < 0.05 else 0
        if time.monotonic() > deadline:
            raise CodaError(f"the server still works for itself after {_REST_S} s")


def cpu_s(pid: int) -> float:
    """User and system, of a process and its children."""
    ticks = 0
    for one in _tree(pid):
        ticks += sum(map(int, Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
