"""What lies beside a segment: predicted once, by whoever is first, and never trusted when it is not whole."""

import logging
import os
import threading

import numpy as np
import pytest

from cloud.matching import Counting, Knowledge
from cloud.matching.unexplained import AGES, GROUPS, NEVER, Summed, Unexplained, asked, predictions
from cloud.pool import Pool
from device_runtime.samples import Feature, SampleBatch, Schema

SCHEMA = Schema((Feature("item", "id", "item"),))
WIDTH, PERSON, ITEMS = 4, 2, 9
DAY = 86_400


class Model:
    """Predicts from the item, and remembers how many samples it was asked about."""

    def __init__(self, shift: float = 0.0) -> None:
        self.asked: list[int] = []
        self.shift = shift

    def __call__(self, samples: SampleBatch) -> np.ndarray:
        self.asked.append(len(samples))
        return (samples.columns["item"] / 10 - self.shift).astype(np.float32)


@pytest.fixture
def pool(tmp_path, rng):
    made = Pool(tmp_path, SCHEMA, WIDTH)
    for _ in range(2):
        append(made, rng, 300)
    return made


def append(pool, rng, count, start=0):
    batch = SampleBatch(
        SCHEMA,
        {"item": rng.integers(1, ITEMS + 1, count).astype(np.int32)},
        rng.integers(0, 2, count).astype(np.float32),
    )
    vectors = rng.normal(size=(count, WIDTH)).astype(np.float32)
    pool.append(batch, start + np.arange(count), rng.integers(1, 9, count).astype(np.uint64), vectors)


def seen(known, pool):
    return [known.residuals(segment) for segment in pool.segments]


def test_each_segment_is_predicted_once_also_by_servers_to_come(pool, rng, tmp_path):
    model = Model()
    known = Knowledge(model, "a", PERSON)
    first = seen(known, pool)
    assert model.asked == [300, 300] and all(a is b for a, b in zip(seen(known, pool), first, strict=True))
    append(pool, rng, 6)
    seen(known, pool)
    assert model.asked == [300, 300, 6]
    other = Model()
    again = seen(Knowledge(other, "a", PERSON), Pool(tmp_path, SCHEMA, WIDTH))
    assert other.asked == []
    for a, b in zip(first, again, strict=False):
        np.testing.assert_array_equal(a.predicted, b.predicted)
        np.testing.assert_array_equal(a.sums, b.sums)


def test_sums_are_of_residuals_and_variances(pool):
    [segment, _] = pool.segments
    found = Knowledge(Model(), "a", PERSON).residuals(segment)
    item, label = segment.samples.columns["item"], segment.samples.labels
    p = (item / 10).astype(np.float32)
    rows = np.flatnonzero(item == 3)
    np.testing.assert_allclose(found.residuals(rows), label[rows] - p[rows], atol=1e-6)
    np.testing.assert_allclose(found.variances(rows), (p * (1 - p))[rows], atol=1e-6)
    assert found.met[3] == len(rows)
    assert found.sums[3] == pytest.approx((label - p)[rows].sum(), abs=1e-4)
    assert found.mass[3] == pytest.approx((p * (1 - p))[rows].sum(), abs=1e-4)


def test_samples_fade_as_of_the_newest_of_all_segments(pool, rng):
    append(pool, rng, 50, start=5 * DAY)
    known = Knowledge(Model(), "a", PERSON, Counting(half_life=2.0))
    whole, segments = known.whole(pool.segments), pool.segments
    item, label, time = (
        np.concatenate([np.asarray(column) for column in columns])
        for columns in zip(
            *((s.samples.columns["item"], s.samples.labels, s.timestamps) for s in segments), strict=True
        )
    )
    weight = 0.5 ** ((time.max() - time) / (2 * DAY))
    assert whole.newest == time.max() and weight.min() < 0.2
    p = item / 10
    for found, values in ((whole.met, 1 + 0 * p), (whole.sums, label - p), (whole.mass, p * (1 - p))):
        np.testing.assert_allclose(found, np.bincount(item, weight * values), rtol=1e-5, atol=1e-4)
    rows = np.arange(0, 300, 7)
    np.testing.assert_allclose(whole.parts[0].weights(rows, whole.newest), weight[rows])


