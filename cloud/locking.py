"""That only one process at a time works on a folder of the server's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from device_runtime.errors import InputError, StoreError
from device_runtime.locking import held


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder, made where there is none.

    what: that is being done, for the words of the error: "another preparation".

    Raises:
        InputError: another process holds it. StoreError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot lock {folder}: {error.strerror}; check that the folder can be written") from None
    with held(folder / ".lock", InputError(f"another {what} is running: {folder} is in use")):
        yield
