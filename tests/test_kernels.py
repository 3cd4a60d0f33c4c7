"""The fused kernels against the plain operations that they stand in for."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor, nn, ops

from ms_gpt import GPTConfig, kernels, runtime
from ms_gpt.layers import Activation, Conv1D, Dropout, LayerNorm, attention_bias, cross_entropy
from ms_gpt.model import Attention

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="there is no compiler, so there are no kernels")


@pytest.fixture(autouse=True, scope="module")
def _graphs():
    runtime.setup("cpu", "graph")


few = settings(max_examples=6, deadline=None)
sizes = st.sampled_from([1, 2, 3, 7, 16, 17, 33, 65])


class Weighted(nn.Cell):
    """Sums what a cell returns, each number with a weight of its own, so that every gradient differs."""

    def __init__(self, function, weights, names):
        super().__init__(auto_prefix=False)
        self.function, self.weights, self.names = function, weights, names

    def construct(self, *inputs):
        outputs = self.function(*inputs)
        total = Tensor(0.0, ms.float32)
        for i in range(len(outputs)):
            total = total + (outputs[i] * self.weights[i]).sum()
        return total, outputs


def check(cell, *inputs, differentiated=1, rtol=1e-5):
    """Compare a cell's outputs and gradients, its parameters' too, with the kernels and without."""
    found = []
    for are_used in (False, True):
        for _, part in cell.cells_and_names():
            if hasattr(part, "set_kernels"):
                part.set_kernels(are_used)
            part.compile_cache.clear()
        outputs = [item.asnumpy() for item in cell(*inputs)]
        generator = np.random.default_rng(1)
        weights = [Tensor(generator.standard_normal(item.shape).astype(np.float32)) for item in outputs]
        loss = Weighted(cell, weights, ())
        gradient = ops.grad(loss, tuple(range(differentiated)), cell.trainable_params() or None, has_aux=True)
        gradients = gradient(*inputs)[0]
        flat = []
        for item in gradients if isinstance(gradients, tuple) else (gradients,):
            flat.extend(item if isinstance(item, tuple) else (item,))
        found.append(outputs + [item.asnumpy() for item in flat])
    for number, (plain, fused) in enumerate(zip(*found, strict=True)):
        assert np.isfinite(fused).all()
        assert np.abs(plain - fused).max(initial=0) <= rtol * max(np.abs(plain).max(initial=0), 1e-3), number


class Several(nn.Cell):
    def __init__(self, cell, method=None):
        super().__init__()
        self.cell, self.method = cell, method

    def construct(self, *inputs):
        if self.method == "after_sum":
            return self.cell.after_sum(*inputs)
        return (self.cell(*inputs),)


def normal(*shape, seed=0, scale=1.0):
    return Tensor((np.random.default_rng([seed, *shape]).standard_normal(shape) * scale).astype(np.float32))


@given(sizes, sizes, sizes)
@few
def test_linear(rows, inputs, outputs):
    cell = Conv1D(outputs, inputs)
    cell.weight.set_data(normal(inputs, outputs))
    cell.bias.set_data(normal(outputs))
    check(Several(cell), normal(rows, inputs, seed=1))


@given(sizes, st.sampled_from([0.1, 1.0, 10.0]))
@few
def test_gelu(size, scale):
    check(Several(Activation("gelu")), normal(3, size, scale=scale))


@given(sizes, st.sampled_from([2, 3, 17, 64, 100]))
@few
def test_layer_norm(rows, size):
    cell = LayerNorm(size, 1e-5)
    cell.gamma.set_data(normal(size))
    cell.beta.set_data(normal(size, seed=1))
    check(Several(cell), normal(rows, size, seed=2), rtol=3e-5)
    check(Several(cell, "after_sum"), normal(2, rows, size, seed=3), normal(2, rows, size, seed=4), differentiated=2,
          rtol=3e-5)


@given(sizes, sizes, st.sampled_from([0.0, 0.1, 0.5]))
@few
def test_dropout(rows, columns, p):
    cell = Dropout(p)
    cell.set_site("here")
    cell.set_train(True)
    check(Several(cell), normal(rows, columns), Tensor(12345, ms.int32))
