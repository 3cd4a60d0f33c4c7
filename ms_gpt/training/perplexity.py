"""How well a language model predicts a text: loss and perplexity, per token and per word, bits per character."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from ms_gpt.config import GPTConfig
from ms_gpt.data.batches import IGNORE_INDEX
from ms_gpt.data.blocks import BlockBatches, RowBatches, TargetBatches
from ms_gpt.data.corpus import read_parts
from ms_gpt.data.splits import choose_part
from ms_gpt.data.token_cache import tokenize
from ms_gpt.errors import UserError
from ms_gpt.heads import GPTLMHeadModel
from ms_gpt.tokenizer import BaseTokenizer, WordTokenizer
from ms_gpt.training.step import TargetLoss


def check_vocabulary(top: int, config: GPTConfig) -> None:
    """Refuse token ids that a model does not have.

    Args:
        top: The largest id.
        config: The model's configuration.

    Raises:
        UserError: The model has fewer tokens.
    """
    if top >= config.vocab_size:
        raise UserError(f"token id {top} is outside the model's vocabulary of {config.vocab_size}: the tokenizer "
                        "belongs to another model")


def start_token(tokenizer: BaseTokenizer) -> int:
    """Return the token that stands in front of a document: the end of the one before, else a line end."""
    end = tokenizer.eos_token_id
    return end if end is not None else (tokenizer.encode("\n") or [0])[0]


def separator_token(tokenizer: BaseTokenizer) -> int | None:
    """Return the token that is put after each document, or ``None`` for one that ends lines by itself or has none."""
    ends_lines = isinstance(tokenizer, WordTokenizer) and tokenizer.mode == "whitespace"
    return None if ends_lines else tokenizer.eos_token_id


def count_words(documents: Iterable[str]) -> int:
    """Return the number of words, parted by white space, with every line end counted as one, as WikiText counts."""
    return sum(len(text.split()) + text.count("\n") for text in documents)


@dataclass
class ScoredText:
    """A text that a language model is measured on.

    Args:
        batches: Blocks of its tokens, every token a target once.
        words: Its number of words, as ``count_words`` counts.
        characters: Its number of characters.
    """

    batches: TargetBatches
    words: int
    characters: int


def load_scored_text(data: str, part: str, model: GPTLMHeadModel, tokenizer: BaseTokenizer,
                     block_size: int | None = None, batch_size: int | None = None, text_column: str | None = None,
                     cache_dir: str | Path | None = None, progress: Any = None) -> ScoredText:
    """Load one part of some text as what a language model is measured on.

    Args:
        data: Name or path, as for ``data.corpus.read_parts``.
        part: ``"train"``, ``"validation"`` or ``"test"``; data that is one part is taken whole.
        model: The language model.
        tokenizer: Its tokenizer.
        block_size: Tokens in a block; by default as many as the model can read.
        batch_size: Blocks in a batch; by default as many as fit the memory of a small machine.
        text_column: Column of the text, or ``None`` to guess.
        cache_dir: Folder for token ids, or ``None`` for the usual one.
        progress: Called with bytes so far and bytes in all while downloading, or ``None``.

    Returns:
        The text in blocks that do not overlap, its first token predicted from ``start_token``.

    Raises:
        UserError: There is no such text, it is empty, or it does not fit the model.
    """
    config = model.config
    if block_size is not None and not 1 <= block_size <= config.n_positions:
        raise UserError(f"block_size={block_size} is outside 1 to n_positions={config.n_positions} of this model")
    documents = choose_part(read_parts(data, text_column, progress), part, data)
    if not any(map(str.strip, documents)):
        raise UserError(f"{data} is empty: there is nothing to score")
    ids = tokenize(documents, tokenizer, cache_dir, separator_token(tokenizer))
    check_vocabulary(int(ids.max()), config)
    length, start = min(block_size or config.n_positions, len(ids)), start_token(tokenizer)
    rows = batch_size or min(fitting_batch_size(config, length, all_logits=True), -(-len(ids) // length))
    if length == len(ids):
        row = np.asarray(ids, np.int32)[None]
        batches = RowBatches(np.concatenate([[[start]], row[:, :-1]], 1), row, rows)
    else:
        batches = BlockBatches(ids, length, rows, start)
    return ScoredText(batches, count_words(documents), sum(map(len, documents)))


def fitting_batch_size(config: GPTConfig, length: int, all_logits: bool = False, most: int = 64) -> int:
    """Return how many rows can be scored at once with about 1 GiB for what the layers compute.

    Args:
        config: The model's configuration.
        length: Tokens in a row.
        all_logits: Whether every token meets the vocabulary.
        most: Never more than this.

    Returns:
        A whole number of at least 1.
    """
    # Measured on the CPU, where a graph keeps what each layer computes until it ends.
    layer = 46 * config.n_embd + 5 * config.n_head * length
    numbers = config.n_layer * layer + (4 * config.vocab_size if all_logits else 0)
    return min(max(2**28 // (numbers * length), 1), most)


def score_language_model(model: GPTLMHeadModel, batches: Any, step: nn.Cell | None = None, words: int | None = None,
                         characters: int | None = None) -> dict[str, Any]:
    """Measure how well a language model predicts the tokens of some batches.

    Args:
        model: The language model.
        batches: Its ``epoch()`` yields int32 arrays ``input_ids`` and ``targets`` (B, T), as ``BlockBatches``'.
        step: A ``TargetLoss`` around the model that is kept from call to call, so that it compiles once; or ``None``.
        words: Number of words of the text, by ``count_words``; or ``None``.
        characters: Number of characters of the text; or ``None``.

    Returns:
        ``loss`` (nats a token), ``perplexity`` and ``n`` (tokens that count); with ``words`` and ``characters`` also
        ``perplexity_per_word`` and ``bits_per_character``, which compare models with different tokenizers, as far as
        those lose nothing: a word that is ``<unk>`` is easy to predict.

    Raises:
        UserError: No token counts.
    """
    step = step or TargetLoss(model).set_train(False)
    model.set_train(False)
    nats, count = 0.0, 0
    for input_ids, targets in batches.epoch():
        scored = int((targets != IGNORE_INDEX).sum())
        nats += float(step(Tensor(input_ids), Tensor(targets)).asnumpy()) * scored
        count += scored
    if not count:
        raise UserError("there is no token to score: the text is empty")
    figures = {"loss": nats / count, "perplexity": perplexity(nats / count), "n": count}
    if words:
        figures["perplexity_per_word"] = perplexity(nats / words)
    if characters:
        figures["bits_per_character"] = nats / characters / math.log(2)
    return figures


def perplexity(loss: float) -> float:
    """Return e to the power of a loss in nats, kept finite."""
    return math.exp(min(loss, 700.0))
