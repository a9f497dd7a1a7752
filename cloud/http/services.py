"""What the HTTP layer is given: nothing in it is global."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cloud.catalog import Catalog
from cloud.encoding import Encoder
from cloud.federated import Federated
from cloud.home import ServerHome
from cloud.http.limits import ServerLimits
from cloud.http.shelf import Opener, Served, Shelf
from cloud.matching import MatchStore, open_store
from cloud.pool import Pool
from cloud.releases import Releases
from cloud.telemetry import FAMILIES, Metrics
from device_runtime.bundle import BlobStore, Manifest
from device_runtime.identity import Signer
from device_runtime.messages import BundleRef


@dataclass(frozen=True)
class Services:
    """ref to encoder: the bundle that was current when the server came up. Others that devices may get are opened when
    they are first needed (`shelf`), each with the pool of its encoder, so that bundle, pool and matching always fit.
    opener: how; None where there is only the one. contributor: name -> token. clock: seconds since 1970. watch_token:
    lets operators see figures from elsewhere than this machine; "" lets nobody. home: the server's folder, for what
    runs in a process of its own; None where there is none."""

    catalog: Catalog
    blobs: BlobStore
    ref: BundleRef
    manifest: Manifest
    pool: Pool
    store: MatchStore
    encoder: Encoder
    contributor: Callable[[str], int]
    answer_signer: Signer
    clock: Callable[[], float] = time.time
    limits: ServerLimits = field(default_factory=ServerLimits)
    metrics: Metrics = field(default_factory=lambda: Metrics(FAMILIES))
    watch_token: str = ""
    opener: Opener | None = None
    home: Path | None = None

    @cached_property
    def served(self) -> Served:
        return Served(self.ref, self.manifest, self.pool, self.store, self.encoder)

    @cached_property
    def releases(self) -> Releases:
        return Releases(self.catalog, self.clock, self.ref.version)

    @cached_property
    def federated(self) -> Federated:
        return Federated(self.catalog, self.clock)

    @cached_property
    def shelf(self) -> Shelf:
        return Shelf(self.served, self.opener)

    @property
    def current(self) -> Served:
        """What devices get that no rule means, as far as it is open and known without asking the catalog: for whoever
        only looks on."""
        return self.shelf.at_hand(self.releases.base)

    @staticmethod
    def of(home: ServerHome, store: str = "faiss", metrics: Metrics | None = None) -> Services:
        """The embedded defaults. store: see `open_store`. Raises: InputError: no bundle has been published."""
        ref, manifest = home.release()
        pool = home.pool(manifest)
        encoder = Encoder(manifest, home.blobs)
        return Services(
            home.catalog,
            home.blobs,
            ref,
            manifest,
            pool,
            open_store(store, pool),
            encoder,
            home.contributor,
            home.answer_signer,
            metrics=metrics or Metrics(FAMILIES),
            opener=_opener(home, store),
            home=home.path,
        )


def served(home: ServerHome, version: int | None = None) -> Served:
    """A bundle over its pool, for who prepares the pool and serves nobody. version: the current release's if not given.

    Raises: InputError: there is none."""
    return _opener(home, "faiss")(home.release(version)[0].version, [])


def _opener(home: ServerHome, store: str) -> Opener:
    def open_bundle(version: int, others: Sequence[Served]) -> Served:
        ref, manifest = home.release(version)
        alike = next((other for other in others if other.manifest.encoder == manifest.encoder), None)
        pool = alike.pool if alike else home.pool(manifest)
        found = alike.store if alike else open_store(store, pool)
        return Served(ref, manifest, pool, found, Encoder(manifest, home.blobs))

    return open_bundle
