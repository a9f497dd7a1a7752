"""A bound on the bytes of an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_Answer = TypeVar("_Answer")
_SPARE = 0.95
"""Of the bytes that are left, the share that is aimed at: a candidate more or less changes what compression saves."""


def bounded(ask: Callable[[int], _Answer], size: Callable[[_Answer], int], wanted: int, most: int) -> _Answer:
    """The answer to `wanted` candidates, or to as many as fit into `most` bytes; 0 is no bound.

    Candidates are asked for anew, fewer of them, so that those that are left are the best ones. An answer without any
    may still be larger than the bound.
    """
    found = ask(wanted)
    while most and wanted and size(found) > most:
        wanted = min(wanted - 1, int(_SPARE * wanted * most / size(found)))
        found = ask(wanted)
    return found
