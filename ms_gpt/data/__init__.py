"""Data sets: the built-in sample, readers, splits and the input forms of GPT-1 fine-tuning."""

from __future__ import annotations

from ms_gpt._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Dataset": "table",
        "DatasetDict": "table",
        "check_labels": "splits",
        "class_weights": "splits",
        "encode_labels": "labels",
        "load_dataset": "readers",
        "make_sample": "sample",
        "split": "splits",
    },
)
