"""`coda device agent`: looks now and then whether a round is due and may run, and runs it in a process of its own.

The agent itself stays small: it imports neither NumPy nor an engine, and sleeps between two looks. What it has decided
survives it: due rounds, failures and budgets are in the device's database.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from device_runtime.activity import ActivityLog
from device_runtime.errors import Yielded
from device_runtime.schedule import Policy, Usage, conditions, load_policy, over_budget
from device_runtime.store import Store
from device_runtime.triggers import digest, load

LOOK_S = 60.0
_BACKOFF_S = 900.0
_LONGEST_S = 86_400.0
_GRACE_S = 10.0
"""For a round to put itself aside before it is killed: its journal survives either."""


@dataclass(frozen=True)
class Look:
    """What one look came to. ran: the exit status of the round that was run, or None."""

    due: str
    refusals: tuple[str, ...]
    ran: int | None = None


def round_command(home: Path) -> list[str]:
    return [sys.executable, "-m", "device_runtime", "device", "run", "--home", str(home), "--scheduled"]


class Agent:
    """One device's agent. `run` until `stop`, or `look` once."""

    def __init__(
        self,
        home: Path,
        command: Sequence[str] | None = None,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.time,
        say: Callable[[str], None] = print,
    ) -> None:
        """command: that runs a round; root: where proc and sys are; clock: seconds since 1970; all three for tests."""
        self._home, self._root, self._clock, self._say = home, root, clock, say
        self._command = list(command or round_command(home))
        self._stopped = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._said = ""

    def stop(self, number: int = 0, frame: FrameType | None = None) -> None:
        """A signal handler: end soon, and have a running round put itself aside."""
        self._stopped.set()
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()

    def run(self, look_s: float = LOOK_S) -> None:
        """Look every so many seconds until stopped."""
        while not self._stopped.is_set():
            found = self.look()
            words = found.due or "nothing is due"
            if found.due and found.refusals:
                words += f"; waiting: {', '.join(found.refusals)}"
            if found.ran is not None:
                words += f"; the round ended with status {found.ran}"
            if words != self._said:
                self._say(words)
                self._said = words
            self._stopped.wait(look_s)

    def look(self) -> Look:
        """Digest new events; run a round if one is due and may run.

        Raises:
            StoreError, InputError: the home, the policy or the triggers cannot be used.
        """
        policy, now = load_policy(self._home), self._clock()
        with Store(self._home / "coda.db") as store:
            log, usage = ActivityLog(store.database), Usage(store.database)
            found = digest(store, log, load(self._home / "triggers.json"))
            if found.rounds:
                store.set(wanted_round=found.rounds[0])
            if found.events and store.unfinished() is None:  # which would have to begin anew without its events
                log.retain(policy.keep_s, policy.keep_bytes, now)
                store.retain(policy.keep_s, policy.keep_samples, now)
            due = self._due(store, policy, now)
            if not due:
                return Look("", ())
            refusals = policy.refusals(conditions(self._home, self._root))
            refusals += over_budget(policy, usage, self._home, now)
            if refusals:
                return Look(due, tuple(refusals))
        status = self._run_child(policy)
        with Store(self._home / "coda.db") as store:
            self._note(store, status)
        return Look(due, (), status)

    def _due(self, store: Store, policy: Policy, now: float) -> str:
        """Why a round is due; "" if none is."""
        if store.setting("server") is None:
            return ""
        wait = float(store.setting("agent_not_before") or 0) - now
        if 0 < wait <= _LONGEST_S:  # longer waits were noted by a clock that was wrong
            return ""
        if store.unfinished() is not None:
            return "a round was cut off"
        if wanted := store.setting("wanted_round"):
            return f"trigger {wanted!r} wants a round"
        if "bundle" in (store.setting("stale") or ""):
            return "the server has a newer bundle"
        last = store.last_round()
        if last is None or last.progress is None:
            return "there has been no round yet"
        new = store.last_event() - last.progress.inputs.until
        if new >= policy.min_new:
            return f"{new} new samples"
        if not 0 <= now - last.started < policy.every_s:
            return "the last round is old"
        return ""

    def _run_child(self, policy: Policy) -> int:
        """The exit status of a round in a process of its own, negative where a signal ended it."""
        environment = os.environ | {"OMP_NUM_THREADS": str(policy.threads), "OPENBLAS_NUM_THREADS": str(policy.threads)}
        self._child = subprocess.Popen(self._command, env=environment, stdin=subprocess.DEVNULL)
        try:
            if self._stopped.is_set():  # the signal came before there was a child
                self._child.terminate()
            while not self._stopped.is_set():
                with suppress(subprocess.TimeoutExpired):
                    return self._child.wait(1.0)
            with suppress(subprocess.TimeoutExpired):
                return self._child.wait(_GRACE_S)
            self._child.kill()
            return self._child.wait()
        finally:
            self._child = None

    def _note(self, store: Store, status: int) -> None:
        """Failures are followed by growing pauses; a round that was put aside is looked at again by the next look."""
        if status == 0:
            store.set(agent_failures="0", agent_not_before="0", wanted_round="")
        elif status not in (Yielded.exit_status, -signal.SIGTERM):
            failures = int(store.setting("agent_failures") or 0)
            pause = min(_BACKOFF_S * 2.0**failures, _LONGEST_S)
            store.set(agent_failures=str(failures + 1), agent_not_before=str(self._clock() + pause))
