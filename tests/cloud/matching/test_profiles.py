"""Contributors compared by the means of their samples' embeddings, with a comparison of every sample as the oracle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.matching.pooled import kernel
from cloud.matching.profiles import LONGEST, Profiles, nearest
from cloud.pool.segment import Segment
from device_runtime.bundle import RoundSettings
from device_runtime.samples import Feature, SampleBatch, Schema

SCHEMA = Schema((Feature("item", "id", "item"),))
PERSON = 3
NONE = np.zeros(0, np.int64)


def segment(who, embeddings, base=0, hidden=NONE):
    item = np.arange(1, len(who) + 1, dtype=np.int32)
    batch = SampleBatch(SCHEMA, {"item": item}, np.ones(len(who), np.float32))
    return Segment(base, batch, who.astype(np.uint64), np.arange(len(who)), embeddings, hidden=hidden)


def people(rng, samples, contributors):
    """Samples of people whose person's columns never change, while the others do."""
    who = rng.integers(1, contributors + 1, samples)
    each = rng.normal(size=(contributors + 1, PERSON)).astype(np.float32)
    each /= np.linalg.norm(each, axis=1, keepdims=True)
    return who, np.concatenate([each[who], rng.normal(size=(samples, 2)).astype(np.float32)], 1), each


def ask(segments, profile, exclude=0, **given):
    known = [Profiles.of(s, PERSON) for s in segments]
    return nearest(segments, known, profile, exclude, RoundSettings(**given))


def test_stretches_are_of_one_contributor_and_together_all_samples(rng):
    who, embeddings, _ = people(rng, 3 * LONGEST + 50, 3)
    made = segment(who, embeddings)
    profiles = Profiles.of(made, PERSON)
    rows = np.split(made.owners.rows, profiles.ends[:-1])
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(who)))
    for part, vector in zip(rows, profiles.vectors, strict=True):
        assert 0 < len(part) <= LONGEST and len(set(who[part])) == 1
        np.testing.assert_allclose(vector, embeddings[part, :PERSON].mean(0), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.integers(1, 30), st.integers(1, 300), st.integers(1, 600))
def test_as_if_every_sample_had_been_compared(seed, samples, contributors, core, neighbours):
    rng = np.random.default_rng(seed)
    who, embeddings, each = people(rng, samples, contributors)
    cut = samples // 3
    hidden = np.flatnonzero(who[cut:] == 2)  # erased
    parts = [segment(who[:cut], embeddings[:cut]), segment(who[cut:], embeddings[cut:], cut, hidden)]
    parts = [part for part in parts if len(part)]
    asker, profile = 1, rng.normal(size=PERSON).astype(np.float32)
    found = ask(parts, profile, asker, core=core, neighbours=neighbours, sharpness=5.0)

    similarity = each[who] @ profile
    others = np.flatnonzero(who != asker)
    order = others[np.argsort(-similarity[others], kind="stable")]
    weights = kernel(similarity[order], RoundSettings(core=core, sharpness=5.0))
    expected = dict(zip(order.tolist(), weights.tolist(), strict=True))
    gone = set((np.flatnonzero(who[cut:] == 2) + cut).tolist())
    got = {
        int(row) + part.base: float(weight)
        for part, (rows, all_weights) in zip(parts, found, strict=True)
        for row, weight in zip(rows, all_weights, strict=True)
    }
    assert not gone & set(got) and not {i for i in got if who[i] == asker}
    for row, weight in got.items():
        assert weight == pytest.approx(expected[row], abs=1e-4)
    least = similarity[order[:neighbours]].min(initial=np.inf)
    clearly_near = {i for i in order.tolist() if similarity[i] > least + 1e-5} - gone
    assert clearly_near <= set(got), "whoever is nearer than the last one is among them"
    assert len(got) >= min(neighbours, len(others)) - len(gone)
    assert len(got) <= len(others) and len(got) < neighbours + LONGEST


def test_a_contributor_is_compared_by_what_it_was_at_the_time(rng):
    """Long histories are several stretches: who has changed is near to both who they were and who they are."""
    before, after = np.eye(PERSON, dtype=np.float32)[:2]
    embeddings = np.repeat([before, after], LONGEST, 0)
    made = segment(np.full(2 * LONGEST, 5), np.pad(embeddings, ((0, 0), (0, 2))))
    [(rows, weights)] = ask([made], after, core=LONGEST, neighbours=LONGEST)
    assert rows.tolist() == list(range(LONGEST, 2 * LONGEST)) and (weights == 1).all()


def test_nobody_else_is_nobody(rng):
    who, embeddings, each = people(rng, 20, 1)
    [(rows, weights)] = ask([segment(who, embeddings)], each[1], exclude=1)
    assert len(rows) == len(weights) == 0
    assert ask([], each[1]) == []
