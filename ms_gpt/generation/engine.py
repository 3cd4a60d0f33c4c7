"""Rows of token ids in, longer rows out; nothing here knows text."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mindspore import Tensor

from ms_gpt.errors import UserError
from ms_gpt.generation.beam import beam_search
from ms_gpt.generation.processors import process, processors_for
from ms_gpt.generation.sampling import draw
from ms_gpt.generation.session import Session, bucket, check_session, evaluating, session_for
from ms_gpt.generation.settings import NO_TOKEN, GenerationSettings


class Reader:
    """Rows that grow, as far as the model can see them.

    A window holds the last ``n_positions`` tokens of a row. When it is full it moves on by ``context_stride`` tokens,
    so that not every step has to read all of it again; a row's window depends on no other row.

    Args:
        model: A language model.
        rows: B rows of at least one token.
        settings: Valid settings.
        session: The user's, or ``None``.

    Attributes:
        rows: The windows.
        cut: For each row how many of its tokens did not fit at the start.
    """

    def __init__(self, model: Any, rows: Sequence[Sequence[int]], settings: GenerationSettings,
                 session: Session | None = None) -> None:
        self.limit = model.config.n_positions
        self.stride = min(settings.context_stride or max(self.limit // 2, 1), self.limit)
        self.cut = [max(len(row) - self.limit, 0) for row in rows]
        self.rows = [list(row[-self.limit :]) for row in rows]
        length = min(max(map(len, self.rows)) + settings.max_new_tokens - 1, self.limit)
        if session is None:
            self.session = session_for(model, len(rows), bucket(length, self.limit), settings.use_cache)
        else:
            self.session = check_session(session, model, len(rows), length)

    def append(self, tokens: Sequence[int], source: Sequence[int] | None = None) -> None:
        """Add a token to each row.

        Args:
            tokens: B tokens.
            source: For each row the one it goes on from; ``None`` where all stay in place.
        """
        rows = self.rows if source is None else [list(self.rows[index]) for index in source]
        for row, token in zip(rows, tokens, strict=True):
            row.append(int(token))
            if len(row) > self.limit:
                del row[: self.stride]
        self.rows = rows

    def read(self, source: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return the likeliest next tokens (B,) and the logits (B, V); ``source`` as at the last ``append``."""
        return self.session.read(self.rows, source)


