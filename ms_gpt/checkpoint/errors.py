"""The error of this room: a checkpoint file or folder that cannot be used."""

from __future__ import annotations

import stat
from pathlib import Path

from ms_gpt.errors import UserError, suggest


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or not what it was taken for; one line."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return an exception's message on one line of at most ``limit`` characters."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def check_is_file(path: Path) -> int:
    """Refuse what is no plain file: to read a pipe or a device may never end.

    Args:
        path: What is to be read.

    Returns:
        Its size in bytes.

    Raises:
        CheckpointError: It is missing, or is something else.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from None
    if not stat.S_ISREG(found.st_mode):
        what = "folder" if stat.S_ISDIR(found.st_mode) else "pipe, a device or the like"
        raise CheckpointError(f"{path} is a {what}: a file was expected")
    return found.st_size


def nearby(path: Path) -> str:
    """Return a suggestion, as ``errors.suggest`` does, of what stands where ``path`` does not exist."""
    try:
        return suggest(path.name, sorted(item.name for item in path.parent.iterdir() if item.name != path.name))
    except (OSError, ValueError):
        return ""


def some(names: list[str], shown: int = 4) -> str:
    """Return the first few names, separated by commas, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
