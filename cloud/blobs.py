"""Bundle files at any fsspec URL (S3, GCS, a network folder), so that several machines serve the same releases."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from device_runtime.bundle import BlobStore, write_atomically
from device_runtime.errors import InputError, StoreError


def shared_blobs(folder: Path, url: str) -> BlobStore:
    """A folder of blobs, or where there is a URL, that with the folder as its cache. Raises: InputError."""
    return CachedBlobs(folder, url) if url else BlobStore(folder)


class CachedBlobs(BlobStore):
    """Blobs are immutable: what the cache holds is never asked for again. What comes from elsewhere is verified by
    whoever reads it, as with every `BlobStore`.

    Raises (from the constructor):
        InputError: the URL's kind of store is not known, or its package is not installed.
    """

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder)
        try:
            import fsspec

            self._store: Any
            self._store, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InputError(
                f"blobs at {url!r} cannot be used: {error}; pip install 'coda-loop[fsspec]' and the store's own package"
            ) from None

    def path(self, sha256: str) -> Path:
        """Where the blob lies in the cache, after it was fetched if it is not there yet. Raises: StoreError."""
        local = super().path(sha256)
        if not local.exists():
            with contextlib.suppress(FileNotFoundError), _explained(self._root):
                write_atomically(local, self._store.cat_file(self._name(sha256)))
        return local

    def write(self, sha256: str, stored: bytes) -> None:
        """Raises: StoreError: the store or the disk refused; the blob is not announced then."""
        with _explained(self._root):
            self._store.makedirs(self._root, exist_ok=True)
            self._store.pipe_file(self._name(sha256), stored)
        super().write(sha256, stored)

    def _name(self, sha256: str) -> str:
        return f"{self._root}/{sha256}"


@contextlib.contextmanager
def _explained(root: str) -> Any:
    try:
        yield
    except (FileNotFoundError, StoreError):
        raise
    except Exception as error:  # each kind of store has errors of its own
        raise StoreError(f"the blobs at {root} cannot be reached: {type(error).__name__}: {error}") from None
