"""Tables in files: .csv, .tsv, .json and .jsonl, each also compressed with gzip (.gz) or xz (.xz)."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterable
from pathlib import Path

from ms_gpt.errors import UserError

EXTENSIONS = (".csv", ".tsv", ".json", ".jsonl")
COMPRESSIONS = (".gz", ".xz")


def table_stem(path: Path) -> str | None:
    """Return a table's file name without its extensions, or None if it is no table: ``train.csv.gz`` -> ``train``."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    stem, dot, extension = name.rpartition(".")
    return stem if dot + extension in EXTENSIONS else None


def read_text(path: Path) -> str:
    """Read a UTF-8 file, unpacking it by its extension; a byte-order mark is dropped.

    Args:
        path: A file; ``.gz`` and ``.xz`` are unpacked.

    Returns:
        The text, with its line ends as they are.

    Raises:
        UserError: If the file cannot be read, is not UTF-8 text, is damaged, or is empty.
    """
    unpack = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(path.suffix.lower(), bytes)
    try:
        text = unpack(path.read_bytes()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is not a whole {path.suffix} file: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if "\0" in text:
        raise UserError(f"{path} is not UTF-8 text (it holds zero bytes): save it as UTF-8")
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
    if table_stem(path) is None:
        known = ", ".join(EXTENSIONS)
        raise UserError(f"{path} has no known extension: tables are {known}, each also with .gz or .xz")
    text = read_text(path)
    name = path.name.lower().removesuffix(".gz").removesuffix(".xz")
    if name.endswith(".csv"):
        columns = _columns_of_rows(_csv_rows(text, path), path)
    elif name.endswith(".tsv"):
        columns = _columns_of_rows(_tsv_rows(text), path)
    elif name.endswith(".jsonl"):
        columns = _columns_of_objects(_json_lines(text, path), path)
    else:
        columns = _json_columns(text, path)
    if not any(columns.values()):
        raise UserError(f"{path} has column names but no rows: it needs at least one")
    return columns


def _csv_rows(text: str, path: Path) -> Iterable[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: bad CSV ({error})") from None


def _tsv_rows(text: str) -> Iterable[tuple[int, list[str]]]:
    """Split lines at tabs; a quote is an ordinary character, unless it encloses a field as spreadsheets write it."""
    for number, line in enumerate(_lines(text), start=1):
        yield number, [_unquote(field) for field in line.split("\t")] if line else []


def _unquote(field: str) -> str:
    if len(field) < 2 or field[0] != '"' or field[-1] != '"' or '"' in field[1:-1].replace('""', ""):
        return field
    return field[1:-1].replace('""', '"')


def _lines(text: str) -> list[str]:
    # str.splitlines would also cut at the separators that Unicode allows within a line.
    return [line.removesuffix("\r") for line in text.split("\n")]


def _columns_of_rows(rows: Iterable[tuple[int, list[str]]], path: Path) -> dict[str, list]:
    filled = ((number, row) for number, row in rows if row)
    _, header = next(filled)
    names = [name.strip() for name in header]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: the header names a column twice ({', '.join(names)}): rename one")
    columns: dict[str, list] = {name: [] for name in names}
    for number, row in filled:
        if len(row) != len(names):
            raise UserError(
                f"{path}, line {number}: {len(row)} fields where the header names {len(names)} columns "
                f"({', '.join(names)}): quote a field that holds the separator"
            )
        for name, value in zip(names, row, strict=True):
            columns[name].append(value)
    return columns


def _json_lines(text: str, path: Path) -> Iterable[tuple[str, object]]:
    for number, line in enumerate(_lines(text), start=1):
        if line.strip():
            yield f"line {number}", _parse_json(line, path, number)


def _parse_json(text: str, path: Path, line: int = 0) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {line or error.lineno}: bad JSON ({error.msg}, column {error.colno})") from None
    except RecursionError:
        raise UserError(f"{path}, line {line or 1}: bad JSON (nested too deeply)") from None


def _json_columns(text: str, path: Path) -> dict[str, list]:
    value = _parse_json(text, path)
    if isinstance(value, list):
        return _columns_of_objects(((f"row {index}", row) for index, row in enumerate(value)), path)
    if not isinstance(value, dict) or not all(isinstance(column, list) for column in value.values()):
        raise UserError(f"{path} holds neither a list of objects nor an object of lists: give one of these, or .jsonl")
    lengths = {name: len(column) for name, column in value.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{path}: columns differ in length ({lengths}): every column needs one value a row")
    return value


def _columns_of_objects(rows: Iterable[tuple[str, object]], path: Path) -> dict[str, list]:
    columns: dict[str, list] = {}
    for count, (place, row) in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{path}, {place}: a {type(row).__name__} where an object with column names is needed")
        for name in row:
            columns.setdefault(name, [None] * count)
        for name, values in columns.items():
            values.append(row.get(name))
    return columns
