"""The pool: samples of many contributors, without their identities, on disk and growing."""

from cloud.pool.keeper import Keeper
from cloud.pool.pool import Part, Pool
from cloud.pool.segment import Segment, Snapshot, Tokens

__all__ = ["Keeper", "Part", "Pool", "Segment", "Snapshot", "Tokens"]
