"""Matching: which samples of the pool resemble a query."""

from cloud.matching.exact import ExactStore
from cloud.matching.faiss import FaissStore
from cloud.matching.filter import Filter
from cloud.matching.open import open_store
from cloud.matching.pooled import ResidualCache, pooled
from cloud.matching.select import match
from cloud.matching.store import Found, MatchStore

__all__ = [
    "ExactStore",
    "FaissStore",
    "Filter",
    "Found",
    "MatchStore",
    "ResidualCache",
    "match",
    "open_store",
    "pooled",
]
