"""The surface of minGPT: GPTConfig, GPT, Dataset, TrainerConfig, Trainer and sample, thin over this library's own."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.train import Callback, Model, RunContext

from ms_gpt import runtime
from ms_gpt.config import GPTConfig as BaseConfig
from ms_gpt.data.batches import to_mindspore
from ms_gpt.errors import UserError, suggest
from ms_gpt.generation.engine import generate_ids
from ms_gpt.generation.settings import NO_TOKEN, GenerationSettings
from ms_gpt.heads import GPTLMHeadModel
from ms_gpt.losses import IGNORE_INDEX, cross_entropy
from ms_gpt.training.callbacks import default_console
from ms_gpt.training.optimizer import AdamW
from ms_gpt.training.schedule import LearningRate
from ms_gpt.training.step import TrainStep

# minGPT and GPT-3 let the rate fall to a tenth of its peak.
_FINAL_RATE = 0.1


def _check_names(what: str, given: dict[str, Any], known: list[str]) -> None:
    for name in given:
        if name not in known:
            raise UserError(f"{name!r} is not a field of {what}.{suggest(name, known)}")


class GPTConfig(BaseConfig):
    """The configuration of a minGPT model: LayerNorm before each sub-block, and an output projection of its own.

    Args:
        vocab_size: Number of token ids.
        block_size: Longest sequence in tokens.
        **options: Further fields of ``ms_gpt.GPTConfig``, such as ``n_layer``, ``n_head`` and ``n_embd``.

    Raises:
        UserError: A name is unknown (with a suggestion) or a value breaks its rule.
    """

    def __init__(self, vocab_size: int, block_size: int, **options: Any) -> None:
        _check_names("GPTConfig", options, [item.name for item in dataclasses.fields(BaseConfig)])
        super().__init__(vocab_size, block_size, **{"model_type": "gpt2", "tie_word_embeddings": False, **options})


class GPT(GPTLMHeadModel):
    """A language model that is called as minGPT's is.

    Args:
        config: The model's configuration.

    Inputs:
        input_ids: int Tensor (B, T), minGPT's ``idx``.
        targets: int Tensor (B, T), the token after each; negative where it does not count. Or ``None``.

    Outputs:
        Tuple of logits (B, T, V) and the loss, a float32 scalar; ``None`` without targets.

    Source: karpathy/minGPT for the call and what it returns.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Run the model; a graph of MindSpore's that has kernels of ours in it cannot return ``None`` itself."""
        return (*super().__call__(*args, **kwargs), None)[:2]

    def construct(self, input_ids: Tensor, targets: Tensor | None = None) -> tuple:
        """Return the logits and the loss; see the class for shapes."""
        logits = self.lm_logits(self.transformer(input_ids)[0])
        if targets is None:
            return (logits,)
        labels = ops.where(targets < 0, ops.full_like(targets, IGNORE_INDEX), targets)
        return logits, cross_entropy(logits.reshape((-1, logits.shape[-1])), labels.reshape((-1,)))


