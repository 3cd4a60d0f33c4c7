"""AdamW with bias correction and decoupled weight decay."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from ms_gpt.kernels import are_usable, kernel


def is_decayed(name: str, decay_embeddings: bool = False) -> bool:
    """Tell whether weight decay applies to a parameter.

    Args:
        name: Its path in the model.
        decay_embeddings: Decay token and position embeddings too.

    Returns:
        False for biases and LayerNorm, ``decay_embeddings`` for embeddings, True for every other matrix.

    Source: GPT-1 paper, section 4.1 ("all non bias or gain weights").
    """
    if name.endswith("embedding_table"):
        return decay_embeddings
    return name.endswith(".weight")


class AdamW(nn.Cell):
    """AdamW as one fused kernel for each parameter.

    The kernel has no bias correction. It computes ``p -= lr * (m / (sqrt(v) + eps) + decay * p)``. Given ``lr * c``,
    ``eps * sqrt(1 - beta2**t)`` and ``decay / c``, where ``c = sqrt(1 - beta2**t) / (1 - beta1**t)``, that is the
    bias-corrected rule exactly.

    Args:
        parameters: What is updated.
        names: Their paths in the model, which decide on decay.
        weight_decay: Coefficient of the decoupled decay.
        decay_embeddings: Decay embeddings too.
        beta1: Decay of the first moment, in [0, 1).
        beta2: Decay of the second moment, in [0, 1).
        epsilon: Added to the denominator.

    Inputs:
        gradients: Tuple of Tensors like the parameters.
        learning_rate: float32 scalar Tensor.
        scale: float32 scalar Tensor by which the gradients are multiplied first, or ``None``.
        applies: bool scalar Tensor or ``None``; with False nothing is changed.

    Outputs:
        int32 scalar Tensor, the number of updates made.

    Source: Loshchilov and Hutter 2019, algorithm 2.
    """

    def __init__(self, parameters: Sequence[Parameter], names: Sequence[str], weight_decay: float = 0.01,
                 decay_embeddings: bool = False, beta1: float = 0.9, beta2: float = 0.999,
                 epsilon: float = 1e-8) -> None:
        super().__init__()
        self.parameters = ParameterTuple(parameters)
        self.moment1 = self._moments("adam_m")
        self.moment2 = self._moments("adam_v")
        self.step = Parameter(Tensor(0, ms.int32), name="adam_step", requires_grad=False)
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.decay = [weight_decay if is_decayed(name, decay_embeddings) else 0.0 for name in names]
        self.update = ops.AdamWeightDecay()
        has_kernel = are_usable() and all(item.dtype == ms.float32 for item in self.parameters)
        self.kernel = kernel("adamw") if has_kernel else None
        self.decay_tensor = Tensor(np.array(self.decay, np.float32))

    def _moments(self, prefix: str) -> ParameterTuple:
        """Return zeros like the parameters, in memory of their own.

        ``clone(init="zeros")`` maps every page to one page of zeros. The first update would then give each page memory
        of its own while all threads run, each time interrupting them: that took longer than a whole step.
        """
        return ParameterTuple([
            Parameter(Tensor(np.full(item.shape, 0, np.float32), item.dtype), name=f"{prefix}.{item.name}",
                      requires_grad=item.requires_grad) for item in self.parameters])

    def clip_and_update(self, gradients: tuple, learning_rate: Tensor, max_grad_norm: float) -> Tensor:
        """Scale gradients down to a global norm and update every parameter once, by the fused kernel.

        Args:
            gradients: Tuple of Tensors like the parameters.
            learning_rate: float32 scalar Tensor.
            max_grad_norm: The largest norm; 0 for none.

        Returns:
            float32 scalar Tensor, the norm before clipping.
        """
        settings = Tensor([self.beta1, self.beta2, self.epsilon, max_grad_norm], ms.float32)
        norm = self.kernel(self.step + 0, learning_rate, settings, self.decay_tensor, *self.parameters, *self.moment1,
                           *self.moment2, *gradients)
        counted = ops.assign_add(self.step, ops.depend(Tensor(1, ms.int32), norm))
        return ops.depend(norm, counted).reshape(())

    def construct(self, gradients: tuple, learning_rate: Tensor, scale: Tensor | None = None,
                  applies: Tensor | None = None) -> Tensor:
        """Update every parameter once."""
        beta1, beta2, made = self.beta1, self.beta2, Tensor(1, ms.int32)
        if applies is not None:
            # Moments times 1 plus gradients times 0, and a rate of 0, leave every bit as it is.
            one = Tensor(1.0, ms.float32)
            beta1 = ops.where(applies, Tensor(self.beta1, ms.float32), one)
            beta2 = ops.where(applies, Tensor(self.beta2, ms.float32), one)
            made = applies.astype(ms.int32)
            learning_rate = learning_rate * made.astype(ms.float32)
        step = (self.step + 1).astype(ms.float32)
        correction1 = 1.0 - ops.pow(Tensor(self.beta1, ms.float32), step)
        correction2 = ops.sqrt(1.0 - ops.pow(Tensor(self.beta2, ms.float32), step))
        ratio = correction2 / correction1
        for i in range(len(self.decay)):
            # Scaled here: building another tuple of them in the graph takes three times as long to compile as all else.
            gradient = gradients[i] if scale is None else gradients[i] * scale
            if applies is not None:
                gradient = ops.where(applies, gradient, ops.zeros_like(gradient))
            self.update(self.parameters[i], self.moment1[i], self.moment2[i], learning_rate * ratio, beta1, beta2,
                        self.epsilon * correction2, self.decay[i] / ratio, gradient)
        return ops.assign_add(self.step, made)
