"""The vocabularies of items and categories, without a loop over items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cloud.datasets.dataset import CATEGORIES
from cloud.datasets.lines import Dropped
from device_runtime.samples import Int32, Int64

_NO_CATEGORY = ("", "(no genres listed)", "nan", "None")


@dataclass(frozen=True)
class Catalogue:
    """keys, titles: text by id, 0 being padding. categories: names by id, ascending. item_categories: int32
    [items, 4], the item's rarest categories first, 0 = none. id_of: int32 by dictionary code of the interactions'
    items; 0 for those of dropped rows only."""

    keys: tuple[str, ...]
    titles: tuple[str, ...]
    categories: tuple[str, ...]
    item_categories: Int32
    id_of: Int32


def codes(column: pa.ChunkedArray) -> Int64:
    """A dictionary column's codes, -1 where there is nothing."""
    indices = column.combine_chunks().indices
    found: Int64 = pc.fill_null(indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def values(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks().dictionary


def catalogue(
    items: pa.Table | None, interactions: pa.Table, kept: npt.NDArray[np.bool_], dropped: Dropped, unit: str
) -> Catalogue:
    """Number the items: those of the items table in its order, then others in the order in which they were seen.

    An item that is listed twice has the first row's title and categories. Categories of the interactions count where
    the items table has none. kept: bool [rows of interactions].
    """
    own, titles, text, own_text = listed_items(items, dropped, unit)
    seen = codes(interactions["item_id"])[kept]
    names = values(interactions["item_id"])
    id_of = np.zeros(len(names), np.int64)
    used = np.zeros(len(names), bool)
    used[seen] = True
    listed = pc.fill_null(pc.index_in(names, own), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    id_of[used] = listed[used] + 1
    new = used & (listed < 0)
    id_of[new] = len(own) + 1 + np.arange(new.sum())
    keys = pa.concat_arrays([own, names.filter(pa.array(new))])
    pairs = np.stack([np.arange(1, len(own) + 1), own_text])[:, own_text >= 0]
    if text is None and "categories" in interactions.column_names:
        column = interactions["categories"]
        text = values(column)
        both = id_of[seen] * (len(text) + 1) + codes(column)[kept] + 1
        distinct = np.unique(both)
        pairs = np.stack([distinct // (len(text) + 1), distinct % (len(text) + 1) - 1])
        pairs = pairs[:, pairs[1] >= 0]
    categories, item_categories = rarest_categories(
        pairs, pa.array([], pa.string()) if text is None else text, len(keys) + 1
    )
    return Catalogue(
        ("", *keys.to_pylist()),
        ("", *titles, *[""] * int(new.sum())),
        ("", *categories),
        item_categories,
        id_of.astype(np.int32),
    )


def listed_items(
    items: pa.Table | None, dropped: Dropped, unit: str
) -> tuple[pa.Array, list[str], pa.Array | None, Int64]:
    """Keys, titles, texts of categories if there are any, and each item's text (-1: none)."""
    if items is None:
        return pa.array([], pa.string()), [], None, np.zeros(0, np.int64)
    code = codes(items["item_id"])
    places = items["place"].to_numpy()
    dropped.add("items: no item_id", places[code < 0], unit)
    present = np.flatnonzero(code >= 0)
    _, at = np.unique(code[present], return_index=True)  # codes are numbered in the order of their first rows
    first = present[at]
    again = np.ones(len(code), bool)
    again[first] = again[code < 0] = False
    dropped.add("items: the same item again", places[again], unit)
    titles = [""] * len(first)
    if "title" in items.column_names:
        titles = [title or "" for title in items["title"].take(pa.array(first)).to_pylist()]
    if "categories" not in items.column_names:
        return values(items["item_id"]), titles, None, np.full(len(first), -1)
    return values(items["item_id"]), titles, values(items["categories"]), codes(items["categories"])[first]


def rarest_categories(pairs: Int64, text: pa.Array, items: int) -> tuple[list[str], Int32]:
    """pairs: int64 [2, n], items and the texts ("a|b") of their categories. What few items have says most of them."""
    split = pc.split_pattern(text, "|")
    labels = pc.utf8_trim_whitespace(split.flatten())
    real = ~pc.is_in(labels, pa.array(_NO_CATEGORY)).to_numpy(zero_copy_only=False)
    of_text = pc.list_parent_indices(split).to_numpy()[real].astype(np.int64)
    encoded = labels.filter(pa.array(real)).dictionary_encode()
    names = np.array(encoded.dictionary.to_pylist(), object)
    order = np.argsort(names)
    number = np.empty(len(names), np.int64)
    number[order] = np.arange(1, len(names) + 1)
    label = number[encoded.indices.to_numpy()]

    length = np.bincount(of_text, minlength=len(text))
    start = np.cumsum(length) - length
    many = length[pairs[1]]
    within = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
    item = np.repeat(pairs[0], many)
    both = np.unique(item * (len(names) + 1) + label[np.repeat(start[pairs[1]], many) + within])
    item, found = both // (len(names) + 1), both % (len(names) + 1)

    carried = np.bincount(found, minlength=len(names) + 1)
    at = np.lexsort((found, carried[found], item))
    item, found = item[at], found[at]
    position = np.arange(len(item)) - np.searchsorted(item, item)
    item_categories = np.zeros((items, CATEGORIES), np.int32)
    few = position < CATEGORIES
    item_categories[item[few], position[few]] = found[few]
    return [str(name) for name in names[order]], item_categories
