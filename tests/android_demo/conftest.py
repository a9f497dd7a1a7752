"""The Java core, compiled once a test run, and a live conversation with it."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.conftest import REPOSITORY, Published

DEMO = REPOSITORY / "android_demo"
SOURCES = Path(__file__).parent / "java"
JARS = [Path("/usr/share/java") / name for name in ("junit4.jar", "hamcrest.jar", "xerial-sqlite-jdbc.jar")]


SHORT_LIVED = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto")
"""What keeps a JVM of a few seconds from compiling and collecting more than it runs."""


class JavaError(Exception):
    """What the Java side raised: "WireError: …"."""


class Java:
    """A JVM that answers calls of the core; see Conformance.java."""

    def __init__(self, *java: str) -> None:
        """java: the command, with the class path."""
        command = [*java, "org.coda.core.Conformance"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.compressed = 0

    def __call__(self, name: str, *given: bytes) -> bytes:
        self._send(struct.pack(">i", 1 + len(given)), *(part for g in (name.encode(), *given) for part in _sized(g)))
        while True:
            kind = self._take(1)[0]
            if kind == 2:
                [level] = struct.unpack(">i", self._take(4))
                dictionary, plain = self._sized(), self._sized()
                self._send(*_sized(compressed(plain, level, dictionary)))
                self.compressed += 1
                continue
            found = self._sized()
            if kind:
                raise JavaError(found.decode())
            return found

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(20) == 0

    def _send(self, *parts: bytes) -> None:
        assert self._process.stdin
        self._process.stdin.write(b"".join(parts))
        self._process.stdin.flush()

    def _take(self, size: int) -> bytes:
        assert self._process.stdout
        found = self._process.stdout.read(size)
        assert len(found) == size, "the JVM ended"
        return found

    def _sized(self) -> bytes:
        return self._take(struct.unpack(">i", self._take(4))[0])


def _sized(data: bytes) -> tuple[bytes, bytes]:
    return struct.pack(">i", len(data)), data


def compressed(plain: bytes, level: int, dictionary: bytes = b"") -> bytes:
    """As Python's side compresses."""
    shared = None
    if dictionary:
        shared = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(level=level, dict_data=shared, write_content_size=True).compress(plain)


def needed(*programs: str, files: list[Path] | None = None) -> None:
    """Skip, and say loudly what is lacking: CI installs it, so there nothing is skipped."""
    lacking = [name for name in programs if shutil.which(name) is None]
    lacking += [str(path) for path in files or () if not path.exists()]
    if not lacking:
        return
    told = f"NOT TESTED: the Android core needs {', '.join(lacking)}; `make android-tools` installs them"
    if os.environ.get("CODA_REQUIRE_ANDROID"):
        pytest.fail(told)
    pytest.skip(told)


def javac(out: Path, sources: list[Path], classpath: str) -> None:
    """Java 8, every warning an error."""
    strict = ["-Xlint:all,-options,-processing", "-Werror", "-source", "8", "-target", "8", "-encoding", "UTF-8"]
    out.mkdir(parents=True, exist_ok=True)
    words = ["javac", *strict, "-cp", classpath, "-d", str(out), *map(str, sources)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def classpath(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The compiled core, what the tests add to it, and the libraries that the tests need."""
    needed("java", "javac", files=JARS)
    folder = tmp_path_factory.mktemp("classes")
    jars = ":".join(map(str, JARS))
    javac(folder / "core", sorted((DEMO / "core/src").rglob("*.java")), "")
    javac(folder / "tests", sorted(SOURCES.rglob("*.java")), f"{folder / 'core'}:{jars}")
    return f"{folder / 'core'}:{folder / 'tests'}:{jars}"


@pytest.fixture(scope="session")
def java(classpath: str) -> Iterator[Java]:
    made = Java("java", *SHORT_LIVED, "-cp", classpath)
    yield made
    made.close()


@pytest.fixture(scope="session")
def junit(classpath: str) -> Callable[..., str]:
    """Runs test classes on a JVM of their own; returns what JUnit printed."""

    def run(*classes: str, **properties: object) -> str:
        given = [f"-D{name}={value}" for name, value in properties.items()]
        command = ["java", *SHORT_LIVED, *given, "-cp", classpath, "org.junit.runner.JUnitCore", *classes]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def serving_weights(home: Path) -> Path:
    """The file of the personal weights that serve; beside it lies what they were before they learned from held-out
    samples."""
    [found] = [path for path in (home / "weights").iterdir() if ".judged." not in path.name]
    return found


@dataclass(frozen=True)
class HostDevice:
    """A device on a JVM; see HostDevice.java. home: its folder, laid out as Python's. main: the class that is started.
    engine: the command of the process that runs the graphs; "" for ExecuTorch's."""

    classpath: str
    home: Path
    published: Published
    main: str = "HostDevice"
    engine: str = ""

    def run(self, status: int = 0, **properties: object) -> list[dict[str, Any]]:
        """The JSON lines that it printed: a report for each round, then what it ranks highest."""
        done = self.start(**properties)
        assert done.returncode == status, done.stdout + done.stderr
        return self.lines(done.stdout)

    @staticmethod
    def lines(printed: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]

    def told(self, status: int = 3, room_kib: int = 0, **properties: object) -> str:
        """What it said of an error. room_kib: the largest file that the system lets it write, if not 0."""
        done = self.start(room_kib, **properties)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout.splitlines()[-1]

    def command(self, **properties: object) -> list[str]:
        """To be followed by a class."""
        helper = Path(__file__).parent / "engine_helper.py"
        engine = self.engine or f"{sys.executable} {helper} {self.published.bundle} {self.published.trust}"
        words = [f"-D{name}={value}" for name, value in {"engine": engine, **properties}.items()]
        return ["java", *SHORT_LIVED, *words, "-cp", self.classpath]

    def start(self, room_kib: int = 0, **properties: object) -> subprocess.CompletedProcess[str]:
        given = {"home": self.home, "trust": self.published.trust} | properties
        command = [*self.command(**given), f"org.coda.core.{self.main}"]
        if room_kib:
            command = ["bash", "-c", f'ulimit -f {room_kib}; exec "$@"', "bash", *command]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)


@pytest.fixture
def device(classpath: str, published: Published, tmp_path: Path) -> HostDevice:
    return HostDevice(classpath, tmp_path / "java", published)
