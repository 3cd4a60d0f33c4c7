"""The train step and the evaluation step, each one Cell and one graph."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
from mindspore import Tensor, nn, ops

from ms_gpt.pretrained import GPTPreTrainedModel
from ms_gpt.training.optimizer import AdamW
from ms_gpt.training.schedule import LearningRate


class Forward(nn.Cell):
    """Calls a model with the columns of a batch as its keyword arguments.

    Args:
        model: What is called.
        columns: Names of the model's arguments, in the order of the batch.

    Outputs:
        What the model returns.
    """

    def __init__(self, model: GPTPreTrainedModel, columns: Sequence[str]) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.columns = tuple(columns)

    def construct(self, *batch: Tensor) -> tuple:
        """Return the model's outputs."""
        arguments = {}
        for i in range(len(self.columns)):
            arguments[self.columns[i]] = batch[i]
        return self.model(**arguments)


class Loss(Forward):
    """The sum of the losses that a model returns for a batch with labels.

    Args:
        model: What is trained.
        columns: Names of the model's arguments, in the order of the batch.
        lm_coef: Weight of the language-model loss where a model returns two losses (``GPTDoubleHeadsModel``).
    """

    def __init__(self, model: GPTPreTrainedModel, columns: Sequence[str], lm_coef: float = 1.0) -> None:
        super().__init__(model, columns)
        self.has_two = "labels" in self.columns and "mc_labels" in self.columns
        self.lm_coef = lm_coef

    def construct(self, *batch: Tensor) -> Tensor:
        """Return the loss, a float32 scalar."""
        arguments = {}
        for i in range(len(self.columns)):
            arguments[self.columns[i]] = batch[i]
        outputs = self.model(**arguments)
        return self.lm_coef * outputs[0] + outputs[1] if self.has_two else outputs[0]


class TrainStep(nn.Cell):
    """Forward, loss, gradients, clipping, learning rate and AdamW in one graph.

    Args:
        loss: A Cell from a batch to a scalar loss.
        optimizer: What applies the gradients.
        schedule: The learning rate.
        max_grad_norm: Gradients are scaled down to this global norm; 0 means never.

    Inputs:
        *batch: The columns of a batch.

    Outputs:
        Tuple of float32 scalars: loss, global norm of the gradients before clipping, learning rate.
    """

    def __init__(self, loss: nn.Cell, optimizer: AdamW, schedule: LearningRate, max_grad_norm: float = 1.0) -> None:
        super().__init__(auto_prefix=False)
        self.loss, self.optimizer, self.schedule = loss, optimizer, schedule
        self.max_grad_norm = float(max_grad_norm)
        self.value_and_grad = ops.value_and_grad(loss, None, optimizer.parameters)
        self.sum = ops.ReduceSum()

    def construct(self, *batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make one update."""
        loss, gradients = self.value_and_grad(*batch)
        total = Tensor(0.0, ms.float32)
        for i in range(len(gradients)):
            # In two steps: one running sum over millions of squares loses up to 7 % in float32 (ops.L2Loss does).
            total = total + self.sum(self.sum(ops.square(gradients[i]), -1))
        norm = ops.sqrt(total)
        if self.max_grad_norm > 0:
            scale = ops.minimum(Tensor(1.0, ms.float32), self.max_grad_norm / (norm + 1e-6))
            clipped = ()
            for i in range(len(gradients)):
                clipped = clipped + (gradients[i] * scale,)
            gradients = clipped
        learning_rate = self.schedule(self.optimizer.step)
        self.optimizer(gradients, learning_rate)
        return loss, norm, learning_rate
