"""Where a verb's texts come from: the command line, a file, standard input, or an address that they are loaded from."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ms_gpt.console import Console
from ms_gpt.errors import UserError


def given_texts(words: Sequence[str], file: Path | None, text_column: str | None, name: str) -> Iterator[str] | None:
    """Return the texts that the user gave.

    Args:
        words: Texts on the command line; ``-`` alone stands for standard input, one text a line.
        file: A file of texts, or ``None``.
        text_column: Its column, or ``None`` to guess.
        name: What the texts are called in the plural, for messages.

    Returns:
        The texts; ``None`` if nothing was given and standard input is a terminal.

    Raises:
        UserError: Both are given, or the file cannot be read. Standard input is read, and refused, as it comes.
    """
    if words and file:
        raise UserError(f"give {name} or --file, not both")
    if file is not None:
        from ms_gpt.data.readers import read_texts

        return iter(read_texts(file, text_column))
    if list(words) == ["-"] or (not words and not sys.stdin.isatty()):
        return _lines()
    return iter(words) if words else None


def _lines() -> Iterator[str]:
    try:
        for line in sys.stdin:
            # Where the locale is C, Python lets through what is not UTF-8.
            line.encode()
            if line.strip():
                yield line.rstrip("\r\n")
    except UnicodeError:
        raise UserError("standard input is not UTF-8 text") from None


def downloading(console: Console, data: str) -> AbstractContextManager[Any]:
    """Open the bar of a download, for data that is downloaded.

    Args:
        console: Where it is drawn.
        data: What the user gave as ``--data``.

    Returns:
        A context manager that gives the function to report to, or ``None`` where there is nothing to download.
    """
    from ms_gpt.data.download import ARCHIVES, TEXT_ARCHIVES

    return console.download(data) if data in (*ARCHIVES, *TEXT_ARCHIVES) else nullcontext()
