"""``load_text``: documents to learn a language from, in parts, read anew each time they are needed."""

from __future__ import annotations

import hashlib
import math
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np

from ms_gpt.checkpoint.atomic import explain_os_errors
from ms_gpt.data.download import TEXT_ARCHIVES, Progress, fetch
from ms_gpt.data.formats import iter_rows, iter_text, table_stem
from ms_gpt.data.readers import PART_PREFIXES, TEXT_COLUMNS, pick_column
from ms_gpt.data.sample import make_sample
from ms_gpt.data.splits import FRACTIONS
from ms_gpt.errors import UserError, suggest

NAMES = ("sample", *TEXT_ARCHIVES)
PARTS = tuple(FRACTIONS)
PIECE = 1 << 16

# Where a text can be cut and no tokenizer notices: before a single blank between words, which GPT-2 counts to the word
# after it, and after a single line end between two lines with text.
_SEAMS = re.compile(r"(?<=\w)(?= \w)|(?<=\S\n)(?=\S)")
_SEARCHED = 4096
_PART_NAME = re.compile(r"(?:wiki\.)?(train|valid|val|dev|test)(?:ing|ation)?(?![a-z])")
_NO_PART = len(PARTS)


class Documents:
    """Documents that are read anew in each pass, so that texts larger than memory can stream through.

    Iterating yields texts: each is a document, or a piece of a long one.

    Args:
        read: Begins a pass: yields documents, each as an iterable of the pieces of its text.
    """

    def __init__(self, read: Callable[[], Iterable[Iterable[str]]]) -> None:
        self.read = read

    def __iter__(self) -> Iterator[str]:
        """Iterate over the texts."""
        return (text for text, _ in self.pieces())

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """Yield texts of at most ``PIECE`` characters, and whether a document ends with them; empty ones are left out.

        They join to the documents exactly. Long documents are cut between words, or else at line ends, so that the
        tokens of the pieces are those of the whole; only a text with neither is cut anywhere.
        """
        for document in self.read():
            before = ""
            for piece in _cut(document):
                if before:
                    yield before, False
                before = piece
            if before:
                yield before, True


@dataclass
class TextCorpus:
    """Documents in their parts.

    Args:
        parts: ``train``, ``validation`` and maybe ``test``, in this order.
    """

    parts: dict[str, Documents]

    @property
    def train(self) -> Documents:
        """What the weights are learnt from."""
        return self.parts["train"]

    @property
    def validation(self) -> Documents:
        """What chooses the best step."""
        return self.parts["validation"]

    @property
    def test(self) -> Documents | None:
        """What is scored once, at the end; ``None`` where the data has no such part."""
        return self.parts.get("test")


