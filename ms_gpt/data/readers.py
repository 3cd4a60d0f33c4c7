"""``load_dataset``: labelled text by name or path, as columns ``text`` and ``label``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ms_gpt.data import from_mindnlp
from ms_gpt.data.download import ARCHIVES, Progress, fetch
from ms_gpt.data.formats import read_table, read_text, separator_hint, table_stem
from ms_gpt.data.labels import encode_labels
from ms_gpt.data.sample import LABEL_NAMES, make_sample
from ms_gpt.data.table import Dataset, DatasetDict
from ms_gpt.errors import UserError, suggest

NAMES = ("sample", *ARCHIVES)
TEXT_COLUMNS = ("text", "sentence", "review", "content")
LABEL_COLUMNS = ("label", "labels", "sentiment", "target")
PART_PREFIXES = {"train": "train", "valid": "validation", "val": "validation", "dev": "validation", "test": "test"}
SAVED_DATASETS = ("dataset_dict.json", "dataset_info.json", "state.json")


def load_dataset(
    name_or_path: str | Path,
    text_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> DatasetDict:
    """Load labelled text.

    Args:
        name_or_path: ``"sample"`` (built in), ``"imdb"`` or ``"sst2"`` (from the cache, else downloaded); or the path
            of a .csv, .tsv, .json or .jsonl file (also .gz, .xz), of a folder with such files named ``train*``,
            ``valid*`` or ``dev*``, and ``test*``, of IMDB's own folder ``aclImdb``, or of a folder saved by Hugging
            Face's ``datasets``; or, where that library is installed, a name on its hub; or ``"mindnlp:NAME"``, what
            MindNLP's loader reads under that name.
        text_column: The column with the texts; else ``text``, ``sentence``, ``review`` or ``content``.
        label_column: The column with the labels; else ``label``, ``labels``, ``sentiment`` or ``target``.
        seed: Seed of the built-in sample.
        progress: Called with the bytes so far and the bytes in all (None if unknown) while downloading.

    Returns:
        Those of ``train``, ``validation`` and ``test`` that exist, with the columns ``text`` and ``label`` (ints,
        floats or lists of floats). A single file is ``train`` unless its name starts with another part's.

    Raises:
        UserError: If nothing is there by that name, or it cannot be understood; one line says why.
    """
    name = str(name_or_path)
    parts = make_sample(seed) if name == "sample" else _read_parts(name, text_column, label_column, progress)
    return DatasetDict(parts)


def _read_parts(name: str, text_column: str | None, label_column: str | None,
                progress: Progress | None) -> dict[str, Dataset]:
    if name.startswith(from_mindnlp.PREFIX):
        return _from_mindnlp(name, text_column, label_column)
    path = fetch(name, progress) if name in ARCHIVES else Path(name).expanduser()
    if path.is_file():
        parts = {_part_of(table_stem(path) or "") or "train": read_table(path)}
        return _labelled(parts, str(path), text_column, label_column)
    if not path.is_dir():
        return _from_hub(name, text_column, label_column)
    if any((path / marker).is_file() for marker in SAVED_DATASETS):
        return _from_saved(path, text_column, label_column)
    if any((path / part / label).is_dir() for part in ("train", "test") for label in ("pos", "neg")):
        return _read_acl_imdb(path)
    label_names = LABEL_NAMES if name == "sst2" else None
    return _labelled(_read_folder(path), str(path), text_column, label_column, label_names)


def read_texts(path: Path, text_column: str | None = None) -> list[str]:
    """Read texts without labels.

    Args:
        path: A table, as for ``load_dataset``; or any other text file, with one text a line. Empty lines are left out.
        text_column: The table's column; by default one of the usual names.

    Returns:
        The texts, in order.

    Raises:
        UserError: If the file cannot be read, or the table has no such column.
    """
    if table_stem(path) is None:
        return [line for line in read_text(path).splitlines() if line.strip()]
    columns = read_table(path)
    return [str(text) for text in columns[pick_column(columns, text_column, TEXT_COLUMNS, "text", str(path))]]


def _part_of(stem: str) -> str | None:
    return next((part for prefix, part in PART_PREFIXES.items() if stem.startswith(prefix)), None)


def _read_folder(folder: Path) -> dict[str, dict[str, list]]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        part = _part_of(table_stem(path) or "") if path.is_file() else None
        if part is None:
            continue
        if part in files:
            raise UserError(f"{folder} holds two files for {part!r}, {files[part].name} and {path.name}: keep one")
        files[part] = path
    if not files:
        raise UserError(
            f"{folder} holds no data: files named train*, valid* or dev*, test* with .csv, .tsv, .json or .jsonl (also "
            ".gz, .xz) are read, or the folders train/pos, train/neg, test/pos and test/neg"
        )
    return {part: read_table(files[part]) for part in ("train", "validation", "test") if part in files}


def _read_acl_imdb(folder: Path) -> dict[str, Dataset]:
    parts = {}
    for part in ("train", "test"):
        if not (folder / part).is_dir():
            continue
        columns: dict[str, list] = {"text": [], "label": []}
        for label, name in enumerate(("neg", "pos")):
            files = sorted((folder / part / name).glob("*.txt"))
            if not files:
                raise UserError(f"{folder / part / name} holds no .txt files: the folder is not a whole aclImdb")
            columns["text"] += [read_text(path) for path in files]
            columns["label"] += [label] * len(files)
        parts[part] = Dataset(columns, LABEL_NAMES)
    return parts


def _from_mindnlp(name: str, text_column: str | None, label_column: str | None) -> dict[str, Dataset]:
    short = name.removeprefix(from_mindnlp.PREFIX)
    parts: dict[str, dict[str, list]] = {}
    for key, columns in from_mindnlp.read(short).items():
        part = _part_of(key.lower())
        if part is not None and part not in parts:
            parts[part] = columns
    if not parts:
        raise UserError(f"{name} has no part named train, validation or test")
    # MindNLP hands over the numbers of the labels, not their names.
    return _labelled(parts, name, text_column, label_column, LABEL_NAMES if short in ARCHIVES else None)


def _from_saved(folder: Path, text_column: str | None, label_column: str | None) -> dict[str, Dataset]:
    if importlib.util.find_spec("datasets") is None:
        raise UserError(f"{folder} was saved by Hugging Face's datasets: pip install datasets to read it")
    import datasets

    return _from_hugging_face(lambda: datasets.load_from_disk(str(folder)), str(folder), text_column, label_column)


def _from_hub(name: str, text_column: str | None, label_column: str | None) -> dict[str, Dataset]:
    looks_like_path = name.startswith((".", "/", "~")) or table_stem(Path(name)) is not None
    if looks_like_path or importlib.util.find_spec("datasets") is None:
        hint = "" if looks_like_path else "; names of Hugging Face's hub need: pip install datasets"
        raise UserError(
            f"no data set {name!r}: it is no file or folder here, and the known names are {', '.join(NAMES)}{hint}."
            f"{suggest(name, NAMES)}"
        )
    import datasets

    return _from_hugging_face(lambda: datasets.load_dataset(name), name, text_column, label_column)


def _from_hugging_face(
    load: Callable[[], Any], name: str, text_column: str | None, label_column: str | None
) -> dict[str, Dataset]:
    try:
        loaded = load()
    # The library raises its own, pyarrow's and the network's errors: all mean that the name or folder is no use.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"datasets cannot load {name!r}: {reason.rstrip('.')}.{suggest(name, NAMES)}") from None
    found = loaded if isinstance(loaded, Mapping) else {"train": loaded}
    parts, label_names = {}, None
    for key, rows in found.items():
        part = _part_of(key.lower())
        if part is None or part in parts:
            continue
        text = pick_column(rows.column_names, text_column, TEXT_COLUMNS, "text", name)
        label = pick_column(rows.column_names, label_column, LABEL_COLUMNS, "label", name)
        columns = {text: list(rows[text]), label: list(rows[label])}
        # The hub marks the hidden labels of a test part with -1.
        if all(value == -1 for value in columns[label]):
            continue
        parts[part] = columns
        label_names = getattr(rows.features[label], "names", None)
    if not parts:
        raise UserError(f"{name} has the parts {', '.join(found)}: none is a labelled train, validation or test part")
    return _labelled(parts, name, text_column, label_column, label_names)


def _labelled(
    parts: Mapping[str, dict[str, list]],
    source: str,
    text_column: str | None,
    label_column: str | None,
    label_names: list[str] | None = None,
) -> dict[str, Dataset]:
    """Pick the two columns of each part; label names are shared, so a number means the same in all parts."""
    texts, labels = {}, {}
    for part, columns in parts.items():
        where = f"{source} ({part})"
        texts[part] = columns[pick_column(columns, text_column, TEXT_COLUMNS, "text", where)]
        labels[part] = columns[pick_column(columns, label_column, LABEL_COLUMNS, "label", where)]
        for row, text in enumerate(texts[part]):
            if not isinstance(text, str):
                raise UserError(f"{where}: the text of row {row} is {text!r}: every row needs a text")
        bare = [row for row, label in enumerate(labels[part]) if label is None or label == ""]
        if bare:
            raise UserError(f"{where}: {len(bare)} of {len(labels[part])} rows have no label, the first is row "
                            f"{bare[0]}, counted from 0: fill them in, or leave those rows out")
    try:
        encoded, names = encode_labels([label for part in parts for label in labels[part]], label_names)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    rest = iter(encoded)
    return {
        part: Dataset({"text": texts[part], "label": [next(rest) for _ in labels[part]]}, names) for part in parts
    }


def pick_column(columns: Iterable[str], wanted: str | None, usual: tuple[str, ...], kind: str, source: str) -> str:
    """Choose a column of a table.

    Args:
        columns: The names there are.
        wanted: The one asked for, or ``None``.
        usual: Names to look for otherwise, in any case, the first that is there.
        kind: What it holds, for messages.
        source: What to call the table in an error.

    Returns:
        Its name.

    Raises:
        UserError: There is no such column.
    """
    columns = list(columns)
    found = ", ".join(columns)
    if wanted is not None:
        if wanted not in columns:
            raise UserError(f"{source} has no column {wanted!r}: its columns are {found}.{suggest(wanted, columns)}"
                            f"{separator_hint(columns, source)}")
        return wanted
    by_lower_case = {name.lower(): name for name in reversed(columns)}
    for name in usual:
        if name in by_lower_case:
            return by_lower_case[name]
    raise UserError(
        f"{source} has no {kind} column: its columns are {found}; name one with --{kind}-column, in Python "
        f"{kind}_column (usual names: {', '.join(usual)}).{separator_hint(columns, source)}".removesuffix(".")
    )
