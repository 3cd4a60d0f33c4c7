"""Outputs and gradients of our models in one graph, and how gradients are compared."""

from __future__ import annotations

import numpy as np
from mindspore import ParameterTuple, nn, ops

from ms_gpt.training.step import Forward


class OutputsAndGradients(nn.Cell):
    """The sum of the first ``losses`` outputs, all outputs, and the gradients of that sum, in one graph."""

    def __init__(self, model, columns, losses: int) -> None:
        super().__init__(auto_prefix=False)
        self.call = Forward(model, columns)
        self.losses = losses
        weights = ParameterTuple(list(model.weights().values()))
        self.value_and_grad = ops.value_and_grad(self.total_loss, None, weights, has_aux=True)

    def total_loss(self, *batch):
        outputs = self.call(*batch)
        total = outputs[0]
        if self.losses == 2:
            total = total + outputs[1]
        return total, outputs

    def construct(self, *batch):
        return self.value_and_grad(*batch)


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours.astype(np.float64) - theirs).max())


def gradient_parts(gradients):
    """Tensors to compare one by one, with the size that an error in each is measured against.

    A softmax does not feel a number added to all its inputs, so the true gradient of a key bias and of the bias of a
    multiple-choice score is 0, and what is computed is what rounding leaves of a sum. The size of its terms is that of
    the query and value biases, and of the score's weight.
    """
    for name, value in gradients.items():
        if name == "multiple_choice_head.summary.bias":
            yield name, value, np.abs(gradients["multiple_choice_head.summary.weight"]).max()
        elif ".c_attn." in name:
            for part, piece in zip("qkv", np.split(value, 3, -1), strict=True):
                is_key_bias = part == "k" and name.endswith("bias")
                yield f"{name}[{part}]", piece, np.abs(value if is_key_bias else piece).max()
        else:
            yield name, value, np.abs(value).max()


def assert_same_gradients(ours, theirs, floor: float = 1e-8) -> None:
    assert set(ours) == set(theirs)
    ours = {name: ours[name] for name in theirs}
    for (name, value, size), (_, other, _) in zip(gradient_parts(theirs), gradient_parts(ours), strict=True):
        gap = difference(other, value)
        assert gap <= max(1e-5 * size, floor), f"gradient of {name}, of size {size:.2e}, differs by {gap:.2e}"
