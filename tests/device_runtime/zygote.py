"""Rounds in processes that cost nothing to start, so that hundreds of them can be killed.

`python -m tests.device_runtime.zygote` imports everything once, opens no graph, and forks a child for each line that it
reads: `{"home": …, "url": …, "kill_at": N}`. It answers with the child's process id, then with its exit status. The
child runs one round whose judge always says yes; with `kill_at` it kills itself at the N-th point where something
becomes durable or is about to: around each commit of the store, each rename and each removal.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


class Zygote:
    """The test's side of it."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.device_runtime.zygote"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, cwd=REPOSITORY, text=True,
        )  # fmt: skip

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
        self._log.close()

    def start(self, home: Path, url: str, kill_at: int = 0) -> int:
        """The process id of a child that runs a round."""
        self._process.stdin.write(json.dumps({"home": str(home), "url": url, "kill_at": kill_at}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def wait(self) -> int:
        """The exit status of that child, negative where a signal ended it."""
        return int(self._process.stdout.readline())

    def run(self, home: Path, url: str, kill_at: int = 0) -> int:
        self.start(home, url, kill_at)
        return self.wait()


def _serve() -> None:
    import onnxruntime  # noqa: F401  what takes the time

    from device_runtime import round  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()  # a signal to the test's group is not for it
            status = 1
            try:
                _round(**asked)
                status = 0
            except Exception:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(child, flush=True)
        _, raw = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(raw), flush=True)


def _round(home: str, url: str, kill_at: int) -> None:
    import msgspec

    from device_runtime import database, personalize
    from device_runtime.counting import ByteCounter
    from device_runtime.engines import open_engine
    from device_runtime.home import DeviceHome
    from device_runtime.round import RoundOptions, run_round

    passed = 0

    def point() -> None:
        nonlocal passed
        passed += 1
        if passed == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    real_transaction, real_judge = database.Database.transaction, personalize.judge

    @contextmanager
    def transaction(self: database.Database) -> Iterator[None]:
        with real_transaction(self):
            yield
            point()
        point()

    def heard(event: str, _: object) -> None:
        if event in ("os.rename", "os.remove", "shutil.rmtree"):
            point()

    personalize.judge = lambda *given: msgspec.structs.replace(real_judge(*given), activate=True)
    with DeviceHome(Path(home)) as opened:
        opened.store.set(server=url)
        database.Database.transaction = transaction
        opened.store._transaction = opened.store.database.transaction
        sys.addaudithook(heard)
        with opened.transport(ByteCounter()) as transport:
            run_round(opened, transport, open_engine("onnx"), RoundOptions())


if __name__ == "__main__":
    _serve()
