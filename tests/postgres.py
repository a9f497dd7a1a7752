"""A PostgreSQL of the test run's own: a throw-away cluster on a socket in a folder, run by an unprivileged user."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SETTINGS = {"listen_addresses": "", "fsync": "off", "max_connections": "60", "logging_collector": "off"}


class Cluster:
    """Use `running`. Databases are new ones, each time one is asked for."""

    def __init__(self, binaries: Path, folder: Path, user: str | None) -> None:
        self._binaries, self._folder, self._user = binaries, folder, user
        self._data = folder / "data"
        self._numbers = itertools.count()
        self._run("initdb", "-D", self._data, "-U", "coda", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C")
        with (self._data / "postgresql.conf").open("a") as settings:
            settings.writelines(f"{name} = '{value}'\n" for name, value in _SETTINGS.items())
            settings.write(f"unix_socket_directories = '{folder}'\n")

    def start(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-l", self._folder / "log", "-w", "-t", "60", "start")

    def stop(self) -> None:
        """At once, as in a crash; the next start recovers."""
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")

    def database(self) -> str:
        """The URL of a new database."""
        name = f"catalog{next(self._numbers)}"
        self._run("createdb", "-h", self._folder, "-U", "coda", name)
        return f"postgresql+psycopg://coda@/{name}?host={self._folder}"

    def dump(self, url: str, file: Path) -> None:
        """What docs/operate.md has the operator do."""
        file.write_bytes(self._run("pg_dump", "-h", self._folder, "-U", "coda", "-Fc", _name(url)))

    def restore(self, url: str, file: Path) -> None:
        self._run("pg_restore", "-h", self._folder, "-U", "coda", "-d", _name(url), given=file.read_bytes())

    def _run(self, program: str, *words: object, given: bytes | None = None) -> bytes:
        # as another user by a program: Python would fork for it, and gRPC, which Milvus' tests leave in this process,
        # breaks in forks. A server that inherits our pipes would keep them open: pg_ctl's output goes to a file
        other = ["runuser", "-u", self._user, "--"] if self._user else []
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(
                [*other, str(self._binaries / program), *map(str, words)],
                input=given, stdout=said, stderr=subprocess.STDOUT, cwd=self._folder, check=False,
                **({} if given is not None else {"stdin": subprocess.DEVNULL}),
            )  # fmt: skip
            said.seek(0)
            out = said.read()
        assert done.returncode == 0, f"{program}: {out.decode(errors='replace')}"
        return out


def binaries() -> Path | None:
    """Where the newest PostgreSQL of this machine has its programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    path = found[-1] if found else shutil.which("initdb")
    return Path(path).resolve().parent if path else None


@contextmanager
def running(programs: Path) -> Iterator[Cluster]:
    """PostgreSQL refuses to run as root: then it runs as `postgres`, whom its package made, or as nobody."""
    user = None
    if os.geteuid() == 0:
        known = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in known else "nobody"
    folder = Path(tempfile.mkdtemp(prefix="coda-pg-", dir="/tmp"))  # a socket's path has 107 characters at most
    try:
        if user:
            shutil.chown(folder, user)
        cluster = Cluster(programs, folder, user)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder)


def _name(url: str) -> str:
    return url.partition("@/")[2].partition("?")[0]
