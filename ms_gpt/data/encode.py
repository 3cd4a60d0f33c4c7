"""From rows of a data set to token ids and labels that batches can be made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ms_gpt.data.transforms import classification
from ms_gpt.errors import UserError

LABEL_COLUMNS = ("label", "labels")
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


@dataclass
class Encoded:
    """Examples as token ids.

    Args:
        sequences: Token ids of each example.
        labels: One label for each example, or ``None`` where the data has none.
        truncated: How many texts were longer than allowed.
    """

    sequences: list[list[int]]
    labels: list[Any] | None
    truncated: int = 0


def clean_text(text: str) -> str:
    """Return a text with HTML line breaks, as IMDB's reviews have them, as plain ones."""
    return _LINE_BREAK.sub("\n", text)


def encode_texts(texts: Sequence[str], tokenizer: Any, max_length: int, truncation: str = "head_tail") -> Encoded:
    """Tokenise texts for the classifier: ``<bos> text <extract>``, where the tokenizer has those tokens.

    Args:
        texts: The texts.
        tokenizer: A ``ms_gpt.Tokenizer`` or anything with its ``encode_batch`` and special token ids.
        max_length: Most tokens in a sequence, special tokens included.
        truncation: What is kept of a longer text; see ``ms_gpt.data.transforms``.

    Returns:
        The sequences, without labels.
    """
    sequences, truncated = [], 0
    for ids in tokenizer.encode_batch([clean_text(text) for text in texts]):
        sequence, was_cut = classification(ids, tokenizer, max_length, truncation)
        sequences.append(sequence)
        truncated += was_cut
    return Encoded(sequences, None, truncated)


def encode_rows(rows: Iterable[Mapping[str, Any]], tokenizer: Any, max_length: int,
                truncation: str = "head_tail") -> Encoded:
    """Turn rows with ``text`` or ``input_ids``, and maybe a label, into sequences and labels.

    Args:
        rows: Mappings; anything that yields them, Hugging Face data sets included. ``input_ids`` that were padded
            with an ``attention_mask`` are stripped again.
        tokenizer: Needed for rows with ``text``.
        max_length: Most tokens in a sequence.
        truncation: What is kept of a longer text.

    Returns:
        Sequences and labels; labels are ``None`` if the rows have none.

    Raises:
        UserError: Rows have neither ``text`` nor ``input_ids``, or text comes without a tokenizer.
    """
    rows = list(rows)
    if not rows:
        raise UserError("the data set is empty: give at least one example")
    keys = list(rows[0])
    label_column = next((name for name in LABEL_COLUMNS if name in keys), None)
    labels = None if label_column is None else [row[label_column] for row in rows]
    if "input_ids" in keys:
        encoded = Encoded([], labels)
        for row in rows:
            ids = [int(token) for token in row["input_ids"]]
            if "attention_mask" in keys:
                ids = [token for token, real in zip(ids, row["attention_mask"], strict=True) if real]
            encoded.truncated += len(ids) > max_length
            encoded.sequences.append(ids[:max_length] or [0])
        return encoded
    if "text" not in keys:
        raise UserError(f"the rows have the columns {', '.join(keys)}: a column 'text' or 'input_ids' is needed")
    if tokenizer is None:
        raise UserError("the rows hold text: give the trainer a tokenizer")
    encoded = encode_texts([row["text"] for row in rows], tokenizer, max_length, truncation)
    encoded.labels = labels
    return encoded
