"""Tokenizers by the name of their kind, learnt on texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ms_gpt.errors import UserError, suggest
from ms_gpt.tokenizer.backend import END_OF_TEXT
from ms_gpt.tokenizer.base import BaseTokenizer
from ms_gpt.tokenizer.bpe import Tokenizer
from ms_gpt.tokenizer.characters import CharacterTokenizer
from ms_gpt.tokenizer.wordlevel import WordTokenizer

TOKENIZER_KINDS = ("byte-bpe", "bpe", "words", "characters")


def train_tokenizer(
    texts: Iterable[str],
    kind: str = "byte-bpe",
    vocab_size: int | None = None,
    min_frequency: int | None = None,
    cleaning: str = "hf",
    word_mode: str = "whitespace",
) -> BaseTokenizer:
    """Learn a tokenizer for language modelling: with an end of text where the kind has no line ends of its own.

    Args:
        texts: The training texts. Iterators are streamed, but for ``"bpe"``, which reads texts twice.
        kind: ``"byte-bpe"`` (GPT-2's form), ``"bpe"`` (GPT-1's), ``"words"`` or ``"characters"``.
        vocab_size: The most tokens to learn; None for 8,000 with a BPE and no limit with words. Characters take all.
        min_frequency: How often a pair or a word has to occur; None for 2 with a BPE and 1 with words.
        cleaning: ``"hf"`` or ``"original"``, for ``"bpe"``.
        word_mode: ``"whitespace"`` or ``"basic_english"``, for ``"words"``.

    Returns:
        The tokenizer.

    Raises:
        UserError: An argument is not known or out of range, or there is nothing to learn from.
    """
    if kind not in TOKENIZER_KINDS:
        known = ", ".join(TOKENIZER_KINDS)
        raise UserError(f"kind={kind!r} is not a kind of tokenizer: use {known}.{suggest(kind, TOKENIZER_KINDS)}")
    if kind == "characters":
        return CharacterTokenizer.train(texts)
    numbers: dict[str, Any] = {"vocab_size": vocab_size, "min_frequency": min_frequency}
    numbers = {name: value for name, value in numbers.items() if value is not None}
    if kind == "words":
        return WordTokenizer.train(texts, word_mode, **numbers)
    tokenizer = Tokenizer.train(texts, cleaning=cleaning, kind=kind, **numbers)
    if tokenizer.eos_token is None:
        tokenizer.eos_token = END_OF_TEXT
    return tokenizer
