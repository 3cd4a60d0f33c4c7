"""Text in files, and tables: .csv, .tsv, .json and .jsonl; each also compressed with gzip (.gz) or xz (.xz)."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ms_gpt.errors import UserError

EXTENSIONS = (".csv", ".tsv", ".json", ".jsonl")
COMPRESSIONS = (".gz", ".xz")
CHUNK = 1 << 20

# str.splitlines would also cut at the separators that Unicode allows within a line.
_LINE_ENDS = re.compile(r"(?<=\n)")
# A carriage return at the end of what has been read may have its line feed still to come.
_CSV_LINE_ENDS = re.compile(r"(?<=\n)|(?<=\r)(?!\n|\Z)")


def table_stem(path: Path) -> str | None:
    """Return a table's file name without its extensions, or None if it is no table: ``train.csv.gz`` -> ``train``."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    stem, dot, extension = name.rpartition(".")
    return stem if dot + extension in EXTENSIONS else None


def separator_hint(columns: Sequence[str], source: str) -> str:
    """Return what may be wrong with a table that has one column and lacks the one that is looked for.

    Args:
        columns: Names of its columns.
        source: Its name, with the extension.

    Returns:
        A sentence that starts with a space, or an empty string.
    """
    if len(columns) != 1:
        return ""
    if "\t" in columns[0]:
        return " Is it separated by tabs? Then name it .tsv"
    if ";" in columns[0]:
        return " Is it separated by semicolons? Save it with commas, or with tabs as .tsv"
    return " Is it separated by commas? Then name it .csv" if "," in columns[0] and ".tsv" in source else ""


def iter_text(path: Path) -> Iterator[str]:
    """Read a UTF-8 file piece by piece, unpacking it by its extension; a byte-order mark is dropped.

    Args:
        path: A file; ``.gz`` and ``.xz`` are unpacked.

    Yields:
        The text in pieces, cut anywhere, with its line ends as they are.

    Raises:
        UserError: If the file cannot be read, is not UTF-8 text, or is damaged.
    """
    unpack: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix.lower(), open)
    decoder = codecs.getincrementaldecoder("utf-8")()
    start = waiting = 0
    try:
        with unpack(path, "rb") as file:
            data = None
            while data != b"":
                data = file.read(CHUNK)
                waiting = len(decoder.getstate()[0])
                text = decoder.decode(data, final=not data)
                if "\0" in text:
                    raise UserError(f"{path} is not UTF-8 text (it holds zero bytes): save it as UTF-8")
                yield text if start else text.removeprefix("\ufeff")
                start += len(data)
    except UnicodeDecodeError as error:
        byte = start - waiting + error.start
        raise UserError(f"{path} is not UTF-8 text (byte {byte}): save it as UTF-8") from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is not a whole {path.suffix} file: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def read_text(path: Path) -> str:
    """Read a UTF-8 file whole.

    Args:
        path: As for ``iter_text``.

    Returns:
        The text, with its line ends as they are.

    Raises:
        UserError: As for ``iter_text``, or if the file is empty.
    """
    text = "".join(iter_text(path))
    if not text.strip():
        raise UserError(f"{path} is empty: it needs at least one row")
    return text


def read_table(path: Path) -> dict[str, list]:
    """Read the columns of a table.

    Args:
        path: A .csv or .tsv file whose first line names the columns, a .jsonl file with one object a line, or a .json
            file with a list of objects or an object of lists; also with .gz or .xz.

    Returns:
        Column name to values. Values of .csv and .tsv are strings; None stands where a JSON object lacks a key.

    Raises:
        UserError: If the file is not such a table; the message has the file and, where there is one, the line.
    """
    columns: dict[str, list] = {}
    for count, (_, row) in enumerate(iter_rows(path)):
        for name in row:
            if name not in columns:
                columns[name] = [None] * count
        for name, values in columns.items():
            values.append(row.get(name))
    return columns


def iter_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read a table row by row; all but .json without holding more than a piece of the file.

    Args:
        path: As for ``read_table``.

    Yields:
        Where a row stands, such as ``line 2``, and its values by column name.

    Raises:
        UserError: As for ``read_table``, when the row is reached.
    """
    if table_stem(path) is None:
        known = ", ".join(EXTENSIONS)
        raise UserError(f"{path} has no known extension: tables are {known}, each also with .gz or .xz")
    name = path.name.lower().removesuffix(".gz").removesuffix(".xz")
    if name.endswith(".csv"):
        rows = _named_rows(_csv_rows(path), path)
    elif name.endswith(".tsv"):
        rows = _named_rows(_tsv_rows(path), path)
    else:
        rows = _json_lines(path) if name.endswith(".jsonl") else _json_rows(path)
    is_empty = True
    for place, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{path}, {place}: a {type(row).__name__} where an object with column names is needed")
        is_empty = False
        yield place, row
    if is_empty:
        raise UserError(f"{path} has no rows: it needs at least one")


def _lines(path: Path, ends: re.Pattern[str] = _LINE_ENDS) -> Iterator[str]:
    """Yield the lines of a file with their ends."""
    rest = ""
    for piece in iter_text(path):
        *lines, rest = ends.split(rest + piece)
        yield from lines
    if rest:
        yield rest


def _csv_rows(path: Path) -> Iterable[tuple[int, list[str]]]:
    reader = csv.reader(_lines(path, _CSV_LINE_ENDS), strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: bad CSV ({error})") from None


def _tsv_rows(path: Path) -> Iterable[tuple[int, list[str]]]:
    """Split lines at tabs; a quote is an ordinary character, unless it encloses a field as spreadsheets write it."""
    for number, ended in enumerate(_lines(path), start=1):
        line = ended.removesuffix("\n").removesuffix("\r")
        yield number, [_unquote(field) for field in line.split("\t")] if line else []


def _unquote(field: str) -> str:
    if len(field) < 2 or field[0] != '"' or field[-1] != '"' or '"' in field[1:-1].replace('""', ""):
        return field
    return field[1:-1].replace('""', '"')


def _named_rows(rows: Iterable[tuple[int, list[str]]], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    filled = ((number, row) for number, row in rows if row)
    header = next(filled, None)
    if header is None:
        raise UserError(f"{path} is empty: it needs at least one row")
    names = [name.strip() for name in header[1]]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: the header names a column twice ({', '.join(names)}): rename one")
    number = None
    for number, row in filled:
        if len(row) != len(names):
            raise UserError(
                f"{path}, line {number}: {len(row)} fields where the header names {len(names)} columns "
                f"({', '.join(names)}): quote a field that holds the separator.{separator_hint(names, str(path))}"
            )
        yield f"line {number}", dict(zip(names, row, strict=True))
    if number is None:
        raise UserError(f"{path} has column names but no rows: it needs at least one")


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            yield f"line {number}", _parse_json(line, path, number)


def _parse_json(text: str, path: Path, line: int = 0) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {line or error.lineno}: bad JSON ({error.msg}, column {error.colno})") from None
    except RecursionError:
        raise UserError(f"{path}, line {line or 1}: bad JSON (nested too deeply)") from None


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    value = _parse_json(read_text(path), path)
    if isinstance(value, dict) and all(isinstance(column, list) for column in value.values()):
        lengths = {name: len(column) for name, column in value.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"{path}: columns differ in length ({lengths}): every column needs one value a row")
        value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise UserError(f"{path} holds neither a list of objects nor an object of lists: give one of these, or .jsonl")
    for index, row in enumerate(value):
        yield f"row {index}", row
