"""Batches for language modelling: blocks of a token stream, or rows of one length, each with the tokens that follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from ms_gpt.data.batches import IGNORE_INDEX, checksum
from ms_gpt.errors import UserError


class TargetBatches:
    """What both kinds share: examples by number, and batches whose order is a pure function of (seed, epoch).

    Scoring sees every example once; the last batch is filled up with rows that do not count. Training leaves the
    incomplete last batch of an epoch out, another one each epoch, so that all batches have one shape and weigh the
    same; where there are fewer examples than a batch has rows, some stand in it twice.

    Attributes:
        words: Number of words of the text that the examples are, and
        characters: of characters, where somebody counted them: by these, tokenizers compare.

    Args:
        count: Number of examples.
        batch_size: Rows in a batch, at least 1.
        shuffle: Whether this is training: mixed anew in each epoch.
        seed: Seed of the order.
        ramp: Stages ``(first step, rows)`` of a batch size that grows, in ascending order and counted from the start
            of training. Epochs keep their number of steps, so they see fewer examples while it does.

    Raises:
        UserError: A batch size is not at least 1.
    """

    words: int | None = None
    characters: int | None = None

    def __init__(self, count: int, batch_size: int, shuffle: bool = False, seed: int = 0,
                 ramp: Sequence[tuple[int, int]] = ()) -> None:
        for size in (batch_size, *(rows for _, rows in ramp)):
            if size < 1:
                raise UserError(f"batch_size={size} is not a whole number of at least 1")
        self.count, self.batch_size, self.shuffle, self.seed = count, batch_size, shuffle, seed
        self.ramp = tuple(ramp)
        self.steps_per_epoch = max(count // batch_size, 1) if shuffle else -(-count // batch_size)

    def __len__(self) -> int:
        """Return the number of examples."""
        return self.count

    @property
    def columns(self) -> list[str]:
        """The names of the arrays in a batch."""
        return ["input_ids", "targets"]

    def rows(self, indices: np.ndarray, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return some examples.

        Args:
            indices: Their numbers.
            epoch: The epoch that sees them.

        Returns:
            input_ids and targets, int32 (len(indices), T).
        """
        raise NotImplementedError

    def size(self, step: int) -> int:
        """Look up the number of rows in the batch of a step.

        Args:
            step: Counted from the start of training.

        Returns:
            How many blocks that batch has.
        """
        return next((rows for first, rows in reversed(self.ramp) if first <= step), self.batch_size)

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Make the batches of an epoch.

        Args:
            epoch: Its number, from 0.
            skip: Batches at its start to leave out, in a resumed run.

        Yields:
            Pairs of token ids and targets, int32 (B, T); -100 where a target does not count.
        """
        order = np.arange(self.count)
        if self.shuffle:
            np.random.default_rng([self.seed, epoch]).shuffle(order)
        start = 0
        for step in range(self.steps_per_epoch):
            size = self.size(epoch * self.steps_per_epoch + step)
            if step >= skip:
                yield self._batch(order, start, size, epoch)
            start += size

    def _batch(self, order: np.ndarray, start: int, size: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows from ``start`` on; in training those from the start again where there are no more."""
        places = np.arange(start, start + size)
        input_ids, targets = self.rows(order.take(places, mode="wrap"), epoch)
        if not self.shuffle:
            targets[places >= self.count] = IGNORE_INDEX
        return input_ids, targets


