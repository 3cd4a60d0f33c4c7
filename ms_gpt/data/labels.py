"""Labels as they stand in files, turned into ints, floats or lists."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ms_gpt.errors import UserError


def encode_labels(
    labels: Sequence[Any], label_names: Sequence[str] | None = None
) -> tuple[list[Any], list[str] | None]:
    """Turn labels into what a model's head takes.

    - Integers, also as text (``"1"``) or booleans, stay class numbers.
    - Fractions, also as text (``"0.5"``), become floats: targets of a regression.
    - Other text becomes class numbers; the sorted texts are their names.
    - Lists of numbers (multi-label, or several targets), also as JSON text, become lists of floats; lists of names
      become lists of zeros and ones, one for each name.

    Args:
        labels: One label a row, all of one kind.
        label_names: Names to use, in order, instead of the sorted ones.

    Returns:
        The encoded labels and the names of the classes, None where labels have no names.

    Raises:
        UserError: If a label is missing, kinds are mixed, or a name is not among ``label_names``.
    """
    values = [_plain(label) for label in labels]
    for row, value in enumerate(values):
        if value is None or value == "":
            raise UserError(f"row {row} has no label: every row needs one")
    names = list(label_names) if label_names is not None else None
    if all(isinstance(value, list) for value in values):
        return _encode_lists(values, names)
    if all(isinstance(value, str) for value in values):
        return _encode_text(values, names)
    if all(isinstance(value, int) for value in values):
        return values, names
    if all(isinstance(value, (int, float)) for value in values):
        return [float(value) for value in values], None
    kinds = ", ".join(sorted({type(value).__name__ for value in values}))
    raise UserError(f"labels are of several kinds ({kinds}): use one kind for all rows")


def _plain(label: Any) -> Any:
    """Reduce booleans, NumPy values and JSON text to Python's int, float, str or list."""
    if hasattr(label, "tolist"):
        label = label.tolist()
    if isinstance(label, bool):
        return int(label)
    if isinstance(label, str):
        label = label.strip()
        if label.startswith("[") and label.endswith("]"):
            try:
                return json.loads(label)
            except json.JSONDecodeError:
                return label
        return label
    return list(label) if isinstance(label, tuple) else label


def _encode_text(values: list[str], names: list[str] | None) -> tuple[list[Any], list[str] | None]:
    if names is None or not set(values) <= set(names):
        integers = _all_converted(values, int)
        if integers is not None:
            return integers, names
        fractions = _all_converted(values, float)
        if fractions is not None:
            return fractions, None
    names = names or sorted(set(values))
    return _indices(values, names), names


def _all_converted(values: Iterable[str], convert: type) -> list | None:
    try:
        return [convert(value) for value in values]
    except ValueError:
        return None


def _indices(values: Iterable[str], names: list[str]) -> list[int]:
    index = {name: position for position, name in enumerate(names)}
    for value in values:
        if value not in index:
            raise UserError(f"label {value!r} is not one of {', '.join(names)}")
    return [index[value] for value in values]


def _encode_lists(rows: list[list], names: list[str] | None) -> tuple[list[list[float]], list[str] | None]:
    items = [item for row in rows for item in row]
    if items and all(isinstance(item, str) for item in items):
        names = names or sorted(set(items))
        chosen = [set(_indices(row, names)) for row in rows]
        return [[float(index in row) for index in range(len(names))] for row in chosen], names
    widths = sorted({len(row) for row in rows})
    if len(widths) != 1 or not all(isinstance(item, (int, float)) for item in items):
        raise UserError(f"label lists must hold names, or numbers in lists of one length (lengths found: {widths})")
    return [[float(item) for item in row] for row in rows], names
