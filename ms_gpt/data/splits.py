"""Splits made once, by seed, on indices; and checks of the labels that go into training."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from ms_gpt.data.table import Dataset
from ms_gpt.errors import UserError, suggest

FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


def split(dataset: Dataset, fractions: Mapping[str, float] | None = None, seed: int = 0) -> dict[str, Dataset]:
    """Cut a data set into disjoint parts.

    Rows with the same text stay in one part, so no part has seen another's texts. Where the column ``label`` holds
    integers, each part gets every label in (nearly) the same proportion.

    Args:
        dataset: The rows; the columns ``text`` and ``label`` are used if they are there.
        fractions: Name of each part to its share, all positive, summing to 1. Default: 80 % ``train``, 10 %
            ``validation``, 10 % ``test``.
        seed: The same seed and rows give the same parts.

    Returns:
        The parts; together they hold each row once, in random order.

    Raises:
        UserError: If the fractions are wrong, or the data set is too small to fill every part.
    """
    fractions = FRACTIONS if fractions is None else fractions
    if not fractions or min(fractions.values()) <= 0 or not math.isclose(sum(fractions.values()), 1, abs_tol=1e-6):
        raise UserError(f"split fractions {dict(fractions)} must be positive and sum to 1")
    groups = _order_by_strata(_groups_of_equal_texts(dataset), _strata(dataset), seed)
    bounds = list(accumulate(fractions.values()))
    parts: dict[str, list[int]] = {name: [] for name in fractions}
    names = list(fractions)
    done = 0
    for group in groups:
        # The middle of the group decides, so the sizes differ from the fractions by at most half a group.
        middle = (done + len(group) / 2) / len(dataset)
        part = next((name for name, bound in zip(names, bounds, strict=True) if middle < bound), names[-1])
        parts[part] += group
        done += len(group)
    for name, indices in parts.items():
        if not indices:
            raise UserError(
                f"the {len(dataset)} rows ({len(groups)} different texts) are too few for a part {name!r} of "
                f"{fractions[name]:g}: give more rows or leave that part out"
            )
    return {name: dataset.select(indices) for name, indices in parts.items()}


def _groups_of_equal_texts(dataset: Dataset) -> list[list[int]]:
    if "text" not in dataset.column_names:
        return [[index] for index in range(len(dataset))]
    groups: dict[str, list[int]] = {}
    for index, text in enumerate(dataset["text"]):
        groups.setdefault(text.strip(), []).append(index)
    return list(groups.values())


def _strata(dataset: Dataset) -> list[int]:
    labels = dataset["label"] if "label" in dataset.column_names else []
    if labels and all(isinstance(label, int) for label in labels):
        return labels
    return [0] * len(dataset)


def _order_by_strata(groups: list[list[int]], strata: list[int], seed: int) -> list[list[int]]:
    """Shuffle, then interleave the strata evenly, so that every stretch holds each in the same proportion."""
    groups = list(groups)
    random.Random(seed).shuffle(groups)
    sizes = Counter(strata[group[0]] for group in groups)
    seen: Counter[int] = Counter()
    keys = []
    for group in groups:
        stratum = strata[group[0]]
        keys.append((seen[stratum] + 0.5) / sizes[stratum])
        seen[stratum] += 1
    return [groups[index] for index in sorted(range(len(groups)), key=keys.__getitem__)]


def class_weights(labels: Sequence[int], num_labels: int) -> list[float]:
    """Weigh each class by the inverse of its frequency, so that rare classes count as much as common ones.

    Args:
        labels: Integer labels in [0, num_labels).
        num_labels: Number of classes.

    Returns:
        One weight a class, of mean 1 over the classes that occur; a class without examples gets 0.

    Raises:
        UserError: If there is no label, or one is out of range.
    """
    check_labels(labels, num_labels, "single_label_classification")
    if not len(labels):
        raise UserError("class weights need at least one label: the data set is empty")
    counts = Counter(int(label) for label in labels)
    inverse = [1 / counts[index] if counts[index] else 0.0 for index in range(num_labels)]
    mean = sum(inverse) / len(counts)
    return [weight / mean for weight in inverse]


def check_labels(labels: Sequence[Any], num_labels: int, problem_type: str, training: bool = False) -> None:
    """Check that labels fit the model's head.

    Args:
        labels: One label a row: an int for single-label classification, a list of ``num_labels`` zeros and ones for
            multi-label classification, a number (or a list of ``num_labels`` numbers) for regression.
        num_labels: Number of outputs of the head.
        problem_type: ``"single_label_classification"``, ``"multi_label_classification"`` or ``"regression"``.
        training: Also require that the labels of a classifier belong to at least two classes.

    Raises:
        UserError: If a label has the wrong form or is out of range (naming value, row and range; rows count from 0),
            the problem type is unknown, or all training labels are the same.
    """
    if problem_type not in PROBLEM_TYPES:
        known = ", ".join(PROBLEM_TYPES)
        raise UserError(f"problem_type={problem_type!r} is not one of {known}.{suggest(problem_type, PROBLEM_TYPES)}")
    check = {
        "single_label_classification": _fault_of_class,
        "multi_label_classification": _fault_of_multi_label,
        "regression": _fault_of_target,
    }[problem_type]
    for row, label in enumerate(labels):
        fault = check(label, num_labels)
        if fault:
            raise UserError(f"label {label!r} in row {row} {fault}")
    if training and problem_type == "single_label_classification" and len({int(label) for label in labels}) == 1:
        raise UserError(
            f"all {len(labels)} training texts have the same label: a classifier needs examples of at least two classes"
        )


def _is_row(label: Any) -> bool:
    return hasattr(label, "__len__") and not isinstance(label, str) and getattr(label, "ndim", 1) > 0


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and math.isfinite(value)


def _fault_of_class(label: Any, num_labels: int) -> str:
    if not _is_number(label) or int(label) != label:
        return "is not an integer class; encode names with encode_labels, or set problem_type"
    if not 0 <= label < num_labels:
        return f"is outside 0..{num_labels - 1} (num_labels={num_labels})"
    return ""


def _fault_of_multi_label(label: Any, num_labels: int) -> str:
    if not _is_row(label) or len(label) != num_labels:
        return f"is not a list of num_labels={num_labels} zeros and ones, as multi-label classification needs"
    if any(value not in (0, 1) for value in label):
        return "has values other than 0 and 1"
    return ""


def _fault_of_target(label: Any, num_labels: int) -> str:
    values = list(label) if _is_row(label) else [label]
    if len(values) != num_labels or not all(_is_number(value) for value in values):
        return f"is not {num_labels} finite number(s), as regression with num_labels={num_labels} needs"
    return ""


def choose_part(parts: Mapping[str, Any], part: str, data: str) -> Any:
    """Choose one part of some data.

    Args:
        parts: Part to its data.
        part: The one that is wanted.
        data: What to call the whole in an error.

    Returns:
        That part; or the only one, where there is one alone.

    Raises:
        UserError: There are several parts, and none of that name.
    """
    if len(parts) == 1:
        return next(iter(parts.values()))
    if part not in parts:
        raise UserError(f"{data} has no part {part!r}: choose one of {', '.join(parts)} with --part")
    return parts[part]
