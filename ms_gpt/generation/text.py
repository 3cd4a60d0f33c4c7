"""Text in, text out: whole, or piece by piece as it is written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ms_gpt.errors import UserError
from ms_gpt.generation.engine import TokenStream, check_rows, end_and_padding, generate_ids, repeat, warn_if_cut
from ms_gpt.generation.session import Session
from ms_gpt.generation.settings import GenerationSettings

# What a tokenizer decodes an unfinished character to.
_UNFINISHED = "\ufffd"
# Tokens that are decoded with the next one, for the blank between words, and how many may pile up before that.
_FEW, _MANY = 8, 64
# The first step reads the prompt and the second one compiles the graph of all others.
_UNTIMED = 2


@dataclass(frozen=True)
class Chunk:
    """A piece of generated text.

    Args:
        text: What there is to print; the texts of all chunks make the continuation.
        token_ids: The tokens since the last chunk.
        tokens_per_second: Speed so far, without the first two steps, which compile; 0 until there is a third.
        finish_reason: ``None`` but for the last chunk: ``"stop"`` (end token or stop text) or ``"length"``.
        prompt_tokens_cut: Tokens at the start of the prompt that the model cannot see, since it is too long.
    """

    text: str
    token_ids: tuple[int, ...]
    tokens_per_second: float
    finish_reason: str | None = None
    prompt_tokens_cut: int = 0


class _Writer:
    """The text of one row: whole characters only, up to a stop text.

    Args:
        tokenizer: Decodes.
        prompt_ids: What the row begins with.
        stop: Texts that end it.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int], stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.ids = list(prompt_ids[-_FEW:])
        self.shown = len(tokenizer.decode(self.ids))
        self.held = ""
        self.is_stopped = False

    def push(self, token: int) -> str:
        """Add a token; return the text that is certain now."""
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        whole = text.removesuffix(_UNFINISHED)
        new = whole[self.shown :]
        self.shown = max(self.shown, len(whole))
        if len(self.ids) > _MANY and whole == text:
            self.ids = self.ids[-_FEW:]
            self.shown = len(self.tokenizer.decode(self.ids))
        return self._release(new)

    def finish(self) -> str:
        """Return the text that was held back."""
        return self._release(self.tokenizer.decode(self.ids)[self.shown :], is_last=True)

    def _release(self, text: str, is_last: bool = False) -> str:
        if self.is_stopped:
            return ""
        self.held += text
        places = [place for stop in self.stop if (place := self.held.find(stop)) >= 0]
        if places:
            self.is_stopped = True
            return self.held[: min(places)]
        # The longest end of the text that a stop text begins with.
        kept = 0 if is_last else max((length for stop in self.stop for length in range(1, len(stop))
                                      if self.held.endswith(stop[:length])), default=0)
        ready, self.held = self.held[: len(self.held) - kept], self.held[len(self.held) - kept :]
        return ready


def generate(model: Any, tokenizer: Any, prompts: str | Sequence[str], past_key_values: Session | None = None,
             **settings: Any) -> list[str]:
    """Continue texts.

    Args:
        model: A language model.
        tokenizer: Its tokenizer.
        prompts: A text or several; an empty one starts from the tokenizer's start token, end token or line end.
        past_key_values: A ``Session`` that keeps keys and values between calls, or ``None``.
        **settings: Fields of ``GenerationSettings``.

    Returns:
        The texts, each with its prompt; ``num_return_sequences`` for each prompt, the best first in a beam search.

    Raises:
        UserError: The model is no language model, a setting breaks its rule, or a prompt is empty and there is no token
            to start from.
    """
    options = _options(tokenizer, model, settings)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    rows = [_encode(tokenizer, prompt) for prompt in prompts]
    warn_if_cut(rows, model)
    texts = [prompt for prompt in prompts for _ in range(options.num_return_sequences)]
    if options.num_beams > 1:
        found = generate_ids(model, rows, options, past_key_values)
        end, _ = end_and_padding(model, options)
        starts = [row for row in rows for _ in range(options.num_return_sequences)]
        return [text + _written(tokenizer, row, tokens, options, end)
                for text, row, tokens in zip(texts, starts, found, strict=True)]
    for _, pieces, _ in _steps(model, tokenizer, repeat(rows, options), options, past_key_values):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    return texts


