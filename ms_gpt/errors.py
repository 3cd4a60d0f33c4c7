"""The one error type for what a user got wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Input the user can mend: one line that names the thing, the value and the rule.

    The command line prints the message and exits with 2; in Python it is an ordinary ``ValueError``.
    """


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name closest to ``name``, or an empty string.

    Args:
        name: What was typed.
        known: The names that would have been accepted.

    Returns:
        A sentence that starts with a space, to be appended to an error message.
    """
    close = difflib.get_close_matches(str(name), [str(item) for item in known], n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
