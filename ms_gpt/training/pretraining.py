"""The steps of a pre-training, one function each: data, tokenizer, model, trainer, final scores."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mindspore import Tensor

from ms_gpt.config import GPTConfig
from ms_gpt.data import arithmetic
from ms_gpt.data.batches import IGNORE_INDEX
from ms_gpt.data.blocks import BlockBatches, RowBatches
from ms_gpt.data.corpus import PARTS, TextCorpus, load_text
from ms_gpt.data.token_cache import tokenize
from ms_gpt.errors import UserError
from ms_gpt.generation import generate
from ms_gpt.heads import AutoModel, GPTLMHeadModel
from ms_gpt.tokenizer import TOKENIZER_KINDS, BaseTokenizer, Tokenizer, train_tokenizer
from ms_gpt.training.arguments import TrainingArguments
from ms_gpt.training.callbacks import Samples
from ms_gpt.training.metrics import log_softmax
from ms_gpt.training.perplexity import count_words, perplexity, separator_token, start_token
from ms_gpt.training.trainer import Trainer

ADDITION = "addition-"
# Enough to choose by; the test counts all of its sums.
MOST_VALIDATION_SUMS = 5000


@dataclass
class LanguageData:
    """What a language model learns from and is measured on.

    Args:
        tokenizer: Turns texts into tokens.
        parts: ``train``, ``validation`` and maybe ``test``.
        words: Part to its number of words, every line end counted as one; empty where the data is no text.
        is_addition: Whether the rows are sums, which are right or wrong as a whole.
    """

    tokenizer: Any
    parts: dict[str, BlockBatches | RowBatches]
    words: dict[str, int] = field(default_factory=dict)
    is_addition: bool = False


def load_data(settings: Any, console: Any = None) -> LanguageData:
    """Load texts, or make sums, and turn them into batches of token ids.

    Args:
        settings: The resolved options of ``pretrain``.
        console: Where progress is drawn.

    Returns:
        The batches and the tokenizer.

    Raises:
        UserError: The data cannot be read, or is too small.
    """
    if settings.data.startswith(ADDITION):
        return _load_addition(settings)
    if len(settings.shares) != len(PARTS):
        raise UserError(f"shares={settings.shares} are not three numbers: give those of {', '.join(PARTS)}")
    corpus = load_text(settings.data, settings.eval_data, settings.test_data, settings.text_column,
                       dict(zip(PARTS, settings.shares, strict=True)), settings.seed)
    tokenizer = build_tokenizer(settings, corpus)
    parts, words = {}, {}
    for name, documents in corpus.parts.items():
        ids = tokenize(documents, tokenizer, settings.cache_dir, separator_token(tokenizer))
        is_train = name == "train"
        batch_size = settings.per_device_train_batch_size if is_train else settings.per_device_eval_batch_size
        parts[name] = BlockBatches(ids, settings.block_size, batch_size, start_token(tokenizer), is_train,
                                   settings.seed, _ramp(settings) if is_train else ())
        if not is_train:
            words[name] = count_words(documents)
    return LanguageData(tokenizer, parts, words)


def _ramp(settings: Any) -> tuple[tuple[int, int], ...]:
    """Return GPT-3's batch-size ramp in four stages, so that there are four graphs."""
    steps, full = settings.batch_ramp_steps, settings.per_device_train_batch_size
    return tuple((steps * i // 3, max(full * (i + 1) // 4, 1)) for i in range(4)) if steps else ()


def _load_addition(settings: Any) -> LanguageData:
    digits = settings.data.removeprefix(ADDITION)
    if digits not in ("1", "2", "3"):
        raise UserError(f"data={settings.data!r} is no kind of sum: give {ADDITION}2 or {ADDITION}3, by the digits")
    tokenizer = arithmetic.addition_tokenizer()
    parts = {}
    for name, pairs in arithmetic.make_addition(int(digits), settings.seed).items():
        is_train = name == "train"
        batch_size = settings.per_device_train_batch_size if is_train else settings.per_device_eval_batch_size
        if name == "validation":
            pairs = pairs[:MOST_VALIDATION_SUMS]
        rows = arithmetic.encode_addition(pairs, int(digits), tokenizer)
        parts[name] = RowBatches(*rows, batch_size, shuffle=is_train, seed=settings.seed)
    return LanguageData(tokenizer, parts, is_addition=True)


def build_tokenizer(settings: Any, corpus: TextCorpus) -> BaseTokenizer:
    """Load a tokenizer, or learn one on the training texts.

    Args:
        settings: Has ``tokenizer`` (a kind, a folder, or ``None`` for the model's), ``model``, ``vocab_size`` and
            ``min_frequency``.
        corpus: The texts.

    Returns:
        The tokenizer.
    """
    kind = settings.tokenizer
    if settings.model is not None and "tokenizer" not in settings.explicit:
        return Tokenizer.from_pretrained(settings.model)
    if kind == "characters":
        # They stand for nothing, and one that the training text lacks could not be written at all.
        return train_tokenizer(itertools.chain.from_iterable(corpus.parts.values()), kind)
    if kind in TOKENIZER_KINDS:
        return train_tokenizer(corpus.train, kind, settings.vocab_size, settings.min_frequency)
    return Tokenizer.from_pretrained(kind)


def build_model(settings: Any, data: LanguageData) -> GPTLMHeadModel:
    """Build the language model, or load one to go on with.

    Args:
        settings: Has ``model`` (folder or ``None``) or the shape of a new model, and ``dropout``.
        data: Says how many tokens there are.

    Returns:
        The model.

    Raises:
        UserError: The settings or the folder do not fit.
    """
    tokenizer = data.tokenizer
    tokens = {role: getattr(tokenizer, role) for role in ("pad_token_id", "bos_token_id", "eos_token_id")}
    dropout = {"embd_pdrop": settings.dropout, "resid_pdrop": settings.dropout,
               "attn_pdrop": settings.attention_dropout, "seed": settings.seed}
    if settings.model is None:
        return GPTLMHeadModel(GPTConfig(
            len(tokenizer), data.parts["train"].block_size, model_type=settings.model_type, n_layer=settings.n_layer,
            n_head=settings.n_head, n_embd=settings.n_embd, window_size=settings.window_size, **dropout, **tokens))
    model = AutoModel.from_pretrained(settings.model, **dropout)
    if not isinstance(model, GPTLMHeadModel):
        raise UserError(f"{settings.model} holds a {type(model).__name__}, not a language model")
    if settings.block_size > model.config.n_positions:
        raise UserError(f"block_size={settings.block_size} is greater than n_positions={model.config.n_positions} of "
                        f"{settings.model}: give a smaller --block-size")
    if len(tokenizer) > model.config.vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    return model


class AdditionTrainer(Trainer):
    """Trains on sums, and counts the sums that are right."""

    def score(self, batches: RowBatches) -> dict[str, Any]:
        """Return loss, perplexity, ``accuracy`` (share of sums with every digit right) and ``n`` (sums)."""
        forward, nats, digits, right = self.forward(["input_ids"]), 0.0, 0, 0
        self.model.set_train(False)
        for input_ids, targets in batches.epoch():
            counted = targets != IGNORE_INDEX
            logits = forward(Tensor(input_ids))[0].asnumpy()
            known = np.where(counted, targets, 0)[..., None]
            nats -= float((np.take_along_axis(log_softmax(logits), known, -1)[..., 0] * counted).sum())
            digits += int(counted.sum())
            # Where every digit is the most likely one after the true ones before it, greedy decoding finds the sum.
            right += int(((logits.argmax(-1) == targets) | ~counted)[counted.any(-1)].all(-1).sum())
        loss = nats / digits
        return {"loss": loss, "perplexity": math.exp(loss), "accuracy": right / len(batches), "n": len(batches)}


def build_trainer(model: GPTLMHeadModel, data: LanguageData, settings: Any, console: Any = None) -> Trainer:
    """Prepare the training.

    Args:
        model: What is trained.
        data: What it learns from.
        settings: The resolved options of ``pretrain``.
        console: Where progress is drawn.

    Returns:
        The trainer.
    """
    arguments = TrainingArguments(
        str(settings.output_dir), num_train_epochs=settings.num_train_epochs or 1, max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        per_device_eval_batch_size=settings.per_device_eval_batch_size, learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type, warmup_steps=settings.warmup_steps,
        min_lr_ratio=settings.min_lr_ratio, weight_decay=settings.weight_decay,
        decay_embeddings=settings.decay_embeddings, adam_beta1=settings.adam_beta1, adam_beta2=settings.adam_beta2,
        max_grad_norm=settings.max_grad_norm, softmax_tokens=settings.softmax_tokens,
        logging_steps=settings.logging_steps,
        eval_strategy="steps" if settings.eval_steps else "epoch", eval_steps=settings.eval_steps,
        save_strategy="steps" if settings.save_steps or settings.eval_steps else "epoch",
        save_steps=settings.save_steps or settings.eval_steps, load_best_model_at_end=True,
        metric_for_best_model="loss", early_stopping_patience=settings.early_stopping_patience, seed=settings.seed,
        device=settings.device, mode=settings.mode, dtype=settings.dtype)
    kind = AdditionTrainer if data.is_addition else Trainer
    trainer = kind(model, arguments, data.parts["train"], data.parts["validation"], tokenizer=data.tokenizer,
                   console=console, phase="pretrain")
    if settings.sample_tokens:
        trainer.callbacks.append(Samples(trainer, lambda: _sample(model, data, settings)))
    return trainer


def _sample(model: GPTLMHeadModel, data: LanguageData, settings: Any) -> str:
    draw = {} if data.is_addition else {"temperature": 0.8, "top_k": 50}
    prompt = settings.sample_prompt or ("" if data.tokenizer.eos_token_id is not None else "\n")
    length = data.parts["test"].answer_length if data.is_addition else settings.sample_tokens
    return generate(model, data.tokenizer, prompt, max_new_tokens=length, seed=settings.seed, **draw)[0].strip()


def score(trainer: Trainer, data: LanguageData, part: str) -> dict[str, Any]:
    """Score one part.

    Args:
        trainer: After training, with the best weights.
        data: Has the part.
        part: ``"validation"`` or ``"test"``.

    Returns:
        ``loss`` (nats a token), ``perplexity`` and ``n`` (tokens); for texts ``perplexity_per_word``, by which models
        with different tokenizers compare, and ``words``; for sums ``accuracy``, and in ``n`` their number.
    """
    figures = trainer.score(data.parts[part])
    if data.is_addition:
        return figures
    words = data.words[part]
    return {**figures, "perplexity_per_word": perplexity(figures["loss"] * figures["n"] / words), "words": words}
