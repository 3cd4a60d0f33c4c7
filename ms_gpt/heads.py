"""Models with a head: language model, language model with multiple choice, sequence classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ms_gpt.config import GPTConfig
from ms_gpt.errors import UserError
from ms_gpt.kernels import kernel
from ms_gpt.layers import Activation, Dropout, gather_positions, last_token_index
from ms_gpt.losses import IGNORE_INDEX, cross_entropy, next_token_labels
from ms_gpt.model import GPTModel
from ms_gpt.pretrained import GPTPreTrainedModel, open_model


class LMHead(nn.Cell):
    """The output projection of an untied language model.

    Args:
        config: The model's configuration.

    Outputs:
        The weight, Tensor (V, D).
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.zeros((config.vocab_size, config.n_embd), np.float32)), name="weight")

    def construct(self) -> Tensor:
        """Return the weight."""
        return self.weight


class LanguageModelMixin:
    """What the models with a language-model output share."""

    project_kernel = loss_kernel = None

    def set_kernels(self, are_used: bool) -> None:
        """Compute logits and loss with the fused CPU kernels, or with plain operations."""
        self.project_kernel = kernel("project") if are_used else None
        self.loss_kernel = kernel("cross_entropy") if are_used else None

    def output_table(self) -> Tensor:
        """Return the output projection (V, D): the head's weight or the tied embedding."""
        return self.transformer.tokens_embed.embedding_table if self.is_tied else self.lm_head()

    def lm_logits(self, hidden_states: Tensor) -> Tensor:
        """Project hidden states (B, T, D) to logits (B, T, V) with the head or the tied embedding."""
        return self.project(hidden_states, self.output_table())

    def project(self, hidden_states: Tensor, table: Tensor) -> Tensor:
        """Multiply hidden states (..., D) with rows (V, D): logits (..., V)."""
        if self.project_kernel is not None:
            return self.project_kernel(hidden_states, table)
        shape, dtype = hidden_states.shape, self.compute_dtype
        flat = hidden_states.reshape((-1, shape[-1])).astype(dtype)
        logits = ops.MatMul(transpose_b=True)(flat, table.astype(dtype))
        return logits.reshape(shape[:-1] + (table.shape[0],))

    def lm_loss(self, lm_logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean next-token loss in nats over labels (B, T) that are not -100."""
        return self.target_loss(lm_logits, next_token_labels(labels))

    def target_loss(self, lm_logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss in nats, a scalar, over targets (B * T,) but -100, each the token after its position."""
        return cross_entropy(lm_logits.reshape((-1, lm_logits.shape[-1])), targets, kernel=self.loss_kernel)


class GPTLMHeadModel(LanguageModelMixin, GPTPreTrainedModel):
    """GPT with a language-model head, tied to the token embedding if ``tie_word_embeddings``.

    Args:
        config: The model's configuration.

    Inputs:
        As ``GPTModel``, and ``labels``: int Tensor (B, T), usually ``input_ids`` with -100 where a token does not
        count. They are shifted inside.

    Outputs:
        Tuple ``(loss, logits, *rest)`` with labels, ``(logits, *rest)`` without; logits are (B, T, V) and ``rest`` is
        what ``GPTModel`` returns after the hidden states.

    Source: GPT-1 paper, equations 1 and 2.
    """

    architecture = {"openai-gpt": "OpenAIGPTLMHeadModel", "gpt2": "GPT2LMHeadModel", "ms_gpt": "GPTLMHeadModel"}
    inputs_like_ids = (*GPTPreTrainedModel.inputs_like_ids, "labels")

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.transformer = GPTModel(config)
        self.is_tied = config.tie_word_embeddings
        if not self.is_tied:
            self.lm_head = LMHead(config)
        self.post_init()

    def generate(self, input_ids: Any, attention_mask: Any = None, past_key_values: Any = None,
                 **settings: Any) -> Tensor:
        """Continue rows of token ids.

        Args:
            input_ids: int Tensor or array (B, T), or a list of rows; rows of unequal length are padded on the left.
            attention_mask: Of the shape of ``input_ids``: 1 for real tokens, 0 for padding on either side. Default: all
                real.
            past_key_values: A ``generation.Session`` that keeps keys and values between calls, or ``None``.
            **settings: Fields of ``generation.GenerationSettings``.

        Returns:
            int32 Tensor (B * num_return_sequences, T + new tokens): each row, its continuation, and padding once it
            has ended. The sequences of one row stand together, the best first in a beam search.

        Raises:
            UserError: A setting or a row breaks its rule.
        """
        from ms_gpt.generation.engine import generate

        return generate(self, input_ids, attention_mask, past_key_values, settings)

    def construct(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: tuple | None = None,
        cache_position: Tensor | None = None,
    ) -> tuple:
        """Return the loss (with labels) and the logits; see the class for shapes."""
        outputs = self.transformer(input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds,
                                   past_key_values, cache_position)
        logits = self.lm_logits(outputs[0])
        if labels is None:
            return (logits,) + outputs[1:]
        return (self.lm_loss(logits, labels), logits) + outputs[1:]


class SequenceSummary(nn.Cell):
    """Reduces the hidden states of one sequence to one vector or score.

    Args:
        config: The model's configuration; its ``summary_*`` fields.

    Inputs:
        hidden_states: Tensor (N, T, D).
        cls_index: int Tensor (N,) or ``None`` (the last position), read for ``summary_type="cls_index"``.
        dropout_key: int32 scalar Tensor, read in training only.

    Outputs:
        Tensor (N, 1), or (N, D) where the projection keeps the width.

    Source: transformers' ``OpenAIGPTSequenceSummary``.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.summary_type = config.summary_type
        self.use_proj = config.summary_use_proj
        if self.use_proj:
            # A multiple-choice head gives one score for each choice, whatever num_labels says.
            self.summary = nn.Dense(config.n_embd, 1 if config.summary_proj_to_labels else config.n_embd)
        self.has_activation = config.summary_activation is not None
        if self.has_activation:
            self.activation = Activation(config.summary_activation)
        self.first_dropout = Dropout(config.summary_first_dropout)

    def construct(self, hidden_states: Tensor, cls_index: Tensor | None = None,
                  dropout_key: Tensor | None = None) -> Tensor:
        """Return one vector for each sequence."""
        if self.summary_type == "first":
            output = hidden_states[:, 0]
        elif self.summary_type == "mean":
            output = hidden_states.mean(1)
        elif self.summary_type == "last" or cls_index is None:
            output = hidden_states[:, -1]
        else:
            output = gather_positions(hidden_states, cls_index)
        output = self.first_dropout(output, dropout_key)
        if self.use_proj:
            output = self.summary(output)
        return self.activation(output) if self.has_activation else output


class GPTDoubleHeadsModel(LanguageModelMixin, GPTPreTrainedModel):
    """GPT with a language-model head and a multiple-choice head.

    Args:
        config: The model's configuration.

    Inputs:
        input_ids: int Tensor (B, C, T) for C choices; or ``inputs_embeds`` (B, C, T, D).
        attention_mask, token_type_ids, position_ids: Tensors (B, C, T).
        head_mask: Tensor (H,) or (L, H).
        mc_token_ids: int Tensor (B, C), the position whose hidden state scores the choice. Default: the last.
        labels: int Tensor (B, C, T) of language-model labels, -100 where a token does not count.
        mc_labels: int Tensor (B,), the right choice, in [0, C).

    Outputs:
        Tuple ``([lm_loss], [mc_loss], lm_logits (B, C, T, V), mc_logits (B, C), *rest)``; mc_logits are (B, C, D) where
        the summary keeps the width.

    Source: GPT-1 paper, section 3.3; transformers' ``OpenAIGPTDoubleHeadsModel``.
    """

    architecture = {"openai-gpt": "OpenAIGPTDoubleHeadsModel", "gpt2": "GPT2DoubleHeadsModel",
                    "ms_gpt": "GPTDoubleHeadsModel"}
    token_axes = ("B", "C", "T")
    inputs_like_ids = (*GPTPreTrainedModel.inputs_like_ids, "labels")

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.transformer = GPTModel(config)
        self.is_tied = config.tie_word_embeddings
        if not self.is_tied:
            self.lm_head = LMHead(config)
        self.multiple_choice_head = SequenceSummary(config)
        self.post_init()

    def construct(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mc_token_ids: Tensor | None = None,
        labels: Tensor | None = None,
        mc_labels: Tensor | None = None,
    ) -> tuple:
        """Return the losses that have labels, and the logits; see the class for shapes."""
        batch, choices, length = (input_ids if input_ids is not None else inputs_embeds).shape[:3]
        outputs = self.transformer(
            _flatten_choices(input_ids), _flatten_choices(attention_mask), _flatten_choices(token_type_ids),
            _flatten_choices(position_ids), head_mask, _flatten_choices(inputs_embeds),
        )
        hidden_states = outputs[0]  # (B*C, T, D)
        lm_logits = self.lm_logits(hidden_states)
        index = None if mc_token_ids is None else mc_token_ids.reshape((-1,))
        mc_logits = self.multiple_choice_head(hidden_states, index, self.transformer.head_dropout_key())
        width = mc_logits.shape[-1]
        mc_logits = mc_logits.reshape((batch, choices) if width == 1 else (batch, choices, width))
        losses = ()
        if labels is not None:
            losses = losses + (self.lm_loss(lm_logits, labels.reshape((batch * choices, length))),)
        if mc_labels is not None:
            losses = losses + (cross_entropy(mc_logits.reshape((-1, mc_logits.shape[-1])), mc_labels.reshape((-1,))),)
        return losses + (lm_logits.reshape((batch, choices, length, -1)), mc_logits) + outputs[1:]


def _flatten_choices(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.reshape((-1,) + x.shape[2:])


class GPTForSequenceClassification(LanguageModelMixin, GPTPreTrainedModel):
    """GPT with a classifier on the last real token: one label, several labels, or a number.

    The last real token is found in ``attention_mask`` if given, else as the last one that is not ``pad_token_id``, else
    it is the last position. With ``lm_coef`` > 0 the language-model loss on the same tokens is added.

    Args:
        config: The model's configuration. ``problem_type`` ``None`` means regression for one label; else
            single-label with int labels and multi-label with float labels.
        class_weights: One positive weight for each class, for the single-label loss; or ``None``.

    Inputs:
        As ``GPTModel``, and ``labels``: float Tensor (B,) or (B, num_labels) for regression, int Tensor (B,) in
        [0, num_labels) for single-label, float Tensor (B, num_labels) of 0 and 1 for multi-label. A label that does
        not count is -100, or NaN where labels are float.

    Outputs:
        Tuple ``(loss, logits, *rest)`` with labels, ``(logits, *rest)`` without; logits are (B, num_labels).

    Source: GPT-1 paper, equations 3 to 5; pooling and problem types as in transformers.
    """

    architecture = {"openai-gpt": "OpenAIGPTForSequenceClassification", "gpt2": "GPT2ForSequenceClassification",
                    "ms_gpt": "GPTForSequenceClassification"}

    def __init__(self, config: GPTConfig, class_weights: list[float] | None = None) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.problem_type = config.problem_type
        self.pad_token_id = config.pad_token_id
        self.lm_coef = config.lm_coef
        self.is_tied = True
        self.transformer = GPTModel(config)
        self.dropout = Dropout(config.classifier_pdrop)
        self.score = nn.Dense(config.n_embd, config.num_labels, has_bias=False)
        self.class_weights = None
        if class_weights is not None:
            self.set_class_weights(class_weights)
        self.post_init()

    def set_class_weights(self, class_weights: list[float]) -> None:
        """Weigh the classes in the single-label loss.

        Args:
            class_weights: One positive weight for each class.

        Raises:
            UserError: Their number is not ``num_labels``.
        """
        if len(class_weights) != self.num_labels:
            raise UserError(f"class_weights has {len(class_weights)} values for num_labels={self.num_labels}")
        self.class_weights = Tensor(np.asarray(class_weights, np.float32))

    def pool_index(self, input_ids: Tensor | None, attention_mask: Tensor | None, batch: int, length: int) -> Tensor:
        """Return the position that each row is classified at, int32 (B,)."""
        if attention_mask is not None:
            return last_token_index(attention_mask != 0)
        if input_ids is not None and self.pad_token_id is not None:
            return last_token_index(input_ids != self.pad_token_id)
        return ops.full((batch,), length - 1, dtype=ms.int32)

    def classification_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the problem type, a float32 scalar; see the class for the labels."""
        logits = logits.astype(ms.float32)
        is_float = labels.dtype in (ms.float16, ms.float32, ms.float64)
        problem_type = self.problem_type
        if problem_type is None:
            problem_type = "regression" if self.num_labels == 1 else (
                "multi_label_classification" if is_float else "single_label_classification")
        if problem_type == "single_label_classification":
            return cross_entropy(logits, labels.reshape((-1,)), self.class_weights)
        target = labels.reshape(logits.shape).astype(ms.float32)
        counted = target == target
        target = ops.where(counted, target, ops.zeros_like(target))
        if problem_type == "regression":
            losses = ops.square(logits - target)
        else:
            # log(1 + exp(x)) - x y, in the form that cannot overflow; Expm1, since the CPU's Exp is 5e-6 off.
            losses = ops.relu(logits) - logits * target + ops.log(2.0 + ops.expm1(-ops.abs(logits)))
        weight = counted.astype(ms.float32)
        return (losses * weight).sum() / ops.maximum(weight.sum(), Tensor(1.0, ms.float32))

    def auxiliary_lm_loss(self, hidden_states: Tensor, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return the language-model loss, a scalar, of the real tokens of a batch (B, T) that is being classified."""
        lm_logits = self.lm_logits(hidden_states)
        if attention_mask is not None:
            is_real = attention_mask != 0
        elif self.pad_token_id is not None:
            is_real = input_ids != self.pad_token_id
        else:
            return self.lm_loss(lm_logits, input_ids)
        ignored = ops.full_like(input_ids, IGNORE_INDEX)
        targets = next_token_labels(ops.where(is_real, input_ids, ignored))
        # With padding on the left, what a padded position would predict does not count either.
        targets = ops.where(is_real.reshape((-1,)), targets, ignored.reshape((-1,)))
        return cross_entropy(lm_logits.reshape((-1, lm_logits.shape[-1])), targets)

    def construct(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> tuple:
        """Return the loss (with labels) and the logits; see the class for shapes."""
        outputs = self.transformer(input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        hidden_states = outputs[0]
        batch, length = hidden_states.shape[:2]
        index = self.pool_index(input_ids, attention_mask, batch, length)
        pooled = gather_positions(hidden_states, index)
        logits = self.score(self.dropout(pooled, self.transformer.head_dropout_key()))
        if labels is None:
            return (logits,) + outputs[1:]
        loss = self.classification_loss(logits, labels)
        if self.lm_coef > 0 and input_ids is not None:
            loss = loss + self.lm_coef * self.auxiliary_lm_loss(hidden_states, input_ids, attention_mask)
        return (loss, logits) + outputs[1:]


_HEADS = (GPTModel, GPTLMHeadModel, GPTDoubleHeadsModel, GPTForSequenceClassification)


class AutoModel:
    """Loads a model into the class that fits it."""

    @staticmethod
    def from_pretrained(source: str | Path, **overrides: Any) -> GPTPreTrainedModel:
        """Load a model of whatever head was saved.

        Args:
            source: As for ``GPTPreTrainedModel.from_pretrained``.
            **overrides: As there.

        Returns:
            The model, of the class that ``architectures`` in ``config.json`` names or, where it names none, of the
            one that has the tensors; a transformer without a head counts as a language model.

        Raises:
            UserError: The source cannot be read, or names an architecture that is not a GPT.
        """
        opened = open_model(source, overrides)
        return model_class(opened.architecture).from_checkpoint(opened, str(source), overrides)


def model_class(architecture: str) -> type[GPTPreTrainedModel]:
    """Find the class for a name that stands in ``architectures`` in ``config.json``.

    Args:
        architecture: Such as ``"GPT2LMHeadModel"``.

    Returns:
        The class.

    Raises:
        UserError: The architecture is not one of this library's.
    """
    by_name = {name: head for head in _HEADS for name in (*head.architecture.values(), head.__name__)}
    if architecture not in by_name:
        raise UserError(f"architecture {architecture!r} is not a GPT that can be loaded: known are "
                        f"{', '.join(by_name)}")
    return by_name[architecture]
