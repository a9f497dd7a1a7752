"""From what a store found to candidates. Pure but for reading the pool."""

from __future__ import annotations

import numpy as np

from cloud.matching.store import Found, MatchStore
from cloud.pool import Pool
from device_runtime.samples import Int64, SampleBatch
from device_runtime.wire import MatchQuery


def choose(found: Found, limit: int) -> Int64:
    """At most `limit` positions: the centroids take turns, best rank first, and no sample is taken twice.

    Ascending, so that samples of one contributor, who lie together in the pool, lie together on the wire.
    """
    by_rank = found.positions.T.reshape(-1)
    by_rank = by_rank[by_rank >= 0]
    _, first = np.unique(by_rank, return_index=True)
    picked: Int64 = np.sort(by_rank[np.sort(first)][:limit])
    return picked


def match(pool: Pool, store: MatchStore, query: MatchQuery, exclude: int) -> tuple[SampleBatch, str]:
    """The candidates for a query, and why there are fewer than asked for ("" if there are not).

    exclude: token of the asking contributor.
    """
    count = len(query.centroids)
    if not count or not query.limit or not len(pool):
        reason = "the pool is empty" if not len(pool) else "the query has no centroids" if query.limit else ""
        return pool.gather(np.zeros(0, np.int64)), reason
    # neighbourhoods of centroids overlap: ask for more, and for all that it takes if that was not enough
    k = min(len(pool), max(8, 2 * query.limit // count))
    while True:
        picked = choose(store.search(query.centroids, k, exclude), query.limit)
        if len(picked) == query.limit or k >= min(len(pool), query.limit):
            break
        k = min(len(pool), query.limit)
    short = query.limit - len(picked)
    reason = f"the pool has only {len(picked)} samples of other contributors near this query" if short else ""
    return pool.gather(picked), reason
