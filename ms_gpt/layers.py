"""The parts a block is made of: Conv1D, LayerNorm, activations, masks and a dropout that repeats."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops.functional import isconstant

from ms_gpt.errors import UserError
from ms_gpt.kernels import kernel

# Constants, since a Tensor that a graph makes from a Python number takes it a twentieth of a second to compile.
LOWEST, _ZERO = Tensor(float(np.finfo(np.float32).min), ms.float32), Tensor(0.0, ms.float32)


class Conv1D(nn.Cell):
    """A linear layer whose weight is stored (inputs, outputs), as OpenAI's checkpoints store it.

    Args:
        nf: Number of output features.
        nx: Number of input features.

    Inputs:
        x: Tensor (..., nx).

    Outputs:
        Tensor (..., nf): ``x @ weight + bias``.

    Source: ``conv1d`` in openai/finetune-transformer-lm; the name and the argument order are transformers'.
    """

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.zeros((nx, nf), np.float32)), name="weight")
        self.bias = Parameter(Tensor(np.zeros((nf,), np.float32)), name="bias")
        self.compute_dtype = ms.float32
        self.kernel = None
        # The two-dimensional primitives are several times faster on the CPU than ops.matmul and "+".
        self.matmul = ops.MatMul()
        self.bias_add = ops.BiasAdd()

    def construct(self, x: Tensor) -> Tensor:
        """Return ``x @ weight + bias``."""
        if self.kernel is not None:
            return self.kernel(x, self.weight, self.bias)
        shape = x.shape
        x = x.reshape((-1, shape[-1])).astype(self.compute_dtype)
        x = self.matmul(x, self.weight.astype(self.compute_dtype))
        x = self.bias_add(x, self.bias.astype(self.compute_dtype))
        return x.reshape(shape[:-1] + (x.shape[-1],))

    def set_kernels(self, are_used: bool) -> None:
        """Compute with the fused CPU kernel, or with plain operations."""
        self.kernel = kernel("linear") if are_used else None

    def select(self, index: np.ndarray, axis: int) -> None:
        """Keep some rows (axis 0) or columns (axis 1) of the weight, for head pruning.

        Args:
            index: int array of the rows or columns to keep.
            axis: 0 for inputs; 1 for outputs, which selects the bias too.
        """
        self.weight = _renewed(self.weight, self.weight.asnumpy().take(index, axis))
        if axis == 1:
            self.bias = _renewed(self.bias, self.bias.asnumpy().take(index))


def _renewed(parameter: Parameter, data: np.ndarray) -> Parameter:
    return Parameter(Tensor(np.ascontiguousarray(data)), name=parameter.name, requires_grad=parameter.requires_grad)


class LayerNorm(nn.Cell):
    """Layer normalisation over the last axis, computed in float32.

    Args:
        size: Width of the last axis.
        epsilon: Added to the variance.

    Inputs:
        x: Tensor (..., size).

    Outputs:
        Tensor (..., size), of the dtype of ``x``.

    Source: Ba, Kiros and Hinton 2016.
    """

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.gamma = Parameter(Tensor(np.ones((size,), np.float32)), name="gamma")
        self.beta = Parameter(Tensor(np.zeros((size,), np.float32)), name="beta")
        self.epsilon = epsilon
        # Two reductions and their derived gradient take half the time of the CPU's own LayerNorm kernels.
        self.mean = ops.ReduceMean(keep_dims=True)
        self.kernel = self.sum_kernel = None
        self.epsilon_tensor = Tensor([epsilon], ms.float32)

    def set_kernels(self, are_used: bool) -> None:
        """Compute with the fused CPU kernels, or with plain operations."""
        self.kernel = kernel("layer_norm") if are_used else None
        self.sum_kernel = kernel("add_layer_norm") if are_used else None

    def after_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x + residual`` and the same normalised, all Tensors (..., size)."""
        if self.sum_kernel is not None:
            both = self.sum_kernel(x, residual, self.gamma, self.beta, self.epsilon_tensor)
            return both[0], both[1]
        x = x + residual
        return x, self.construct(x)

    def construct(self, x: Tensor) -> Tensor:
        """Return the normalised, scaled and shifted ``x``."""
        if self.kernel is not None:
            return self.kernel(x, self.gamma, self.beta, self.epsilon_tensor)[0]
        x32 = x.astype(ms.float32)
        centred = x32 - self.mean(x32, -1)
        variance = self.mean(centred * centred, -1)
        return (centred * ops.rsqrt(variance + self.epsilon) * self.gamma + self.beta).astype(x.dtype)