class Dataset(ABC):
    """Examples by number; subclass it. All examples have one length."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of examples."""

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return ``(x, y)``: T token ids, and the token after each; negative where it does not count."""


@dataclasses.dataclass
class _Settings:
    max_epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    grad_norm_clip: float = 1.0
    weight_decay: float = 0.1
    lr_decay: bool = False
    warmup_tokens: float = 375e6
    final_tokens: float = 260e9
    ckpt_path: str | None = None
    num_workers: int = 0
    seed: int = 0
    device: str = "auto"
    mode: str = "graph"


class TrainerConfig(_Settings):
    """How a minGPT model is trained.

    Args:
        max_epochs: Passes over the training data.
        batch_size: Examples in an update.
        learning_rate: The peak rate.
        betas: Adam's coefficients.
        grad_norm_clip: Gradients are scaled down to this global norm; 0 means never.
        weight_decay: Decay of matrices; biases, LayerNorm and embeddings are never decayed.
        lr_decay: Warm up linearly, then decay by a cosine to a tenth of the peak; else the rate is constant.
        warmup_tokens: Tokens over which the rate rises.
        final_tokens: Tokens at which it has reached its tenth.
        ckpt_path: Folder for the model with the best test loss (the last one without test data), or ``None``.
        num_workers: Read by minGPT's programs only; one thread feeds the graph here.
        seed: Seed of the order of the examples and of dropout.
        device: ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"ascend"``.
        mode: ``"graph"`` or ``"pynative"``.

    Raises:
        UserError: A name is unknown (with a suggestion) or a value is outside its range.
    """

    def __init__(self, **values: Any) -> None:  # noqa: DOC102, DOC103 - see the fields
        _check_names("TrainerConfig", values, [item.name for item in dataclasses.fields(_Settings)])
        super().__init__(**values)
        for name in ("max_epochs", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)!r} is not a whole number of at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"learning_rate={self.learning_rate!r} is not greater than 0")


class _PairBatches:
    """Batches of (x, y); the last one is filled up with rows that do not count, so that its shape is the same."""

    def __init__(self, dataset: Any, batch_size: int, shuffle: bool, seed: int) -> None:
        if not len(dataset):
            raise UserError("the data set is empty: give at least one example")
        self.dataset, self.batch_size, self.shuffle, self.seed = dataset, batch_size, shuffle, seed
        self.columns = ["input_ids", "targets"]
        self.steps_per_epoch = math.ceil(len(dataset) / batch_size)
        self.length = len(self.pair(0)[0])

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = (item.asnumpy() if isinstance(item, Tensor) else np.asarray(item) for item in self.dataset[index])
        return x, y

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        order = np.arange(len(self.dataset))
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        for start in range(skip * self.batch_size, len(order), self.batch_size):
            input_ids = np.zeros((self.batch_size, self.length), np.int32)
            targets = np.full((self.batch_size, self.length), IGNORE_INDEX, np.int32)
            for row, index in enumerate(order[start : start + self.batch_size]):
                x, y = self.pair(int(index))
                if not x.shape == y.shape == (self.length,):
                    raise UserError(f"example {index} has x of shape {x.shape} and y of shape {y.shape}: all examples "
                                    f"need both of one length, and the first has {self.length} tokens")
                input_ids[row], targets[row] = x, y
            yield input_ids, targets


class _PairLoss(nn.Cell):
    def __init__(self, model: GPT) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        return self.model(input_ids, targets)[1]


class Trainer:
    """Trains a minGPT model.

    Args:
        model: What is trained.
        train_dataset: Anything with a length and items ``(x, y)``; see ``Dataset``.
        test_dataset: The same, scored after each epoch; or ``None``.
        config: How to train.

    Attributes:
        train_loss: Mean loss of the last epoch, nats a token.
        test_loss: Loss on the test data after the last epoch, nats a token; ``None`` without test data.

    Raises:
        UserError: A data set is empty, its examples are longer than the model, or the device cannot be used.
    """

    def __init__(self, model: GPT, train_dataset: Any, test_dataset: Any = None,
                 config: TrainerConfig | None = None) -> None:
        self.config = config or TrainerConfig()
        self.model = model
        runtime.setup(self.config.device, self.config.mode, seed=self.config.seed)
        self.train_batches = self._batches(train_dataset, shuffle=True)
        self.test_batches = None if test_dataset is None else self._batches(test_dataset, shuffle=False)
        self.score_loss = _PairLoss(model).set_train(False)
        self.train_loss: float | None = None
        self.test_loss: float | None = None
        self.best_loss = math.inf

    def _batches(self, dataset: Any, shuffle: bool) -> _PairBatches:
        batches = _PairBatches(dataset, self.config.batch_size, shuffle, self.config.seed)
        limit = self.model.config.n_positions
        if batches.length > limit:
            raise UserError(f"examples of {batches.length} tokens are longer than block_size={limit}")
        return batches

    def _schedule(self) -> LearningRate:
        settings = self.config
        if not settings.lr_decay:
            return LearningRate(settings.learning_rate, 1, kind="constant")
        scored = int((self.train_batches.pair(0)[1] >= 0).sum())
        tokens = max(settings.batch_size * scored, 1)
        return LearningRate(settings.learning_rate, math.ceil(settings.final_tokens / tokens),
                            math.ceil(settings.warmup_tokens / tokens), "cosine", _FINAL_RATE)

    def train(self) -> None:
        """Train for ``max_epochs``, score and save after each."""
        settings, weights = self.config, self.model.weights()
        self.model.reseed(settings.seed)
        optimizer = AdamW(list(weights.values()), list(weights), settings.weight_decay, beta1=settings.betas[0],
                          beta2=settings.betas[1])
        self.step = TrainStep(_PairLoss(self.model), optimizer, self._schedule(), settings.grad_norm_clip).set_train()
        watch = _Watch(self)
        try:
            Model(self.step).train(settings.max_epochs, to_mindspore(self.train_batches), [watch],
                                   dataset_sink_mode=False)
        finally:
            watch.close()
        self.model.set_train(False)

    def score(self, batches: _PairBatches) -> float:
        """Return the loss of some batches, nats a token."""
        was_training = self.model.training
        self.model.set_train(False)
        total, count = 0.0, 0
        for input_ids, targets in batches.epoch():
            scored = int((targets >= 0).sum())
            total += float(self.score_loss(Tensor(input_ids), Tensor(targets)).asnumpy()) * scored
            count += scored
        self.model.set_train(was_training)
        return total / max(count, 1)

    def end_epoch(self, train_loss: float) -> None:
        """Score the test data and save the model if it is the best so far.

        Args:
            train_loss: Mean loss of the epoch.
        """
        self.train_loss = train_loss
        if self.test_batches is not None:
            self.test_loss = self.score(self.test_batches)
            if self.test_loss >= self.best_loss:
                return
            self.best_loss = self.test_loss
        if self.config.ckpt_path is not None:
            self.model.save_pretrained(self.config.ckpt_path)


class _Watch(Callback):
    """Draws the bar, and ends each epoch of a trainer."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.trainer, self.console, self.stack = trainer, default_console(), contextlib.ExitStack()
        self.total = trainer.config.max_epochs * trainer.train_batches.steps_per_epoch
        self.compiling = contextlib.ExitStack()
        self.step, self.losses = 0, []

    def on_train_begin(self, run_context: RunContext) -> None:
        self.bar = self.stack.enter_context(self.console.progress(self.total, "train"))
        if self.trainer.config.mode == "graph":
            self.compiling.enter_context(self.console.compiling("the training graph"))

    def on_train_step_end(self, run_context: RunContext) -> None:
        self.step += 1
        loss, _, rate = run_context.original_args().net_outputs
        self.losses.append(loss)
        if self.step == 1 or self.step % 10 == 0 or self.step == self.total:
            self.bar.update(self.step, loss=float(loss.asnumpy()), learning_rate=float(rate.asnumpy()))
        self.compiling.close()

    def on_train_epoch_end(self, run_context: RunContext) -> None:
        self.trainer.end_epoch(float(np.mean([loss.asnumpy() for loss in self.losses])))
        self.losses.clear()
        trainer = self.trainer
        test = "" if trainer.test_loss is None else f", test loss {trainer.test_loss:.4f}"
        self.console.note(f"step {self.step}: train loss {trainer.train_loss:.4f}{test}")

    def close(self) -> None:
        self.compiling.pop_all()
        self.stack.close()


