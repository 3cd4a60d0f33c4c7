"""Texts turned into token ids once, in a file that is mapped into memory from then on."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from ms_gpt import __version__
from ms_gpt.checkpoint.atomic import explain_os_errors, replace_file
from ms_gpt.data.corpus import Documents
from ms_gpt.errors import UserError
from ms_gpt.runtime import cache_dir
from ms_gpt.tokenizer.base import BaseTokenizer, check_texts

# Changes with the form of the files; a new release makes its own, since it may tokenise otherwise.
_FORMAT = f"ms_gpt token ids 1, {__version__}"
_BATCH_CHARACTERS = 1 << 20
_KEY_BYTES = 16


def tokenize(
    documents: Iterable[str],
    tokenizer: BaseTokenizer,
    folder: str | Path | None = None,
    separator_id: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.memmap:
    """Turn documents into one stream of token ids, or take it from the cache.

    The cache is found by a hash of all texts, the tokenizer's files, the separator and the version of this library, so
    nothing that has changed is ever taken from it. A file of it holds the ids, uint16 where they fit and else uint32,
    and after them its own hash: where that is missing, the file is not whole and is made anew.

    Args:
        documents: ``Documents``, which are streamed, or texts, each a document.
        tokenizer: Any tokenizer.
        folder: Where the cache lies; by default ``tokens`` in the folder of downloads.
        separator_id: Token put after each document, or ``None``.
        progress: Called with the number of tokens so far, unless the cache has them.

    Returns:
        The ids, uint16 or uint32 (N,), mapped read-only.

    Raises:
        UserError: There is no token, a text cannot be encoded, the cache cannot be written (no permission, disk full),
            or the texts change while they are read.
    """
    folder = cache_dir() / "tokens" if folder is None else Path(folder).expanduser()
    if not isinstance(documents, Documents):
        texts = check_texts(documents)
        documents = Documents(lambda: ([text] for text in texts))
    begun = _hash_of_settings(tokenizer, separator_id)
    digest = begun.copy()
    for text, ends in documents.pieces():
        _add(digest, text, ends)
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
    path, key = folder / f"{digest.hexdigest()}.bin", digest.digest()
    ids = _open(path, dtype, key)
    if ids is None:
        rows = _encode(documents, tokenizer, separator_id, begun)
        _write(path, dtype, rows, key, begun, progress)
        ids = _open(path, dtype, key)
    return ids


def _hash_of_settings(tokenizer: BaseTokenizer, separator_id: int | None) -> hashlib.blake2b:
    digest = hashlib.blake2b(f"{_FORMAT}; {type(tokenizer).__name__}; {separator_id};".encode(), digest_size=_KEY_BYTES)
    # What is saved is all that a tokenizer is.
    with explain_os_errors("the folder of temporary files", "used"), tempfile.TemporaryDirectory() as saved:
        tokenizer.save_pretrained(saved)
        for file in sorted(Path(saved).iterdir()):
            content = file.read_bytes()
            digest.update(f"{file.name} {len(content)};".encode() + content)
    return digest


def _add(digest: hashlib.blake2b, text: str, ends: bool) -> None:
    # No text has the byte 255 in UTF-8, so it tells where documents end.
    digest.update(text.encode() + (b"\xff" if ends else b""))


def _open(path: Path, dtype: np.dtype, key: bytes) -> np.memmap | None:
    """Map a file of the cache, if it is there and whole."""
    if not path.is_file():
        return None
    with explain_os_errors(path, "read"):
        count, rest = divmod(path.stat().st_size - len(key), dtype.itemsize)
        with path.open("rb") as file:
            if count < 1 or rest or file.seek(-len(key), 2) < 0 or file.read() != key:
                return None
        return np.memmap(path, dtype, "r", shape=(count,))


def _encode(documents: Documents, tokenizer: BaseTokenizer, separator_id: int | None,
            digest: hashlib.blake2b) -> Iterator[list[list[int]]]:
    """Yield rows of ids, those of some texts at a time, and add what has been read to a hash."""
    end = [] if separator_id is None else [separator_id]
    batch: list[tuple[str, bool]] = []

    def encode() -> list[list[int]]:
        rows = tokenizer.encode_batch([text for text, _ in batch])
        return [row + end if ends else row for row, (_, ends) in zip(rows, batch, strict=True)]

    size = 0
    for text, ends in documents.pieces():
        _add(digest, text, ends)
        batch.append((text, ends))
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield encode()
            batch, size = [], 0
    yield encode()


def _write(path: Path, dtype: np.dtype, batches: Iterable[list[list[int]]], key: bytes, digest: hashlib.blake2b,
           progress: Callable[[int], None] | None) -> None:
    """Write a file of the cache beside its place, and rename it when it is whole."""
    count = 0
    try:
        with replace_file(path) as temporary, temporary.open("wb") as file:
            for rows in batches:
                for row in rows:
                    file.write(np.array(row, dtype).tobytes())
                    count += len(row)
                if progress is not None:
                    progress(count)
            if not count:
                raise UserError("the texts hold no token: there is nothing to learn from")
            if digest.digest() != key:
                raise UserError("the texts have changed while they were read: try again when they are finished")
            file.write(key)
    except UserError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise UserError(f"{error}: token ids are kept there; make room, or choose another --cache-dir") from None
