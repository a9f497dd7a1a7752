"""Matching by directory: what is divided and drawn, against the same by plain loops."""

import itertools
import math
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.matching import Divided, Filter, Parts, by_directory
from cloud.matching.by_directory import LEAST, REACH, TURN, _seed, allot
from cloud.pool import Pool
from device_runtime.directory import Directory
from device_runtime.errors import InputError
from device_runtime.wire import DirectoryQuery
from tests.cloud.matching.test_contract import FILTERS, SCHEMA, WIDTH, fill, make_samples, shown, unit
from tests.device_runtime.batches import assert_same

SHARPNESS = 12.0
NONE = np.zeros(0, np.int32)


def directory(rng, count):
    return Directory.of(unit(rng, count).astype(np.float16), WIDTH)


def query(weights, limit, known=None):
    return DirectoryQuery("encoder", known.id if known else "", np.array(weights, np.uint8), limit, NONE)


def ask(pool, known, weights, limit, exclude=0, where=None):
    return by_directory(pool, query(weights, limit, known), exclude, known, SHARPNESS, Divided(known), where)


# -- by hand ----------------------------------------------------------------------------------------------------------


def allotted(weights, wanted, available):
    """One round after the other, in fractions: what a part has too few for is divided among the others."""
    given = [0] * len(weights)
    while (left := wanted - sum(given)) and (
        room := [i for i, w in enumerate(weights) if w and given[i] < available[i]]
    ):
        total = sum(weights[i] for i in room)
        share = {i: weights[i] * left // total for i in room}
        by_remainder = sorted(room, key=lambda i: (-(weights[i] * left % total), i))
        for i in by_remainder[: left - sum(share.values())]:
            share[i] += 1
        for i in room:
            given[i] += min(share[i], available[i] - given[i])
    return given


def expected(pool, known, asked, exclude, where):
    """Positions, by the rules in `by_directory`'s module, sample by sample."""
    samples = {}
    for segment in pool.segments:
        for row in range(len(segment)):
            samples[segment.base + row] = (
                segment.embeddings[row],
                int(segment.contributors[row]),
                bool(segment.samples.labels[row] >= 0.5),
            )
    similar = {at: known.centroids @ vector for at, (vector, _, _) in samples.items()}
    parts = {number: [] for number in range(len(asked.weights))}
    for at in shown(pool, exclude, where):
        parts[int(similar[at].argmax())].append(at)
    weights = asked.weights.tolist()
    shares = allotted(weights, asked.limit, [len(parts[i]) for i in range(len(weights))])
    rng, picked = np.random.default_rng(_seed(asked)), []
    for number, wanted in enumerate(shares):
        if not wanted:
            continue
        nearest = sorted(parts[number], key=lambda at: (-similar[at][number], at))[: max(REACH * wanted, LEAST)]
        noise = rng.gumbel(size=len(nearest))
        score = {at: SHARPNESS * float(similar[at][number]) + float(n) for at, n in zip(nearest, noise, strict=True)}
        best, had, turn = sorted(nearest, key=lambda at: -score[at]), Counter(), {}
        for at in best:
            turn[at] = had[samples[at][1]] // TURN
            had[samples[at][1]] += 1
        order = sorted(nearest, key=lambda at: (turn[at], -score[at]))
        liked = [at for at in order if samples[at][2]]
        others = [at for at in order if not samples[at][2]]
        first, second = (liked, others) if samples[order[0]][2] else (others, liked)
        from_second = min(wanted // 2, len(second))
        from_first = min(wanted - from_second, len(first))
        picked += first[:from_first] + second[: wanted - from_first]
    return sorted(picked)


# -- what is divided ---------------------------------------------------------------------------------------------------

SOME_PARTS = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 40)), min_size=1, max_size=12)


@given(SOME_PARTS, st.integers(0, 300))
def test_shares_are_those_of_largest_remainders_and_lacks_go_to_the_next(parts, wanted):
    weights, available = zip(*parts, strict=True)
    found = allot(np.array(weights, np.uint8), wanted, np.array(available, np.int64))
    assert found.tolist() == allotted(weights, wanted, available)
    assert found.sum() == min(wanted, sum(a for w, a in parts if w))


