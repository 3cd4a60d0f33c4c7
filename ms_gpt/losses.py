"""Cross-entropy, and the labels it is taken of."""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, ops

IGNORE_INDEX = -100
_FEW_CLASSES = 32


def log_softmax(logits: Tensor) -> Tensor:
    """Return the logarithm of the softmax over the last axis.

    Args:
        logits: float32 Tensor (N, C).

    Returns:
        float32 Tensor (N, C).
    """
    if logits.shape[-1] > _FEW_CLASSES:
        # With GatherD it runs six times faster on the CPU than ops.cross_entropy.
        return ops.LogSoftmax(-1)(logits)
    # The CPU's LogSoftmax and Exp are 4e-6 off. Over a vocabulary that is lost in the sum, but between two classes it
    # leaves a gradient where there should be none; Expm1 is exact.
    shifted = logits - ops.stop_gradient(ops.ReduceMax(keep_dims=True)(logits, -1))
    return shifted - ops.log(ops.ReduceSum(keep_dims=True)(ops.expm1(shifted) + 1.0, -1))


def cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None,
                  kernel: Any = None) -> Tensor:
    """Return the mean cross-entropy over the rows whose label is not ``IGNORE_INDEX``, in float32.

    Args:
        logits: Tensor (N, C).
        labels: int Tensor (N,), in [0, C), or -100 for a row that does not count.
        class_weights: float32 Tensor (C,), or ``None``. With weights the mean is weighted, as in PyTorch.
        kernel: The fused CPU kernel, or ``None`` for plain operations.

    Returns:
        float32 scalar Tensor, in nats; 0 if no row counts.
    """
    counted = labels != IGNORE_INDEX
    safe = ops.where(counted, labels, ops.zeros_like(labels)).astype(ms.int32)
    weight = counted.astype(ms.float32)
    if class_weights is not None:
        weight = weight * ops.gather(class_weights, safe, 0)
    if kernel is not None:
        nll = kernel(logits, labels.astype(ms.int32))[0]
    else:
        log_probs = log_softmax(logits.astype(ms.float32))
        nll = -ops.GatherD()(log_probs, 1, safe.expand_dims(1)).reshape((-1,))
    total = weight.sum()
    return (nll * weight).sum() / ops.where(total > 0, total, ops.ones_like(total))


def next_token_labels(labels: Tensor) -> Tensor:
    """Shift labels so that position t holds the token at t + 1; the last position does not count.

    Args:
        labels: int Tensor (B, T).

    Returns:
        int Tensor (B * T,).
    """
    filler = ops.zeros_like(labels[:, :1]) + IGNORE_INDEX
    return ops.cat((labels[:, 1:], filler), 1).reshape((-1,))
