"""Data sets: the built-in sample, readers, splits, the input forms of GPT-1 fine-tuning, texts to learn a language."""

from __future__ import annotations

from ms_gpt._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "BlockBatches": "blocks",
        "Dataset": "table",
        "DatasetDict": "table",
        "check_labels": "splits",
        "class_weights": "splits",
        "encode_labels": "labels",
        "load_dataset": "readers",
        "load_text": "corpus",
        "make_sample": "sample",
        "split": "splits",
        "tokenize": "token_cache",
    },
)