def test_an_items_age_is_counted_from_whoever_liked_it_first_to_the_newest_sample_of_all(pool, rng):
    append(pool, rng, 50, start=40 * DAY)
    new = SampleBatch(SCHEMA, {"item": np.full(1, ITEMS + 1, np.int32)}, np.ones(1, np.float32))
    pool.append(new, np.full(1, 30 * DAY), np.ones(1, np.uint64), np.zeros((1, WIDTH), np.float32))
    whole = Knowledge(Model(), "a", PERSON).whole(pool.segments)
    first: dict[int, int] = {}
    for segment in pool.segments:
        columns = segment.samples.columns["item"], segment.samples.labels, segment.timestamps
        for item, label, time in zip(*columns, strict=True):
            if label >= 0.5:
                first[int(item)] = min(first.get(int(item), NEVER), int(time))
    for item, age in enumerate(whole.age.tolist()):
        if item not in first:
            assert age == len(AGES), "nobody likes it"
            continue
        days = (whole.newest - first[item]) / DAY
        assert days <= AGES[age] and (not age or days > AGES[age - 1])
    assert whole.age.tolist() == [len(AGES), *[3] * ITEMS, 1], "40 days, and 10"


def test_likes_that_are_erased_make_no_item_older(pool, rng):
    new = SampleBatch(SCHEMA, {"item": np.full(2, ITEMS + 1, np.int32)}, np.ones(2, np.float32))
    pool.append(new, np.array([0, 30 * DAY]), np.array([77, 78], np.uint64), np.zeros((2, WIDTH), np.float32))
    append(pool, rng, 50, start=40 * DAY)
    known = Knowledge(Model(), "a", PERSON)
    assert known.whole(pool.segments).age[ITEMS + 1] == 3
    pool.erase(77, now=50 * DAY)
    assert known.whole(pool.segments).age[ITEMS + 1] == 1, "of what is left"
    assert known.whole(pool.segments) is known.whole(pool.segments)
    pool.erase(78, now=50 * DAY)
    assert known.whole(pool.segments).age[ITEMS + 1] == len(AGES)


def told(segments, known, counting):
    """Sums by age, one sample at a time: of items as of the contributor's sample before, in the same segment."""
    liked: dict[int, int] = {}
    sums, mass = np.zeros(GROUPS), np.zeros(GROUPS)
    newest = max(int(s.timestamps.max()) for s in segments)
    for segment in segments:
        item, labels = np.asarray(segment.samples.columns["item"]), segment.samples.labels
        for i in np.setdiff1d(np.arange(len(segment)), segment.hidden):
            if labels[i] >= 0.5:
                liked[int(item[i])] = min(liked.get(int(item[i]), NEVER), int(segment.timestamps[i]))
        for i in range(len(segment)):
            time, same = segment.timestamps[i], segment.contributors == segment.contributors[i]
            if counting.fitted_until and time <= counting.fitted_until:
                continue
            earlier = np.flatnonzero(same & (segment.timestamps <= time))
            earlier = earlier[(segment.timestamps[earlier] < time) | (earlier < i)]
            then = segment.timestamps[earlier].max() if len(earlier) else time
            first = liked.get(int(item[i]), NEVER)
            age = len(AGES) if first >= then else int(np.searchsorted(AGES, (then - first) / DAY))
            weight = 0.5 ** ((newest - time) / (counting.half_life * DAY)) if counting.half_life else 1.0
            p = known.residuals(segment).predicted[i]
            sums[age] += weight * (labels[i] - p)
            mass[age] += weight * p * (1 - p)
    return sums, mass


COUNTINGS = [Counting(), Counting(fitted_until=12.0 * DAY), Counting(9.0, 12.0 * DAY, 0.5)]


@pytest.mark.parametrize("counting", COUNTINGS, ids=["all", "later ones", "faded"])
def test_ages_are_those_that_items_had_when_a_device_could_last_have_asked(tmp_path, rng, counting):
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    for start, count in ((0, 200), (30, 100), (10, 5)):
        item, time = rng.integers(1, ITEMS + 1, count).astype(np.int32), (start + rng.integers(0, 40, count)) * DAY
        batch = SampleBatch(SCHEMA, {"item": item}, (rng.random(count) < 0.1).astype(np.float32))
        who = rng.integers(1, 9, count).astype(np.uint64)
        pool.append(batch, time, who, rng.normal(size=(count, WIDTH)).astype(np.float32))
        known = Knowledge(Model(), "a", PERSON, counting)
        whole = known.whole(pool.segments)
        for found, expected in zip((whole.age_sums, whole.age_mass), told(pool.segments, known, counting), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-4)
    pool.erase(3, now=100 * DAY)
    whole = known.whole(pool.segments)
    np.testing.assert_allclose(whole.age_sums, told(pool.segments, known, counting)[0], atol=1e-4)
    gone = [
        aged.without(part, segment.hidden.astype(np.int64), whole.newest)[1]
        for segment, part, aged in zip(pool.segments, whole.parts, whole.aged, strict=True)
    ]
    assert 0 < np.sum(gone) < whole.age_mass.sum()


