"""Another machine to run things on: through ssh and scp, or through adb. Both do as the user's own commands do."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from device_runtime.errors import EngineUnavailable, Unreachable

_SAID = 400
"""Characters of what a command said that an error repeats, at most."""


class Remote(Protocol):
    """name: for people. folder(): a new folder there, to be removed in the end by whoever asked for it."""

    @property
    def name(self) -> str: ...

    def folder(self) -> str: ...

    def push(self, files: Sequence[Path], folder: str) -> None: ...

    def run(self, command: Sequence[str], environment: Mapping[str, str], server: str = "") -> str:
        """Run a command there and give what it wrote to stdout. server: an address of this machine's loopback that the
        command must reach; it is forwarded for as long as the command runs.

        Raises:
            Unreachable: the command, or the connection, ended with another status than 0; with its last words.
        """
        ...

    def pull(self, path: str, target: Path) -> None: ...


@dataclass(frozen=True)
class Ssh:
    """user@host, or a name from ~/.ssh/config. Keys must be set up: nobody is there to type a password."""

    name: str

    def folder(self) -> str:
        return self.run(["mktemp", "-d"], {}).strip()

    def push(self, files: Sequence[Path], folder: str) -> None:
        _local(["scp", "-q", "-B", *map(str, files), f"{self.name}:{folder}/"])

    def run(self, command: Sequence[str], environment: Mapping[str, str], server: str = "") -> str:
        forward = ["-R", f"{port}:127.0.0.1:{port}"] if (port := _loopback_port(server)) else []
        return _local(["ssh", "-o", "BatchMode=yes", *forward, self.name, _shell(command, environment)])

    def pull(self, path: str, target: Path) -> None:
        _local(["scp", "-q", "-B", f"{self.name}:{path}", str(target)])


@dataclass(frozen=True)
class Adb:
    """A phone by its serial number, as `adb devices` lists it."""

    name: str

    def folder(self) -> str:
        return self.run(["mktemp", "-d", "/data/local/tmp/coda-XXXXXX"], {}).strip()

    def push(self, files: Sequence[Path], folder: str) -> None:
        _local(["adb", "-s", self.name, "push", *map(str, files), f"{folder}/"])

    def install(self, apk: Path) -> None:
        """Over an older one of the same signer. Raises: Unreachable: the phone, or its package manager, refuses."""
        _local(["adb", "-s", self.name, "install", "-r", str(apk)])

    @contextmanager
    def forwarded(self, server: str) -> Iterator[None]:
        """Let the phone reach a server on this machine's loopback meanwhile; any other address is left alone."""
        port = _loopback_port(server)
        if port:
            _local(["adb", "-s", self.name, "reverse", f"tcp:{port}", f"tcp:{port}"])
        try:
            yield
        finally:
            if port:
                _local(["adb", "-s", self.name, "reverse", "--remove", f"tcp:{port}"])

    def run(self, command: Sequence[str], environment: Mapping[str, str], server: str = "") -> str:
        with self.forwarded(server):
            return _local(["adb", "-s", self.name, "shell", _shell(command, environment)])

    def pull(self, path: str, target: Path) -> None:
        _local(["adb", "-s", self.name, "pull", path, str(target)])


def _loopback_port(server: str) -> int:
    """The port of an address that means this very machine; 0 if it does not."""
    parts = urlsplit(server)
    return parts.port or 80 if parts.hostname in ("127.0.0.1", "localhost", "::1") else 0


def _shell(command: Sequence[str], environment: Mapping[str, str]) -> str:
    settings = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    return " ".join([*settings, shlex.join(command)])


def _local(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        raise EngineUnavailable(f"{command[0]} is not installed on this machine") from None
    if done.returncode:
        said = " / ".join(line for line in (done.stderr or done.stdout).strip().splitlines()[-3:])
        raise Unreachable(
            f"`{' '.join(command[:3])} …` ended with status {done.returncode}: {said[-_SAID:] or 'it said nothing'}"
        )
    return done.stdout
