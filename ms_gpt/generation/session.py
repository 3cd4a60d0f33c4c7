"""The graphs of generation: one reads a prompt, one reads a token more; and which of them is needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ms_gpt.compile_cache import CachedGraph
from ms_gpt.errors import UserError
from ms_gpt.generation.cache import KVCache
from ms_gpt.kernels import kernel
from ms_gpt.layers import gather_positions

# Prompts shorter than this share a graph.
_SMALLEST_BUCKET = 16
# Shapes whose graphs and caches a model keeps.
_MOST_SESSIONS = 4


class _Graph(CachedGraph):
    """A language model within a graph that gives the next token of each row, and the logits that it is chosen from."""

    def __init__(self, model: nn.Cell, cache: KVCache | None = None) -> None:
        # A prefix would rename the model's parameters for good.
        super().__init__(auto_prefix=False)
        self.model = model
        self.cache = cache
        # The kernel writes over what a column of the cache held; the plain operations add to it.
        self.adds_to_cache = model.transformer.h[0].attn.step_kernel is None
        self.argmax = ops.Argmax(axis=-1, output_type=ms.int32) if model.project_kernel is None else kernel("argmax")

    def next_token(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the likeliest tokens (B,) and the logits (B, V) after hidden states (B, D)."""
        logits = self.model.lm_logits(hidden_states).astype(ms.float32)
        return self.argmax(logits), logits


class _Forward(_Graph):
    """Reads whole rows, without a cache."""

    def construct(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor,
                  last: Tensor) -> tuple[Tensor, Tensor]:
        """Return what follows position ``last`` (B,) of each row."""
        hidden_states = self.model.transformer(input_ids, attention_mask, None, position_ids)[0]
        return self.next_token(gather_positions(hidden_states, last))


class _Prefill(_Graph):
    """Reads several columns, those before them being in the cache."""

    def construct(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache_position: Tensor,
                  last: Tensor) -> tuple[Tensor, Tensor]:
        """Return what follows position ``last`` (B,) of the new columns."""
        if self.adds_to_cache:
            self.cache.keep(cache_position[:1])
        hidden_states = self.model.transformer(input_ids, attention_mask, None, position_ids, None, None, self.cache(),
                                               cache_position)[0]
        return self.next_token(gather_positions(hidden_states, last))


class _Decode(_Graph):
    """Reads one column more."""

    def __init__(self, model: nn.Cell, cache: KVCache | None = None) -> None:
        super().__init__(model, cache)
        # MindSpore's name for a graph that always gets the same shapes: it is called without being looked up again.
        self.phase = "increment"

    def construct(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor,
                  cache_position: Tensor) -> tuple[Tensor, Tensor]:
        """Return what follows."""
        hidden_states = self.model.transformer(input_ids, attention_mask, None, position_ids, None, None, self.cache(),
                                               cache_position)[0]
        return self.next_token(hidden_states[:, 0])


class _Reorder(nn.Cell):
    """Moves rows of the cache: a graph of its own, as a kernel writes to what the cache holds when its graph begins."""

    def __init__(self, cache: KVCache) -> None:
        super().__init__(auto_prefix=False)
        self.cache = cache

    def construct(self, source: Tensor) -> Tensor:
        """Let row b become row ``source[b]``."""
        self.cache.reorder(source)
        return source


