"""Trainer: a model, arguments and data in; a trained model and a run folder out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.train import Callback, Model

from ms_gpt import checkpoint, runtime
from ms_gpt.checkpoint.atomic import make_folder
from ms_gpt.data.batches import IGNORE_INDEX, Batches, choose_buckets, to_mindspore
from ms_gpt.data.encode import Encoded, encode_rows
from ms_gpt.data.splits import check_labels
from ms_gpt.errors import UserError
from ms_gpt.heads import GPTForSequenceClassification, GPTLMHeadModel
from ms_gpt.pretrained import GPTPreTrainedModel
from ms_gpt.training.arguments import TrainingArguments
from ms_gpt.training.callbacks import EvaluateAndSave, MetricsLog, Progress, default_console
from ms_gpt.training.loss_scale import LossScaler
from ms_gpt.training.metrics import METRICS
from ms_gpt.training.optimizer import AdamW
from ms_gpt.training.perplexity import check_vocabulary, perplexity, score_language_model
from ms_gpt.training.schedule import LearningRate
from ms_gpt.training.step import Forward, Loss, SampledTargetLoss, TargetLoss, TrainStep


def _is_ready(dataset: Any) -> bool:
    """Tell batches from rows."""
    return hasattr(dataset, "steps_per_epoch")


@dataclass
class TrainerState:
    """Where a run stands; all of it is saved in ``last/``.

    Args:
        max_steps: Updates in the whole run.
        steps_per_epoch: Updates in an epoch.
        step: Updates made.
        epoch: Epochs finished.
        batch: Updates made in the running epoch.
        best_metric: The best evaluation so far.
        best_step: When it was.
        best: Its figures.
        last_eval: The last evaluation's figures.
        evals_without_gain: Evaluations since the best one.
        stopped: Early stopping has ended the run.
    """

    max_steps: int
    steps_per_epoch: int
    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_metric: float | None = None
    best_step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    last_eval: dict[str, Any] = field(default_factory=dict)
    evals_without_gain: int = 0
    stopped: bool = False

    @property
    def epochs_done(self) -> float:
        """Epochs finished, with the fraction of the running one."""
        return self.epoch + self.batch / self.steps_per_epoch


class Trainer:
    """Trains a classifier or a language model, evaluates it, keeps the best and can go on after a kill.

    Args:
        model: ``GPTForSequenceClassification`` or ``GPTLMHeadModel``.
        args: How to train.
        train_dataset: Rows with ``text`` or ``input_ids``, and ``label``; for a language model ``input_ids``. Or
            batches that are ready, such as ``data.blocks.BlockBatches``.
        eval_dataset: Rows that choose the best epoch; never the test set.
        tokenizer: Needed for rows with ``text``; saved beside the model.
        compute_metrics: Gets ``(logits, labels)`` as NumPy arrays and returns further figures by name.
        callbacks: MindSpore callbacks that run beside the trainer's own.
        console: Where progress is drawn.
        phase: Name of this training in the log and on the bar.

    Raises:
        UserError: The data does not fit the model, or the device cannot be used.
    """

    def __init__(
        self,
        model: GPTPreTrainedModel,
        args: TrainingArguments | None = None,
        train_dataset: Iterable[Mapping[str, Any]] | None = None,
        eval_dataset: Iterable[Mapping[str, Any]] | None = None,
        *,
        tokenizer: Any = None,
        compute_metrics: Callable[[tuple[np.ndarray, np.ndarray]], dict[str, float]] | None = None,
        callbacks: Sequence[Callback] = (),
        console: Any = None,
        phase: str = "train",
    ) -> None:
        self.args = args or TrainingArguments()
        self.runtime = runtime.setup(self.args.device, self.args.mode, self.args.dtype, self.args.seed)
        self.model, self.tokenizer, self.phase = model, tokenizer, phase
        self.compute_metrics, self.callbacks = compute_metrics, list(callbacks)
        self.console = console or default_console()
        self.is_classifier = isinstance(model, GPTForSequenceClassification)
        if not self.is_classifier and not isinstance(model, GPTLMHeadModel):
            raise UserError(f"{type(model).__name__} cannot be trained by Trainer: give a "
                            "GPTForSequenceClassification or a GPTLMHeadModel")
        if self.runtime.dtype != "float32":
            model.set_compute_dtype(self.runtime.dtype)
        model.match_kernels()
        if self.args.flash_attention:
            model.set_flash_attention(True)
            if model.config.attn_pdrop > 0:
                self.console.note("flash attention is for evaluation only, since attn_pdrop is not 0")
        self.scaler: LossScaler | None = None
        self.max_length = self._max_length()
        self.buckets: list[int] = []
        self.truncated = 0
        if _is_ready(train_dataset):
            self.train_batches, self.eval_batches = train_dataset, eval_dataset
            longest = max(getattr(part, "block_size", 0) for part in (train_dataset, eval_dataset))
            if longest > model.config.n_positions:
                limit = model.config.n_positions
                raise UserError(f"block_size={longest} is more than n_positions={limit} of this model")
        else:
            self._encode_parts(train_dataset, eval_dataset)
        self.output_dir = Path(self.args.output_dir)
        self.state = self._new_state()
        self._eval_steps: dict[tuple[str, ...], nn.Cell] = {}
        if self.args.dataset_sink_mode:
            self._check_sink()

    def _check_sink(self) -> None:
        if self.runtime.device == "cpu" or self.runtime.mode != "graph":
            raise UserError("dataset_sink_mode=True needs graphs on Ascend or a GPU: leave it out on the CPU and in "
                            "pynative mode")
        if len(self.buckets) > 1 or getattr(self.train_batches, "ramp", ()):
            raise UserError("dataset_sink_mode=True needs batches of one shape: set buckets=1, and no batch ramp")

    def _encode_parts(self, train_dataset: Iterable[Mapping[str, Any]] | None,
                      eval_dataset: Iterable[Mapping[str, Any]] | None) -> None:
        train = self._encode(train_dataset, "training") if train_dataset is not None else None
        evaluation = self._encode(eval_dataset, "evaluation") if eval_dataset is not None else None
        if train is not None and self.is_classifier:
            check_labels(train.labels, self.model.config.num_labels, self.problem_type(train.labels), training=True)
            if self.args.class_weights:
                self.model.set_class_weights(self.args.class_weights)
        both = [part.sequences for part in (train, evaluation) if part is not None]
        lengths = [len(sequence) for part in both for sequence in part]
        self.buckets = choose_buckets(lengths, self.max_length, self.args.buckets) if lengths else []
        self.train_batches = self._batches(train, self.args.per_device_train_batch_size, shuffle=True)
        self.eval_batches = self._batches(evaluation, self.args.per_device_eval_batch_size)
        self.truncated = train.truncated if train is not None else 0

    def _max_length(self) -> int:
        limit = self.model.config.n_positions
        if self.args.max_length is not None and not 1 <= self.args.max_length <= limit:
            raise UserError(f"max_length={self.args.max_length} is outside 1 to n_positions={limit} of this model")
        return self.args.max_length or limit

    def _encode(self, dataset: Iterable[Mapping[str, Any]], name: str) -> Encoded:
        encoded = encode_rows(dataset, self.tokenizer, self.max_length, self.args.truncation)
        top = max(max(sequence, default=0) for sequence in encoded.sequences)
        check_vocabulary(top, self.model.config, f" in the {name} data")
        return encoded

    def _batches(self, encoded: Encoded | None, batch_size: int, shuffle: bool = False) -> Batches | None:
        if encoded is None:
            return None
        if self.is_classifier and encoded.labels is None:
            raise UserError("the rows have no column 'label': a classifier needs one to train and to evaluate")
        labels = encoded.labels if self.is_classifier else "tokens"
        if self.is_classifier and self.problem_type(labels) != "single_label_classification":
            labels = [np.asarray(label, np.float32) for label in labels]
        unk_id = getattr(self.tokenizer, "unk_token_id", None)
        word_dropout = self.args.word_dropout if shuffle and self.is_classifier else 0.0
        if word_dropout and unk_id is None:
            raise UserError(f"word_dropout={word_dropout} needs a tokenizer with an unk_token: set it to 0")
        return Batches(encoded.sequences, labels, batch_size, self.buckets, self.pad_id, shuffle, self.args.seed,
                       word_dropout, unk_id or 0)

    @property
    def pad_id(self) -> int:
        """The token that fills batches; masked everywhere, so 0 does where no pad token is set."""
        return max(self.model.config.pad_token_id or 0, 0)

    def problem_type(self, labels: Sequence[Any]) -> str:
        """Return the classifier's problem type, decided by the labels where the config leaves it open."""
        config = self.model.config
        if config.problem_type is not None:
            return config.problem_type
        if config.num_labels == 1:
            return "regression"
        several = isinstance(labels[0], (list, tuple, np.ndarray))
        return "multi_label_classification" if several else "single_label_classification"

    def _new_state(self) -> TrainerState:
        if self.train_batches is None:
            return TrainerState(0, 1)
        per_epoch = self.train_batches.steps_per_epoch
        steps = self.args.max_steps if self.args.max_steps > 0 else math.ceil(per_epoch * self.args.num_train_epochs)
        return TrainerState(steps, per_epoch)

    def train(self, resume: bool = False) -> dict[str, Any]:
        """Train until the last step or until early stopping.

        Args:
            resume: Go on from ``last/`` if there is one; the result equals that of an uninterrupted run.

        Returns:
            ``train_loss`` (mean over the last logged steps), ``steps``, ``seconds`` and, if there were evaluations,
            ``best`` (figures of the best one) and ``best_step``.

        Raises:
            UserError: There is no training data, the folder cannot be written, or the loss is not finite.
        """
        if self.train_batches is None:
            raise UserError("there is nothing to train on: give a train_dataset")
        make_folder(self.output_dir)
        step = self._build_step()
        self.model.reseed(self.args.seed)
        if resume and checkpoint.has_state(self.output_dir / "last"):
            self.load_state()
        self.log = log = MetricsLog(Path(self.args.logging_dir or self.output_dir), self.phase)
        first = self.state.step
        log.restart(first)
        started = time.perf_counter()
        progress = Progress(self, self.console, log)
        try:
            while self.state.step < self.state.max_steps and not self.state.stopped:
                self._run_epochs(step, [progress, EvaluateAndSave(self), *self.callbacks])
        finally:
            progress.close()
        if self.state.step == first:
            self.console.note(f"{self.output_dir / 'last'} is of a run that ended after {first} steps: none is left")
        self.model.set_train(False)
        if self.args.load_best_model_at_end and self.state.best_metric is not None:
            self.load_best()
        losses = [record["loss"] for record in log.read() if record["phase"] == self.phase and "loss" in record]
        return {
            "train_loss": losses[-1] if losses else None,
            "steps": self.state.step,
            "seconds": time.perf_counter() - started,
            "best": self.state.best,
            "best_step": self.state.best_step,
        }

    def _run_epochs(self, step: TrainStep, callbacks: list[Callback]) -> None:
        """Run to the end; or, where a run was interrupted inside an epoch, to the end of that epoch."""
        state = self.state
        last_epoch = state.epoch + 1 if state.batch else math.ceil(state.max_steps / state.steps_per_epoch)
        dataset = to_mindspore(self.train_batches, state.epoch, state.batch)
        if self.args.dataset_sink_mode:
            # An "epoch" of one batch each, so that the callbacks run after every step, as they do without.
            left = (last_epoch - state.epoch) * state.steps_per_epoch - state.batch
            Model(step).train(left, dataset, callbacks, dataset_sink_mode=True, sink_size=1)
        else:
            Model(step).train(last_epoch, dataset, callbacks, dataset_sink_mode=False, initial_epoch=state.epoch)

    def _build_step(self) -> TrainStep:
        args = self.args
        warmup = args.warmup_steps or math.ceil(args.warmup_ratio * self.state.max_steps)
        weights = {name: item for name, item in self.model.weights().items() if item.requires_grad}
        self.optimizer = AdamW(list(weights.values()), list(weights), args.weight_decay, args.decay_embeddings,
                               args.adam_beta1, args.adam_beta2, args.adam_epsilon)
        schedule = LearningRate(args.learning_rate, self.state.max_steps, warmup, args.lr_scheduler_type,
                                args.min_lr_ratio)
        self._eval_steps = {}
        columns = self.train_batches.columns
        if "targets" not in columns:
            loss = Loss(self.model, columns)
        elif 0 < args.softmax_tokens < self.model.config.vocab_size:
            loss = SampledTargetLoss(self.model, args.softmax_tokens)
        else:
            loss = TargetLoss(self.model)
        self.scaler = LossScaler() if self.runtime.dtype == "float16" else None
        return TrainStep(loss, self.optimizer, schedule, args.max_grad_norm, self.scaler).set_train()

    def sample_batch(self) -> tuple[Tensor, ...]:
        """Return the first batch of the training data, Tensors (B, T) and (B, ...)."""
        return tuple(Tensor(column) for column in next(iter(self.train_batches.epoch(0))))

    def count_tokens(self, batch: Sequence[Tensor]) -> int:
        """Return the number of real tokens in a batch of the training data, Tensors (B, T) and (B, ...)."""
        columns = self.train_batches.columns
        if "attention_mask" in columns:
            return int(batch[columns.index("attention_mask")].asnumpy().sum())
        return int((batch[1].asnumpy() != IGNORE_INDEX).sum())

    def forward(self, columns: Sequence[str]) -> nn.Cell:
        """Return the Cell for batches of these arguments of the model; with ``targets`` it gives the loss alone."""
        # One Cell for all evaluations, since a new one would compile every bucket again.
        key = tuple(columns)
        if key not in self._eval_steps:
            step = TargetLoss(self.model) if "targets" in key else Forward(self.model, columns)
            self._eval_steps[key] = step.set_train(False)
        return self._eval_steps[key]

    def _classifier_logits(self, batches: Batches) -> np.ndarray:
        forward = self.forward(["input_ids", "attention_mask"])
        self.model.set_train(False)
        logits: list[Any] = [None] * len(batches.sequences)
        for length, indices in batches.plan(0):
            input_ids, mask, _ = batches.collate(length, indices)
            rows = forward(Tensor(input_ids), Tensor(mask))[0].asnumpy()
            for row, index in enumerate(indices):
                logits[index] = rows[row]
        return np.stack(logits)

    def _language_model_loss(self, batches: Batches) -> dict[str, Any]:
        forward = self.forward(batches.columns)
        if "targets" in batches.columns:
            return score_language_model(self.model, batches, forward)
        self.model.set_train(False)
        total, count = 0.0, 0
        for input_ids, labels in batches.epoch():
            # The model shifts labels, so the first of a row is not scored.
            scored = int((labels[:, 1:] != IGNORE_INDEX).sum())
            total += float(forward(Tensor(input_ids), Tensor(labels))[0].asnumpy()) * scored
            count += scored
        loss = total / max(count, 1)
        return {"loss": loss, "perplexity": perplexity(loss), "n": count}

    def evaluate(self, eval_dataset: Iterable[Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """Score the model.

        Args:
            eval_dataset: Rows as for training; the trainer's evaluation data by default.

        Returns:
            Figures by name, each with the prefix ``eval_``: ``eval_loss``, ``eval_accuracy``, ``eval_f1`` ...

        Raises:
            UserError: There is no evaluation data.
        """
        batches = self.eval_batches if eval_dataset is None else self.prepare(eval_dataset)
        if batches is None:
            raise UserError("there is nothing to evaluate on: give an eval_dataset")
        return {f"eval_{name}": value for name, value in self.score(batches).items()}

    def prepare(self, dataset: Iterable[Mapping[str, Any]]) -> Batches:
        """Encode further rows for scoring, in the buckets at hand where they fit."""
        encoded = self._encode(dataset, "evaluation")
        self.truncated = encoded.truncated
        lengths = [len(sequence) for sequence in encoded.sequences]
        if not self.buckets or max(lengths) > self.buckets[-1]:
            self.buckets = sorted({*self.buckets, *choose_buckets(lengths, self.max_length, self.args.buckets)})
        return self._batches(encoded, self.args.per_device_eval_batch_size)

    def score(self, batches: Batches) -> dict[str, Any]:
        """Return the figures of prepared batches, by name."""
        if not self.is_classifier:
            return self._language_model_loss(batches)
        problem_type = self.problem_type(batches.labels)
        check_labels(batches.labels, self.model.config.num_labels, problem_type)
        logits, labels = self._classifier_logits(batches), np.asarray(batches.labels)
        figures = METRICS[problem_type](logits, labels)
        if self.compute_metrics is not None:
            figures.update(self.compute_metrics((logits, labels)))
        return figures

    def evaluate_and_keep_best(self) -> bool:
        """Evaluate, save ``best/`` if this is the best so far, and tell whether to stop early."""
        state, name = self.state, self.args.metric_for_best_model.removeprefix("eval_")
        figures = self.score(self.eval_batches)
        if name not in figures:
            raise UserError(f"metric_for_best_model={name!r} is not among the evaluation's figures: "
                            f"{', '.join(figures)}")
        state.last_eval = figures
        self.log.write(step=state.step, epoch=round(state.epochs_done, 4),
                       **{f"eval_{key}": value for key, value in figures.items()})
        value = figures[name]
        is_better = state.best_metric is None or (
            value > state.best_metric if self.args.larger_is_better else value < state.best_metric)
        if is_better:
            state.best_metric, state.best_step, state.best, state.evals_without_gain = value, state.step, figures, 0
            self.save_model(self.output_dir / "best")
        else:
            state.evals_without_gain += 1
        patience = self.args.early_stopping_patience
        return patience is not None and state.evals_without_gain >= patience

    def save_model(self, folder: str | Path | None = None) -> None:
        """Write the model and the tokenizer.

        Args:
            folder: Where; ``output_dir`` by default.
        """
        self.model.save_pretrained(folder or self.output_dir, tokenizer=self.tokenizer)

    def save_state(self) -> None:
        """Write ``last/``: everything a resumed run needs, in one file that is replaced whole."""
        arrays = {name: item.asnumpy() for name, item in self._stateful().items()}
        make_folder(self.output_dir / "last")
        meta = {"state": asdict(self.state), "arguments": self._fingerprint()}
        checkpoint.save_state(self.output_dir / "last", arrays, meta)

    def _stateful(self) -> dict[str, ms.Parameter]:
        model = {**self.model.weights(), "dropout_state": self.model.backbone.dropout_state,
                 "adam_step": self.optimizer.step, **(self.scaler.state() if self.scaler is not None else {})}
        moments = (("adam_m", self.optimizer.moment1), ("adam_v", self.optimizer.moment2))
        return {**{f"model.{name}": item for name, item in model.items()},
                **{f"{key}.{i}": item for key, items in moments for i, item in enumerate(items)}}

    def _fingerprint(self) -> dict[str, Any]:
        """Return what must not change between a run and its continuation."""
        kept = ("per_device_train_batch_size", "learning_rate", "lr_scheduler_type", "warmup_steps", "warmup_ratio",
                "weight_decay", "seed", "word_dropout", "softmax_tokens", "max_length", "truncation", "buckets",
                "dtype")
        data = [getattr(part, "checksum", None) for part in (self.train_batches, self.eval_batches)]
        return {"examples": len(self.train_batches), "the checksum of training and validation data": data,
                **{name: getattr(self.args, name) for name in kept}, "max_steps": self.state.max_steps}

    def load_state(self) -> None:
        """Go back to what ``save_state`` wrote.

        Raises:
            UserError: The file is damaged or belongs to another run.
        """
        folder = self.output_dir / "last"
        arrays, meta = checkpoint.load_state(folder)
        now = self._fingerprint()
        # What an older version did not write down cannot be compared.
        changed = [f"{name} was {before!r} and is {now[name]!r} now" for name, before in meta["arguments"].items()
                   if before != now.get(name, before)]
        if changed:
            raise UserError(f"{folder} cannot be resumed: {', '.join(changed)}. Restore that, or use another folder")
        targets = self._stateful()
        if set(targets) != set(arrays):
            raise UserError(f"{folder} cannot be resumed: it belongs to another model")
        for name, item in targets.items():
            if tuple(arrays[name].shape) != tuple(item.shape):
                raise UserError(f"{folder} cannot be resumed: {name} has the shape {arrays[name].shape} there and "
                                f"{tuple(item.shape)} here")
            item.set_data(Tensor(arrays[name]))
        self.state = TrainerState(**meta["state"])

    def load_best(self) -> None:
        """Take the weights of ``best/``."""
        _, tensors = checkpoint.read_folder(self.output_dir / "best")
        self.model.load_arrays(tensors, source=str(self.output_dir / "best"))
