"""Choosing a token from logits; draws are a pure function of seed, step and row."""

from __future__ import annotations

import numpy as np

from ms_gpt.generation.processors import softmax


def draw(logits: np.ndarray, seed: int, step: int) -> np.ndarray:
    """Draw a token for each row from the softmax of its logits.

    Args:
        logits: float array (B, V); -inf for tokens that may not be drawn.
        seed: The seed of the generation.
        step: Number of tokens drawn before.

    Returns:
        int32 array (B,). Each row has a random number of its own, which depends on nothing but the seed, the step and
        the row's number.
    """
    cumulative = softmax(logits).cumsum(-1)
    chosen = np.empty(len(logits), np.int32)
    for row, sums in enumerate(cumulative):
        number = np.random.default_rng([seed, step, row]).random() * sums[-1]
        # Rounding must not lead behind the last token that has a probability.
        chosen[row] = min(sums.searchsorted(number, "right"), sums.searchsorted(sums[-1], "left"))
    return chosen
