import numpy as np
import pytest

from cloud.matching import Counting, ExactStore, FaissStore, Knowledge, by_profiles, by_search, pooled
from cloud.matching.pooled import kernel
from cloud.matching.unexplained import items_of
from cloud.pool import Pool
from device_runtime.bundle import RoundSettings
from device_runtime.candidates import LARGEST_OFFSET, offsets
from device_runtime.errors import InputError
from device_runtime.samples import Feature, Ragged, SampleBatch, Schema
from device_runtime.wire import LABEL_STEPS, MatchAnswer, MatchQuery, decode_answer, encode_answer

SCHEMA = Schema((Feature("item", "id", "item"), Feature("history", "ids", "item", 4)))
WIDTH = 4
TASTES = np.eye(WIDTH, dtype=np.float32)[:2]
PERSON = 2
"""Columns of an embedding that describe the person."""
NEAR = {
    "profiles": lambda pool, known: by_profiles(known),
    "exact": lambda pool, known: by_search(ExactStore(pool)),
    "faiss": lambda pool, known: by_search(FaissStore(pool)),
}
ITEMS = 30
NONE = np.zeros(0, np.int32)


def half(samples):
    """A cloud model that knows nothing."""
    return np.full(len(samples), 0.5, np.float32)


def fill(pool, item, label, who, taste, time=0):
    history = Ragged(np.array([7], np.int32), np.zeros(len(item), np.int32), np.ones(len(item), np.int32))
    batch = SampleBatch(pool.schema, {"item": item.astype(np.int32), "history": history}, label.astype(np.float32))
    pool.append(batch, np.full(len(item), time), who.astype(np.uint64), TASTES[taste])


@pytest.fixture
def pool(tmp_path, rng):
    """Contributors of taste 0 like odd items, those of taste 1 even ones; in three segments."""
    made = Pool(tmp_path, SCHEMA, WIDTH)
    for _ in range(3):
        item, who = rng.integers(1, ITEMS + 1, 400), rng.integers(1, 40, 400)
        fill(made, item, (item + who) % 2, who, who % 2)
    return made


def ask(pool, near="profiles", taste=0, limit=100, exclude=0, predict=half, **settings):
    profile = TASTES[taste : taste + 1] if taste is not None else TASTES[:0]
    query = MatchQuery("encoder", profile, limit, NONE)
    given = RoundSettings(
        **{"core": 50, "neighbours": 600, "near_shrinkage": settings.get("shrinkage", 10.0), "cover": 1.0} | settings
    )
    known = Knowledge(predict, predict.__name__, PERSON, Counting.by(given))
    return pooled(pool, NEAR[near](pool, known), query, exclude, given, known.whole)


STEP = 2 * LARGEST_OFFSET / LABEL_STEPS
"""Between two offsets on the wire."""


@pytest.mark.parametrize("near", NEAR)
@pytest.mark.parametrize("taste", [0, 1])
def test_residuals_are_those_of_contributors_near_the_profile(pool, near, taste):
    found, reason = ask(pool, near, taste)
    assert found.columns["item"].tolist() == list(range(1, ITEMS + 1)) and f"{ITEMS} items" in reason
    assert not found.columns["history"].lengths.any(), "a mean over contributors has no history"
    liked = found.columns["item"] % 2 == (1 if taste == 0 else 0)
    assert (offsets(found.labels)[liked] > 0.6).all() and (offsets(found.labels)[~liked] < -0.6).all()


def test_what_the_model_knows_already_is_not_said_again(pool):
    def knows(samples):
        return (0.1 + 0.8 * (samples.columns["item"] % 2)).astype(np.float32)

    near, _ = ask(pool, predict=knows)
    wrong, _ = ask(pool, predict=lambda samples: 1 - knows(samples))
    assert np.abs(offsets(near.labels)).mean() < np.abs(offsets(wrong.labels)).mean() / 3
    everybody, _ = ask(pool, taste=None, predict=half)
    assert np.abs(offsets(everybody.labels)).max() < 1, "tastes cancel out where nobody is nearer than another"


