"""Beam search: keep the likeliest rows at each step, and the best that have ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ms_gpt.generation.processors import log_softmax, process, processors_for
from ms_gpt.generation.settings import GenerationSettings

_IMPOSSIBLE = -1e9


@dataclass
class _Beams:
    """The search for one prompt.

    Args:
        settings: Valid settings.
        eos_token_id: The end token, or -1.

    Attributes:
        running: New tokens of the rows that go on, the likeliest first.
        scores: Their log-probabilities.
        ended: Pairs of score, under the length penalty, and new tokens of rows that have ended; the best first.
        is_done: Nothing can or may get better.
    """

    settings: GenerationSettings
    eos_token_id: int
    running: list[list[int]] = field(default_factory=list)
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    ended: list[tuple[float, list[int]]] = field(default_factory=list)
    is_done: bool = False

    def __post_init__(self) -> None:
        """Let the first of the rows, which are equal, stand for all."""
        count = self.settings.num_beams
        self.running = [[] for _ in range(count)]
        self.scores = np.array([0.0] + [_IMPOSSIBLE] * (count - 1))

    def advance(self, log_probs: np.ndarray) -> list[int]:
        """Add a token to every row.

        Args:
            log_probs: float array (num_beams, V).

        Returns:
            For each row the one it goes on from.
        """
        count, vocab_size = log_probs.shape
        if self.is_done:
            return list(range(count))
        totals = (log_probs + self.scores[:, None]).reshape(-1)
        # At most one row in two can end, so that so many always leave enough that go on.
        best = np.argpartition(-totals, min(2 * count, totals.size) - 1)[: 2 * count]
        best = best[np.argsort(-totals[best], kind="stable")]
        length = len(self.running[0]) + 1
        is_last = length == self.settings.max_new_tokens
        running, scores, source = [], [], []
        for rank, place in enumerate(best):
            row, token = divmod(int(place), vocab_size)
            tokens = [*self.running[row], token]
            if is_last or token == self.eos_token_id:
                if rank < count:
                    self.ended.append((totals[place] / length**self.settings.length_penalty, tokens))
            elif len(running) < count:
                running.append(tokens)
                scores.append(totals[place])
                source.append(row)
        self.ended = sorted(self.ended, key=lambda pair: -pair[0])[:count]
        if is_last:
            self.is_done = True
            return list(range(count))
        self.running, self.scores = running, np.array(scores)
        self.is_done = self._cannot_improve(length)
        return source

    def _cannot_improve(self, length: int) -> bool:
        if len(self.ended) < self.settings.num_beams:
            return False
        if self.settings.early_stopping is True:
            return True
        penalty = self.settings.length_penalty
        if self.settings.early_stopping == "never" and penalty > 0:
            length = self.settings.max_new_tokens
        return self.scores[0] / length**penalty <= self.ended[-1][0]


def beam_search(reader: Any, settings: GenerationSettings, eos_token_id: int) -> list[list[int]]:
    """Search for the likeliest continuations.

    Args:
        reader: An ``engine.Reader`` whose rows are the prompts, each ``num_beams`` times.
        settings: Valid settings.
        eos_token_id: The end token, or -1.

    Returns:
        New tokens of ``num_return_sequences`` rows for each prompt, the best first.

    Source: transformers' ``_beam_search``, for when a search ends and what a length penalty divides.
    """
    count, processors = settings.num_beams, processors_for(settings)
    prompts: Sequence[Sequence[int]] = [list(row) for row in reader.rows]
    searches = [_Beams(settings, eos_token_id) for _ in range(len(prompts) // count)]
    outputs = reader.read()
    while True:
        log_probs = log_softmax(outputs[1].asnumpy())
        tokens_so_far = [prompt + new for prompt, new in zip(
            prompts, (tokens for search in searches for tokens in search.running), strict=True)]
        log_probs = process(processors, tokens_so_far, log_probs)
        source = [index * count + row for index, search in enumerate(searches)
                  for row in search.advance(log_probs[index * count : (index + 1) * count])]
        if all(search.is_done for search in searches):
            break
        reader.append([tokens[-1] for search in searches for tokens in search.running], source)
        outputs = reader.read(source)
    return [tokens for search in searches for _, tokens in search.ended[: settings.num_return_sequences]]
