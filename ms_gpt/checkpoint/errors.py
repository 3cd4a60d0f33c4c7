"""The error of this room: a checkpoint file or folder that cannot be used."""

from __future__ import annotations

from ms_gpt.errors import UserError


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or not what it was taken for; one line."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return an exception's message on one line of at most ``limit`` characters."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def some(names: list[str], shown: int = 4) -> str:
    """Return the first few names, separated by commas, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
