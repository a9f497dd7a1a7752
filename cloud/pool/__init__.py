"""The pool: samples of many contributors, without their identities, on disk and growing."""

from cloud.pool.pool import Part, Pool
from cloud.pool.segment import Segment, Snapshot, Tokens

__all__ = ["Part", "Pool", "Segment", "Snapshot", "Tokens"]
