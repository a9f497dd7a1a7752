"""Matching: which samples of the pool resemble a query."""

from cloud.matching.budget import bounded
from cloud.matching.by_directory import Divided, Parts, by_directory
from cloud.matching.exact import ExactStore
from cloud.matching.faiss import FaissStore
from cloud.matching.filter import Filter
from cloud.matching.open import open_store
from cloud.matching.pooled import by_profiles, by_search, pooled
from cloud.matching.select import match
from cloud.matching.store import Found, MatchStore
from cloud.matching.unexplained import Counting, Knowledge

__all__ = [
    "Counting",
    "Divided",
    "ExactStore",
    "FaissStore",
    "Filter",
    "Found",
    "Knowledge",
    "MatchStore",
    "Parts",
    "bounded",
    "by_directory",
    "by_profiles",
    "by_search",
    "match",
    "open_store",
    "pooled",
]
