"""TrainingArguments: every knob of a training run, in Hugging Face's words."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ms_gpt.errors import UserError, suggest

SCHEDULES = ("linear", "cosine", "constant")
STRATEGIES = ("no", "epoch", "steps")
# Names that older releases of transformers gave the same thing.
_FORMER_NAMES = {"evaluation_strategy": "eval_strategy"}


@dataclass
class _Fields:
    output_dir: str = "output"
    num_train_epochs: float = 3
    max_steps: int = -1
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 32
    learning_rate: float = 6.25e-5
    lr_scheduler_type: str = "linear"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    min_lr_ratio: float = 0.0
    weight_decay: float = 0.01
    decay_embeddings: bool = False
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    logging_steps: int = 10
    logging_dir: str | None = None
    eval_strategy: str = "no"
    eval_steps: int = 0
    save_strategy: str = "epoch"
    save_steps: int = 0
    load_best_model_at_end: bool = False
    metric_for_best_model: str = "loss"
    greater_is_better: bool | None = None
    early_stopping_patience: int | None = None
    max_length: int | None = None
    truncation: str = "head_tail"
    buckets: int = 3
    word_dropout: float = 0.0
    softmax_tokens: int = 0
    class_weights: list[float] | None = None
    seed: int = 0
    device: str = "auto"
    mode: str = "graph"
    dtype: str = "float32"
    flash_attention: bool = False
    dataset_sink_mode: bool = False


class TrainingArguments(_Fields):
    """How a model is trained.

    Args:
        output_dir: Folder for ``metrics.jsonl``, ``loss.png``, ``best/`` and ``last/``.
        num_train_epochs: Passes over the training data; a fraction is allowed.
        max_steps: Stop after this many updates; overrides ``num_train_epochs`` if positive.
        per_device_train_batch_size: Examples in an update.
        per_device_eval_batch_size: Examples in an evaluation batch.
        learning_rate: The peak of the schedule.
        lr_scheduler_type: ``"linear"``, ``"cosine"`` or ``"constant"``, after the warm-up.
        warmup_steps: Updates over which the rate rises from 0.
        warmup_ratio: The same as a share of all updates, used where ``warmup_steps`` is 0.
        min_lr_ratio: The rate at the end as a share of the peak.
        weight_decay: Decoupled decay of matrices; biases and LayerNorm are never decayed.
        decay_embeddings: Decay the embeddings too.
        adam_beta1: Adam's first coefficient, in [0, 1).
        adam_beta2: Adam's second coefficient, in [0, 1).
        adam_epsilon: Added to Adam's denominator.
        max_grad_norm: Gradients are scaled down to this global norm; 0 means never.
        logging_steps: Updates between two lines of ``metrics.jsonl``.
        logging_dir: Folder for ``metrics.jsonl`` and ``loss.png``; ``output_dir`` by default.
        eval_strategy: ``"no"``, ``"epoch"`` or ``"steps"`` (formerly ``evaluation_strategy``).
        eval_steps: Updates between evaluations under ``"steps"``, which ends with one too.
        save_strategy: When ``last/`` is written: ``"no"``, ``"epoch"`` or ``"steps"``.
        save_steps: Updates between saves under ``"steps"``, which ends with one too.
        load_best_model_at_end: Go back to the best evaluation's weights after training.
        metric_for_best_model: ``"loss"``, ``"accuracy"``, ``"f1"`` or a name that ``compute_metrics`` returns.
        greater_is_better: Whether larger is better; ``None`` means yes, except for a loss or perplexity.
        early_stopping_patience: Stop after this many evaluations without a better one; ``None`` means never.
        max_length: Longer texts are truncated to this many tokens; ``None`` means the model's ``n_positions``.
        truncation: What a truncated text keeps: ``"head"``, ``"tail"`` or ``"head_tail"``.
        buckets: Number of padded lengths, each with its own compiled graph.
        word_dropout: Share of a text's tokens that training replaces by ``<unk>``, in [0, 1).
        softmax_tokens: Tokens of the vocabulary that each training step of a language model scores; 0 means all. See
            ``step.SampledTargetLoss``.
        class_weights: One weight for each class in the single-label loss.
        seed: Seed of the data order and of dropout.
        device: ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"ascend"``.
        mode: ``"graph"`` or ``"pynative"``.
        dtype: Of the matrix products: ``"float32"``, ``"float16"``, which turns on dynamic loss scaling, or
            ``"bfloat16"``, which Ascend alone computes in.
        flash_attention: Use Ascend's fused attention where it can be; see ``model.set_flash_attention``.
        dataset_sink_mode: Queue the batches on the device, Ascend or GPU, as ``mindspore.train.Model`` does; all must
            have one shape.

    Raises:
        UserError: A name is unknown (with a suggestion) or a value is outside its range.
    """

    def __init__(self, output_dir: str = "output", **values: Any) -> None:  # noqa: DOC102, DOC103 - see the fields
        known = [item.name for item in dataclasses.fields(_Fields)]
        renamed = {_FORMER_NAMES.get(name, name): value for name, value in values.items()}
        for name in renamed:
            if name not in known:
                raise UserError(f"{name!r} is not a training argument.{suggest(name, known)}")
        super().__init__(output_dir=str(output_dir), **renamed)
        self.validate()

    def validate(self) -> None:
        """Check every value.

        Raises:
            UserError: One line that names the first argument that breaks its rule.
        """
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "logging_steps", "buckets"):
            _check(name, getattr(self, name), lambda x: x >= 1 and x == int(x), "a whole number of at least 1")
        for name in ("warmup_steps", "eval_steps", "save_steps", "softmax_tokens"):
            _check(name, getattr(self, name), lambda x: x >= 0 and x == int(x), "a whole number of at least 0")
        for name in ("learning_rate", "adam_epsilon"):
            _check(name, getattr(self, name), lambda x: 0 < x < float("inf"), "greater than 0")
        for name in ("weight_decay", "max_grad_norm"):
            _check(name, getattr(self, name), lambda x: 0 <= x < float("inf"), "at least 0")
        for name in ("adam_beta1", "adam_beta2", "warmup_ratio", "min_lr_ratio", "word_dropout"):
            _check(name, getattr(self, name), lambda x: 0 <= x < 1, "in [0, 1)")
        _check("max_steps", self.max_steps, lambda x: isinstance(x, int) and (x == -1 or x >= 1),
               "a whole number of at least 1, or -1 for whole epochs")
        if self.max_steps < 0:
            _check("num_train_epochs", self.num_train_epochs, lambda x: 0 < x < float("inf"), "greater than 0")
        _choose("lr_scheduler_type", self.lr_scheduler_type, SCHEDULES)
        _choose("eval_strategy", self.eval_strategy, STRATEGIES)
        _choose("save_strategy", self.save_strategy, STRATEGIES)
        _choose("truncation", self.truncation, ("head", "tail", "head_tail"))
        for kind in ("eval", "save"):
            if getattr(self, f"{kind}_strategy") == "steps" and not getattr(self, f"{kind}_steps"):
                raise UserError(f"{kind}_strategy='steps' needs {kind}_steps, the number of updates in between")

    @property
    def larger_is_better(self) -> bool:
        """Whether a larger ``metric_for_best_model`` is better."""
        if self.greater_is_better is not None:
            return self.greater_is_better
        return not self.metric_for_best_model.endswith(("loss", "perplexity"))

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments as plain values."""
        return dataclasses.asdict(self)


def _check(name: str, value: Any, holds: Any, rule: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not holds(value):
        raise UserError(f"{name}={value!r} is not {rule}")


def _choose(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name}={value!r} is not one of {', '.join(choices)}.{suggest(value, choices)}")