def test_shrinkage_silences_what_was_hardly_seen(pool):
    size = [np.abs(offsets(ask(pool, shrinkage=s)[0].labels)).mean() for s in (1.0, 10.0, 1e6)]
    assert size[0] > size[1] > size[2] and size[2] <= STEP


@pytest.mark.parametrize("near", NEAR)
def test_the_askers_own_samples_do_not_count(tmp_path, near):
    made = Pool(tmp_path, SCHEMA, WIDTH)
    fill(made, np.array([1, 2, 2]), np.array([1, 1, 0]), np.array([7, 7, 8]), [0, 0, 0])
    fill(made, np.array([3, 3]), np.array([1, 1]), np.array([7, 9]), [0, 0])
    found, _ = ask(made, near, exclude=7, shrinkage=1.0)
    assert found.columns["item"].tolist() == [2, 3]
    assert offsets(found.labels)[0] < 0 < offsets(found.labels)[1], "own likes of item 2 would have made it 0"
    # one sample of each: a residual of a half over 1/4 for it and 1/4 for shrinkage is 1, and half of the rest is near
    np.testing.assert_allclose(np.abs(offsets(found.labels)), np.full(2, 1.5), atol=STEP)


@pytest.mark.parametrize("near", NEAR)
def test_what_a_contributor_erased_does_not_count_and_nothing_is_predicted_again(tmp_path, near):
    made, asked = Pool(tmp_path, SCHEMA, WIDTH), []

    def counting(samples):
        asked.append(len(samples))
        return half(samples)

    fill(made, np.array([2, 2, 3]), np.array([1, 0, 1]), np.array([7, 8, 8]), [0, 0, 0])
    known, query = Knowledge(counting, "model", PERSON), MatchQuery("encoder", TASTES[:1], 100, NONE)
    settings = RoundSettings(shrinkage=1.0, near_shrinkage=1.0, cover=1.0)
    before, _ = pooled(made, NEAR[near](made, known), query, 0, settings, known.whole)
    assert before.columns["item"].tolist() == [2, 3] and abs(offsets(before.labels)[0]) < 1.001 * STEP
    made.erase(8, now=1)
    after, _ = pooled(made, NEAR[near](made, known), query, 0, settings, known.whole)
    assert after.columns["item"].tolist() == [2] and offsets(after.labels)[0] == pytest.approx(1.5, abs=STEP)
    assert asked == [3]


@pytest.mark.parametrize("near", NEAR)
def test_what_was_said_long_ago_counts_less(tmp_path, near):
    made = Pool(tmp_path, SCHEMA, WIDTH)
    items, people, tastes = np.full(8, 2), np.arange(1, 9), np.zeros(8, int)
    fill(made, items, np.ones(8), people, tastes)
    fill(made, items, np.zeros(8), people + 8, tastes, time=20 * 86_400)
    fill(made, np.array([3]), np.array([1]), np.array([30]), [0], time=20 * 86_400)
    assert abs(offsets(ask(made, near)[0].labels)[0]) <= STEP, "as many liked it as did not"
    found, _ = ask(made, near, half_life=5.0, shrinkage=1.0, near_shrinkage=1e9)
    # eight likes count a sixteenth each, half a like together: a residual of (0.5 - 8) / 2 over (8.5 + 1) / 4
    assert offsets(found.labels)[0] == pytest.approx(-7.5 / 2 / (9.5 / 4), abs=2 * STEP)
    assert ask(made, near, half_life=5.0, exclude=30)[0].columns["item"].tolist() == [2], "nothing is left of item 3"


