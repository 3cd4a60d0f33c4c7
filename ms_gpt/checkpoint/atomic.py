"""Files written beside their place and renamed into it, so that an interruption leaves the old file whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ms_gpt.checkpoint.errors import one_line
from ms_gpt.errors import UserError


@contextlib.contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the folder of ``path`` and rename it to ``path`` if the block succeeds.

    A file that takes the place of another is flushed to the disk first. If the block raises, the temporary file is
    removed and ``path`` stays as it was. The folder is made if it is missing, and goes away again with a failure.

    Args:
        path: Where the finished file will stand.

    Yields:
        A path that does not exist yet, with the suffix of ``path``.

    Raises:
        UserError: The operating system refuses (no permission, disk full, a file where a folder should be); the
            message names the path and the reason.
    """
    path = Path(path)
    with _replacing([path]) as (temporary,), explain_os_errors(path):
        yield temporary


def replace_files(folder: str | Path, writers: Mapping[str, Callable[[Path], object]],
                  check: Callable[[], object] | None = None) -> None:
    """Write several files of one folder; none is renamed into place before all are on the disk.

    Args:
        folder: The folder; it is made if it is missing.
        writers: File name to a function that writes the file at the path it is given.
        check: Called when all are written; if it raises, nothing is replaced.

    Raises:
        UserError: A file cannot be written; then all the old ones are whole.
    """
    paths = [Path(folder) / name for name in writers]
    with _replacing(paths) as temporaries:
        for path, temporary, write in zip(paths, temporaries, writers.values(), strict=True):
            with explain_os_errors(path):
                write(temporary)
        if check is not None:
            check()


@contextlib.contextmanager
def _replacing(paths: Sequence[Path]) -> Iterator[list[Path]]:
    folder = paths[0].parent
    # Not mkstemp: its files can be read by their owner only, and the finished files would stay so.
    temporaries = [path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}") for path in paths]
    is_new_folder = not folder.exists()
    try:
        make_folder(folder)
        yield temporaries
        # What is lost with the power is at worst files that were not there before.
        is_replacing = any(path.exists() for path in paths)
        for path, temporary in zip(paths, temporaries, strict=True):
            with explain_os_errors(path):
                if path.is_dir() and not path.is_symlink():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                if is_replacing:
                    _flush(temporary)
        # From here on nothing takes long: an interruption hardly finds new files beside old ones.
        for path, temporary in zip(paths, temporaries, strict=True):
            with explain_os_errors(path):
                os.replace(temporary, path)
        if is_replacing:
            with explain_os_errors(folder):
                _flush(folder)
    except BaseException:
        for temporary in temporaries:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if is_new_folder:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def make_folder(path: str | Path) -> Path:
    """Make a folder and its parents.

    Args:
        path: The folder; it may exist.

    Returns:
        The folder.

    Raises:
        UserError: The path is a file, or the folder cannot be made.
    """
    path = Path(path)
    with explain_os_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            at_fault = next(part for part in (path, *path.parents) if part.exists() or part.is_symlink())
            raise UserError(f"{at_fault} is a file where a folder is needed: choose another path") from None
    return path


@contextlib.contextmanager
def explain_os_errors(path: str | Path, action: str = "written") -> Iterator[None]:
    """Turn an ``OSError`` inside the block into a one-line ``UserError`` that names ``path``.

    Args:
        path: The file or folder that is worked on.
        action: Past participle for the message, such as ``"written"``.

    Raises:
        UserError: ``"PATH cannot be ACTION: REASON"``.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be {action}: {one_line(error)}") from error


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write bytes to a file, all or nothing.

    Args:
        path: The file.
        data: Its whole content.

    Raises:
        UserError: The file cannot be written.
    """
    with replace_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a text to a file as UTF-8, all or nothing.

    Args:
        path: The file.
        text: Its whole content.

    Raises:
        UserError: The file cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write a value to a file as indented JSON with sorted keys, all or nothing.

    Args:
        path: The file.
        value: Anything that ``json.dumps`` takes.

    Raises:
        UserError: The file cannot be written.
    """
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return a value as indented UTF-8 JSON with sorted keys, ending in a newline."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
