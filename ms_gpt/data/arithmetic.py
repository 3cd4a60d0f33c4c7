"""Sums of two numbers as text, the task that minGPT teaches a small model.

A sum is written ``85+50=135``: summands are filled up with zeros on the left to ``digits``, the answer to one more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ms_gpt.data.batches import IGNORE_INDEX
from ms_gpt.errors import UserError
from ms_gpt.tokenizer import BaseTokenizer, CharacterTokenizer

ALPHABET = "0123456789+="
MAX_DIGITS = 3
PARTS = ("train", "validation", "test")


def addition_tokenizer() -> CharacterTokenizer:
    """Return the tokenizer of sums: digits, plus and equals sign."""
    return CharacterTokenizer(ALPHABET)


def make_addition(digits: int, seed: int = 0, shares: Sequence[float] = (0.8, 0.1, 0.1)) -> dict[str, np.ndarray]:
    """Make all sums of two numbers and part them by unordered pair: a + b and b + a are never in two parts.

    Args:
        digits: Digits of a summand, 1 to 3.
        seed: Seed of the split.
        shares: Shares of the unordered pairs to train, validate and test on, all positive, summing to 1. What is left
            over by rounding goes to the parts that measure.

    Returns:
        ``train``, ``validation`` and ``test``: int32 arrays (N, 2) of summands, both orders of a pair in the same one.

    Raises:
        UserError: ``digits`` is outside its range, or the shares are wrong.
    """
    if not 1 <= digits <= MAX_DIGITS:
        raise UserError(f"digits={digits} is outside 1 to {MAX_DIGITS}")
    if len(shares) != len(PARTS) or min(shares) <= 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise UserError(f"shares {list(shares)} must be {len(PARTS)} positive numbers that sum to 1")
    pairs = np.stack(np.triu_indices(10**digits), 1).astype(np.int32)
    pairs = np.random.default_rng([seed, digits]).permutation(pairs)
    validation, test = (math.ceil(share * len(pairs)) for share in shares[1:])
    parts = np.split(pairs, [len(pairs) - validation - test, len(pairs) - test])
    return {name: _both_orders(part) for name, part in zip(PARTS, parts, strict=True)}


def encode_addition(pairs: np.ndarray, digits: int, tokenizer: BaseTokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Write sums as tokens.

    Args:
        pairs: int array (N, 2) of summands.
        digits: Digits of a summand.
        tokenizer: Has one token for each of digits, plus and equals sign.

    Returns:
        input_ids and targets, int32 (N, T) with T = 3 * digits + 2: targets are the tokens that follow, -100 up to the
        equals sign, since what comes before is not to be learnt.
    """
    pairs = np.asarray(pairs)
    plus, equals = (np.full((len(pairs), 1), ALPHABET.index(sign)) for sign in "+=")
    symbols = np.concatenate([_digits(pairs[:, 0], digits), plus, _digits(pairs[:, 1], digits), equals,
                              _digits(pairs.sum(1), digits + 1)], 1)
    ids = np.array(tokenizer.encode(ALPHABET), np.int32)[symbols]
    targets = ids[:, 1:].copy()
    targets[:, : 2 * digits + 1] = IGNORE_INDEX
    return ids[:, :-1], targets


def _both_orders(pairs: np.ndarray) -> np.ndarray:
    return np.concatenate([pairs, pairs[pairs[:, 0] != pairs[:, 1]][:, ::-1]])


def _digits(numbers: np.ndarray, count: int) -> np.ndarray:
    """Return the decimal digits of numbers (N,), highest first, (N, count)."""
    return numbers[:, None] // 10 ** np.arange(count - 1, -1, -1) % 10
