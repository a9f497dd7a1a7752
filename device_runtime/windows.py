"""Counts of events over overlapping windows, each event looked at once.

Time is cut into buckets; a bucket is counted when a window first needs it and kept, within a byte budget, for all other
windows that overlap it. What arrives late makes its bucket be counted again.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict

from device_runtime.activity import ActivityLog

Key = tuple[str, str]
"""(kind, item)"""


class Windows:
    """Counts by kind and item. Not for use from several threads at once.

    Attributes:
        computed: buckets that were counted so far, repeated ones included.
        bytes_held: what the kept buckets take, about.
    """

    def __init__(self, log: ActivityLog, bucket_s: int = 3600, budget_bytes: int = 1 << 20) -> None:
        self._log, self._bucket_ms, self._budget = log, bucket_s * 1000, budget_bytes
        self._buckets: OrderedDict[int, Counter[Key]] = OrderedDict()  # least recently used first
        self._seen = log.last()
        self.computed = self.bytes_held = 0

    def counts(self, end_ms: int, window_s: int) -> Counter[Key]:
        """Events in the window that ends before `end_ms`; both ends are moved down to whole buckets."""
        self._drop_changed()
        last = end_ms // self._bucket_ms
        total: Counter[Key] = Counter()
        for number in range(last - window_s * 1000 // self._bucket_ms, last):
            total.update(self._bucket(number))
        return total

    def _bucket(self, number: int) -> Counter[Key]:
        if (held := self._buckets.get(number)) is not None:
            self._buckets.move_to_end(number)
            return held
        start = number * self._bucket_ms
        counted = Counter((e.kind, e.item) for _, e in self._log.read(start, start + self._bucket_ms))
        self.computed += 1
        self._buckets[number] = counted
        self.bytes_held += _size(counted)
        while self.bytes_held > self._budget and self._buckets:
            self.bytes_held -= _size(self._buckets.popitem(last=False)[1])
        return counted

    def _drop_changed(self) -> None:
        """Forget the buckets that new events fall into, from the earliest of them on."""
        earliest = self._log.earliest_after(self._seen)
        if earliest is None:
            return
        self._seen = self._log.last()
        for number in [n for n in self._buckets if n >= earliest // self._bucket_ms]:
            self.bytes_held -= _size(self._buckets.pop(number))


def _size(counted: Counter[Key]) -> int:
    return sys.getsizeof(counted) + sum(sys.getsizeof(key) + sys.getsizeof(key[1]) for key in counted)
