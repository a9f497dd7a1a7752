import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.metrics import auc, log_loss, mean_user_auc

PAIRS = st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=40)


def columns(pairs):
    return np.array([p[0] for p in pairs], np.float32), np.array([p[1] for p in pairs], np.float32)


@given(PAIRS)
def test_auc_is_the_share_of_pairs_in_the_right_order(pairs):
    labels, logits = columns(pairs)
    good, bad = logits[labels == 1], logits[labels == 0]
    if not len(good) or not len(bad):
        assert auc(labels, logits) is None
        return
    right = (good[:, None] > bad).sum() + 0.5 * (good[:, None] == bad).sum()
    assert auc(labels, logits) == pytest.approx(right / (len(good) * len(bad)))


@given(PAIRS)
def test_log_loss_is_cross_entropy_and_never_overflows(pairs):
    labels, logits = columns(pairs)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert log_loss(labels, logits) == pytest.approx(-np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p)))
    assert np.isfinite(log_loss(labels, logits * 1e4))


def test_users_with_one_class_do_not_count():
    users = np.array([1, 2, 1, 2, 3])
    labels = np.array([0, 1, 1, 1, 0], np.float32)
    assert mean_user_auc(users, labels, np.array([0, 0, 1, 1, 0], np.float32)) == 1.0
    assert mean_user_auc(users[[1, 3]], labels[[1, 3]], np.zeros(2, np.float32)) is None
