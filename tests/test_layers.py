"""Layers against their formulas in NumPy; dropout against the statistics it should have."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops
from model_helpers import MODES, close, set_mode

from ms_gpt.errors import UserError
from ms_gpt.layers import (
    Activation,
    Conv1D,
    Dropout,
    LayerNorm,
    attention_bias,
    gather_positions,
    kept_heads,
    last_token_index,
    mix,
)


@pytest.fixture(autouse=True)
def _op_by_op():
    set_mode("pynative")
    yield
    set_mode("graph")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("mode", MODES)
def test_conv1d_is_a_linear_layer_with_its_weight_not_transposed(mode):
    set_mode(mode)
    layer, x = Conv1D(5, 3), normal(2, 4, 3)
    weight, bias = normal(3, 5, seed=1), normal(5, seed=2)
    layer.weight.set_data(Tensor(weight))
    layer.bias.set_data(Tensor(bias))
    close(layer(Tensor(x)).asnumpy(), x @ weight + bias)
    assert [item.name for item in layer.get_parameters()] == ["weight", "bias"]


def test_conv1d_keeps_the_rows_or_columns_that_are_asked_for():
    layer, weight, bias = Conv1D(5, 3), normal(3, 5), normal(5)
    for axis, index, kept_bias in ((1, [4, 0], bias[[4, 0]]), (0, [2], bias)):
        layer.weight.set_data(Tensor(weight))
        layer.bias.set_data(Tensor(bias))
        layer.select(np.array(index), axis)
        np.testing.assert_array_equal(layer.weight.asnumpy(), weight.take(index, axis))
        np.testing.assert_array_equal(layer.bias.asnumpy(), kept_bias)
        layer = Conv1D(5, 3)


@pytest.mark.parametrize("mode", MODES)
def test_layer_norm(mode):
    set_mode(mode)
    layer, x = LayerNorm(6, 1e-5), 3 + 2 * normal(2, 4, 6)
    gamma, beta = normal(6, seed=1), normal(6, seed=2)
    layer.gamma.set_data(Tensor(gamma))
    layer.beta.set_data(Tensor(beta))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gamma + beta
    close(layer(Tensor(x)).asnumpy(), expected)


def test_layer_norm_is_computed_in_float32_under_half_precision():
    layer, x = LayerNorm(8, 1e-5), np.float16(300 + 40 * normal(2, 8))
    out = layer(Tensor(x))
    assert out.dtype == ms.float16
    # The squares of these numbers overflow float16.
    exact = (np.float64(x) - np.float64(x).mean(-1, keepdims=True)) / np.float64(x).std(-1, keepdims=True)
    close(out.asnumpy(), exact, atol=2e-3)


GELU_TANH = lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))  # noqa: E731
FORMULAS = {
    "gelu": GELU_TANH,
    "gelu_new": GELU_TANH,
    "gelu_pytorch_tanh": GELU_TANH,
    "gelu_exact": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_activations_and_their_gradients(name):
    x = np.linspace(-8, 8, 161)
    layer = Activation(name)
    close(layer(Tensor(x, ms.float32)).asnumpy(), FORMULAS[name](x), atol=2e-6)
    slope = (FORMULAS[name](x + 1e-6) - FORMULAS[name](x - 1e-6)) / 2e-6
    smooth = np.abs(x) > 1e-3
    gradient = ops.grad(layer)(Tensor(x, ms.float32)).asnumpy()
    close(gradient[smooth], slope[smooth], atol=2e-5)


def masks_of(p: float, steps: int, rows: int = 400, columns: int = 300, site: str = "h.0.mlp.dropout") -> np.ndarray:
    """Whether each element was dropped, (steps, rows, columns)."""
    layer = Dropout(p)
    layer.set_site(site)
    return np.stack([~layer.keep_mask(rows, columns, mix(Tensor(step, ms.int32))).asnumpy() for step in range(steps)])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_everywhere(p):
    dropped = masks_of(p, 8)
    steps, rows, columns = dropped.shape
    spread = p * (1 - p)
    assert abs(dropped.mean() - p) < 5 * math.sqrt(spread / dropped.size)
    # Shares of single rows and columns scatter as those of independent draws do.
    assert dropped.mean(2).var() == pytest.approx(spread / columns, rel=0.15)
    assert dropped.mean(1).var() == pytest.approx(spread / rows, rel=0.15)


def test_dropout_masks_are_unrelated():
    p = 0.3
    steps, other = masks_of(p, 4), masks_of(p, 1, site="h.1.mlp.dropout")
    signs = (np.concatenate([steps, other]) - p) / math.sqrt(p * (1 - p))
    size = signs[0].size
    for first in range(len(signs)):
        for second in range(first):
            assert abs((signs[first] * signs[second]).mean()) < 5 / math.sqrt(size)
    for neighbours in (signs[:, 1:] * signs[:, :-1], signs[:, :, 1:] * signs[:, :, :-1]):
        assert abs(neighbours.mean()) < 5 / math.sqrt(neighbours.size)
    products, (first, second) = np.einsum("src,stc->srt", signs[:, :60], signs[:, :60]), np.triu_indices(60, 1)
    assert np.abs(products[:, first, second]).max() < 6 * math.sqrt(signs.shape[2])


@pytest.mark.parametrize("mode", MODES)
def test_dropout_scales_what_it_keeps_and_is_off_outside_training(mode):
    set_mode(mode)
    layer, x, key = Dropout(0.25), normal(3, 7, 40), Tensor(12345, ms.int32)
    layer.set_train()
    out = layer(Tensor(x), key).asnumpy()
    kept = out != 0
    assert 0.6 < kept.mean() < 0.9
    close(out[kept], x[kept] / 0.75)
    np.testing.assert_array_equal(layer(Tensor(x), key).asnumpy(), out)
    assert not np.array_equal(layer(Tensor(x), Tensor(12346, ms.int32)).asnumpy(), out)
    gradient = ops.grad(layer)(Tensor(x), key).asnumpy()
    close(gradient, kept / 0.75)
    np.testing.assert_array_equal(Dropout(0.25).set_train(False)(Tensor(x), key).asnumpy(), x)
    np.testing.assert_array_equal(Dropout(0.0).set_train()(Tensor(x), key).asnumpy(), x)


_PRINT_MASK = """
import hashlib, mindspore as ms
from mindspore import Tensor
from ms_gpt.layers import Dropout
layer = Dropout(0.4)
layer.set_site("h.2.attn.resid_dropout")
print(hashlib.md5(layer.keep_mask(70, 50, Tensor(99, ms.int32)).asnumpy().tobytes()).hexdigest())
"""


def test_dropout_repeats_in_another_process():
    import hashlib

    layer = Dropout(0.4)
    layer.set_site("h.2.attn.resid_dropout")
    mask = layer.keep_mask(70, 50, Tensor(99, ms.int32)).asnumpy()
    result = subprocess.run([sys.executable, "-c", _PRINT_MASK], capture_output=True, text=True, check=True,
                            cwd=Path(__file__).resolve().parents[1])
    assert result.stdout.split()[-1] == hashlib.md5(mask.tobytes()).hexdigest()


def test_attention_bias_hides_the_future_and_the_padding():
    mask = np.array([[1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]], np.int32)
    for given in (mask, mask.astype(bool), mask.astype(np.float32)):
        bias = attention_bias(4, Tensor(given)).asnumpy()
        assert bias.shape == (3, 1, 4, 4)
        visible = np.tril(np.ones((4, 4), bool)) & (mask[:, None, None] != 0)
        np.testing.assert_array_equal(bias == 0, visible)
        assert np.isfinite(bias).all()
        assert (bias[~visible] == np.finfo(np.float32).min).all()
    np.testing.assert_array_equal(attention_bias(4, None).asnumpy()[0, 0] == 0, np.tril(np.ones((4, 4), bool)))


def test_last_token_index_and_gather():
    real = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
    index = last_token_index(Tensor(real))
    np.testing.assert_array_equal(index.asnumpy(), [1, 3, 2, 0, 0])
    assert index.dtype == ms.int32
    hidden = normal(5, 4, 3)
    np.testing.assert_array_equal(gather_positions(Tensor(hidden), index).asnumpy(),
                                  hidden[np.arange(5), [1, 3, 2, 0, 0]])


def test_kept_heads():
    assert kept_heads(4, [1, 1, 3]) == [0, 2]
    assert kept_heads(2, []) == [0, 1]
    for heads, message in (([4], "head 4 does not exist"), ([0, 1, 2, 3], "leave at least one")):
        with pytest.raises(UserError, match=message):
            kept_heads(4, heads)