def load_text(
    data: str | Path,
    eval_data: str | Path | None = None,
    test_data: str | Path | None = None,
    text_column: str | None = None,
    shares: Mapping[str, float] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TextCorpus:
    """Find texts, and cut off the parts that are missing.

    Data without parts is cut by ``shares``: several documents by seed, whole, identical ones into one part; a single
    one into contiguous parts, in the order train, validation, test and exact to the character. Data in parts that lacks
    a validation part gives its share of the training documents; a test part that it lacks stays missing.

    Args:
        data: As for ``read_parts``.
        eval_data: The validation texts, or ``None``. Of data in parts the validation part is taken, else all of it.
        test_data: The test texts, likewise.
        text_column: The column of tables that holds the texts; else ``text``, ``sentence``, ``review`` or ``content``.
        shares: Share of ``train``, ``validation`` and, if there is to be one, ``test``; they sum to 1. Default: 0.8,
            0.1, 0.1.
        seed: Seed of the split.
        progress: Called with the bytes so far and the bytes in all (None if unknown) while downloading.

    Returns:
        The parts. Nothing of them is kept in memory but, of several documents, which part each is in.

    Raises:
        UserError: There is no such data, it holds no text or too little for its parts, it is not UTF-8 text or a
            sound table, or the shares are wrong.
    """
    shares = _check_shares(FRACTIONS if shares is None else shares)
    parts = read_parts(data, text_column, progress)
    missing = {"validation"} if len(parts) > 1 else {"validation", "test"}
    for name, source in (("validation", eval_data), ("test", test_data)):
        if source is not None:
            found = read_parts(source, text_column, progress)
            parts[name] = found.get(name) or found["train"]
    wanted = {name: share for name, share in shares.items() if name in {"train", *missing - set(parts)}}
    if len(wanted) > 1:
        parts.update(_split(parts["train"], wanted, seed, str(data)))
    for name, documents in parts.items():
        if not any(map(str.strip, documents)):
            raise UserError(f"the {name} text of {data} is empty: there is nothing to learn from or to score")
    return TextCorpus({name: parts[name] for name in PARTS if name in parts})


def read_parts(data: str | Path, text_column: str | None = None,
               progress: Progress | None = None) -> dict[str, Documents]:
    """Find texts.

    Args:
        data: ``"sample"`` (built in), ``"wikitext2"`` or ``"shakespeare"`` (from the cache, else downloaded); or the
            path of a table (.jsonl, .csv, .tsv, .json), whose rows are documents, of any other file, which is a
            document, or of a folder with such files. Files and folders in it that are named ``train*``, ``valid*`` or
            ``dev*``, and ``test*`` (or ``wiki.train.tokens`` and so on) are the parts; else all files of the folder
            and of those within it are documents, hidden ones apart. Every file may be packed (.gz, .xz).
        text_column: As for ``load_text``.
        progress: As for ``load_text``.

    Returns:
        Those of ``train``, ``validation`` and ``test`` that the data has itself; ``train`` alone if it has no parts.

    Raises:
        UserError: There is no such data, or a folder holds no file.
    """
    name = str(data)
    if name == "sample":
        texts = {part: rows["text"] for part, rows in make_sample().items()}
        return {part: Documents(partial(map, _whole, texts[part])) for part in texts}
    path = fetch(name, progress) if name in TEXT_ARCHIVES else Path(name).expanduser()
    if os.path.isdir(path):
        files = _files_of_parts(path)
    elif os.path.exists(path):
        files = {"train": [path]}
    else:
        raise UserError(f"no text {name!r}: it is no file or folder here, and the known names are {', '.join(NAMES)}."
                        f"{suggest(name, NAMES)}")
    return {part: Documents(partial(_read_files, files[part], text_column)) for part in files}


def _check_shares(shares: Mapping[str, float]) -> dict[str, float]:
    if not set(PARTS[:2]) <= set(shares) <= set(PARTS):
        raise UserError(f"shares {dict(shares)} must name train, validation and, if there is to be one, test")
    kept = {name: shares[name] for name in PARTS if shares.get(name) or name != "test"}
    if min(kept.values()) <= 0 or not math.isclose(sum(kept.values()), 1, abs_tol=1e-6):
        raise UserError(f"shares {dict(shares)} must be positive and sum to 1; that of the test part may be 0")
    return kept


def _files_of_parts(folder: Path) -> dict[str, list[Path]]:
    with explain_os_errors(folder, "read"):
        parts: dict[str, list[Path]] = {}
        for entry in sorted(folder.iterdir()):
            name = _PART_NAME.match(entry.name.lower())
            files = _files(entry) if name else []
            if files:
                parts.setdefault(PART_PREFIXES[name[1]], []).extend(files)
        if "train" not in parts:
            parts = {"train": _files(folder)}
    if not parts["train"]:
        raise UserError(f"{folder} holds no file: put texts, or tables with a column of texts, into it")
    return parts


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(path.rglob("*"))
    return [file for file in found
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)]


def _read_files(files: Sequence[Path], text_column: str | None) -> Iterator[Iterable[str]]:
    for file in files:
        if table_stem(file) is None:
            yield iter_text(file)
        else:
            yield from map(_whole, _read_rows(file, text_column))


