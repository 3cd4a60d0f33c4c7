"""The train step and the evaluation step, each one Cell and one graph."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ms_gpt.compile_cache import CachedGraph
from ms_gpt.heads import GPTLMHeadModel
from ms_gpt.layers import LOWEST, positions
from ms_gpt.losses import cross_entropy
from ms_gpt.pretrained import GPTPreTrainedModel
from ms_gpt.training.loss_scale import LossScaler, ScaledLoss
from ms_gpt.training.optimizer import AdamW
from ms_gpt.training.schedule import LearningRate


class Forward(CachedGraph):
    """Calls a model with the columns of a batch as its keyword arguments.

    Args:
        model: What is called.
        columns: Names of the model's arguments, in the order of the batch.

    Inputs:
        *batch: The columns of a batch: Tensors (B, ...).

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

    Inputs:
        *batch: The columns of a batch: Tensors (B, ...).

    Outputs:
        float32 scalar Tensor.

    Source: GPT-1 paper, equation 5, for the sum of two losses.
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


class TargetLoss(CachedGraph):
    """The loss of a language model on blocks whose targets are already shifted, so that no token goes unscored.

    Args:
        model: A language model.

    Inputs:
        input_ids: int Tensor (B, T).
        targets: int Tensor (B, T), the token after each; -100 where it does not count.

    Outputs:
        float32 scalar Tensor, the mean over the targets that count, in nats.
    """

    def __init__(self, model: GPTLMHeadModel) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Return the loss."""
        logits = self.model(input_ids)[0]
        return self.model.target_loss(logits, targets.reshape((-1,)))


class SampledTargetLoss(nn.Cell):
    """The loss of ``TargetLoss`` with the sum over the vocabulary estimated from a part of it, for training.

    The softmax over tens of thousands of words takes most of a small model's time. Here each target is scored against
    the first third of ``tokens``, where vocabularies have their frequent tokens, and against others drawn evenly from
    the rest, which stand for those not drawn. The estimate of the sum has the true sum as its mean.

    Args:
        model: A language model.
        tokens: Tokens that are scored, fewer than the vocabulary has.

    Inputs:
        As ``TargetLoss``.

    Outputs:
        As ``TargetLoss``.

    Source: sampled softmax after Jean et al. 2015, section 3; stratified and systematic sampling as in surveys.
    """

    def __init__(self, model: GPTLMHeadModel, tokens: int) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.frequent = tokens // 3
        self.rare = model.config.vocab_size - self.frequent
        self.drawn = tokens - self.frequent
        self.stride = self.rare // self.drawn
        weights = np.zeros(tokens, np.float32)
        weights[self.frequent :] = math.log(self.rare / self.drawn)
        self.log_weights = Tensor(weights)
        self.sum = ops.ReduceSum(keep_dims=True)

    def scored_ids(self, start: Tensor) -> Tensor:
        """Return the tokens to score.

        Args:
            start: int32 scalar Tensor in [0, ``rare``): where the drawing begins; each value draws other tokens.

        Returns:
            int32 Tensor (tokens,), no token twice.
        """
        places = start + self.stride * positions(self.drawn)
        drawn = self.frequent + places - self.rare * (places >= self.rare).astype(ms.int32)
        return ops.cat((positions(self.frequent), drawn), 0)

    def rows_of(self, table: Tensor, ids: Tensor) -> Tensor:
        """Return rows of the table (V, D) of output embeddings, (..., D)."""
        backbone = self.model.transformer
        return backbone.exact_lookup(table, ids) if backbone.sums_exactly else ops.gather(table, ids, 0)

    def scores(self, hidden_states: Tensor, targets: Tensor, start: Tensor) -> Tensor:
        """Return logits (N, 1 + tokens), the targets' own first, the logarithms of the weights added."""
        table = self.model.output_table()
        ids = self.scored_ids(start)
        own = self.sum(hidden_states * self.rows_of(table, targets), -1)
        logits = self.model.project(hidden_states, self.rows_of(table, ids)).astype(ms.float32)
        is_target = ids.reshape((1, -1)) == targets.reshape((-1, 1))
        return ops.cat((own, ops.where(is_target, LOWEST, logits + self.log_weights)), 1)

    def construct(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Return the loss."""
        hidden_states = self.model.transformer(input_ids)[0]
        hidden_states = hidden_states.reshape((-1, hidden_states.shape[-1])).astype(ms.float32)
        targets = targets.reshape((-1,))
        # The key that dropout draws from is another one at every step, and is saved with the run.
        key = ops.bitwise_and(self.model.transformer.head_dropout_key(), 0x7FFFFFFF)
        scores = self.scores(hidden_states, ops.maximum(targets, 0), ops.FloorMod()(key, self.rare))
        # Each row's own target is its first class.
        return cross_entropy(scores, ops.minimum(targets, 0), kernel=self.model.loss_kernel)


class TrainStep(CachedGraph):
    """Forward, loss, gradients, clipping, learning rate and AdamW in one graph.

    Args:
        loss: A Cell from a batch to a scalar loss.
        optimizer: What applies the gradients.
        schedule: The learning rate.
        max_grad_norm: Gradients are scaled down to this global norm; 0 means never.
        scaler: Scales the loss, and passes over batches whose gradients are not finite; ``None`` for neither.

    Inputs:
        *batch: The columns of a batch.

    Outputs:
        Tuple of float32 scalars: loss, global norm of the gradients before clipping, learning rate. With a scaler a
        norm that is not finite says that the batch changed nothing.

    Source: Pascanu, Mikolov and Bengio 2013, algorithm 1, for clipping by the global norm.
    """

    # Made of the loss and the optimizer's parameters.
    not_compiled = ("value_and_grad",)

    def __init__(self, loss: nn.Cell, optimizer: AdamW, schedule: LearningRate, max_grad_norm: float = 1.0,
                 scaler: LossScaler | None = None) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer, self.schedule, self.scaler = optimizer, schedule, scaler
        self.loss = loss if scaler is None else ScaledLoss(loss, scaler)
        self.max_grad_norm = float(max_grad_norm)
        self.value_and_grad = ops.value_and_grad(self.loss, None, optimizer.parameters, has_aux=scaler is not None)
        self.sum = ops.ReduceSum()
        models = [cell for _, cell in loss.cells_and_names() if isinstance(cell, GPTPreTrainedModel)]
        self.is_fused = (scaler is None and optimizer.kernel is not None
                         and all(model.uses_kernels for model in models))

    def construct(self, *batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make one update."""
        outputs, gradients = self.value_and_grad(*batch)
        if self.is_fused:
            learning_rate = self.schedule(self.optimizer.step)
            norm = self.optimizer.clip_and_update(gradients, learning_rate, self.max_grad_norm)
            return outputs, norm, learning_rate
        total = Tensor(0.0, ms.float32)
        for i in range(len(gradients)):
            # In two steps: one running sum over millions of squares loses up to 7 % in float32 (ops.L2Loss does).
            total = total + self.sum(self.sum(ops.square(gradients[i]), -1))
        norm = ops.sqrt(total)
        if self.scaler is not None:
            return self.scaled_update(outputs[1], norm, gradients)
        scale = None
        if self.max_grad_norm > 0:
            scale = ops.minimum(Tensor(1.0, ms.float32), self.max_grad_norm / (norm + 1e-6))
        learning_rate = self.schedule(self.optimizer.step)
        self.optimizer(gradients, learning_rate, scale)
        return outputs, norm, learning_rate

    def scaled_update(self, loss: Tensor, norm: Tensor, gradients: tuple) -> tuple[Tensor, Tensor, Tensor]:
        """Make the update of a scaled loss unless its gradients, or their norm, are not finite; give three scalars."""
        scale = self.scaler.scale + 0.0
        norm = norm / scale
        # Not a branch, whose condition the host would have to read. One bad element makes the norm bad.
        is_finite = ops.isfinite(norm)
        factor = 1.0 / scale
        if self.max_grad_norm > 0:
            factor = factor * ops.minimum(Tensor(1.0, ms.float32), self.max_grad_norm / (norm + 1e-6))
        learning_rate = self.schedule(self.optimizer.step)
        self.optimizer(gradients, learning_rate, factor, is_finite)
        self.scaler(is_finite)
        return loss, norm, learning_rate
