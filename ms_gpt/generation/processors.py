"""What is done to logits before a token is chosen: NumPy functions of the rows so far and their logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ms_gpt.generation.settings import GenerationSettings

Rows = Sequence[Sequence[int]]
Processor = Callable[[Rows, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class RepetitionPenalty:
    """Divides positive logits of tokens that occurred by ``penalty``, and multiplies negative ones with it.

    Source: Keskar et al. 2019 (CTRL), section 4.1; negative logits as in transformers.
    """

    penalty: float

    def __call__(self, input_ids: Rows, logits: np.ndarray) -> np.ndarray:
        """Return new logits (B, V) for the rows so far."""
        logits = logits.copy()
        for row, scores in zip(input_ids, logits, strict=True):
            seen = scores[row]
            scores[row] = np.where(seen < 0, seen * self.penalty, seen / self.penalty)
        return logits


@dataclass(frozen=True)
class NoRepeatNGram:
    """Forbids tokens that would write the same ``size`` tokens a second time.

    A row that may write nothing at all any more is left as it is.

    Source: Paulus et al. 2017, section 2.5.
    """

    size: int

    def __call__(self, input_ids: Rows, logits: np.ndarray) -> np.ndarray:
        """Return new logits (B, V) for the rows so far."""
        logits = logits.copy()
        for row, scores in zip(input_ids, logits, strict=True):
            row = np.asarray(row)
            if len(row) < self.size:
                continue
            ngrams = np.lib.stride_tricks.sliding_window_view(row, self.size)
            begun = row[len(row) - self.size + 1 :]
            forbidden = ngrams[(ngrams[:, :-1] == begun).all(-1), -1]
            if len(np.unique(forbidden)) < scores.size:
                scores[forbidden] = -np.inf
        return logits


@dataclass(frozen=True)
class Temperature:
    """Divides logits by ``value``: below 1 the distribution becomes sharper, above 1 flatter.

    Source: Ackley, Hinton and Sejnowski 1985.
    """

    value: float

    def __call__(self, input_ids: Rows, logits: np.ndarray) -> np.ndarray:
        """Return new logits (B, V)."""
        return logits / self.value


@dataclass(frozen=True)
class TopK:
    """Forbids all but the ``k`` likeliest tokens, and those as likely as the last of them.

    Source: Fan et al. 2018.
    """

    k: int

    def __call__(self, input_ids: Rows, logits: np.ndarray) -> np.ndarray:
        """Return new logits (B, V)."""
        if self.k >= logits.shape[-1]:
            return logits
        smallest = np.partition(logits, -self.k, -1)[:, -self.k, None]
        return np.where(logits < smallest, -np.inf, logits)


@dataclass(frozen=True)
class TopP:
    """Forbids all but the fewest tokens that together have a probability of at least ``p``.

    Source: Holtzman et al. 2019 (nucleus sampling).
    """

    p: float

    def __call__(self, input_ids: Rows, logits: np.ndarray) -> np.ndarray:
        """Return new logits (B, V)."""
        kept = np.full_like(logits, -np.inf)
        for scores, probabilities, new in zip(logits, softmax(logits), kept, strict=True):
            # All tokens below this together have less than 1 - p, so there is no need to sort them.
            candidates = np.flatnonzero(probabilities > (1.0 - self.p) / scores.size)
            order = candidates[np.argsort(-probabilities[candidates], kind="stable")]
            likelier = np.cumsum(probabilities[order]) - probabilities[order]
            chosen = order[likelier < self.p]
            new[chosen] = scores[chosen]
        return kept


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits (B, V), in float64."""
    logits = logits.astype(np.float64)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the log-probabilities of logits (..., V), in float64."""
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def processors_for(settings: GenerationSettings) -> list[Processor]:
    """Return what the settings ask for, in the order in which transformers applies it.

    Args:
        settings: Valid settings.

    Returns:
        The processors; none where logits are taken as they are.
    """
    processors: list[Processor] = []
    if settings.repetition_penalty != 1.0:
        processors.append(RepetitionPenalty(settings.repetition_penalty))
    if settings.no_repeat_ngram_size:
        processors.append(NoRepeatNGram(settings.no_repeat_ngram_size))
    if settings.samples:
        if settings.temperature is not None and settings.temperature != 1.0:
            processors.append(Temperature(settings.temperature))
        if settings.top_k is not None:
            processors.append(TopK(settings.top_k))
        if settings.top_p is not None and settings.top_p < 1.0:
            processors.append(TopP(settings.top_p))
    return processors


def process(processors: Sequence[Processor], input_ids: Rows, logits: np.ndarray) -> np.ndarray:
    """Apply processors one after the other.

    Args:
        processors: From ``processors_for``.
        input_ids: B rows of the tokens so far, without padding.
        logits: float array (B, V).

    Returns:
        New logits (B, V); -inf for tokens that may not be chosen.
    """
    for processor in processors:
        logits = processor(input_ids, logits)
    return logits