def test_a_contributors_first_sample_has_no_other_before_it(pool):
    for segment in pool.segments:
        found = asked(segment)
        for who in np.unique(segment.contributors):
            times = segment.timestamps[segment.contributors == who]
            np.testing.assert_array_equal(found[segment.contributors == who], [times[0], *times[:-1]])


def test_when_the_pool_grows_only_what_is_new_is_looked_at(pool, rng):
    seen = []

    def one(segment):
        seen.append(len(segment))
        return Unexplained.of(segment, np.full(len(segment), 0.5, np.float32))

    whole = Summed(one)
    whole(pool.segments)
    append(pool, rng, 7, start=3 * DAY)
    grown = whole(pool.segments)
    assert seen == [300, 300, 7]
    anew = Summed(one)(pool.segments)
    np.testing.assert_array_equal(grown.age_sums, anew.age_sums)
    np.testing.assert_array_equal(grown.sums, anew.sums)
    np.testing.assert_array_equal(grown.age, anew.age)
    shrunk = whole(pool.segments[:1])
    assert shrunk.met.sum() == 300 and len(shrunk.parts) == 1


def test_another_model_has_predictions_of_its_own_and_only_the_newest_stay(pool):
    for number, key in enumerate("abcdef"):
        known = Knowledge(Model(number / 100), key, PERSON)
        predicted = known.residuals(pool.segments[0]).predicted
        np.testing.assert_allclose(predicted, pool.segments[0].samples.columns["item"] / 10 - number / 100, atol=1e-6)
        file = pool.segments[0].folder / f"predicted-{key}.npy"
        os.utime(file, (number, number))
    assert sorted(f.name for f in pool.segments[0].folder.glob("predicted-*.npy")) == [
        f"predicted-{key}.npy" for key in "cdef"
    ]


@pytest.mark.parametrize("damage", [b"", b"not an array", "half"])
def test_what_is_not_whole_is_made_again(pool, damage):
    first = seen(Knowledge(Model(), "a", PERSON), pool)
    file = pool.segments[0].folder / "predicted-a.npy"
    whole = file.read_bytes()
    file.unlink()  # it is mapped: writing into it would reach this process
    file.write_bytes(whole[:700] if damage == "half" else damage)
    model = Model()
    again = seen(Knowledge(model, "a", PERSON), pool)
    assert model.asked == [300]
    np.testing.assert_array_equal(again[0].predicted, first[0].predicted)


def test_a_disk_that_is_full_costs_memory_and_says_so(pool, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cloud.matching.kept.np.save", full)
    with caplog.at_level(logging.WARNING):
        found = seen(Knowledge(Model(), "a", PERSON), pool)
    assert len(found[0].predicted) == 300 and "kept in memory" in caplog.text


def test_threads_that_ask_at_once_predict_once(pool):
    model = Model()
    known = Knowledge(model, "a", PERSON)
    threads = [threading.Thread(target=seen, args=(known, pool)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.asked == [300, 300]


def test_a_segment_in_memory_is_predicted_in_memory(pool, rng):
    [segment, _] = pool.segments
    p = np.full(300, 0.5, np.float32)
    found = Unexplained.of(segment, p)
    assert found.mass.sum() == pytest.approx(75) and found.met.sum() == 300


def test_predicting_in_parts_changes_nothing(pool):
    samples, sizes = pool.segments[0].samples, []

    def told(part):
        sizes.append(len(part))
        return part.columns["item"].astype(np.float32)

    np.testing.assert_array_equal(predictions(samples, told, 120), samples.columns["item"])
    assert sizes == [120, 120, 60] and len(predictions(samples.take(slice(0, 0)), told)) == 0