class Session:
    """A model with a cache, the graphs that use it, and the rows whose keys and values it holds.

    Given to ``generate`` as ``past_key_values``, it lets one call go on where the last one ended: what the new rows
    begin with is not computed again, as long as their padding is the same. The model's weights must not change in
    between; call ``forget`` after they have.

    Args:
        model: A language model.
        batch_size: Number of rows.
        length: Most tokens in a row. Default: the model's ``n_positions``, which is also the most.
        use_cache: Keep keys and values; else whole rows are read at every step.

    Raises:
        UserError: ``batch_size`` or ``length`` is outside its range.
    """

    def __init__(self, model: Any, batch_size: int = 1, length: int | None = None, use_cache: bool = True) -> None:
        limit = model.config.n_positions
        self.model, self.batch_size = model, batch_size
        self.length = limit if length is None else length
        if not 1 <= self.length <= limit:
            raise UserError(f"length={length!r} is not a whole number from 1 to n_positions={limit}")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size!r} is not a whole number of at least 1")
        self._weights, self._kind = _weights(model), (model.compute_dtype, model.uses_kernels)
        self._cache = KVCache(model, batch_size, self.length) if use_cache else None
        self._forward, self._prefill, self._decode = (
            kind(model, self._cache) for kind in (_Forward, _Prefill, _Decode))
        self._reorder = _Reorder(self._cache) if use_cache else None
        self.forget()

    def forget(self) -> None:
        """Take nothing for known any more."""
        self._rows: list[list[int]] = []
        self._padding: list[int] = []
        self._mask: Tensor | None = None

    def is_current(self) -> bool:
        """Tell whether the model still has the structure that the graphs were compiled for."""
        weights = _weights(self.model)
        return (self._kind == (self.model.compute_dtype, self.model.uses_kernels) and len(weights) == len(self._weights)
                and all(new is old for new, old in zip(weights, self._weights, strict=True)))

    def read(self, rows: Sequence[Sequence[int]], source: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Read rows of tokens, computing only what the cache does not hold yet.

        Args:
            rows: B rows of 1 to ``length`` tokens.
            source: For each row the one, at the last call, that it goes on from; ``None`` where all stay in place.

        Returns:
            The likeliest next tokens, int32 (B,), and the logits, float32 (B, V).
        """
        rows = [list(row) for row in rows]
        end = max(map(len, rows))
        padding = [end - len(row) for row in rows]
        if self._cache is None:
            return self._forward(*self._columns(rows, 0, self.length), _last(rows, end - 1))
        held = self._rows if source is None or not self._rows else [self._rows[index] for index in source]
        start = min(map(_shared, rows, held, padding)) if padding == self._padding else 0
        start = min(start, end - 1)
        mask = self._mask
        is_next = mask is not None and start == end - 1 == max(map(len, held))
        # Should the graph be interrupted, nothing is known.
        self.forget()
        if is_next:
            position_ids = np.array([[len(row) - 1] for row in rows], np.int32)
            tokens = np.array([[row[-1]] for row in rows], np.int32)
            if source is not None:
                self._reorder(Tensor(np.array(source, np.int32)))
            outputs = self._decode(Tensor(tokens), mask, Tensor(position_ids), Tensor(np.array([start], np.int32)))
        else:
            # Rows that have changed places are read from the start.
            start = 0 if source is not None else start
            columns = bucket(end - start, self.length)
            start = min(start, self.length - columns)
            input_ids, _, position_ids = self._columns(rows, start, columns)
            place = np.arange(self.length)
            first = np.array(padding)[:, None]
            real = (place >= first) & (place < end)
            cache_position = np.arange(start, start + columns, dtype=np.int32)
            # Behind the rows stands padding, whose columns stay empty.
            outputs = self._prefill(input_ids, Tensor(real.astype(np.int32)), position_ids, Tensor(cache_position),
                                    _last(rows, end - 1 - start))
            mask = Tensor((place >= first).astype(np.int32))
        self._rows, self._padding, self._mask = rows, padding, mask
        return outputs

    def _columns(self, rows: list[list[int]], start: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids, mask and positions of some columns of the rows, which end together; behind them is padding."""
        end = max(map(len, rows))
        input_ids = np.zeros((len(rows), start + count), np.int32)
        mask = np.zeros_like(input_ids)
        for index, row in enumerate(rows):
            input_ids[index, end - len(row) : end] = row
            mask[index, end - len(row) : end] = 1
        position_ids = np.maximum(mask.cumsum(-1) - 1, 0).astype(np.int32)
        return tuple(Tensor(np.ascontiguousarray(item[:, start:])) for item in (input_ids, mask, position_ids))


def _weights(model: Any) -> list[Any]:
    return list(model.weights().values())


def _last(rows: list[list[int]], place: int) -> Tensor:
    return Tensor(np.full(len(rows), place, np.int32))


def _shared(row: list[int], held: list[int], padding: int) -> int:
    """Return the number of columns that two rows with the same padding have in common."""
    if row[: len(held)] == held:
        return padding + len(held)
    return padding + next(i for i, (new, old) in enumerate(zip(row + [-1], held, strict=False)) if new != old)


def bucket(length: int, limit: int) -> int:
    """Round a length up to one of a few, so that few graphs are compiled.

    Args:
        length: From 1 to ``limit``.
        limit: The longest.

    Returns:
        A power of two of at least 16, or ``limit``.
    """
    return min(max(1 << (length - 1).bit_length(), _SMALLEST_BUCKET), limit)


def session_for(model: Any, batch_size: int, length: int, use_cache: bool) -> Session:
    """Return a session that holds nothing, from the model's own where there is one of this shape.

    Args:
        model: A language model.
        batch_size: Number of rows.
        length: Most tokens in a row.
        use_cache: Whether it keeps keys and values.

    Returns:
        The session; the model keeps the last few.
    """
    key = (batch_size, length, use_cache)
    session = model.graphs.pop(key, None)
    if session is None or not session.is_current():
        while len(model.graphs) >= _MOST_SESSIONS:
            del model.graphs[next(iter(model.graphs))]
        session = Session(model, *key)
    model.graphs[key] = session
    session.forget()
    return session


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Switch dropout off for a while.

    Args:
        model: The model.
    """
    was_training = model.training
    model.set_train(False)
    try:
        yield
    finally:
        model.set_train(was_training)


def check_session(session: Session, model: Any, batch_size: int, length: int) -> Session:
    """Check that a user's session is for this model, so many rows and so many tokens in each.

    Args:
        session: What the user gave.
        model: The model it has to be of.
        batch_size: The rows it has to have.
        length: The tokens of a row that it has to hold, at least.

    Returns:
        The same session.

    Raises:
        UserError: It is for another one.
    """
    if not isinstance(session, Session) or session.model is not model:
        raise UserError("past_key_values is not a generation.Session of this model: make one with Session(model)")
    if session.batch_size != batch_size:
        raise UserError(f"past_key_values is a session of batch_size={session.batch_size}, and there are {batch_size} "
                        "rows: make one for so many")
    if session.length < length:
        raise UserError(f"past_key_values is a session of length={session.length}, and {length} tokens of a row are "
                        "needed: make one for so many")
    if not session.is_current():
        raise UserError("past_key_values is a session from before the model's structure changed: make a new one")
    return session
