import numpy as np
import pytest

from device_runtime.bundle import BlobStore, RoundSettings
from device_runtime.candidates import as_own
from device_runtime.engines import open_engine
from device_runtime.model import VOCABULARY, Model
from device_runtime.samples import Ragged, SampleBatch
from tests.device_runtime.test_personalize import samples
from tests.export.conftest import bundle, engines, small_din  # noqa: F401  (fixtures)

POOLED, NEAREST = RoundSettings(matching="pooled"), RoundSettings(matching="nearest")


@pytest.fixture(scope="module")
def model(bundle):  # noqa: F811
    folder, manifest = bundle
    return Model.open(manifest, open_engine("onnx"), BlobStore(folder / "blobs"))


def answered(model, rng, residual):
    """Candidates as they come: no history, a residual in place of the label."""
    found = samples(model, rng, 12)
    none = np.zeros(12, np.int32)
    columns = {"item": found.columns["item"], "history": Ragged(none[:0], none, none)}
    return SampleBatch(found.schema, columns, np.full(12, (1 + residual) / 2, np.float32))


def base_table(model, *batches):
    return model.table(SampleBatch.concatenate(list(batches)).ids(VOCABULARY), model.base)


def test_pooled_candidates_take_the_users_newest_history(model, rng):
    local, pooled = samples(model, rng, 10), answered(model, rng, 0.0)
    found = as_own(pooled, local, model, base_table(model, local, pooled), POOLED)
    newest = local.columns["history"].row(9)
    assert all((found.columns["history"].row(i) == newest).all() for i in range(12))
    np.testing.assert_array_equal(found.columns["item"], pooled.columns["item"])


@pytest.mark.parametrize("residual", [-1.0, -0.1, 0.0, 0.1, 1.0])
def test_a_label_is_the_models_prediction_for_this_user_and_the_residual(model, rng, residual):
    local, pooled = samples(model, rng, 10), answered(model, rng, residual)
    table = base_table(model, local, pooled)
    found = as_own(pooled, local, model, table, POOLED)
    predicted = 1 / (1 + np.exp(-model.logits(found, table, model.base)))
    np.testing.assert_allclose(found.labels, np.clip(predicted + residual, 0, 1), atol=1e-6)


def test_samples_of_others_and_empty_answers_stay_as_they_are(model, rng):
    local, other = samples(model, rng, 10), samples(model, rng, 5)
    table = base_table(model, local, other)
    assert as_own(other, local, model, table, NEAREST) is other
    none = other.take(slice(0, 0))
    assert as_own(none, local, model, table, POOLED) is none
