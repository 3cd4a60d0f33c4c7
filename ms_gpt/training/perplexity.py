"""How well a language model predicts a text: loss and perplexity, per token and per word, bits per character."""

from __future__ import annotations

import math
from collections.abc import Iterable
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


def check_vocabulary(top: int, config: GPTConfig, where: str = "") -> None:
    """Refuse token ids that a model does not have.

    Args:
        top: The largest id.
        config: The model's configuration.
        where: What holds it, for the message, such as ``" in the training data"``.

    Raises:
        UserError: The model has fewer tokens.
    """
    if top >= config.vocab_size:
        raise UserError(f"token id {top}{where} is outside the model's vocabulary of {config.vocab_size}: the "
                        "tokenizer belongs to another model, or resize_token_embeddings was left out")


def start_token(tokenizer: BaseTokenizer) -> int:
    """Return the token that the first one of a text is predicted from; 0 if none stands for a beginning."""
    return tokenizer.start_token_id or 0


def separator_token(tokenizer: BaseTokenizer) -> int | None:
    """Return the token that is put after each document, or ``None`` for one that ends lines by itself or has none."""
    ends_lines = isinstance(tokenizer, WordTokenizer) and tokenizer.mode == "whitespace"
    return None if ends_lines else tokenizer.eos_token_id


def count_words(documents: Iterable[str]) -> int:
    """Return the number of words, parted by white space, with every line end counted as one, as WikiText counts."""
    return sum(len(text.split()) + text.count("\n") for text in documents)


def load_scored_text(data: str, part: str, model: GPTLMHeadModel, tokenizer: BaseTokenizer,
                     block_size: int | None = None, batch_size: int | None = None, text_column: str | None = None,
                     cache_dir: str | Path | None = None, progress: Any = None) -> TargetBatches:
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
        As ``scored_batches``.

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
    block_size = min(block_size or config.n_positions, len(ids))
    batch_size = batch_size or min(fitting_batch_size(config, block_size, all_logits=True), -(-len(ids) // block_size))
    return scored_batches(documents, ids, tokenizer, block_size, batch_size)


def scored_batches(documents: Iterable[str], ids: np.ndarray, tokenizer: BaseTokenizer, block_size: int,
                   batch_size: int) -> TargetBatches:
    """Cut a text into what a language model is measured on.

    Args:
        documents: The text, whose words and characters are counted.
        ids: Its tokens, integers (N,).
        tokenizer: Where they are from.
        block_size: Tokens in a block.
        batch_size: Blocks in a batch.

    Returns:
        Blocks that do not overlap, every token a target once, the first one predicted from ``start_token``; a text
        shorter than a block is one row.
    """
    start = start_token(tokenizer)
    if len(ids) > block_size:
        batches: TargetBatches = BlockBatches(ids, block_size, batch_size, start)
    else:
        row = np.asarray(ids, np.int32)[None]
        batches = RowBatches(np.concatenate([[[start]], row[:, :-1]], 1), row, batch_size)
    batches.words, batches.characters = count_words(documents), sum(map(len, documents))
    return batches


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


def score_language_model(model: GPTLMHeadModel, batches: TargetBatches, step: nn.Cell | None = None) -> dict[str, Any]:
    """Measure how well a language model predicts the tokens of some batches.

    Args:
        model: The language model.
        batches: What it is measured on.
        step: A ``TargetLoss`` around the model that is kept from call to call, so that it compiles once; or ``None``.

    Returns:
        ``loss`` (nats a token), ``perplexity`` and ``n`` (tokens that count); where the batches know their ``words``
        and ``characters`` also ``perplexity_per_word`` and ``bits_per_character``, which compare models with different
        tokenizers, as far as those lose nothing: a word that is ``<unk>`` is easy to predict.

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
    if batches.words:
        figures["perplexity_per_word"] = perplexity(nats / batches.words)
    if batches.characters:
        figures["bits_per_character"] = nats / batches.characters / math.log(2)
    return figures


def perplexity(loss: float) -> float:
    """Return e to the power of a loss in nats, kept finite."""
    return math.exp(min(loss, 700.0))
