"""The made-up world is what it says, so that it can judge others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cloud.datasets import read
from cloud.evaluation.synthetic import CUT, QUICK, Truth, examine_filter, make
from device_runtime.errors import InputError
from device_runtime.samples import Feature, Int64, Schema
from device_runtime.stream import samples

SCHEMA = Schema((Feature("item", "id", "item"), Feature("history", "ids", "item", 5)))


def test_heterogeneity_changes_labels_after_the_cut_and_nothing_else() -> None:
    none, full = make(0, 0, QUICK).dataset.events, make(1, 0, QUICK).dataset.events
    early = none.timestamp < CUT
    assert early.sum() == QUICK.users * QUICK.before
    np.testing.assert_array_equal(none.item, full.item)
    np.testing.assert_array_equal(none.timestamp, full.timestamp)
    np.testing.assert_array_equal(none.label[early], full.label[early])
    assert 0.3 < (none.label != full.label)[~early].mean() < 0.7


def test_groups_mean_nothing_at_zero_and_everything_at_one() -> None:
    for knob, apart in ((0.0, False), (1.0, True)):
        made = make(knob, 0, QUICK)
        likes = made.score > 0
        same = made.group[:, None] == made.group
        agree = (likes[:, None, :] == likes[None]).mean(2)
        np.fill_diagonal(same, False)
        others = ~same & ~np.eye(len(same), dtype=bool)
        gap = agree[same].mean() - agree[others].mean()
        assert gap > 0.3 if apart else abs(gap) < 0.05


def test_labels_follow_the_taste_but_for_those_that_are_flipped() -> None:
    made = make(1, 0, QUICK)
    e = made.dataset.events
    later = e.timestamp >= CUT
    right = (made.score[e.contributor, e.item - 1] > 0) == (e.label >= 0.5)
    assert right[later].mean() == pytest.approx(1 - QUICK.flipped, abs=0.02)


def test_a_written_table_reads_back_the_same(tmp_path: Path) -> None:
    made = make(0.5, 3, QUICK)
    made.write(tmp_path)
    back = read(tmp_path / "interactions.parquet", tmp_path / "items.parquet")
    e, f = made.dataset.events, back.events
    assert [back.items[i] for i in f.item[:200]] == [made.dataset.items[i] for i in e.item[:200]]
    np.testing.assert_array_equal(f.label, e.label)
    np.testing.assert_array_equal(f.timestamp, e.timestamp)
    assert len(back.categories) == len(made.dataset.categories)


def test_a_knob_beyond_its_range_is_refused() -> None:
    with pytest.raises(InputError, match="from 0 to 1"):
        make(1.5)


def test_the_filter_is_measured_by_the_truth(rng: np.random.Generator) -> None:
    made = make(1, 0, QUICK)
    truth, e = Truth.of(made), made.dataset.events
    at = np.sort(rng.permutation(len(e))[:600])
    candidates = samples(e, SCHEMA).take(at)
    users, times = e.contributor[at], e.timestamp[at]

    def measured(kept: Int64):  # type: ignore[no-untyped-def]
        found = examine_filter(truth, 0, candidates, (users, times), kept)
        assert found is not None
        return found

    inside = np.flatnonzero((made.group[users] == made.group[0]) & (times >= CUT))
    perfect = measured(inside).group
    assert perfect is not None
    assert (perfect.precision, perfect.recall) == (1, 1) and perfect.lift == pytest.approx(1 - len(inside) / 600)
    chance = measured(np.arange(0, 600, 2)).group
    assert chance is not None
    assert chance.precision == pytest.approx(chance.share, abs=0.05) and chance.recall == pytest.approx(0.5, abs=0.15)
    agreeing = np.flatnonzero((made.score[0, e.item[at] - 1] > 0) == (e.label[at] >= 0.5))
    assert measured(agreeing).taste.precision == 1
    assert examine_filter(truth, 0, candidates, (users, times), np.zeros(0, np.int64)) is None


def test_soft_labels_count_by_their_part_on_the_right_side() -> None:
    made = make(1, 0, QUICK)
    truth = Truth.of(made)
    likes = truth.likes[0, :4].astype(np.float32)
    events = made.dataset.events.take(np.arange(4))
    batch = samples(dataclasses.replace(events, item=np.arange(1, 5, dtype=np.int32)), SCHEMA)
    unsure = dataclasses.replace(batch, labels=np.full(4, 0.5, np.float32))
    plain = examine_filter(truth, 0, unsure, None, np.arange(4))
    assert plain is not None and plain.group is None and plain.taste.precision == plain.taste.share == 0.5
    half = examine_filter(truth, 0, unsure, None, np.flatnonzero(likes))
    assert half is not None and half.taste.precision == 0.5 and half.taste.recall == likes.mean()
