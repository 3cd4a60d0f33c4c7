"""Tokenizers: one protocol (`BaseTokenizer`) and GPT's byte pair encodings (`Tokenizer`)."""

from __future__ import annotations

from ms_gpt._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "BaseTokenizer": "base",
        "CLEANINGS": "cleaning",
        "GPT1_SPECIAL_TOKENS": "base",
        "Tokenizer": "bpe",
    },
)
