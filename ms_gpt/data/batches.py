"""Batches of static shapes: examples of like length share a bucket, and every bucket compiles one graph."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ms_gpt.errors import UserError

IGNORE_INDEX = -100


def choose_buckets(lengths: Sequence[int], max_length: int, count: int = 3, multiple: int = 8) -> list[int]:
    """Choose a few padded lengths that fit the texts at hand.

    Args:
        lengths: Tokens in each example.
        max_length: The longest padded length allowed.
        count: How many lengths at most; each costs one compilation of the training graph.
        multiple: Lengths are rounded up to a multiple of this.

    Returns:
        Ascending lengths; the last holds the longest example. They cut the examples into parts of equal size.
    """
    cut = np.quantile(np.asarray(lengths), np.arange(1, count + 1) / count, method="higher")
    return sorted({min(int(-(-length // multiple) * multiple), max_length) for length in cut})


def checksum(*arrays: Any) -> str:
    """Return eight hexadecimal digits that change when a number in one of the arrays, or its dtype, does."""
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array), value)
    return f"{value:08x}"


class Batches:
    """Examples in an order that is a pure function of (seed, epoch), cut into padded batches.

    The last batch of a bucket is filled up with rows that do not count, so every example is seen exactly once in an
    epoch and shapes stay static.

    Args:
        sequences: Token ids of each example, none longer than the last bucket.
        labels: One label for each example: int (single-label), float (regression) or list of float (multi-label);
            or ``"tokens"``, where the sequence is its own label (language model).
        batch_size: Rows in a batch, at least 1.
        buckets: Ascending padded lengths.
        pad_id: Token that fills rows.
        shuffle: Mix the examples anew in each epoch; else keep their order as far as the buckets allow.
        seed: Seed of the order and of word dropout.
        word_dropout: Share of the tokens replaced by ``unk_id``, drawn anew in each epoch; the first and the last
            token of a sequence stay.
        unk_id: The token that stands for a dropped word.

    Raises:
        UserError: There is no example, or one is longer than the last bucket.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], labels: Sequence[Any] | str, batch_size: int,
                 buckets: Sequence[int], pad_id: int = 0, shuffle: bool = False, seed: int = 0,
                 word_dropout: float = 0.0, unk_id: int = 0) -> None:
        if not len(sequences):
            raise UserError("there is no example to make batches of: the data set is empty")
        self.lengths = np.array([len(sequence) for sequence in sequences])
        if self.lengths.max() > buckets[-1]:
            raise UserError(f"an example of {self.lengths.max()} tokens does not fit the longest bucket, {buckets[-1]}")
        self.sequences, self.labels = sequences, labels
        self.batch_size, self.buckets, self.pad_id = batch_size, list(buckets), pad_id
        self.shuffle, self.seed = shuffle, seed
        self.word_dropout, self.unk_id = word_dropout, unk_id
        self.bucket_of = np.searchsorted(self.buckets, self.lengths)
        counts = np.bincount(self.bucket_of, minlength=len(self.buckets))
        self.steps_per_epoch = int(sum(-(-count // batch_size) for count in counts))

    def __len__(self) -> int:
        return len(self.sequences)

    @cached_property
    def checksum(self) -> str:
        """Of the examples and their labels: a resumed run needs the very same."""
        ids = np.concatenate([np.asarray(sequence, np.int32) for sequence in self.sequences])
        labels = [] if isinstance(self.labels, str) else [np.ravel(label) for label in self.labels]
        return checksum(ids, self.lengths.astype(np.int64), np.concatenate([np.empty(0), *labels]).astype(np.float64))

    @property
    def columns(self) -> list[str]:
        """The names of the arrays in a batch, which are arguments of the models."""
        return ["input_ids", "labels"] if isinstance(self.labels, str) else ["input_ids", "attention_mask", "labels"]

    def plan(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """Deal the examples out to the batches of an epoch.

        Args:
            epoch: Its number, from 0.

        Returns:
            A pair (padded length, example indices) for each batch, in training order.
        """
        order = np.arange(len(self.sequences))
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        waiting: list[list[int]] = [[] for _ in self.buckets]
        batches = []
        for index in order:
            bucket = self.bucket_of[index]
            waiting[bucket].append(index)
            if len(waiting[bucket]) == self.batch_size:
                batches.append((self.buckets[bucket], np.array(waiting[bucket])))
                waiting[bucket] = []
        batches += [(self.buckets[i], np.array(rest)) for i, rest in enumerate(waiting) if rest]
        return batches

    def sequence(self, index: int, epoch: int) -> np.ndarray:
        """Return an example's token ids as that epoch sees them, int32 (length,)."""
        ids = np.asarray(self.sequences[index], np.int32)
        if self.word_dropout and len(ids) > 2:
            dropped = np.random.default_rng([self.seed, epoch, index]).random(len(ids) - 2) < self.word_dropout
            ids = np.concatenate([ids[:1], np.where(dropped, np.int32(self.unk_id), ids[1:-1]), ids[-1:]])
        return ids

    def collate(self, length: int, indices: np.ndarray, epoch: int = 0) -> tuple[np.ndarray, ...]:
        """Pad some examples to one batch.

        Args:
            length: The padded length, T.
            indices: Which examples, at most ``batch_size``.
            epoch: Its number, from 0.

        Returns:
            Arrays in the order of ``columns``: input_ids int32 (B, T), attention_mask int32 (B, T), and labels, int32
            (B,) or (B, T), or float32 (B,) or (B, C). Rows that do not count carry -100, or NaN where labels are float.
        """
        input_ids = np.full((self.batch_size, length), self.pad_id, np.int32)
        for row, index in enumerate(indices):
            input_ids[row, : self.lengths[index]] = self.sequence(int(index), epoch)
        real = np.zeros(self.batch_size, np.int64)
        real[: len(indices)] = self.lengths[indices]
        mask = (np.arange(length) < real[:, None]).astype(np.int32)
        if isinstance(self.labels, str):
            return input_ids, np.where(mask, input_ids, IGNORE_INDEX).astype(np.int32)
        known = np.array([self.labels[index] for index in indices])
        filler, dtype = (IGNORE_INDEX, np.int32) if known.dtype.kind in "iub" else (np.nan, np.float32)
        labels = np.full((self.batch_size, *known.shape[1:]), filler, dtype)
        labels[: len(indices)] = known
        return input_ids, mask, labels

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[tuple[np.ndarray, ...]]:
        """Make the batches of an epoch.

        Args:
            epoch: Its number, from 0.
            skip: Batches at its start to leave out, in a resumed run.

        Yields:
            The columns of each batch, as ``collate`` returns them.
        """
        for length, indices in self.plan(epoch)[skip:]:
            yield self.collate(length, indices, epoch)


class EpochSource:
    """Hands one epoch after another to ``mindspore.dataset``.

    Args:
        batches: Where the batches come from.
        first_epoch: Number of the epoch that the first pass is.
        skip: Batches to leave out at the start of each epoch. All passes of a pipeline must have one length, so the
            rest of an interrupted epoch is a pipeline of its own.
    """

    def __init__(self, batches: Batches, first_epoch: int = 0, skip: int = 0) -> None:
        self.batches = batches
        self.next_epoch, self.skip = first_epoch, skip

    def __len__(self) -> int:
        return self.batches.steps_per_epoch - self.skip

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        # The epoch counts when it has been read to its end: GeneratorDataset begins one pass more than it finishes.
        yield from self.batches.epoch(self.next_epoch, self.skip)
        self.next_epoch += 1


def to_mindspore(batches: Batches, first_epoch: int = 0, skip: int = 0) -> Any:
    """Return a ``mindspore.dataset`` pipeline over the batches.

    Args:
        batches: Where the batches come from.
        first_epoch: Number of the epoch that the first pass is.
        skip: Batches to leave out at the start of an epoch; see ``EpochSource``.

    Returns:
        A ``GeneratorDataset`` with the columns of ``batches``.
    """
    import mindspore.dataset as ds

    return ds.GeneratorDataset(EpochSource(batches, first_epoch, skip), batches.columns, shuffle=False,
                               num_parallel_workers=1, python_multiprocessing=False)


def pack_blocks(documents: Sequence[Sequence[int]], block_size: int, separator: int | None = None) -> list[list[int]]:
    """Join documents into one stream and cut it into blocks for language modelling.

    Args:
        documents: Token ids of each document.
        block_size: Tokens in a block; the last block may be shorter.
        separator: Token put after each document, or ``None``.

    Returns:
        The blocks. Blocks do not overlap, and every token is in exactly one.

    Raises:
        UserError: There is no token at all.
    """
    end = [] if separator is None else [separator]
    stream = np.concatenate([np.asarray([*document, *end], np.int32) for document in documents] or [np.empty(0)])
    if not len(stream):
        raise UserError("there is no text to learn from: every document is empty")
    blocks = [stream[start : start + block_size].tolist() for start in range(0, len(stream), block_size)]
    return blocks if len(blocks[-1]) > 1 or len(blocks) == 1 else blocks[:-1]