@pytest.mark.parametrize("near", NEAR)
def test_an_item_that_is_hardly_met_is_taken_to_be_as_others_of_its_age(tmp_path, near):
    made, day = Pool(tmp_path, SCHEMA, WIDTH), 86_400
    old, new = np.repeat(np.arange(2, 12), 40), np.repeat(np.arange(12, 20), 40)
    fill(made, old[::40], np.ones(10), np.arange(10), np.zeros(10, int), time=1)
    fill(made, old, np.tile([0, 1], 200), np.arange(400) % 40, np.zeros(400, int), time=499 * day)
    fill(made, new[::40], np.ones(8), np.arange(8), np.zeros(8, int), time=499 * day)
    fill(made, new, np.tile([1, 1, 1, 0], 80), np.arange(320) % 40, np.zeros(320, int), time=500 * day)
    fill(made, np.array([20]), np.array([1]), np.array([7]), [0], time=499 * day)
    fill(made, np.array([21]), np.array([1]), np.array([7]), [0], time=1)

    def of(item, **settings):
        found, _ = ask(made, near, near_shrinkage=1e9, **settings)
        return float(offsets(found.labels)[found.columns["item"].tolist().index(item)])

    alone = of(20, age_shrinkage=1e9)
    assert alone == pytest.approx(of(21, age_shrinkage=1e9), abs=STEP), "one like of either"
    assert of(20, age_shrinkage=50.0) > alone + 0.5, "three quarters like what is new"
    assert of(21, age_shrinkage=50.0) == pytest.approx(alone, abs=2 * STEP)
    assert alone < of(20) < of(20, age_shrinkage=50.0), "a few hundred samples are not believed as they are"


@pytest.mark.parametrize("near", NEAR)
def test_what_becomes_of_items_is_told_by_samples_that_the_model_was_not_fitted_on(tmp_path, near):
    """Of 20 items everybody likes the first ten, and later one in four does; nobody ever likes the others."""
    made, day = Pool(tmp_path, SCHEMA, WIDTH), 86_400
    item, who = np.repeat(np.arange(1, 21), 40), np.arange(800) % 40
    fill(made, item, item <= 10, who, np.zeros(800, int), time=day)
    fill(made, item, (item <= 10) * np.tile([0, 0, 0, 1], 200), who, np.zeros(800, int), time=30 * day)

    def of(item, shrinkage=1e6, **settings):
        found, _ = ask(made, near, near_shrinkage=1e9, shrinkage=shrinkage, age_shrinkage=0.01, **settings)
        return float(offsets(found.labels)[found.columns["item"].tolist().index(item)])

    known = {"fitted_until": float(day)}
    assert of(20) == pytest.approx(-2 / 3, abs=STEP), "that of 1,200 whose items nobody had liked before"
    assert of(20, **known) == pytest.approx(-2, abs=STEP), "a residual of -1/2 over 1/4"
    assert of(1, **known) == pytest.approx(-1, abs=STEP), "what is liked so far, one in four will like"
    each = [of(1, shrinkage=10.0, fitted_weight=weight, **known) for weight in (0.0, 0.5, 1.0)]
    # beside 40 residuals of -1/4, which the age expects, 40 of 1/2 that it does not: 30 at full weight, over 90 / 4
    np.testing.assert_allclose(each, [-1, -1 + 15 / (70 / 4), -1 + 30 / (90 / 4)], atol=STEP)


@pytest.mark.parametrize("near", NEAR)
def test_the_askers_own_samples_say_nothing_of_items_of_an_age(tmp_path, near):
    made, day = Pool(tmp_path, SCHEMA, WIDTH), 86_400
    fill(made, np.arange(1, 31), np.ones(30), np.full(30, 8), np.zeros(30, int), time=day)
    fill(made, np.arange(1, 31), np.zeros(30), np.full(30, 7), np.zeros(30, int), time=2 * day)
    of = {who: offsets(ask(made, near, exclude=who, age_shrinkage=1.0)[0].labels) for who in (7, 9)}
    assert (of[7] > 0).all() and (of[9] < 0.5 * of[7]).all()


@pytest.mark.parametrize("near", NEAR)
def test_what_the_asker_says_much_later_makes_no_item_older_to_it(tmp_path, near, rng):
    made, day = Pool(tmp_path, SCHEMA, WIDTH), 86_400
    for time in (1, 20, 40):
        item, who = rng.integers(1, ITEMS + 1, 200), rng.integers(1, 40, 200)
        fill(made, item, item % 3 == 0, who, who % 2, time=time * day)
    before = offsets(ask(made, near, exclude=77, age_shrinkage=1.0)[0].labels)
    fill(made, np.arange(1, 6), np.ones(5), np.full(5, 77), np.zeros(5, int), time=900 * day)
    found = {who: offsets(ask(made, near, exclude=who, age_shrinkage=1.0)[0].labels) for who in (77, 78)}
    np.testing.assert_array_equal(found[77], before)
    assert np.abs(found[78] - before).max() > 3 * STEP, "to others it is later"


