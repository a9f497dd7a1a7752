"""The working files of one round: what its steps hand on to each other, and what is left when one is cut off."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from device_runtime.bundle import write_atomically
from device_runtime.errors import StoreError


class WorkingFiles:
    """Files in a folder of their own, HOME/rounds/ID, gone when the round has ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, data: bytes) -> str:
        """Returns its sha256, for the journal. Raises: StoreError: the disk refused."""
        write_atomically(self.path(name), data)
        return hashlib.sha256(data).hexdigest()

    def read(self, name: str) -> bytes:
        """Raises: StoreError: it is gone."""
        try:
            return self.path(name).read_bytes()
        except OSError as error:
            raise StoreError(f"cannot read the working file {self.path(name)}: {error.strerror}; run again") from None

    def whole(self, expected: Mapping[str, str]) -> set[str]:
        """Those of the expected files (name -> sha256) that are there as they were written."""
        found = set()
        for name, digest in expected.items():
            try:
                with self.path(name).open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() == digest:
                        found.add(name)
            except OSError:
                continue
        return found

    def clear(self) -> None:
        """Remove the folder; harmless if it is gone, or if its owner may not (a later round tries again)."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def clear_others(parent: Path, keep: str) -> None:
        """Remove what rounds other than `keep` have left."""
        if parent.is_dir():
            for folder in parent.iterdir():
                if folder.name != keep:
                    shutil.rmtree(folder, ignore_errors=True)
