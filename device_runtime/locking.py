"""That only one process at a time works on a device's folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from device_runtime.errors import StoreError


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold a home for a round; the kernel lets go of it when the process ends, however it ends.

    Raises:
        StoreError: another process holds it, or the folder cannot be written.
    """
    try:
        file = (home / "lock").open("w")
    except OSError as error:
        raise StoreError(f"cannot lock {home}: {error.strerror}; check that the folder can be written") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreError(f"another process runs a round in {home}; wait for it, or stop it") from None
        yield
