"""Made-up users whose taste is known, so that the right answer is.

Each item has one category from each of three facets. A *type* is a taste: a weight for every category; an item is
liked if its weights' sum is above zero, and one label in ten is flipped. Until the cut a user follows a type that
shows in the user's history, so a cloud model without a user id can know it. At the cut users turn to the taste of a
hidden *group*, which is drawn apart from their type, so no history from before tells it:

    taste = (1 - heterogeneity) * type + heterogeneity * group

At 0 the groups do not exist: the cloud model is right, and nobody's samples are closer than others' of the same type.
At 1 the average model is wrong for everyone, a user's own few rows say little, and the pool holds many rows of the
same group, among as many of each other group.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cloud.datasets.dataset import CATEGORIES, Dataset, ReadReport
from device_runtime.errors import InputError
from device_runtime.samples import Float32, Int32, Int64, SampleBatch
from device_runtime.stream import Events

START, CUT, END = 1_600_000_000, 1_610_000_000, 1_620_000_000
"""Seconds: the table's time, and where tastes turn."""


class World(msgspec.Struct, frozen=True):
    """How much there is. before, after: rows of a user before and after the cut. flipped: share of wrong labels."""

    users: int = 1000
    items: int = 600
    facets: int = 3
    values: int = 6
    types: int = 3
    groups: int = 4
    before: int = 80
    after: int = 60
    flipped: float = 0.1


WORLD, QUICK = World(), World(users=150, items=300)


@dataclass(frozen=True)
class Made:
    """A table and what is true of it. score: float32 [users, items], above 0 where the user would now like the item.
    group: int32 [users]."""

    dataset: Dataset
    heterogeneity: float
    score: Float32
    group: Int32

    def write(self, folder: Path) -> None:
        """`interactions.parquet` and `items.parquet`, as `--interactions` and `--items` take them."""
        folder.mkdir(parents=True, exist_ok=True)
        e, d = self.dataset.events, self.dataset
        keys, names = np.array(d.items), np.array(d.categories)
        rows = {
            "user_id": np.array(d.users)[e.contributor],
            "item_id": keys[e.item],
            "timestamp": e.timestamp,
            "label": e.label,
        }
        pq.write_table(pa.table(rows), folder / "interactions.parquet")
        categories = ["|".join(names[row[row > 0]]) for row in d.item_categories[1:]]
        pq.write_table(pa.table({"item_id": keys[1:], "categories": categories}), folder / "items.parquet")


def make(heterogeneity: float, seed: int = 0, world: World = WORLD) -> Made:
    """The same seed gives the same items, users and rows for every heterogeneity; only labels after the cut differ.

    Raises:
        InputError: heterogeneity is not between 0 and 1.
    """
    if not 0 <= heterogeneity <= 1:
        raise InputError(f"heterogeneity goes from 0 to 1, not {heterogeneity}")
    rng = np.random.default_rng([seed, 7])
    count = world.facets * world.values
    facet = 1 + rng.integers(0, world.values, (world.items, world.facets)) + world.values * np.arange(world.facets)
    item_categories = np.zeros((world.items + 1, CATEGORIES), np.int32)
    item_categories[1:, : world.facets] = facet
    shown = np.zeros((world.items, count))
    np.put_along_axis(shown, facet - 1, 1.0, 1)
    types = _tastes(world.types, shown, rng) @ shown.T
    groups = _tastes(world.groups, shown, rng) @ shown.T
    kind = rng.integers(0, world.types, world.users)
    group = rng.integers(0, world.groups, world.users)
    score = (1 - heterogeneity) * types[kind] + heterogeneity * groups[group]

    rows = world.before + world.after
    user = np.repeat(np.arange(world.users), rows)
    item = np.stack([rng.permutation(world.items)[:rows] for _ in range(world.users)]).reshape(-1)
    time = np.concatenate(
        [
            np.sort(rng.integers(START, CUT, (world.users, world.before)), 1),
            np.sort(rng.integers(CUT, END, (world.users, world.after)), 1),
        ],
        1,
    ).reshape(-1)
    later = time >= CUT
    liked = np.where(later, score[user, item], types[kind[user], item]) > 0
    label = liked ^ (rng.random(len(user)) < world.flipped)
    events = Events(
        user.astype(np.int32),
        (item + 1).astype(np.int32),
        time.astype(np.int64),
        label.astype(np.float32),
        np.ones(len(user), bool),
    )
    dataset = Dataset(
        f"synthetic-{heterogeneity:g}",
        events,
        None,
        tuple(f"u{i}" for i in range(world.users)),
        ("", *(f"i{i}" for i in range(world.items))),
        ("",) * (world.items + 1),
        ("", *(f"facet {f} value {v}" for f in range(world.facets) for v in range(world.values))),
        item_categories,
        None,
        ReadReport(
            "made up", len(events), len(events), notes=[f"made up, heterogeneity {heterogeneity:g}, seed {seed}"]
        ),
    )
    return Made(dataset, heterogeneity, score.astype(np.float32), group.astype(np.int32))


