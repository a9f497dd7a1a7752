"""Splits, and that a leak planted in one is found."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cloud.datasets import Dataset, ReadReport
from cloud.evaluation import leaks, protocols
from cloud.evaluation.device import _until
from cloud.evaluation.protocols import CAPS, MIN_TEST, Case, Split, split
from cloud.evaluation.result import dataset_facts
from device_runtime.errors import InputError
from device_runtime.samples import Feature, Ragged, Schema
from device_runtime.stream import Events, samples

SCHEMA = Schema((Feature("item", "id", "item"), Feature("history", "ids", "item", 5)))
USERS, ITEMS = 40, 50


@pytest.fixture
def dataset(rng: np.random.Generator) -> Dataset:
    """Half of the users are there from the beginning, the others come later."""
    rows = []
    for user in range(USERS):
        start, end, count = (0, 12_000, 240) if user % 2 else (11_000, 12_000, 90) if user % 4 else (9_000, 10_000, 90)
        rows += [(user, int(t)) for t in np.sort(rng.integers(start, end, int(rng.integers(count // 4, count))))]
    user, time = np.array(rows).T
    return made(user, time, rng.random(len(user)) < 0.5, rng)


def made(user: np.ndarray, time: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Dataset:
    events = Events(
        user.astype(np.int32),
        rng.integers(1, ITEMS, len(user)).astype(np.int32),
        time.astype(np.int64),
        label.astype(np.float32),
        np.ones(len(user), bool),
    )
    names = tuple(f"u{i}" for i in range(int(user.max()) + 1))
    items = ("", *(f"i{i}" for i in range(1, ITEMS)))
    categories = np.zeros((ITEMS, 4), np.int32)
    return Dataset("made", events, None, names, items, items, ("",), categories, None, ReadReport("made", 1, 1))


@pytest.mark.parametrize("protocol", ["paper", "fresh", "cold"])
def test_nothing_that_is_tested_is_known_before(dataset: Dataset, protocol: str) -> None:
    parts = split(dataset, protocol, 100)
    leaks.check_split(parts)
    assert parts.cases and parts.cloud.events.timestamp.max() < parts.cut
    for case in parts.cases:
        assert case.local.timestamp.max() < case.match_time <= case.test.timestamp.min()
        assert len(case.test) >= MIN_TEST and 0 < case.test.label.mean() < 1
    if protocol != "paper":
        assert all(case.local.timestamp.min() >= parts.cut for case in parts.cases)


def test_fresh_users_may_have_a_past_and_cold_ones_have_none(dataset: Dataset) -> None:
    fresh, cold = split(dataset, "fresh", 100), split(dataset, "cold", 100)
    assert any(case.local_from > 0 for case in fresh.cases)
    assert all(case.local_from == 0 and len(case.local) <= case.cap for case in cold.cases)
    assert {case.cap for case in cold.cases} == set(CAPS)
    strangers = [case.user for case in cold.cases]
    assert not np.isin(cold.cloud.events.contributor, strangers).any()
    assert not np.isin(cold.pool.events.contributor, strangers).any()


@pytest.mark.parametrize("protocol", ["paper", "fresh", "cold"])
def test_validation_touches_nothing_that_is_local_or_tested_later(dataset: Dataset, protocol: str) -> None:
    real = split(dataset, protocol, 100)
    early = split(dataset, protocol, 100, validation=True)
    leaks.check_split(early)
    assert early.pool.events.timestamp.max() < real.cut
    assert max(case.test.timestamp.max() for case in early.cases) < real.cut


def test_the_same_users_are_drawn_again(dataset: Dataset) -> None:
    one, other = (split(dataset, "fresh", 5) for _ in range(2))
    assert [case.user for case in one.cases] == [case.user for case in other.cases]
    assert len(one.cases) == 5 < one.eligible


@pytest.mark.parametrize("protocol", ["fresh", "cold", "paper"])
def test_nobody_is_examined_whom_a_table_of_users_does_not_list(dataset: Dataset, protocol: str) -> None:
    everybody = split(dataset, protocol, 1000)
    listed = [dataset.users[case.user] for case in everybody.cases[::2]]
    parts = split(dataset, protocol, 1000, listed=listed)
    assert [dataset.users[case.user] for case in parts.cases] == listed
    assert [case.test_from for case in parts.cases] == [case.test_from for case in everybody.cases[::2]]
    assert parts.dropped["not in the table of users"] == len(dataset.users) - len(listed)
    if protocol != "cold":
        assert len(parts.cloud.events) == len(everybody.cloud.events), "the others' events are still learned from"
    with pytest.raises(InputError, match=r"\d+ users: not in the table of users"):
        split(dataset, protocol, 1000, listed=["nobody"])


def test_who_cannot_be_examined_is_counted_with_the_reason(rng: np.random.Generator) -> None:
    user = np.repeat(np.arange(6), 120)
    time = np.tile(np.arange(120), 6) * 100
    time[user == 0] //= 100  # nothing after the cut
    time[user == 1] = 11_500  # all in one second
    label = rng.random(len(user)) < 0.5
    label[user == 2] = True  # one class
    order = np.lexsort((time, user))
    parts = split(made(user[order], time[order], label[order], rng), "fresh", 10)
    assert parts.dropped == {
        "no row after the cloud model's time": 1,
        "fewer than 8 local rows": 1,
        "test rows of one class only: they have no AUC": 1,
    }
    assert parts.eligible == 3


def test_a_table_in_which_nobody_can_be_examined_is_refused_with_reasons(rng: np.random.Generator) -> None:
    user, time = np.repeat(np.arange(3), 100), np.tile(np.arange(100), 3) * 10
    with pytest.raises(InputError, match="one class only"):
        split(made(user, time, np.ones(300, bool), rng), "fresh", 10)


def test_rows_of_one_second_are_not_parted(rng: np.random.Generator) -> None:
    user, time = np.repeat(np.arange(4), 80), np.tile(np.arange(80) // 4, 4) * 1000
    for case in split(made(user, time, np.tile([True, False], 160), rng), "fresh", 10).cases:
        assert case.local.timestamp.max() < case.test.timestamp.min()


# -- planted leaks ---------------------------------------------------------------------------------------------------


def shifted(case: Case, at: int, time: int) -> Case:
    times = case.events.timestamp.copy()
    times[at] = time
    return dataclasses.replace(case, events=dataclasses.replace(case.events, timestamp=times))


def with_case(parts: Split, case: Case) -> Split:
    return dataclasses.replace(parts, cases=(case,))


def test_a_test_row_older_than_a_local_one_is_found(dataset: Dataset) -> None:
    parts = split(dataset, "fresh", 5)
    case = parts.cases[0]
    with pytest.raises(leaks.Leak, match="not later than the newest local row"):
        leaks.check_split(with_case(parts, shifted(case, case.test_from, case.match_time - 1)))


def test_a_local_row_that_the_cloud_model_has_seen_is_found(dataset: Dataset) -> None:
    parts = split(dataset, "fresh", 5)
    case = next(case for case in parts.cases if case.local_from == 0)
    with pytest.raises(leaks.Leak, match="cloud model's time"):
        leaks.check_split(with_case(parts, shifted(case, 0, parts.cut - 1)))


def test_a_cloud_event_of_the_devices_time_is_found(dataset: Dataset) -> None:
    parts = split(dataset, "fresh", 5)
    with pytest.raises(leaks.Leak, match="its time ends"):
        leaks.check_split(dataclasses.replace(parts, cloud=dataset))


@pytest.mark.parametrize("what", ["cloud", "pool"])
def test_a_stranger_whom_the_cloud_knows_is_found(dataset: Dataset, what: str) -> None:
    parts = split(dataset, "cold", 5)
    known = dataset.take(np.isin(dataset.events.contributor, [c.user for c in parts.cases]))
    early = dataclasses.replace(
        known, events=dataclasses.replace(known.events, timestamp=known.events.timestamp - parts.cut)
    )
    with pytest.raises(leaks.Leak, match="must be new"):
        leaks.check_split(dataclasses.replace(parts, **{what: early}))


def test_a_test_period_sample_in_the_papers_pool_is_found(dataset: Dataset) -> None:
    with pytest.raises(leaks.Leak, match="pool holds"):
        leaks.check_split(dataclasses.replace(split(dataset, "paper", 5), pool=dataset))


def test_histories_of_test_rows_end_at_the_match(dataset: Dataset) -> None:
    case = split(dataset, "fresh", 5).cases[0]
    growing = samples(case.events, SCHEMA).take(slice(case.test_from, None))
    leaks.check_histories(case, growing, case.test_from, growing=True)
    frozen = _until(case, growing)
    leaks.check_histories(case, frozen, case.test_from, growing=False)
    history = frozen.columns["history"]
    assert isinstance(history, Ragged) and len({tuple(history.row(i)) for i in range(len(frozen))}) == 1
    with pytest.raises(leaks.Leak, match="before the user liked it"):
        leaks.check_histories(case, growing, case.test_from, growing=False)


def test_a_history_with_a_later_like_is_found(dataset: Dataset) -> None:
    case = split(dataset, "fresh", 5).cases[0]
    late = samples(case.events, SCHEMA).take(slice(case.local_from + 10, case.test_from))
    early = samples(case.events, SCHEMA).take(slice(case.local_from, case.test_from - 10))
    columns = {**early.columns, "history": late.columns["history"]}
    with pytest.raises(leaks.Leak, match="in a history before"):
        leaks.check_histories(case, dataclasses.replace(early, columns=columns), case.local_from, growing=True)


def test_a_pool_out_of_order_is_found(tmp_path: Path, dataset: Dataset, rng: np.random.Generator) -> None:
    from cloud.evaluation.cloud_side import PoolBefore
    from cloud.pool import Pool

    pool = Pool(tmp_path, SCHEMA, 4)
    batch = samples(dataset.events, SCHEMA).take(slice(0, 100))
    vectors = rng.normal(size=(100, 4)).astype(np.float32)
    pool.append(batch, np.arange(100), np.ones(100, np.uint64), vectors)
    before = PoolBefore(pool, 40)
    leaks.check_pool(before, 40)
    assert len(before) == 40
    with pytest.raises(leaks.Leak, match="a match at 40"):
        leaks.check_pool(pool, 40)


def test_protocol_names_are_those_of_the_command() -> None:
    assert protocols.PROTOCOLS == ("paper", "fresh", "cold", "synthetic")


def test_items_without_categories_and_rows_of_the_future_are_said(dataset: Dataset) -> None:
    times = dataset.events.timestamp.copy()
    times[:3] = 4_000_000_000
    odd = dataclasses.replace(dataset, events=dataclasses.replace(dataset.events, timestamp=times))
    notes = " ".join(dataset_facts(odd).notes)
    assert (
        "3 rows are later than today" in notes and f"{ITEMS - 1} of {ITEMS - 1} items have no known category" in notes
    )
    assert "later than today" not in " ".join(dataset_facts(dataset).notes)
