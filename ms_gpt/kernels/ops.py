"""The kernels as MindSpore primitives with gradients. What each computes stands in its source, in ``src``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import ops

from ms_gpt.kernels.build import library

_F32 = ms.float32
# The most rows that block_step takes: kFewRows in src/few_rows.h.
STEP_ROWS = 8


def _custom(function: str, shapes: Callable, outputs: int = 1, bprop: Callable | None = None,
            integers: tuple[int, ...] = (), dtype: Any = _F32) -> ops.Custom:
    """Wrap a function of the library.

    MindSpore knows a primitive, its shapes and its gradient by the function's name: no two kernels may share a
    function, and what decides on a shape has to be the shape of an input.

    Args:
        function: Its name.
        shapes: From the inputs' shapes to the outputs'.
        outputs: Their number.
        bprop: The gradient.
        integers: Which inputs are int32; all others are float32.
        dtype: Of the outputs.

    Returns:
        The primitive; it raises TypeError for inputs of another dtype, whose bytes the kernel would misread.
    """
    dtypes = dtype if outputs == 1 else (dtype,) * outputs

    def infer_dtype(*given: Any) -> Any:
        for place, dtype in enumerate(given):
            wanted = "Int32" if place in integers else "Float32"
            if wanted not in str(dtype):
                raise TypeError(f"the CPU kernel {function!r} takes {wanted.lower()} for input {place}, not {dtype}")
        return dtypes

    return ops.Custom(f"{library()}:{function}", shapes, infer_dtype, "aot", bprop=bprop)


def _linear() -> ops.Custom:
    gradient = _custom("linear_grad", lambda x, w, dy: (x, w, [w[1]]), 3)

    def bprop(x, weight, bias, out, dout):
        return gradient(x, weight, dout)

    return _custom("linear", lambda x, w, b: x[:-1] + [w[1]], bprop=bprop)


def _project() -> ops.Custom:
    gradient = _custom("project_grad", lambda x, table, dy: (x, table), 2)

    def bprop(x, table, out, dout):
        return gradient(x, table, dout)

    return _custom("project", lambda x, table: x[:-1] + [table[0]], bprop=bprop)


def _gelu() -> ops.Custom:
    gradient = _custom("gelu_grad", lambda x, dy: x)

    def bprop(x, out, dout):
        return (gradient(x, dout),)

    return _custom("gelu", lambda x: x, bprop=bprop)


def _add() -> ops.Custom:
    def bprop(x, y, out, dout):
        return dout, dout

    return _custom("add", lambda x, y: x, bprop=bprop)


def _dropout() -> ops.Custom:
    gradient = _custom("dropout_grad", lambda x, key, constants, scale: x, integers=(1, 2))

    def bprop(x, key, constants, scale, out, dout):
        return (gradient(dout, key, constants, scale), ops.zeros_like(key), ops.zeros_like(constants),
                ops.zeros_like(scale))

    return _custom("dropout", lambda x, key, constants, scale: x, bprop=bprop, integers=(1, 2))


def _layer_norm() -> ops.Custom:
    gradient = _custom("layer_norm_grad", lambda x, statistics, gamma, dy: (x, gamma, gamma), 3)

    def bprop(x, gamma, beta, epsilon, out, dout):
        dx, dgamma, dbeta = gradient(x, out[1], gamma, dout[0])
        return dx, dgamma, dbeta, ops.zeros_like(epsilon)

    return _custom("layer_norm", lambda x, gamma, beta, epsilon: (x, x[:-1] + [2]), 2, bprop)


def _add_layer_norm() -> ops.Custom:
    gradient = _custom("add_layer_norm_grad", lambda x, statistics, gamma, dy, dsum: (x, gamma, gamma), 3)

    def bprop(x, residual, gamma, beta, epsilon, out, dout):
        dx, dgamma, dbeta = gradient(out[0], out[2], gamma, dout[1], dout[0])
        return dx, dx, dgamma, dbeta, ops.zeros_like(epsilon)

    return _custom("add_layer_norm", lambda x, residual, gamma, beta, epsilon: (x, x, x[:-1] + [2]), 3, bprop)


def _attention() -> ops.Custom:
    gradient = _custom("attention_grad", lambda packed, *_: packed, integers=(2, 3))

    def infer(packed, bias, key, constants, settings):
        batch, length, width = packed
        if list(bias) not in ([1, 1, length, length], [batch, 1, length, length]):
            raise ValueError(f"an attention mask for scores of shape {list(bias)} does not fit rows of {length}")
        return [batch, length, width // 3], [batch, settings[0], length, 2]

    def bprop(packed, bias, key, constants, settings, out, dout):
        dpacked = gradient(packed, bias, key, constants, settings, out[1], dout[0])
        return (dpacked, ops.zeros_like(bias), ops.zeros_like(key), ops.zeros_like(constants),
                ops.zeros_like(settings))

    return _custom("attention", infer, 2, bprop, (2, 3))


def _check_step(rows: list[int], width: int, keys: list[int], values: list[int], bias: list[int]) -> None:
    batch, length = rows[:2]
    if keys != values or keys[0] != batch or keys[1] * keys[3] * 3 != width:
        raise ValueError(f"a cache of shape {list(keys)} does not fit {batch} rows of {width // 3} numbers")
    if list(bias) not in ([1, 1, length, keys[2]], [batch, 1, length, keys[2]]):
        raise ValueError(f"an attention mask for scores of shape {list(bias)} does not fit rows of {length}")


def _attention_step() -> ops.Custom:
    def infer(packed, keys, values, bias, *_):
        _check_step(packed, packed[2], keys, values, bias)
        return [*packed[:2], packed[2] // 3]

    return _custom("attention_step", infer, integers=(4,))


def _block_step() -> ops.Custom:
    def infer(x, keys, values, bias, *others):
        packing = others[6]
        _check_step(x, packing[1], keys, values, bias)
        return x

    return _custom("block_step", infer, integers=(4,))


def _argmax() -> ops.Custom:
    return _custom("argmax", lambda logits: logits[:1], dtype=ms.int32)


def _cross_entropy() -> ops.Custom:
    gradient = _custom("cross_entropy_grad", lambda logits, labels, log_sums, dnll: logits, integers=(1,))

    def bprop(logits, labels, out, dout):
        return gradient(logits, labels, out[1], dout[0]), ops.zeros_like(labels)

    return _custom("cross_entropy", lambda logits, labels: (labels, labels), 2, bprop, (1,))


def _adamw() -> ops.Custom:
    return _custom("adamw", lambda *_: [1], integers=(0,))


_MAKERS = {"linear": _linear, "project": _project, "gelu": _gelu, "add": _add, "dropout": _dropout,
           "layer_norm": _layer_norm, "add_layer_norm": _add_layer_norm, "attention": _attention,
           "attention_step": _attention_step, "block_step": _block_step, "argmax": _argmax,
           "cross_entropy": _cross_entropy, "adamw": _adamw}


@functools.cache
def kernel(name: str) -> ops.Custom:
    """Return a kernel as a primitive; call it only where ``are_usable`` is true.

    Args:
        name: One of the table in ``ms_gpt.kernels``.

    Returns:
        A primitive for float32 Tensors (int32 for keys, labels and constants), with a gradient; the steps of
        generation, ``argmax`` and ``adamw`` have none, and none has a second one: ``model.use_kernels(False)`` leads
        to both.
    """
    return _MAKERS[name]()
