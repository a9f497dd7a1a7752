"""A blob on its way into the store: what has arrived waits in `.part-<sha256>` and becomes a blob once it is whole."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from device_runtime.bundle import MAX_FILE, BlobStore, FileRef, sync_folder
from device_runtime.errors import StoreError, WireError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class PartialBlob:
    """The bytes of one blob that have arrived so far.

    A write that fills the disk gives its bytes up, so that the device can go on writing its journal; any other
    failure keeps them.

    Attributes:
        received: bytes written through this object, those that had to be written twice included.
    """

    def __init__(self, ref: FileRef, store: BlobStore) -> None:
        """Raises: WireError: the reference is not one that a store can hold."""
        if not re.fullmatch(r"[0-9a-f]{64}", ref.sha256):
            raise WireError(f"a blob is named by 64 hex digits; given: {ref.sha256[:80]!r}")
        if not 0 <= ref.size <= MAX_FILE:
            raise WireError(f"blob {ref.sha256[:12]}… is said to have {ref.size} bytes; at most {MAX_FILE} are allowed")
        self.ref = ref
        self.received = 0
        self._target = store.path(ref.sha256)
        self._path = store.folder / f".part-{ref.sha256}"

    def size(self) -> int:
        """Bytes at hand, at most those of the blob."""
        with self._storing():
            size = self._path.stat().st_size if self._path.exists() else 0
        if size <= self.ref.size:
            return size
        self.discard()
        return 0

    def check_room(self) -> None:
        """Raises: StoreError: what is lacking does not fit on the disk."""
        with self._storing():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._path.parent).free
        if free < (lacking := self.ref.size - self.size()):
            raise StoreError(
                f"{self._path.parent} has {free} bytes free; {lacking} are needed for blob {self.ref.sha256[:12]}…: "
                "free some space or choose another folder"
            )

    def write(self, chunks: Iterable[bytes], at: int) -> None:
        """Append chunks after the first `at` bytes. Errors of `chunks` pass; what came before them is kept.

        Raises:
            StoreError: the disk refused.
        """
        # unbuffered: what has arrived is the kernel's at once, and a kill does not lose it
        with self._storing(), self._path.open("ab", buffering=0) as file:
            if file.tell() != at:
                file.truncate(at)
            for chunk in chunks:
                rest = memoryview(chunk)
                while rest:
                    rest = rest[file.write(rest) :]
                self.received += len(chunk)

    def is_genuine(self) -> bool:
        """Whether this is the whole blob, by size and hash."""
        if self.size() != self.ref.size:
            return False
        with self._storing(), self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.ref.sha256

    def commit(self) -> None:
        """Make it a blob of the store, for good also after a power cut."""
        with self._storing():
            with self._path.open("rb") as file:
                os.fsync(file.fileno())
            self._path.replace(self._target)
            sync_folder(self._target.parent)

    def discard(self) -> None:
        with self._storing():
            self._path.unlink(missing_ok=True)

    @contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                self._path.unlink(missing_ok=True)
            raise StoreError(
                f"cannot keep blob {self.ref.sha256[:12]}… in {self._path.parent}: {error.strerror}; "
                "free some space or choose another folder"
            ) from None
