"""The lookup that a GPU takes: its gradient has the same bits whatever the order of summation."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from model_helpers import random_ids, random_model, tiny_config

from ms_gpt import GPTLMHeadModel
from ms_gpt.model import ExactLookup
from ms_gpt.training.step import SampledTargetLoss, TargetLoss


class Gradient(nn.Cell):
    """The gradient of the table for given gradients of the rows."""

    def __init__(self):
        super().__init__()
        self.lookup = ExactLookup()

    def weighted(self, table, ids, weights):
        return (self.lookup(table, ids) * weights).sum()

    def construct(self, table, ids, weights):
        return ops.grad(self.weighted)(table, ids, weights)


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    # Gradients over eleven orders of magnitude, and a row that nothing looks up.
    weights = rng.standard_normal((300, 7)) * 10 ** rng.uniform(-8, 3, (300, 7))
    return np.zeros((11, 7), np.float32), rng.integers(0, 10, 300).astype(np.int32), weights.astype(np.float32)


def test_any_order_gives_the_same_bits(case, graph_mode):
    table, ids, weights = case
    gradient = Gradient()
    first = gradient(*map(Tensor, case)).asnumpy()
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(ids))
        again = gradient(Tensor(table), Tensor(ids[order]), Tensor(weights[order])).asnumpy()
        assert first.tobytes() == again.tobytes()
    exact = np.zeros(table.shape)
    np.add.at(exact, ids, weights.astype(np.float64))
    np.testing.assert_allclose(first, exact, rtol=1e-6, atol=1e-12 * np.abs(exact).max())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(case, bad, graph_mode):
    table, ids, weights = case
    weights[3, 2] = bad
    found = Gradient()(Tensor(table), Tensor(ids), Tensor(weights)).asnumpy()
    assert not np.isfinite(found[ids[3], 2])


def test_gradients_of_zero(case, graph_mode):
    table, ids, weights = case
    assert not Gradient()(Tensor(table), Tensor(ids), Tensor(0 * weights)).asnumpy().any()


@pytest.mark.parametrize("tokens", [0, 6])
def test_a_model_learns_the_same_with_it(tokens, graph_mode, monkeypatch):
    config = tiny_config("gpt2")
    ids = Tensor(random_ids(config, 3, 8))
    found = []
    for sums_exactly in (False, True):
        model = random_model(GPTLMHeadModel, config).set_train()
        model.transformer.sums_exactly = sums_exactly
        monkeypatch.setattr(type(model), "match_kernels", lambda self: None)
        loss = SampledTargetLoss(model, tokens) if tokens else TargetLoss(model)
        step = ops.value_and_grad(loss, None, list(model.weights().values()))
        found.append(ms.jit(step)(ids, ids))
    (loss, gradients), (exact_loss, exact_gradients) = found
    np.testing.assert_allclose(loss.asnumpy(), exact_loss.asnumpy(), rtol=1e-6)
    for first, second in zip(gradients, exact_gradients, strict=True):
        np.testing.assert_allclose(first.asnumpy(), second.asnumpy(), rtol=1e-4, atol=1e-6)


def test_only_a_gpu_takes_it(monkeypatch):
    model = random_model(GPTLMHeadModel, tiny_config())
    assert not model.transformer.sums_exactly
    with monkeypatch.context() as patch:
        patch.setattr(ms, "get_context", lambda name: "GPU")
        model.match_kernels()
        assert model.transformer.sums_exactly
    model.match_kernels()
    assert not model.transformer.sums_exactly
