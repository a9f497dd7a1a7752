"""That only one process at a time works on a folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from device_runtime.errors import CodaError, StoreError


@contextmanager
def held(file: Path, busy: CodaError) -> Iterator[None]:
    """Hold a lock file, made where there is none; the kernel lets go of it when the process ends, however it ends.

    busy: what is raised where another process holds it.

    Raises:
        StoreError: the folder cannot be written.
    """
    try:
        lock = file.open("ab")
    except OSError as error:
        raise StoreError(f"cannot lock {file.parent}: {error.strerror}; check that the folder can be written") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise busy from None
        yield


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold a device's home for a round. Raises: StoreError: another process holds it, or it cannot be written."""
    busy = StoreError(f"another process runs a round in {home}; wait for it, or stop it")
    with held(home / "lock", busy):
        yield