def test_an_empty_pool_and_a_lonely_asker_get_nothing(tmp_path):
    made = Pool(tmp_path, SCHEMA, WIDTH)
    found, reason = ask(made)
    assert len(found) == 0 and "only 0 items" in reason
    fill(made, np.array([1]), np.array([1]), np.array([7]), [0])
    assert len(ask(made, exclude=7)[0]) == 0


def test_the_limit_keeps_what_the_model_is_most_wrong_about(pool):
    fill(pool, np.full(50, ITEMS + 1), np.tile([0, 1], 25), np.full(50, 2), np.zeros(50, int))
    fill(pool, np.full(400, ITEMS + 2), np.ones(400), np.full(400, 2), np.zeros(400, int))
    found, reason = ask(pool, limit=ITEMS + 1)
    assert len(found) == ITEMS + 1 and reason == "" and ITEMS + 1 not in found.columns["item"]
    assert ask(pool, limit=1)[0].columns["item"].tolist() == [ITEMS + 2]
    assert len(ask(pool, limit=0)[0]) == 0


def test_as_few_candidates_as_cover_what_is_wanted_of_all_change(pool):
    everything, _ = ask(pool)
    change = np.bincount(np.concatenate([items_of(s) for s in pool.segments]), minlength=ITEMS + 1)[1:]
    change = np.sort(change * offsets(everything.labels) ** 2)[::-1]
    for cover in (0.5, 0.9, 0.99):
        some, reason = ask(pool, cover=cover)
        needed = int(np.argmax(np.cumsum(change) >= cover * change.sum())) + 1
        assert abs(len(some) - needed) <= 1, "but for the steps of the wire"
        assert len(some) < ITEMS and reason == "", "nothing is short"
        assert set(some.columns["item"]) < set(everything.columns["item"])
    few, reason = ask(pool, cover=0.99, limit=3)
    assert len(few) == 3 and reason == "", "and never more than are asked for"


def test_items_that_everybody_likes_do_not_outweigh_all_others(pool):
    """What an offset says is bounded on the wire, and so is what it counts."""

    def never(samples):
        return np.where(samples.columns["item"] > ITEMS, 1e-3, 0.5).astype(np.float32)

    fill(pool, np.full(40, ITEMS + 1), np.ones(40), np.full(40, 2), np.zeros(40, int))
    found, _ = ask(pool, cover=0.95, predict=never, shrinkage=0.1)
    assert offsets(found.labels).max() == LARGEST_OFFSET and len(found) > ITEMS / 2


def test_weights_fall_from_the_core_on():
    given = RoundSettings(core=2, sharpness=10.0)
    np.testing.assert_allclose(
        kernel(np.array([0.9, 0.8, 0.7, 0.3], np.float32), given), [1, 1, np.exp(-1), np.exp(-5)], rtol=1e-5
    )
    assert len(kernel(np.zeros(0, np.float32), given)) == 0


def test_models_with_other_inputs_are_told_what_to_do(tmp_path):
    schema = Schema((*SCHEMA.features, Feature("price", "float", "", 1)))
    made = Pool(tmp_path, schema, WIDTH)
    with pytest.raises(InputError, match=r"'price'.*matching = nearest"):
        ask(made)


def test_a_pooled_candidate_takes_a_few_bytes(pool):
    found, _ = ask(pool)
    data = encode_answer(MatchAnswer(found, {}))
    np.testing.assert_array_equal(decode_answer(data, SCHEMA).candidates.labels, found.labels)
    plain = SampleBatch(SCHEMA, found.columns, found.labels + np.float32(1e-4))
    assert len(data) + 60 < len(encode_answer(MatchAnswer(plain, {}))), "labels take a byte, not four"
