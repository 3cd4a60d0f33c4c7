"""Tokenizers: one protocol (`BaseTokenizer`), GPT's byte pair encodings (`Tokenizer`), characters and words."""

from __future__ import annotations

from ms_gpt._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "BaseTokenizer": "base",
        "CLEANINGS": "cleaning",
        "CharacterTokenizer": "characters",
        "GPT1_SPECIAL_TOKENS": "base",
        "TOKENIZER_KINDS": "kinds",
        "Tokenizer": "bpe",
        "WORD_MODES": "wordlevel",
        "WordTokenizer": "wordlevel",
        "train_tokenizer": "kinds",
    },
)