class BlockBatches(TargetBatches):
    """Blocks of a token stream.

    Scoring cuts the stream into blocks that do not overlap, so that every token is a target exactly once, the first
    one predicted from ``start_id``. Training begins to cut at a place that each epoch draws anew, so that blocks
    begin at any token; what is left over at both ends is less than two blocks, and other tokens in the next epoch.

    Args:
        ids: Integer array (N,), maybe a memory map: it is never copied whole.
        block_size: Tokens in a block, T, at least 1.
        batch_size: Blocks in a batch, at least 1.
        start_id: The token that stands before the first one.
        shuffle: Whether this is training.
        seed: Seed of offsets and order.
        ramp: See ``TargetBatches``.

    Raises:
        UserError: The stream is shorter than a block, or a size is not at least 1.
    """

    def __init__(self, ids: np.ndarray, block_size: int, batch_size: int, start_id: int, shuffle: bool = False,
                 seed: int = 0, ramp: Sequence[tuple[int, int]] = ()) -> None:
        if block_size < 1:
            raise UserError(f"block_size={block_size} is not a whole number of at least 1")
        if len(ids) < block_size:
            raise UserError(f"the text has {len(ids)} tokens, fewer than block_size={block_size}: give more text or a "
                            "smaller --block-size")
        # A view without np.memmap's own, slower indexing.
        self.ids = np.asarray(ids)
        self.block_size, self.start_id = block_size, start_id
        # Leaves at least block_size - 1 tokens over, and so block_size places to begin at.
        whole = max((len(ids) - block_size + 1) // block_size, 1)
        count = whole if shuffle else -(-len(ids) // block_size)
        super().__init__(count, batch_size, shuffle, seed, ramp)

    @cached_property
    def checksum(self) -> str:
        """Of the stream: a resumed run needs the very same."""
        return checksum(self.ids)

    def offset(self, epoch: int) -> int:
        """Choose where an epoch begins to cut.

        Args:
            epoch: Its number, from 0.

        Returns:
            The token that the first block begins with; 0 without shuffling.
        """
        if not self.shuffle:
            return 0
        left_over = len(self.ids) - self.count * self.block_size
        return int(np.random.default_rng([self.seed, epoch, 1]).integers(left_over + 1))

    def rows(self, indices: np.ndarray, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return some blocks.

        Args:
            indices: Their numbers.
            epoch: The epoch that sees them.

        Returns:
            input_ids and targets, int32 (len(indices), T); beyond the end of the stream targets are -100.
        """
        starts = self.offset(epoch) + np.asarray(indices, np.int64) * self.block_size
        places = starts[:, None] + np.arange(-1, self.block_size)
        tokens = self.ids[places.clip(0, len(self.ids) - 1)].astype(np.int32)
        tokens[places < 0] = self.start_id
        input_ids, targets = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        targets[places[:, 1:] >= len(self.ids)] = IGNORE_INDEX
        return input_ids, targets


class RowBatches(TargetBatches):
    """Rows of one length, such as sums.

    Args:
        input_ids: int array (N, T).
        targets: int array (N, T), the token after each; -100 where it does not count.
        batch_size: Rows in a batch, at least 1.
        shuffle: Whether this is training.
        seed: Seed of the order.

    Raises:
        UserError: There is no row, or ``batch_size`` is not at least 1.
    """

    def __init__(self, input_ids: np.ndarray, targets: np.ndarray, batch_size: int, shuffle: bool = False,
                 seed: int = 0) -> None:
        if not len(input_ids):
            raise UserError("there is no row to make batches of: the data set is empty")
        self.input_ids, self.targets = np.asarray(input_ids, np.int32), np.asarray(targets, np.int32)
        self.block_size = self.input_ids.shape[1]
        super().__init__(len(self.input_ids), batch_size, shuffle, seed)

    @cached_property
    def checksum(self) -> str:
        """Of the rows: a resumed run needs the very same."""
        return checksum(self.input_ids, self.targets)

    @property
    def answer_length(self) -> int:
        """Tokens that count in the first row."""
        return int((self.targets[0] != IGNORE_INDEX).sum())

    def rows(self, indices: np.ndarray, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return some rows.

        Args:
            indices: Their numbers.
            epoch: Not used: rows are the same in all epochs.

        Returns:
            input_ids and targets, int32 (len(indices), T).
        """
        return self.input_ids[indices], self.targets[indices]