def test_shares_as_one_would_write_them_down():
    plenty = np.full(3, 100)
    assert allot(np.array([2, 1, 1], np.uint8), 10, plenty).tolist() == [5, 3, 2], "the odd one goes to the first"
    assert allot(np.array([255, 0, 1], np.uint8), 10, plenty).tolist() == [10, 0, 0]
    short = np.array([1, 100, 100])
    assert allot(np.array([2, 1, 1], np.uint8), 10, short).tolist() == [1, 5, 4]
    assert allot(np.array([2, 0, 1], np.uint8), 999, short).tolist() == [1, 0, 100]


# -- what is drawn -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 9), st.integers(0, 300), st.integers(0, 8), st.none() | FILTERS,
    st.lists(st.sampled_from(["append", "erase", "retain", "compact"]), max_size=4),
)  # fmt: skip
def test_candidates_are_what_plain_loops_find(seed, count, limit, exclude, where, changes):
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(seed)
        pool, known = Pool(Path(folder), SCHEMA, WIDTH), directory(rng, count)
        divided = Divided(known)
        for change in ["append", "append", *changes]:
            if change == "append":
                fill(pool, rng, int(rng.integers(1, 200)))
            elif change == "erase":
                pool.erase(int(rng.integers(1, 8)), now=50)
            elif change == "retain":
                pool.retain(int(rng.integers(0, 100)))
            else:
                pool.compact(full=bool(rng.integers(2)), prepare=divided)
            asked = query(np.maximum(rng.integers(-99, 256, count), 0), limit, known)
            found, reason = by_directory(pool, asked, exclude, known, SHARPNESS, divided, where)
            positions = expected(pool, known, asked, exclude, where or Filter())
            assert_same(found, pool.gather(np.array(positions, np.int64)))
            assert bool(reason) == (len(positions) < limit)


def test_the_same_query_gets_the_same_answer_whatever_rows_are_held(tmp_path, rng):
    pool, known = Pool(tmp_path, SCHEMA, WIDTH), directory(rng, 6)
    fill(pool, rng, 2000)
    asked = query([9, 0, 200, 3, 0, 255], 50, known)
    again = DirectoryQuery(asked.encoder, asked.directory, asked.weights, 50, np.arange(7, dtype=np.int32))
    first, second = (by_directory(pool, q, 0, known, SHARPNESS, Divided(known))[0] for q in (asked, again))
    assert_same(first, second)
    other, _ = ask(pool, known, [9, 0, 200, 4, 0, 255], 50)
    assert first.columns["item"].tolist() != other.columns["item"].tolist(), "chance is of the query"


def test_labels_are_balanced_and_nobody_stands_for_a_part(tmp_path, rng):
    """Contributor 1 gave half of a part, and most samples of it are disliked."""
    pool, known = Pool(tmp_path, SCHEMA, WIDTH), directory(rng, 2)
    near = known.centroids[0] + 0.05 * rng.normal(size=(1000, WIDTH)).astype(np.float32)
    samples = make_samples(rng, 1000)
    samples.labels[:] = rng.random(1000) < 0.2
    tokens = np.where(rng.random(1000) < 0.5, 1, rng.integers(2, 100, 1000)).astype(np.uint64)
    pool.append(samples, np.arange(1000), tokens, near.astype(np.float32))
    found, reason = ask(pool, known, [255, 0], 20)
    assert len(found) == 20 and not reason
    assert found.labels.sum() == 10
    [segment] = pool.segments
    whose = Counter(segment.contributors[row] for row in range(1000) if row in positions_of(pool, found))
    assert whose[np.uint64(1)] <= TURN and max(whose.values()) <= TURN


