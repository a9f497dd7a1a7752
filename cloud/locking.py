"""That only one process at a time works on a folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from device_runtime.errors import InputError, StoreError


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder, made where there is none; the kernel lets go of it when the process ends, however it ends.

    what: that is being done, for the words of the error: "another preparation".

    Raises:
        InputError: another process holds it. StoreError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("ab")
    except OSError as error:
        raise StoreError(f"cannot lock {folder}: {error.strerror}; check that the folder can be written") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another {what} is running: {folder} is in use") from None
        yield