def stream_generate(model: Any, tokenizer: Any, prompt: str, past_key_values: Session | None = None,
                    **settings: Any) -> Iterator[Chunk]:
    """Continue a text and yield it as it is written.

    Args:
        model: A language model.
        tokenizer: Its tokenizer.
        prompt: The text; an empty one starts from the tokenizer's start token, end token or line end.
        past_key_values: A ``Session`` that keeps keys and values between calls, or ``None``.
        **settings: Fields of ``GenerationSettings``; one continuation, no beams.

    Returns:
        An iterator over chunks. Their texts together are the continuation; none ends within a character, and none
        holds a part of a stop text. The last one, maybe empty, has a ``finish_reason``.

    Raises:
        UserError: As for ``generate``, at once.
    """
    options = _options(tokenizer, model, settings)
    if options.num_beams > 1 or options.num_return_sequences > 1:
        raise UserError("several texts at once cannot be streamed: leave num_beams and num_return_sequences out, or "
                        "call generate")
    row = _encode(tokenizer, prompt)
    check_rows([row], model.config.vocab_size)
    return _chunks(model, tokenizer, row, options, past_key_values)


def _chunks(model: Any, tokenizer: Any, row: list[int], options: GenerationSettings,
            session: Session | None) -> Iterator[Chunk]:
    cut = max(len(row) - model.config.n_positions, 0)
    waiting: list[int] = []
    started, speed = 0.0, 0.0
    steps = _steps(model, tokenizer, [row], options, session)
    for count, (tokens, (piece,), (reason,)) in enumerate(steps, 1):
        waiting.append(int(tokens[0]))
        now = time.perf_counter()
        if count <= _UNTIMED:
            started = now
        else:
            speed = (count - _UNTIMED) / max(now - started, 1e-9)
        if piece or reason:
            yield Chunk(piece, tuple(waiting), speed, reason, cut)
            waiting = []


def _steps(model: Any, tokenizer: Any, rows: list[list[int]], options: GenerationSettings,
           session: Session | None) -> Iterator[tuple[np.ndarray, list[str], list[str | None]]]:
    """Yield for each step the tokens, the pieces of text, and why a row has ended, of all rows."""
    stream = TokenStream(model, rows, options, session)
    writers = [_Writer(tokenizer, row, options.stop) for row in rows]
    reasons: list[str | None] = [None] * len(rows)
    for step, tokens in enumerate(stream, 1):
        pieces = [""] * len(rows)
        for index, writer in enumerate(writers):
            if reasons[index]:
                continue
            is_end = tokens[index] == stream.eos_token_id
            if not is_end:
                pieces[index] = writer.push(int(tokens[index]))
            if is_end or writer.is_stopped:
                reasons[index] = "stop"
            elif step == options.max_new_tokens:
                reasons[index] = "length"
            if reasons[index]:
                pieces[index] += writer.finish()
                stream.finished[index] = True
        yield tokens, pieces, list(reasons)


def _written(tokenizer: Any, row: list[int], tokens: list[int], options: GenerationSettings, end: int) -> str:
    """Return the text of tokens that follow a row, up to a stop text."""
    writer = _Writer(tokenizer, row, options.stop)
    return "".join([*(writer.push(token) for token in tokens if token != end), writer.finish()])


def _options(tokenizer: Any, model: Any, values: dict[str, Any]) -> GenerationSettings:
    if not hasattr(model, "generate"):
        raise UserError(f"a {type(model).__name__} cannot write: give a language model, and then its tokenizer")
    settings = GenerationSettings.of(values)
    if settings.eos_token_id is None and model.config.eos_token_id is None:
        settings.eos_token_id = tokenizer.eos_token_id
    return settings


def _encode(tokenizer: Any, prompt: str) -> list[int]:
    if row := tokenizer.encode(prompt):
        return row
    start = tokenizer.start_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if start is None:
        raise UserError(f"prompt={prompt!r} holds no token, and the tokenizer has no bos_token, eos_token or line end "
                        "to start from: give a few words")
    return [start]
