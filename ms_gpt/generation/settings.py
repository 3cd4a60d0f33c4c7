"""How text is generated: every setting, its default and its rule."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from ms_gpt.errors import UserError, suggest

_DRAWING = ("temperature", "top_k", "top_p")
_COUNTS = {"max_new_tokens": 1, "top_k": 1, "num_beams": 1, "no_repeat_ngram_size": 0, "num_return_sequences": 1,
           "seed": 0, "context_stride": 1}
NO_TOKEN = -1


@dataclass
class GenerationSettings:
    """The settings of generation, in transformers' words.

    Args:
        max_new_tokens: Most tokens to add to a row, at least 1.
        do_sample: Draw from the distribution; else take the likeliest token. ``None`` draws if ``temperature``,
            ``top_k`` or ``top_p`` is given.
        temperature: Logits are divided by this, greater than 0.
        top_k: Draw from the k likeliest tokens only, at least 1.
        top_p: Draw from the likeliest tokens that together have this probability, in (0, 1].
        num_beams: Keep this many candidates at each step and return the likeliest; 1 for no search.
        length_penalty: A candidate's log-probability is divided by its number of new tokens to this power: above 0
            longer ones win, below 0 shorter ones.
        early_stopping: ``True`` ends a beam search with the ``num_beams``-th ended candidate, ``False`` when no running
            one is likely to become better, ``"never"`` when none can.
        repetition_penalty: Makes tokens that occurred less likely (above 1) or more (below 1); greater than 0.
        no_repeat_ngram_size: Never write the same n tokens twice; 0 for no limit.
        num_return_sequences: Continuations of each row; at most ``num_beams`` in a beam search.
        stop: Texts that end the generation; they are not part of the result. Known to ``ms_gpt.generate`` and
            ``stream_generate``; a beam search is cut there when it has ended.
        eos_token_id: Token that ends a row. Default: the model's, else the tokenizer's; -1 for none.
        pad_token_id: Token that fills rows that have ended. Default: the model's, else the end token.
        seed: With it, the step and the row's number each draw is determined.
        use_cache: Keep keys and values of the tokens so far; else whole rows are read at every step.
        context_stride: How many tokens the window moves on by when it is full, from 1; the larger, the more rarely all
            that stays in it is read again. Default: half of the model's ``n_positions``.

    Raises:
        UserError: From ``validate``; the message names the setting, the value and the rule.

    Source: transformers' ``GenerationConfig``.
    """

    max_new_tokens: int = 50
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_return_sequences: int = 1
    stop: tuple[str, ...] = ()
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    seed: int = 0
    use_cache: bool = True
    context_stride: int | None = None

    def __post_init__(self) -> None:
        """Accept a single stop text."""
        self.stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @classmethod
    def of(cls, values: dict[str, Any]) -> GenerationSettings:
        """Build settings from names and values.

        Args:
            values: What the caller said.

        Returns:
            The settings, checked.

        Raises:
            UserError: A name is unknown (with a suggestion) or a value breaks its rule.
        """
        known = [item.name for item in fields(cls)]
        for name in values:
            if name not in known:
                raise UserError(f"{name!r} is not a setting of generation.{suggest(name, known)}")
        return cls(**values).validate()

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        given = any(getattr(self, name) is not None for name in _DRAWING)
        return given if self.do_sample is None else self.do_sample

    def validate(self) -> GenerationSettings:
        """Check every value.

        Returns:
            The settings.

        Raises:
            UserError: A value breaks its rule, or two contradict each other.
        """
        for name, least in _COUNTS.items():
            value = getattr(self, name)
            if value is not None and (not _is_whole(value) or value < least):
                raise UserError(f"{name}={value!r} is not a whole number of at least {least}")
        for name in ("eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None and not _is_whole(value):
                raise UserError(f"{name}={value!r} is not a token id")
        self._validate_numbers()
        self._validate_together()
        return self

    def _validate_numbers(self) -> None:
        if self.temperature is not None and not _is_above_0(self.temperature):
            raise UserError(f"temperature={self.temperature!r} is not greater than 0: leave it out (and top_k and "
                            "top_p) for the likeliest token at each step")
        if self.top_p is not None and not (_is_above_0(self.top_p) and self.top_p <= 1):
            raise UserError(f"top_p={self.top_p!r} is outside (0, 1]: it is the probability that the tokens drawn from "
                            "have together")
        if not _is_above_0(self.repetition_penalty):
            raise UserError(f"repetition_penalty={self.repetition_penalty!r} is not greater than 0: 1 is no penalty")
        if isinstance(self.length_penalty, bool) or not isinstance(self.length_penalty, Real) \
                or not math.isfinite(self.length_penalty):
            raise UserError(f"length_penalty={self.length_penalty!r} is not a number")
        if self.early_stopping not in (True, False, "never"):
            raise UserError(f"early_stopping={self.early_stopping!r} is not True, False or 'never'")
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise UserError(f"stop holds {text!r}: give texts of at least one character")

    def _validate_together(self) -> None:
        given = next((name for name in _DRAWING if getattr(self, name) is not None), None)
        if self.do_sample is False and given:
            raise UserError(f"{given}={getattr(self, given)!r} has no meaning with do_sample=False: leave one out")
        if self.num_beams > 1:
            if self.samples:
                raise UserError(f"num_beams={self.num_beams} searches for the likeliest text, so "
                                f"{given or 'do_sample'}={getattr(self, given or 'do_sample')!r} has no meaning beside "
                                "it: leave one out")
            if self.num_return_sequences > self.num_beams:
                raise UserError(f"num_return_sequences={self.num_return_sequences} is greater than "
                                f"num_beams={self.num_beams}: a search returns what it kept")
        elif self.num_return_sequences > 1 and not self.samples:
            raise UserError(f"num_return_sequences={self.num_return_sequences} needs texts that differ, and the "
                            "likeliest token at each step gives one only: give temperature=1.0 to draw, or num_beams")


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_above_0(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < value < math.inf