def _tastes(count: int, shown: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Weights of the categories, [count, categories], no taste being the average of the others: half of the items are
    liked by each, and tastes are as different as chance allows (orthogonal)."""
    raw, _ = np.linalg.qr(rng.normal(size=(shown.shape[1], count)))
    weights: npt.NDArray[np.float64] = raw.T
    centred: npt.NDArray[np.float64] = weights - np.median(weights @ shown.T, 1, keepdims=True) / shown.sum(1).mean()
    return centred


@dataclass(frozen=True)
class Truth:
    """What a filter's choices are measured by. likes: bool [users, items], by the taste after the cut. group: int32
    [users]."""

    likes: npt.NDArray[np.bool_]
    group: Int32

    @staticmethod
    def of(made: Made) -> Truth:
        return Truth(made.score > 0, made.group)


class Found(msgspec.Struct, frozen=True):
    """How well a filter found one kind of samples among the candidates. share: of that kind among all candidates.
    precision: among the kept ones. recall: share of that kind that is kept. kept: share of all candidates that is.

    A filter that keeps at random has precision = share and recall = kept; what it has beyond is its lift.
    """

    share: float
    precision: float
    recall: float
    kept: float

    @property
    def lift(self) -> float:
        return self.precision - self.share


class FilterTruth(msgspec.Struct, frozen=True):
    """group: samples from after the cut by users of the same hidden group; None where candidates are of many users at
    once. taste: samples whose label is what this user would say of the item, whoever they are from; a soft label counts
    by its part on the right side."""

    group: Found | None
    taste: Found


def examine_filter(
    truth: Truth,
    user: int,
    candidates: SampleBatch,
    origins: tuple[Int32, Int64] | None,
    kept: Int64,
) -> FilterTruth | None:
    """None where there are no candidates, none is kept, or none is of the user's taste.

    origins: numbers of users int32 [candidates] and seconds int64 [candidates], if known. kept: positions.
    """
    likes = truth.likes[user, np.asarray(candidates.columns["item"]) - 1]
    right = np.where(likes, candidates.labels, 1 - candidates.labels)
    if not len(kept) or not right.sum():
        return None
    taste = _found(right, kept)
    if origins is None:
        return FilterTruth(None, taste)
    users, times = origins
    same_group = (truth.group[users] == truth.group[user]) & (times >= CUT)
    return FilterTruth(_found(same_group.astype(np.float64), kept) if same_group.any() else None, taste)


def _found(inside: npt.NDArray[np.floating], kept: Int64) -> Found:
    """inside: float [candidates], how far each is inside, 0 to 1."""
    recall = float(inside[kept].sum() / inside.sum())
    return Found(float(inside.mean()), float(inside[kept].mean()), recall, len(kept) / len(inside))
