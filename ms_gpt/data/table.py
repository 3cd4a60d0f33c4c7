"""A small table of columns: what every reader returns and every pipeline takes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ms_gpt.errors import UserError, suggest


class Dataset:
    """Columns of equal length, with the part of Hugging Face's ``Dataset`` interface that training needs.

    Args:
        columns: Column name to its values; all lists have one length.
        label_names: Name of each integer label, in order, or None where labels have no names.

    Raises:
        UserError: If the columns differ in length.
    """

    def __init__(self, columns: dict[str, list], label_names: list[str] | None = None) -> None:
        self._columns = {name: list(values) for name, values in columns.items()}
        lengths = {name: len(values) for name, values in self._columns.items()}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise UserError(f"columns differ in length ({found}): every column needs one value a row")
        self.label_names = list(label_names) if label_names is not None else None

    @property
    def column_names(self) -> list[str]:
        """Names of the columns, in order."""
        return list(self._columns)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self._columns.values()), []))

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.num_rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Iterate over the rows as dicts."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, key: str | int | slice | Iterable[int]) -> Any:
        """Look up a column, a row or several rows.

        Args:
            key: A column name (gives a list), a row number (gives a dict of values), or a slice or row numbers
                (gives a dict of lists).

        Returns:
            The column, the row or the rows.

        Raises:
            UserError: If there is no such column.
            IndexError: If there is no such row.
        """
        if isinstance(key, str):
            return self._column(key)
        if isinstance(key, slice):
            return {name: values[key] for name, values in self._columns.items()}
        if isinstance(key, Iterable):
            rows = list(key)
            return {name: [values[row] for row in rows] for name, values in self._columns.items()}
        if not -len(self) <= key < len(self):
            raise IndexError(f"row {key} is outside a data set of {len(self)} rows")
        return {name: values[key] for name, values in self._columns.items()}

    def __repr__(self) -> str:
        """Describe the table in one line."""
        return f"Dataset(columns={self.column_names}, num_rows={self.num_rows}, label_names={self.label_names})"

    def _column(self, name: str) -> list:
        if name not in self._columns:
            known = ", ".join(self._columns)
            raise UserError(f"no column {name!r}: the columns are {known}.{suggest(name, self._columns)}")
        return self._columns[name]

    def select(self, indices: Iterable[int]) -> Dataset:
        """Choose rows.

        Args:
            indices: Row numbers in [0, num_rows); repeats are kept.

        Returns:
            A new data set of those rows, in that order.
        """
        return Dataset(self[list(indices)], self.label_names)

    def shuffle(self, seed: int) -> Dataset:
        """Return the rows in an order that depends on ``seed`` and the number of rows only."""
        order = list(range(len(self)))
        random.Random(seed).shuffle(order)
        return self.select(order)

    def map(self, fn: Callable[[dict], dict], batched: bool = False, batch_size: int = 1000) -> Dataset:
        """Add to, or replace, columns by a function of the rows.

        Args:
            fn: Takes a row (dict of values), or dict of lists if ``batched``; returns the columns to set.
            batched: Hand over ``batch_size`` rows at a time.
            batch_size: Rows a call, at least 1.

        Returns:
            A new data set. In batched form ``fn`` may return another number of rows than it got, provided that it
            returns every column.
        """
        size = batch_size if batched else 1
        made: dict[str, list] = {}
        for start in range(0, len(self), size):
            if batched:
                result = fn(self[start : start + size])
            else:
                result = {name: [value] for name, value in fn(self[start]).items()}
            for name, values in result.items():
                made.setdefault(name, []).extend(values)
        kept = {name: values for name, values in self._columns.items() if name not in made}
        return Dataset({name: made.get(name, kept.get(name)) for name in [*self._columns, *made]}, self.label_names)

    def rename_column(self, old: str, new: str) -> Dataset:
        """Rename a column.

        Args:
            old: Its name now.
            new: Its new name.

        Returns:
            A new data set.

        Raises:
            UserError: If there is no column ``old``, or a column ``new`` exists already.
        """
        self._column(old)
        if new != old and new in self._columns:
            raise UserError(f"cannot rename column {old!r} to {new!r}: a column of that name exists; remove it first")
        columns = {new if name == old else name: values for name, values in self._columns.items()}
        return Dataset(columns, self.label_names)

    def remove_columns(self, names: str | Iterable[str]) -> Dataset:
        """Leave columns out.

        Args:
            names: The column that goes, or several.

        Returns:
            A new data set without them.

        Raises:
            UserError: If a named column does not exist.
        """
        gone = {names} if isinstance(names, str) else set(names)
        for name in gone:
            self._column(name)
        return Dataset({name: self._columns[name] for name in self._columns if name not in gone}, self.label_names)


class DatasetDict(dict):
    """The parts of a data set by name: ``"train"``, ``"validation"``, ``"test"``."""

    def map(self, fn: Callable[[dict], dict], batched: bool = False, batch_size: int = 1000) -> DatasetDict:
        """Apply ``Dataset.map`` to every part.

        Args:
            fn: What turns a row (or a batch of rows) into new columns.
            batched: Whether ``fn`` takes batches.
            batch_size: Rows in a batch.

        Returns:
            The parts with the new columns.
        """
        return DatasetDict({name: part.map(fn, batched, batch_size) for name, part in self.items()})
