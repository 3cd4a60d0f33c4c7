"""GPT-1's task-specific input forms: every task becomes token sequences that end in the extract token.

Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", section 3.3 and figure 1.

All functions take token ids without special tokens, as ``Tokenizer.encode`` gives them. ``truncation`` names what is
kept of a text that is too long: ``"head"`` its beginning, ``"tail"`` its end, ``"head_tail"`` a quarter from the
beginning and three from the end, where a review usually has its verdict. The special tokens are always kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ms_gpt.errors import UserError, suggest

TRUNCATIONS = ("head", "tail", "head_tail")


class MultipleChoice(NamedTuple):
    """One question with its candidate answers, ready for a double-heads model.

    Attributes:
        input_ids: Token ids of shape (choices, T), padded on the right.
        attention_mask: 1 for tokens, 0 for padding, of the same shape.
        mc_token_ids: Position of the extract token in each choice, of shape (choices,).
        truncated: Whether anything was cut.
    """

    input_ids: list[list[int]]
    attention_mask: list[list[int]]
    mc_token_ids: list[int]
    truncated: bool


def truncate(ids: Sequence[int], length: int, truncation: str = "head_tail") -> tuple[list[int], bool]:
    """Cut a sequence to at most ``length`` tokens.

    Args:
        ids: Token ids.
        length: Most tokens to keep, at least 0.
        truncation: What to keep: ``"head"``, ``"tail"`` or ``"head_tail"``.

    Returns:
        The tokens kept, and whether any were cut.

    Raises:
        UserError: If the rule is unknown.
    """
    if truncation not in TRUNCATIONS:
        known = ", ".join(TRUNCATIONS)
        raise UserError(f"truncation={truncation!r} is not one of {known}.{suggest(truncation, TRUNCATIONS)}")
    ids = list(ids)
    if len(ids) <= length:
        return ids, False
    tail = {"head": 0, "tail": length, "head_tail": length - length // 4}[truncation]
    return ids[: length - tail] + ids[len(ids) - tail :], True


def classification(
    text: Sequence[int], tokenizer: Any, max_length: int, truncation: str = "head_tail"
) -> tuple[list[int], bool]:
    """Build ``<bos> text <extract>``; a token that the tokenizer does not have is left out.

    Args:
        text: Token ids of the text.
        tokenizer: Anything with ``bos_token_id`` and ``cls_token_id``.
        max_length: Most tokens in the result, special tokens included.
        truncation: What to keep of a longer text.

    Returns:
        The token ids, and whether the text was cut.

    Raises:
        UserError: If ``max_length`` leaves no room for text, or the rule is unknown.
    """
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    extract = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
    kept, truncated = truncate(text, _room(max_length, len(start) + len(extract), 1), truncation)
    return start + kept + extract, truncated


def entailment(
    premise: Sequence[int], hypothesis: Sequence[int], tokenizer: Any, max_length: int, truncation: str = "head_tail"
) -> tuple[list[int], bool]:
    """Build ``<bos> premise <delimiter> hypothesis <extract>``.

    Where both are too long each gets half of the room; a short one leaves the rest of its half to the other.

    Args:
        premise: Token ids of the first text.
        hypothesis: Token ids of the second text.
        tokenizer: Anything with ``bos_token_id``, ``sep_token_id`` (the delimiter) and ``cls_token_id``.
        max_length: Most tokens in the result, special tokens included.
        truncation: What to keep of a longer text.

    Returns:
        The token ids, and whether anything was cut.

    Raises:
        UserError: If the tokenizer lacks a special token, ``max_length`` leaves no room for both texts, or the rule
            is unknown.
    """
    start, delimiter, extract = _special_tokens(tokenizer)
    room = _room(max_length, 3, 2)
    fair = max(room // 2, room - len(hypothesis))
    first, cut_first = truncate(premise, min(len(premise), fair), truncation)
    second, cut_second = truncate(hypothesis, room - len(first), truncation)
    return [start, *first, delimiter, *second, extract], cut_first or cut_second


def similarity(
    first: Sequence[int], second: Sequence[int], tokenizer: Any, max_length: int, truncation: str = "head_tail"
) -> tuple[list[list[int]], bool]:
    """Build both orders of a pair, whose final states the model adds up.

    Args:
        first: Token ids of one text.
        second: Token ids of the other text.
        tokenizer: Anything with ``bos_token_id``, ``sep_token_id`` and ``cls_token_id``.
        max_length: Most tokens in each order, special tokens included.
        truncation: What to keep of a longer text.

    Returns:
        ``first <delimiter> second`` and ``second <delimiter> first``, each wrapped as in :func:`entailment`, and
        whether anything was cut.

    Raises:
        UserError: As in :func:`entailment`.
    """
    there, truncated = entailment(first, second, tokenizer, max_length, truncation)
    back, _ = entailment(second, first, tokenizer, max_length, truncation)
    return [there, back], truncated


def multiple_choice(
    context: Sequence[int],
    choices: Sequence[Sequence[int]],
    tokenizer: Any,
    max_length: int,
    truncation: str = "head_tail",
) -> MultipleChoice:
    """Build ``<bos> context <delimiter> answer <extract>`` for each answer.

    The context is cut before an answer is, because the answers are what tells the choices apart.

    Args:
        context: Token ids of the document and the question.
        choices: Token ids of each possible answer.
        tokenizer: Anything with ``bos_token_id``, ``sep_token_id``, ``cls_token_id`` and ``pad_token_id``; without a
            padding token the extract token pads.
        max_length: Most tokens in a choice, special tokens included.
        truncation: What to keep of a longer context or answer.

    Returns:
        Rows of one length, with the place of their extract tokens.

    Raises:
        UserError: If there is no choice, or as in :func:`entailment`.
    """
    if not choices:
        raise UserError("a multiple-choice example has no choices: give at least one answer")
    start, delimiter, extract = _special_tokens(tokenizer)
    room = _room(max_length, 3, 2)
    rows, truncated = [], False
    for choice in choices:
        answer, cut_answer = truncate(choice, room - min(len(context), 1), truncation)
        shown, cut_context = truncate(context, room - len(answer), truncation)
        rows.append([start, *shown, delimiter, *answer, extract])
        truncated = truncated or cut_answer or cut_context
    width = max(map(len, rows))
    pad = extract if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return MultipleChoice(
        input_ids=[row + [pad] * (width - len(row)) for row in rows],
        attention_mask=[[1] * len(row) + [0] * (width - len(row)) for row in rows],
        mc_token_ids=[len(row) - 1 for row in rows],
        truncated=truncated,
    )


def _special_tokens(tokenizer: Any) -> tuple[int, int, int]:
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "sep", "cls")}
    missing = [f"{name}_token" for name, value in ids.items() if value is None]
    if missing:
        raise UserError(
            f"the tokenizer has no {' and no '.join(missing)}: pairs of texts need a start, a delimiter and an extract "
            "token; add them with add_special_tokens"
        )
    return ids["bos"], ids["sep"], ids["cls"]


def _room(max_length: int, special: int, needed: int) -> int:
    if max_length < special + needed:
        raise UserError(
            f"max_length={max_length} leaves no room for text: {special} special tokens and at least {needed} of text "
            f"make {special + needed}"
        )
    return max_length - special
