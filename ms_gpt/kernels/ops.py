"""The kernels as MindSpore primitives with gradients. What each computes stands in its source, in ``src``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import ops

from ms_gpt.kernels.build import library

_F32 = ms.float32


def _custom(function: str, shapes: Callable, outputs: int = 1, bprop: Callable | None = None) -> ops.Custom:
    """Wrap a function of the library whose ``outputs`` outputs are float32; ``shapes`` infers their shapes.

    MindSpore knows a primitive's gradient by the function's name, so no two kernels may share a function.
    """
    dtypes = _F32 if outputs == 1 else (_F32,) * outputs

    def infer_dtype(*_: Any) -> Any:
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
    again = _custom("dropout", lambda x, key, constants, scale: x)

    def bprop(x, key, constants, scale, out, dout):
        return again(dout, key, constants, scale), ops.zeros_like(key), ops.zeros_like(constants), ops.zeros_like(scale)

    return _custom("dropout", lambda x, key, constants, scale: x, bprop=bprop)


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


def _attention(n_head: int) -> ops.Custom:
    gradient = _custom("attention_grad", lambda packed, *_: packed)

    def infer(packed, *_):
        batch, length, width = packed
        return [batch, length, width // 3], [batch, n_head, length]

    def bprop(packed, bias, key, constants, settings, out, dout):
        dpacked = gradient(packed, bias, key, constants, settings, out[1], dout[0])
        return (dpacked, ops.zeros_like(bias), ops.zeros_like(key), ops.zeros_like(constants),
                ops.zeros_like(settings))

    return _custom("attention", infer, 2, bprop)


def _attention_step() -> ops.Custom:
    return _custom("attention_step", lambda packed, *_: packed[:-1] + [packed[-1] // 3])


def _cross_entropy() -> ops.Custom:
    gradient = _custom("cross_entropy_grad", lambda logits, labels, log_sums, dnll: logits)

    def bprop(logits, labels, out, dout):
        return gradient(logits, labels, out[1], dout[0]), ops.zeros_like(labels)

    return _custom("cross_entropy", lambda logits, labels: (labels, labels), 2, bprop)


def _adamw() -> ops.Custom:
    return _custom("adamw", lambda *_: [1])


_MAKERS = {"linear": _linear, "project": _project, "gelu": _gelu, "add": _add, "dropout": _dropout,
           "layer_norm": _layer_norm, "add_layer_norm": _add_layer_norm, "attention": _attention,
           "attention_step": _attention_step, "cross_entropy": _cross_entropy, "adamw": _adamw}


@functools.cache
def kernel(name: str, *arguments: int) -> ops.Custom:
    """Return a kernel as a primitive; call it only where ``are_usable`` is true.

    Args:
        name: One of the table in ``ms_gpt.kernels``.
        *arguments: The number of heads for the kernels of attention, else nothing.

    Returns:
        A primitive with a gradient, for float32 Tensors (int32 for keys, labels and constants).
    """
    return _MAKERS[name](*arguments)
