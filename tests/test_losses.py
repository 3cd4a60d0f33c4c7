"""The losses against their formulas in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor, ops
from model_helpers import MODES, close, set_mode

from ms_gpt.losses import cross_entropy, next_token_labels


@pytest.fixture(autouse=True)
def _graph_mode():
    yield
    set_mode("graph")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [4, 40])
def test_cross_entropy(mode, weighted, classes):
    """Over few classes and over many, which take different operations."""
    set_mode(mode)
    rng = np.random.default_rng(0)
    logits, labels = 5 * rng.standard_normal((6, classes), np.float32), np.array([0, -100, 3, 1, -100, 2], np.int32)
    weights = rng.uniform(0.2, 3, classes).astype(np.float32) if weighted else None
    log_probs = logits - np.log(np.exp(np.float64(logits)).sum(-1, keepdims=True))
    rows = labels >= 0
    share = (np.ones(classes) if weights is None else weights)[labels[rows]]
    expected = -(log_probs[rows, labels[rows]] * share).sum() / share.sum()
    given = None if weights is None else Tensor(weights)
    close(cross_entropy(Tensor(logits), Tensor(labels), given).asnumpy(), expected)
    ignored = Tensor(np.full(6, -100, np.int32))
    assert cross_entropy(Tensor(logits), ignored, given).asnumpy() == 0
    assert not ops.grad(cross_entropy)(Tensor(logits), ignored, given).asnumpy().any()


@pytest.mark.parametrize("mode", MODES)
def test_cross_entropy_of_huge_logits_is_finite(mode):
    set_mode(mode)
    huge = Tensor(np.array([[3e4, -3e4]], np.float32))
    close(cross_entropy(huge, Tensor(np.array([1], np.int32))).asnumpy(), 6e4)


def test_next_token_labels_shift_and_end_in_nothing():
    labels = Tensor(np.array([[1, 2, 3], [4, -100, 6]], np.int32))
    np.testing.assert_array_equal(next_token_labels(labels).asnumpy(), [2, 3, -100, -100, 6, -100])
