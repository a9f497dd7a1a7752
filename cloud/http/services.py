"""What the HTTP layer is given: nothing in it is global."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cloud.catalog import Catalog
from cloud.encoding import Encoder
from cloud.home import ServerHome
from cloud.matching import MatchStore, open_store
from cloud.pool import Pool
from device_runtime.bundle import BlobStore, Manifest
from device_runtime.identity import Signer
from device_runtime.messages import BundleRef


@dataclass(frozen=True)
class ServerLimits:
    """What one request may ask for.

    max_query_bytes, max_report_bytes, max_contribution_bytes: of a request's body. max_contribution_samples: in one
    contribution, whose frame may unpack to far more than its bytes suggest. max_candidates: in one answer.
    max_centroids: in one query. clock_skew_s: seconds that a device's clock may differ. concurrent_matches: more are
    turned away with 503. retry_after_s: seconds that those are told to wait.
    """

    max_query_bytes: int = 64 << 10
    max_report_bytes: int = 256 << 10
    max_contribution_bytes: int = 8 << 20
    max_contribution_samples: int = 20_000
    max_candidates: int = 5_000
    max_centroids: int = 64
    clock_skew_s: int = 300
    concurrent_matches: int = 8
    retry_after_s: int = 2


@dataclass(frozen=True)
class Services:
    """ref, manifest: of the release that is served; a later one takes effect when the server is started again, so that
    bundle, pool and matching always fit. contributor: name -> token. clock: seconds since 1970."""

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

    @staticmethod
    def of(home: ServerHome, store: str = "faiss") -> Services:
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
        )