class TokenStream:
    """Tokens for rows, step by step: iterate over it for int32 arrays (B,), one token for each row.

    Args:
        model: A language model.
        rows: B rows of at least one token.
        settings: Valid settings with ``num_beams=1``; ``num_return_sequences`` and ``stop`` are the caller's business.
        session: A ``Session`` of the user's, or ``None``.

    Attributes:
        finished: bool array (B,). Rows that the end token has ended, and those that the caller sets: they get padding,
            and the iteration stops when there are no others.
        cut: For each row how many of its tokens the model cannot see.

    Raises:
        UserError: A row is empty, or holds what is no token.
    """

    def __init__(self, model: Any, rows: Sequence[Sequence[int]], settings: GenerationSettings,
                 session: Session | None = None) -> None:
        check_rows(rows, model.config.vocab_size)
        self.model, self.settings = model, settings
        self.eos_token_id, self.pad_token_id = end_and_padding(model, settings)
        self.reader = Reader(model, rows, settings, session)
        self.cut = self.reader.cut
        self.finished = np.zeros(len(rows), bool)
        self._processors = processors_for(settings)
        self._history = [list(row) for row in rows] if self._processors else []

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the tokens of each step."""
        with evaluating(self.model):
            for step in range(self.settings.max_new_tokens):
                tokens = np.where(self.finished, self.pad_token_id, self._choose(step)).astype(np.int32)
                self.finished |= tokens == self.eos_token_id
                yield tokens
                if self.finished.all():
                    return
                self.reader.append(tokens)
                for row, token in zip(self._history, tokens, strict=False):
                    row.append(int(token))

    def _choose(self, step: int) -> np.ndarray:
        likeliest, logits = self.reader.read()
        # Where nothing else is needed, only the ids leave the device.
        if not self.settings.samples and not self._processors:
            return likeliest.asnumpy()
        scores = process(self._processors, self._history, logits.asnumpy())
        return draw(scores, self.settings.seed, step) if self.settings.samples else scores.argmax(-1)


def generate_ids(model: Any, rows: Sequence[Sequence[int]], settings: GenerationSettings,
                 session: Session | None = None) -> list[list[int]]:
    """Continue rows of token ids.

    Args:
        model: A language model.
        rows: B rows of at least one token.
        settings: Valid settings.
        session: A ``Session`` of the user's for ``B * num_return_sequences`` rows, with beams ``B * num_beams``.

    Returns:
        New tokens of ``B * num_return_sequences`` rows, up to and with the end token.

    Raises:
        UserError: A row is empty, or holds what is no token.
    """
    rows = repeat(rows, settings)
    if settings.num_beams > 1:
        check_rows(rows, model.config.vocab_size)
        with evaluating(model):
            return beam_search(Reader(model, rows, settings, session), settings, end_and_padding(model, settings)[0])
    stream = TokenStream(model, rows, settings, session)
    written: list[list[int]] = [[] for _ in rows]
    running = ~stream.finished
    for tokens in stream:
        for row in np.flatnonzero(running):
            written[row].append(int(tokens[row]))
        running = ~stream.finished
    return written


def repeat(rows: Sequence[Any], settings: GenerationSettings) -> list[Any]:
    """Return each row as often as it is read: once for each beam or return sequence."""
    count = settings.num_beams if settings.num_beams > 1 else settings.num_return_sequences
    return [row for row in rows for _ in range(count)]


def generate(model: Any, input_ids: Any, attention_mask: Any, session: Session | None,
             values: dict[str, Any]) -> Tensor:
    """Continue rows of token ids (B, T); see ``GPTLMHeadModel.generate``."""
    settings = GenerationSettings.of(values)
    if settings.stop:
        raise UserError("stop holds texts, which a model does not know: call ms_gpt.generate(model, tokenizer, ...)")
    eos_token_id, pad_token_id = end_and_padding(model, settings)
    given, rows = _rows_of(input_ids, attention_mask, pad_token_id)
    warn_if_cut(rows, model, stacklevel=4)
    written = generate_ids(model, rows, settings, session)
    new = np.full((len(written), max(map(len, written))), pad_token_id, np.int32)
    for row, tokens in zip(new, written, strict=True):
        row[: len(tokens)] = tokens
    given = np.repeat(given, settings.num_return_sequences, 0)
    return Tensor(np.concatenate([given, new], 1))


def _rows_of(input_ids: Any, attention_mask: Any, pad_token_id: int) -> tuple[np.ndarray, list[list[int]]]:
    """Return rows as an array, padded on the left if need be, and as lists without their padding."""
    if isinstance(input_ids, (list, tuple)):
        if not all(isinstance(row, (list, tuple, np.ndarray)) for row in input_ids):
            raise UserError(f"input_ids is {input_ids!r:.60}: give a list of rows, even for one")
        rows = [[int(token) for token in row] for row in input_ids]
        longest = max(map(len, rows), default=0)
        given = np.array([[pad_token_id] * (longest - len(row)) + row for row in rows], np.int32)
        if attention_mask is None:
            return given, rows
        if len(set(map(len, rows))) > 1:
            raise UserError("attention_mask is given with rows of unequal length: leave it out, or pad them")
    else:
        given = _array(input_ids)
    if given.ndim != 2 or given.dtype.kind not in "iu":
        raise UserError(f"input_ids is of shape {given.shape} and dtype {given.dtype}: give whole numbers (B, T)")
    if attention_mask is None:
        return given.astype(np.int32), given.tolist()
    mask = _array(attention_mask) != 0
    if mask.shape != given.shape:
        raise UserError(f"attention_mask is of shape {mask.shape}, and input_ids of {given.shape}: give one for each")
    return given.astype(np.int32), [row[real].tolist() for row, real in zip(given, mask, strict=True)]


def _array(value: Any) -> np.ndarray:
    return value.asnumpy() if isinstance(value, Tensor) else np.asarray(value)


def check_rows(rows: Sequence[Sequence[int]], vocab_size: int) -> None:
    """Check that there are rows, and that they hold tokens of the model.

    Args:
        rows: Rows of token ids.
        vocab_size: Ids are below it.

    Raises:
        UserError: They do not.
    """
    if not rows:
        raise UserError("there are no rows to continue: give at least one")
    for index, row in enumerate(rows):
        if not len(row):
            raise UserError(f"row {index} is empty: a model needs at least one token to start from")
        if not 0 <= min(row) <= max(row) < vocab_size:
            wrong = min(row) if min(row) < 0 else max(row)
            raise UserError(f"token {wrong} in row {index} is outside the model's vocabulary of {vocab_size}")


def end_and_padding(model: Any, settings: GenerationSettings) -> tuple[int, int]:
    """Return the end token, or -1 for none, and the token that fills rows which have ended."""
    config = model.config
    end = _first(settings.eos_token_id, config.eos_token_id, NO_TOKEN)
    padding = _first(settings.pad_token_id, config.pad_token_id, end)
    return end, padding if 0 <= padding < config.vocab_size else 0


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)


def warn_if_cut(rows: Sequence[Sequence[int]], model: Any, stacklevel: int = 3) -> None:
    """Say that the model cannot see all of a prompt."""
    longest, limit = max(map(len, rows), default=0), model.config.n_positions
    if longest > limit:
        warnings.warn(f"a prompt of {longest} tokens is longer than n_positions={limit}: only its last {limit} are "
                      "looked at", stacklevel=stacklevel)