def _read_rows(path: Path, text_column: str | None) -> Iterator[str]:
    column = None
    for place, row in iter_rows(path):
        column = column or pick_column(row, text_column, TEXT_COLUMNS, "text", str(path))
        text = row.get(column)
        if not isinstance(text, str):
            raise UserError(f"{path}, {place}: the column {column!r} is {text!r:.40}: every row needs a text")
        try:
            text.encode()
        except UnicodeEncodeError:
            # JSON can write down what no file of text can hold.
            raise UserError(f"{path}, {place}: the text holds half of a surrogate pair: repair it") from None
        if text.strip():
            yield text


def _whole(text: str) -> tuple[str]:
    return (text,)


def _cut(texts: Iterable[str]) -> Iterator[str]:
    """Cut a document that comes in any pieces into pieces of at most ``PIECE`` characters."""
    rest = ""
    for text in texts:
        rest += text
        start = 0
        while len(rest) - start > PIECE:
            end = start + PIECE
            seams = [seam.start() for seam in _SEAMS.finditer(rest, max(end - _SEARCHED, start + 1), end)]
            end = seams[-1] if seams else rest.rfind("\n", start, end) + 1 or end
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _split(documents: Documents, shares: Mapping[str, float], seed: int, source: str) -> dict[str, Documents]:
    """Cut documents, or the only one there is, into parts whose shares are taken relative to each other."""
    keys, is_blank, characters = array("Q"), array("B"), 0
    for document in documents.read():
        # Equal documents have equal keys; the seed decides in which order keys stand.
        digest = hashlib.blake2b(digest_size=8, key=str(seed).encode())
        blank = True
        for text in document:
            digest.update(text.encode())
            characters += len(text)
            blank = blank and not text.strip()
        keys.append(int.from_bytes(digest.digest(), "little"))
        is_blank.append(blank)
    bounds = [round(bound / sum(shares.values()), 12) for bound in accumulate(shares.values())]
    kept = ~np.array(is_blank, bool)
    if kept.sum() == 1:
        return _split_text(documents, dict(zip(shares, bounds, strict=True)), characters, source)
    places, order = np.array(keys, np.uint64), np.unique(np.array(keys, np.uint64)[kept])
    if not len(order):
        raise UserError(f"{source} is empty: there is nothing to learn from")
    if len(order) < len(shares):
        raise UserError(f"{source} holds {len(order)} different documents, too few for the {len(shares)} parts "
                        f"{', '.join(shares)}: give more, join them to one file, or name the parts' own files")
    ends = [len(order)]
    for index in range(len(shares) - 2, -1, -1):
        ends.insert(0, min(max(round(bounds[index] * len(order)), index + 1), ends[0] - 1))
    owners = np.searchsorted(ends, np.searchsorted(order, places), side="right").astype(np.uint8)
    owners[~kept] = _NO_PART
    return {name: Documents(partial(_choose, documents, owners, index)) for index, name in enumerate(shares)}


def _choose(documents: Documents, owners: np.ndarray, owner: int) -> Iterator[Iterable[str]]:
    # A document that came after the split was made has no part.
    return (document for document, found in zip(documents.read(), owners, strict=False) if found == owner)


def _split_text(documents: Documents, bounds: Mapping[str, float], characters: int,
                source: str) -> dict[str, Documents]:
    parts, start = {}, 0
    for name, bound in bounds.items():
        end = int(characters * bound)
        if end == start:
            raise UserError(f"{source} has {characters} characters, too few for a part {name!r}: give more text")
        parts[name] = Documents(partial(_between, documents, start, end))
        start = end
    return parts


def _between(documents: Documents, start: int, end: int) -> Iterator[Iterable[str]]:
    """Yield one document: the characters from ``start`` to ``end``."""

    def texts() -> Iterator[str]:
        place = 0
        for document in documents.read():
            for text in document:
                yield text[max(start - place, 0) : max(end - place, 0)]
                place += len(text)
                if place >= end:
                    return

    yield texts()
