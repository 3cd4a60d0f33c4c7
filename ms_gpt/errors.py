"""The one error type for what a user got wrong."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_MAX_MESSAGE = 2000
_MAX_MISTYPED = 100
_MOST_SUGGESTED = 4


class UserError(ValueError):
    """Input the user can mend: one line that names the thing, the value and the rule.

    The command line prints the message and exits with 2; in Python it is an ordinary ``ValueError``.

    Args:
        message: The line. Names that come out of files may hold anything, so control characters in it are made
            visible, and what is very long is cut in the middle.
    """

    def __init__(self, message: str) -> None:
        if len(message) > _MAX_MESSAGE:
            message = f"{message[:_MAX_MESSAGE * 3 // 4]}...{message[-_MAX_MESSAGE // 4:]}"
        line = " ".join(message.splitlines())
        super().__init__("".join(char if char.isprintable() else repr(char)[1:-1] for char in line))


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"``, or an empty string where nothing is close.

    Names that hold all words of ``name`` come first, as "num-train-epochs" holds "epochs"; else the closest spelling.

    Args:
        name: What was typed.
        known: The names that would have been accepted.

    Returns:
        A sentence that starts with a space, to be appended to an error message.
    """
    if len(str(name)) > _MAX_MISTYPED:
        return ""
    known, words = [str(item) for item in known], _words(str(name))
    holding = [item for item in known if words and words <= _words(item)]
    close = [item for item in holding if _words(item) == words] or holding
    if not 0 < len(close) <= _MOST_SUGGESTED:
        close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def _words(name: str) -> set[str]:
    return {word.removesuffix("s") or word for word in re.split(r"[-_ ]+", name.lower()) if word}
