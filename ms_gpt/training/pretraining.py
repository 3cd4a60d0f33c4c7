"""The steps of a pre-training, one function each: data, tokenizer, model, trainer, final scores."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor

from ms_gpt.config import GPTConfig
from ms_gpt.data import arithmetic
from ms_gpt.data.batches import IGNORE_INDEX
from ms_gpt.data.blocks import BlockBatches, RowBatches, TargetBatches
from ms_gpt.data.corpus import PARTS, TextCorpus, load_text
from ms_gpt.data.token_cache import tokenize
from ms_gpt.errors import UserError
from ms_gpt.generation.processors import log_softmax
from ms_gpt.heads import AutoModel, GPTLMHeadModel
from ms_gpt.tokenizer import TOKENIZER_KINDS, BaseTokenizer, Tokenizer, train_tokenizer
from ms_gpt.training.arguments import TrainingArguments
from ms_gpt.training.callbacks import Samples
from ms_gpt.training.perplexity import scored_batches, separator_token, start_token
from ms_gpt.training.trainer import Trainer

ADDITION = "addition-"
# Enough to choose by; the test counts all of its sums.
MOST_VALIDATION_SUMS = 5000
# How the samples are drawn that training prints.
SAMPLING = {"temperature": 0.8, "top_k": 50}


@dataclass
class LanguageData:
    """What a language model learns from and is measured on.

    Args:
        tokenizer: Turns texts into tokens.
        parts: ``train``, ``validation`` and maybe ``test``.
        is_addition: Whether the rows are sums, which are right or wrong as a whole.
    """

    tokenizer: BaseTokenizer
    parts: dict[str, TargetBatches]
    is_addition: bool = False


def load_corpus(settings: Any, progress: Any = None) -> TextCorpus | None:
    """Find the texts.

    Args:
        settings: The resolved options of ``pretrain``.
        progress: Called with bytes so far and bytes in all while downloading, or ``None``.

    Returns:
        The texts in their parts; ``None`` where the data is sums.

    Raises:
        UserError: The data cannot be read, or is too small for its parts.
    """
    if settings.data.startswith(ADDITION):
        return None
    if len(settings.shares) != len(PARTS):
        raise UserError(f"shares={settings.shares} are not three numbers: give those of {', '.join(PARTS)}")
    return load_text(settings.data, settings.eval_data, settings.test_data, settings.text_column,
                     dict(zip(PARTS, settings.shares, strict=True)), settings.seed, progress)


def load_data(settings: Any, corpus: TextCorpus | None, progress: Any = None) -> LanguageData:
    """Turn texts, or sums, into batches of token ids.

    Args:
        settings: The resolved options of ``pretrain``.
        corpus: From ``load_corpus``.
        progress: Called with the number of tokens so far, or ``None``.

    Returns:
        The batches and the tokenizer.

    Raises:
        UserError: The training text is shorter than a block, or its tokens cannot be kept.
    """
    if corpus is None:
        return _load_addition(settings)
    tokenizer = build_tokenizer(settings, corpus)
    parts: dict[str, TargetBatches] = {}
    for name, documents in corpus.parts.items():
        ids = tokenize(documents, tokenizer, settings.cache_dir, separator_token(tokenizer), progress)
        if name == "train":
            parts[name] = BlockBatches(ids, settings.block_size, settings.per_device_train_batch_size,
                                       start_token(tokenizer), True, settings.seed, _ramp(settings))
        else:
            parts[name] = scored_batches(documents, ids, tokenizer, settings.block_size,
                                         settings.per_device_eval_batch_size)
    return LanguageData(tokenizer, parts)


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
    if kind is None:
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
        str(settings.output_dir), num_train_epochs=settings.num_train_epochs or 1,
        max_steps=-1 if settings.max_steps is None else settings.max_steps,
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
        device=settings.device, mode=settings.mode, dtype=settings.dtype,
        flash_attention=settings.flash_attention, dataset_sink_mode=settings.dataset_sink_mode)
    kind = AdditionTrainer if data.is_addition else Trainer
    trainer = kind(model, arguments, data.parts["train"], data.parts["validation"], tokenizer=data.tokenizer,
                   console=console, phase="pretrain")
    if settings.sample_tokens:
        trainer.callbacks.append(Samples(trainer, lambda: _sample(model, data, settings)))
    return trainer


def _sample(model: GPTLMHeadModel, data: LanguageData, settings: Any) -> str:
    row = data.tokenizer.encode(settings.sample_prompt) or [start_token(data.tokenizer)]
    if data.is_addition:
        written = model.generate([row], max_new_tokens=data.parts["train"].answer_length)
    else:
        written = model.generate([row], max_new_tokens=settings.sample_tokens, seed=settings.seed, **SAMPLING)
    return data.tokenizer.decode(written.asnumpy()[0]).strip()
