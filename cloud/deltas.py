"""Deltas between the files of bundles that were taken in: what devices fetch instead of whole files.

They are made when a bundle is taken in, from and to each of the newest before it: a release brings devices on, and its
roll-back brings them back. A delta is named by the two files that it lies between, so it never changes, is the same for
every device, and any cache may keep it.
"""

from __future__ import annotations

from collections.abc import Iterator

from device_runtime.bundle import BlobStore, FileRef, Manifest
from device_runtime.delta import delta_name, encode_delta

RECENT = 3
"""Bundles back, at most: a device that was away for longer fetches whole files."""
_WORTH = 0.9
"""Of the whole file's bytes: a delta that takes more is not worth making the file of another one."""


def make_deltas(manifest: Manifest, other: Manifest, blobs: BlobStore) -> None:
    """Keep the deltas between two bundles, both ways; where the whole file is shorter, an empty one says so.

    Raises:
        StoreError: the store refuses. TrustError: a blob is damaged. WireError: a blob is no file of tensors.
    """
    for mine, theirs in _counterparts(manifest, other):
        for base, target in ((theirs, mine), (mine, theirs)):
            if base.sha256 != target.sha256 and target.plain is not None:
                delta = encode_delta(blobs.read(base), blobs.read(target))
                worth = len(delta) < _WORTH * target.size
                blobs.write(delta_name(base.sha256, target.sha256), delta if worth else b"")


def _counterparts(manifest: Manifest, other: Manifest) -> Iterator[tuple[FileRef, FileRef]]:
    """The files of tensors that stand for the same in both."""
    yield manifest.weights, other.weights
    for name, table in manifest.tables.items():
        if name in other.tables:  # of more shards than before the first ones hold some of the same items
            yield from zip(table.shards, other.tables[name].shards, strict=False)