def positions_of(pool, found):
    """By the histories, of which no two are alike."""
    [segment] = pool.segments
    where = {tuple(segment.samples.columns["history"].row(i)): i for i in range(len(segment))}
    return {where[tuple(found.columns["history"].row(i))] for i in range(len(found))}


def test_samples_near_the_centroid_are_likelier(tmp_path, rng):
    pool, known = Pool(tmp_path, SCHEMA, WIDTH), directory(rng, 3)
    fill(pool, rng, 3000, contributors=1000)
    [segment] = pool.segments
    mine = Parts.of(segment.embeddings, known.centroids).of_part(1)
    found, _ = ask(pool, known, [0, 255, 0], 40)
    similarity = segment.embeddings @ known.centroids[1]
    taken = np.array(sorted(positions_of(pool, found)))
    assert np.isin(taken, mine).all(), "of no other part"
    assert similarity[taken].mean() > similarity[mine].mean() + similarity[mine].std() / 2


# -- what is said, and kept --------------------------------------------------------------------------------------------


def test_why_there_are_fewer_than_asked_for(tmp_path, rng):
    pool, known = Pool(tmp_path, SCHEMA, WIDTH), directory(rng, 3)
    assert ask(pool, known, [1, 0, 0], 5)[1] == "the pool is empty"
    fill(pool, rng, 60)
    [segment] = pool.segments
    count = len(Parts.of(segment.embeddings, known.centroids).of_part(2))
    found, reason = ask(pool, known, [0, 0, 1], 60)
    assert len(found) == count
    assert reason == (
        f"the pool has only {count} samples of other contributors in the parts of the directory that the query names"
    )
    assert ask(pool, known, [1, 1, 1], 0)[1] == ""
    with pytest.raises(InputError, match="cannot be chosen by 'country'"):
        ask(pool, known, [1, 1, 1], 5, where=Filter(equals=(("country", 3),)))


def test_parts_are_found_once_a_segment_and_lie_beside_it(tmp_path, rng, monkeypatch):
    pool, known, other = Pool(tmp_path, SCHEMA, WIDTH), directory(rng, 5), directory(rng, 5)
    fill(pool, rng, 300)
    [segment] = pool.segments
    first = Divided(known)(segment)
    divided = Divided(other)
    assert divided(segment) is divided(segment)
    assert {f.name for f in segment.folder.glob("directory-*.npy")} == {
        f"directory-{known.id}.npy", f"directory-{other.id}.npy",
    }  # fmt: skip
    monkeypatch.setattr(Parts, "of", None)  # nobody needs it any more
    [opened] = Pool(tmp_path, SCHEMA, WIDTH).segments
    again = Divided(known)(opened)
    np.testing.assert_array_equal(again.rows, first.rows)
    np.testing.assert_array_equal(again.ends, first.ends)


def test_a_file_of_parts_that_is_not_whole_is_made_again(tmp_path, rng):
    pool, known = Pool(tmp_path, SCHEMA, WIDTH), directory(rng, 5)
    fill(pool, rng, 300)
    [segment] = pool.segments
    meant = Divided(known)(segment)
    path = segment.folder / f"directory-{known.id}.npy"
    whole = path.read_bytes()
    path.rename(path.with_suffix(".aside"))  # what others have mapped stays as it is
    path.write_bytes(whole[:400])
    np.testing.assert_array_equal(Divided(known)(segment).rows, meant.rows)
    assert path.read_bytes() == whole


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(0, 80))
def test_parts_of_a_beginning_are_the_beginnings_of_parts(seed, count, end):
    rng = np.random.default_rng(seed)
    embeddings, centroids = unit(rng, 80), unit(rng, count)
    whole, cut = Parts.of(embeddings, centroids).before(end), Parts.of(embeddings[:end], centroids)
    for number in range(count):
        np.testing.assert_array_equal(whole.of_part(number), cut.of_part(number))
        similarity = embeddings[cut.of_part(number)] @ centroids[number]
        assert all(b <= a or math.isclose(a, b, abs_tol=1e-6) for a, b in itertools.pairwise(similarity))