def sample(model: GPTLMHeadModel, x: Tensor, steps: int, temperature: float = 1.0, sample: bool = False,
           top_k: int | None = None) -> Tensor:
    """Continue sequences, feeding each new token back in; only the last ``block_size`` tokens are looked at.

    Random numbers come from NumPy's global generator, which ``ms_gpt.runtime.set_seed`` seeds.

    Args:
        model: A language model.
        x: int Tensor (B, T) of at least one token, the beginning of each sequence.
        steps: Tokens to add to each, at least 0.
        temperature: Logits are divided by this; greater than 0.
        sample: Draw from the distribution; else take the most likely token.
        top_k: Draw from the k most likely tokens only; ``None`` means all.

    Returns:
        Tensor (B, T + steps) of the dtype of ``x``.

    Raises:
        UserError: An argument is outside its range.
    """
    if x.ndim != 2 or not x.shape[1]:
        raise UserError(f"x has the shape {tuple(x.shape)}: give (B, T) with at least one token in a row")
    settings = GenerationSettings(max(steps, 1), temperature=temperature, top_k=top_k, eos_token_id=NO_TOKEN,
                                  seed=int(np.random.randint(2**31)), context_stride=1).validate()
    if not sample:
        settings.temperature = settings.top_k = None
    if steps < 1:
        return x
    new = generate_ids(model, x.asnumpy().tolist(), settings)
    return Tensor(np.concatenate([x.asnumpy(), new], 1), x.dtype)