class Add(nn.Cell):
    """The sum of two Tensors.

    Inputs:
        x: Tensor of any shape.
        y: Tensor of the same shape.

    Outputs:
        Tensor of that shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernel = None

    def set_kernels(self, are_used: bool) -> None:
        """Compute with the fused CPU kernel: MindSpore's may take half a millisecond to start."""
        self.kernel = kernel("add") if are_used else None

    def construct(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``x + y``."""
        return x + y if self.kernel is None else self.kernel(x, y)


class Activation(nn.Cell):
    """The activation of an MLP, by the name that ``config.json`` gives it.

    Args:
        name: One of ``ms_gpt.config.ACTIVATIONS``. ``"gelu"``, ``"gelu_new"`` and ``"gelu_pytorch_tanh"`` are the
            tanh form, ``"gelu_exact"`` the erf form.

    Inputs:
        x: Tensor of any shape.

    Outputs:
        Tensor of the same shape and dtype.

    Source: Hendrycks and Gimpel 2016.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "swish": "silu"}.get(name, name)
        self.slope = 2.0 * math.sqrt(2.0 / math.pi)
        self.kernel = None

    def set_kernels(self, are_used: bool) -> None:
        """Compute with the fused CPU kernel where there is one, or with plain operations."""
        self.kernel = kernel("gelu") if are_used and self.name == "gelu" else None

    def construct(self, x: Tensor) -> Tensor:
        """Return the activation of ``x``, element by element."""
        if self.kernel is not None:
            return self.kernel(x)
        if self.name == "relu":
            return ops.relu(x)
        if self.name == "tanh":
            return tanh(x)
        if self.name == "silu":
            return x * ops.sigmoid(x)
        if self.name == "gelu_exact":
            return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))
        # 0.5 (1 + tanh u) equals sigmoid(2 u); the CPU runs this form five times faster than its GELU kernel.
        return x * ops.sigmoid(x * (self.slope + self.slope * 0.044715 * (x * x)))


def tanh(x: Tensor) -> Tensor:
    """Return the hyperbolic tangent of a Tensor, element by element."""
    # The CPU's own kernel is 1 from x = 5 on: 1e-4 too much, and its gradient there is 0.
    return 2.0 * ops.sigmoid(2.0 * x) - 1.0


def _as_int32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def mix(x: Tensor) -> Tensor:
    """Scatter the bits of int32 numbers, so that neighbouring counters give unrelated numbers.

    Args:
        x: Tensor of int32, any shape. Products wrap around.

    Returns:
        Tensor of int32 of the same shape.

    Source: the multiply-xorshift construction of integer hashes; constants from C. Wellons' hash prospector.
    """
    x = ops.bitwise_xor(x, ops.bitwise_right_shift(x, 16))
    x = x * _LOWBIAS[0]
    x = ops.bitwise_xor(x, ops.bitwise_right_shift(x, 15))
    x = x * _LOWBIAS[1]
    return ops.bitwise_xor(x, ops.bitwise_right_shift(x, 16))


_LOWBIAS = (_as_int32(0x7FEB352D), _as_int32(0x846CA68B))


