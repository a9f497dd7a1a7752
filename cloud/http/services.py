"""What the HTTP layer is given: nothing in it is global."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from cloud.catalog import Catalog
from cloud.encoding import Encoder
from cloud.home import ServerHome
from cloud.http.limits import ServerLimits
from cloud.matching import MatchStore, ResidualCache, open_store
from cloud.pool import Pool
from cloud.telemetry import FAMILIES, Metrics
from device_runtime.bundle import BlobStore, Manifest
from device_runtime.identity import Signer
from device_runtime.messages import BundleRef


@dataclass(frozen=True)
class Services:
    """ref, manifest: of the release that is served; a later one takes effect when the server is started again, so that
    bundle, pool and matching always fit. contributor: name -> token. clock: seconds since 1970. watch_token: lets
    operators see figures from elsewhere than this machine; "" lets nobody."""

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

    @cached_property
    def residuals(self) -> ResidualCache:
        """What the pool knows beyond the model: for pooled matching."""
        return ResidualCache(self.encoder.predict)

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
        )
