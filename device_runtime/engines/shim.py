"""Builds and loads `shim.cpp`, our C ABI over the C++ libraries of the ExecuTorch wheel.

The wheel's Python package needs torch; its C++ libraries do not. So the package is only located, never imported.
The shim is compiled once (about a second on a PC) against the wheel's headers and kept in a cache folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from device_runtime.errors import EngineUnavailable

VERSION = "1.5.1"
"""Of the wheel that the shim's source is written against; C++ has no stable ABI between versions."""

SOURCE = Path(__file__).with_name("shim.cpp")
LIBRARIES = (
    "libexecutorch.so",
    "libexecutorch_threadpool.so",
    "libexecutorch_kernels_optimized.so",
    "libexecutorch_backend_xnnpack.so",
)
"""In the order in which they must be loaded. The kernels and XNNPACK register themselves."""

FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-shared", "-w"),
    # the first two are those that the wheel's own CMake package demands of its consumers
    *("-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED", "-DET_USE_THREADPOOL"),
)
BUILD_SECONDS = 300


def wheel_root() -> Path:
    """The folder of the installed `executorch` package.

    Raises:
        EngineUnavailable: it is absent, of another version, or has no C++ libraries for this machine.
    """
    install = f"pip install --no-deps executorch=={VERSION}"
    spec = importlib.util.find_spec("executorch")
    try:
        version = importlib.metadata.version("executorch")
    except importlib.metadata.PackageNotFoundError:
        version = ""
    if spec is None or not spec.submodule_search_locations or not version:
        raise EngineUnavailable(f"executorch is not installed: {install} (its own requirements are not needed)")
    if version.split("+")[0] != VERSION:
        raise EngineUnavailable(f"executorch {version} is installed, but {VERSION} is needed: {install}")
    folders = [Path(p) for p in spec.submodule_search_locations]
    for root in folders:
        if all((root / "lib" / name).exists() for name in LIBRARIES) and (root / "include").exists():
            return root
    machine = f"{platform.system()} on {platform.machine()}"
    raise EngineUnavailable(f"the executorch wheel holds no C++ libraries for {machine}; use the engine 'onnx'")


def cache_folder(cache: Path | None = None) -> Path:
    """Where the built shim is kept: `$CODA_CACHE`, else the folder given, else the user's cache."""
    if named := os.environ.get("CODA_CACHE"):
        return Path(named)
    if cache is not None:
        return cache
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "coda"


def shim_path(cache: Path | None = None) -> Path:
    """The compiled shim, built first if the cache lacks it. Several processes may ask at once.

    The name says what the file depends on: our source and flags, the wheel's version, the machine and its C library.
    So a device that has the file needs no compiler.

    Raises:
        EngineUnavailable: the wheel is not usable, there is no compiler, or the build failed.
    """
    root = wheel_root()
    basis = (SOURCE.read_text(), *FLAGS, VERSION, platform.system(), platform.machine(), *platform.libc_ver())
    key = hashlib.sha256("\0".join(basis).encode()).hexdigest()
    folder = cache_folder(cache)
    target = folder / f"executorch-shim-{key[:24]}.so"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _alone(target.with_suffix(".lock")):
            if not target.exists():
                _build(root, target)
    except OSError as error:
        raise EngineUnavailable(
            f"cannot keep the executorch shim in {folder}: {error.strerror}; set CODA_CACHE to a folder to write to"
        ) from None
    return target


def load_shim(cache: Path | None = None) -> ctypes.CDLL:
    """The shim, ready to be called.

    Raises:
        EngineUnavailable: as `shim_path`, or the libraries do not load.
    """
    root = wheel_root()
    path = shim_path(cache)
    try:
        for name in LIBRARIES:  # by full path, so that the shim finds them although the wheel may move
            ctypes.CDLL(str(root / "lib" / name))
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineUnavailable(f"executorch's libraries do not load: {error}") from None
    handle, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    library.coda_open.argtypes = [text, ctypes.c_uint32, text, size]
    library.coda_open.restype = handle
    library.coda_close.argtypes = [handle]
    library.coda_close.restype = None
    library.coda_count.argtypes = [handle, ctypes.c_int32]
    library.coda_count.restype = ctypes.c_int32
    library.coda_declared.argtypes = [handle, ctypes.c_int32, ctypes.c_int32, *[handle] * 3]
    library.coda_declared.restype = ctypes.c_int32
    library.coda_run.argtypes = [handle, ctypes.c_uint32, *[handle] * 11, text, size]
    library.coda_run.restype = ctypes.c_int32
    return library


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock, so that of several processes one builds and the others wait for it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(root: Path, target: Path) -> None:
    compiler = _compiler()
    include = root / "include"
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        built = Path(folder) / "shim.so"
        command = [
            *(*compiler, *FLAGS, f"-I{include}", f"-I{include}/executorch/runtime/core/portable_type/c10"),
            *("-o", str(built), str(SOURCE), f"-L{root}/lib", "-lexecutorch", "-lexecutorch_threadpool"),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise EngineUnavailable(f"building the executorch shim took over {BUILD_SECONDS} s") from None
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            first = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
            raise EngineUnavailable(f"building the executorch shim with {compiler[0]} failed: {first.strip()}")
        built.replace(target)


def _compiler() -> list[str]:
    """The machine's C++ compiler: `$CXX` (which may carry flags), else the first that is installed."""
    if named := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(named[0]):
            return named
        raise EngineUnavailable(f"CXX names {named[0]!r}, which is not installed: correct it, or apt install g++")
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise EngineUnavailable("executorch needs a C++ compiler once, to build its shim: apt install g++")