class Dropout(nn.Cell):
    """Dropout whose mask is a pure function of (key, site, position), so that a run repeats bit by bit.

    The stock dropout draws from kernel state and does not repeat on the CPU. Here each row and each column of ``x``
    (flattened to two axes) gets an odd pseudo-random int32, and an element is dropped where the wrapped product of
    its two numbers falls below a threshold.

    Args:
        p: Probability of dropping an element, in [0, 1).

    Inputs:
        x: Tensor (..., features).
        key: int32 scalar Tensor that changes at every step.

    Outputs:
        Tensor like ``x``: dropped elements 0, the others divided by ``1 - p``; ``x`` itself outside training.

    Source: Srivastava et al. 2014; counter-based random numbers after Salmon et al. 2011.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.scale = 1.0 / (1.0 - p)
        self.threshold = _as_int32(round(p * 2**32) - 2**31)
        self.salt = 0
        self.kernel = None
        self.set_site("")

    def set_site(self, name: str) -> None:
        """Tell two dropouts of one model apart.

        Args:
            name: The cell's path in the model, such as ``"h.0.mlp.dropout"``.
        """
        self.salt = _as_int32(zlib.crc32(name.encode()))
        self.constants = Tensor([self.salt, self.threshold], ms.int32)
        self.scale_tensor = Tensor([self.scale], ms.float32)

    def set_kernels(self, are_used: bool) -> None:
        """Compute with the fused CPU kernel, or with plain operations."""
        self.kernel = kernel("dropout") if are_used else None

    def construct(self, x: Tensor, key: Tensor) -> Tensor:
        """Return ``x`` with elements dropped in training, else ``x``."""
        if self.p == 0.0 or not self.training:
            return x
        if self.kernel is not None:
            return self.kernel(x, key, self.constants, self.scale_tensor)
        columns = x.shape[-1]
        rows = x.size // columns
        keep = self.keep_mask(rows, columns, key).astype(x.dtype) * self.scale
        return x * keep.reshape(x.shape)

    def keep_mask(self, rows: int, columns: int, key: Tensor) -> Tensor:
        """Return the mask of kept elements.

        Args:
            rows: First axis.
            columns: Second axis.
            key: int32 scalar Tensor.

        Returns:
            bool Tensor (rows, columns).
        """
        counter = positions(rows + columns) + ops.bitwise_xor(key, self.salt)
        odd = ops.bitwise_or(mix(counter), 1)
        return odd[:rows].reshape((rows, 1)) * odd[rows:].reshape((1, columns)) >= self.threshold


@ops.constexpr
def _constant_positions(length: int) -> Tensor:
    return Tensor(np.arange(length), ms.int32)


def positions(length: int) -> Tensor:
    """Return 0, 1, 2 and so on.

    Args:
        length: T, how many.

    Returns:
        int32 Tensor (T,); a constant, unless the graph leaves its shapes open (``set_inputs``).
    """
    # ops.arange compiles eighty functions of MindSpore's, half of the time that a small graph takes to compile.
    return _constant_positions(length) if isconstant(length) else ops.arange(0, length, 1, dtype=ms.int32)


def attention_bias(length: int, attention_mask: Tensor | None, window_size: int | None = None,
                   query_position: Tensor | None = None) -> Tensor:
    """Build the number that is added to attention scores: 0 where a query may look, else the lowest float32.

    Args:
        length: S, the number of keys.
        attention_mask: Tensor (B, S) of 1 (real token) and 0 (padding), or ``None``.
        window_size: Number of tokens a query may look at, its own counted; ``None`` for all before it.
        query_position: int32 Tensor (T,), the places of the queries among the keys. Default: T = S, one at each.

    Returns:
        float32 Tensor (1, 1, T, S), or (B, 1, T, S) with a mask.

    Source: the local attention of GPT-Neo for what a window counts.
    """
    position = positions(length)
    query = position if query_position is None else query_position
    query, key = query.reshape((-1, 1)), position.reshape((1, length))
    allowed = query >= key
    if window_size is not None:
        allowed = ops.logical_and(allowed, query < key + window_size)
    allowed = allowed.reshape((1, 1, -1, length))
    if attention_mask is not None:
        allowed = ops.logical_and(allowed, (attention_mask != 0).reshape((-1, 1, 1, length)))
    bias = ops.where(allowed, _ZERO, LOWEST)
    # MindSpore 2.7.0 folds a constant of one number into a scalar.
    return bias.reshape((-1, 1, 1, 1)) if length == 1 else bias


def last_token_index(is_real: Tensor) -> Tensor:
    """Return the position of the last real token in each row; 0 for a row that has none.

    Args:
        is_real: bool Tensor (B, T).

    Returns:
        int32 Tensor (B,), in [0, T).
    """
    # A float maximum, since Ascend has no integer reduction; float32 counts exactly to 2**24.
    position = positions(is_real.shape[1]).astype(ms.float32)
    return ops.ReduceMax()(is_real.astype(ms.float32) * position, -1).astype(ms.int32)


def gather_positions(hidden_states: Tensor, index: Tensor) -> Tensor:
    """Pick one position in each row.

    Args:
        hidden_states: Tensor (B, T, D).
        index: int Tensor (B,), in [0, T).

    Returns:
        Tensor (B, D).
    """
    batch, length, width = hidden_states.shape
    flat = index.astype(ms.int32) + positions(batch) * length
    return ops.gather(hidden_states.reshape((batch * length, width)), flat, 0)


def kept_heads(n_head: int, pruned: Iterable[int]) -> list[int]:
    """Return the heads that are left, in the numbering of the unpruned layer.

    Args:
        n_head: Heads before any pruning.
        pruned: Heads to remove.

    Returns:
        Sorted list of head numbers.

    Raises:
        UserError: A head is outside [0, n_head), or none would be left.
    """
    pruned = set(pruned)
    outside = sorted(head for head in pruned if not 0 <= head < n_head)
    if outside:
        raise UserError(f"head {outside[0]} does not exist: this layer's heads are 0 to {n_head - 1}")
    kept = [head for head in range(n_head) if head not in pruned]
    if not kept:
        raise UserError(f"all {n_head} heads of a layer were to be pruned: leave at least one")
    return kept
