"""Blocks of a token stream: every token scored once, epochs that repeat, batches of a few fixed shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_gpt.data import BlockBatches
from ms_gpt.data.batches import IGNORE_INDEX, to_mindspore
from ms_gpt.data.blocks import RowBatches
from ms_gpt.errors import UserError

START = 999
SIZES = {"block_size": st.integers(1, 9), "batch_size": st.integers(1, 5)}


def joined(batches, epoch=0, skip=0):
    pairs = list(batches.epoch(epoch, skip))
    return tuple(np.concatenate(arrays) for arrays in zip(*pairs, strict=True))


def equal(first, second):
    first, second = list(first), list(second)
    return len(first) == len(second) and all(
        np.array_equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True))


@given(extra=st.integers(0, 60), dtype=st.sampled_from([np.uint16, np.uint32, np.int64]), **SIZES)
def test_scoring_sees_every_token_once_as_target(extra, dtype, block_size, batch_size):
    ids = np.arange(block_size + extra).astype(dtype)
    batches = BlockBatches(ids, block_size, batch_size, START)
    assert len(batches) == -(-len(ids) // block_size)
    assert all(a.shape == b.shape == (batch_size, block_size) for a, b in batches.epoch())
    assert batches.steps_per_epoch == len(list(batches.epoch()))
    input_ids, targets = joined(batches)
    assert input_ids.dtype == targets.dtype == np.int32
    counts = targets != IGNORE_INDEX
    assert targets[counts].tolist() == ids.tolist()
    assert input_ids[counts].tolist() == [START, *ids[:-1].tolist()]


@given(extra=st.integers(0, 60), epoch=st.integers(0, 5), seed=st.integers(0, 5), **SIZES)
def test_training_blocks_are_whole_disjoint_and_leave_less_than_two_over(extra, epoch, seed, block_size, batch_size):
    ids = np.arange(block_size + extra)
    batches = BlockBatches(ids, block_size, batch_size, START, shuffle=True, seed=seed)
    assert len(ids) - len(batches) * block_size < 2 * block_size
    input_ids, targets = batches.rows(np.arange(len(batches)), epoch)
    stream = np.arange(len(batches) * block_size) + batches.offset(epoch)
    assert targets.ravel().tolist() == stream.tolist()
    assert stream[-1] < len(ids)
    assert input_ids.ravel().tolist() == [place - 1 if place else START for place in stream]


@given(extra=st.integers(0, 60), epoch=st.integers(0, 5), skip=st.integers(0, 9), **SIZES)
def test_an_epoch_repeats_and_can_be_entered_anywhere(extra, epoch, skip, block_size, batch_size):
    ids = np.arange(block_size + extra)
    batches = BlockBatches(ids, block_size, batch_size, START, shuffle=True, seed=3, ramp=[(0, 1), (4, 2), (9, 3)])
    again = BlockBatches(ids, block_size, batch_size, START, shuffle=True, seed=3, ramp=[(0, 1), (4, 2), (9, 3)])
    whole = list(batches.epoch(epoch))
    assert len(whole) == batches.steps_per_epoch
    assert equal(whole[skip:], again.epoch(epoch, skip))


def test_training_sees_no_block_twice_in_an_epoch_and_every_token_over_some():
    ids = np.arange(103)
    batches = BlockBatches(ids, 10, 2, START, shuffle=True)
    seen, offsets = set(), set()
    for epoch in range(100):
        _, targets = joined(batches, epoch)
        assert targets.size == len(set(targets.ravel())) == 80
        seen |= set(targets.ravel())
        offsets.add(batches.offset(epoch))
    assert seen == set(ids)
    assert offsets == set(range(14))


def test_epochs_and_seeds_differ():
    ids = np.arange(200)
    first, second = (BlockBatches(ids, 4, 3, START, shuffle=True, seed=seed) for seed in (0, 1))
    assert not equal(first.epoch(0), first.epoch(1))
    assert not equal(first.epoch(0), second.epoch(0))


def test_the_batch_grows_by_steps_and_epochs_keep_their_length():
    batches = BlockBatches(np.arange(200), 4, 12, START, shuffle=True, ramp=[(0, 3), (3, 6), (5, 12)])
    sizes = [len(input_ids) for epoch in range(3) for input_ids, _ in batches.epoch(epoch)]
    assert batches.steps_per_epoch == 4
    assert sizes == [3, 3, 3, 6, 6, 12, 12, 12, 12, 12, 12, 12]


def test_a_text_of_fewer_blocks_than_a_batch_fills_it():
    batches = BlockBatches(np.arange(25), 10, 4, START, shuffle=True)
    (input_ids, targets), = batches.epoch()
    assert input_ids.shape == (4, 10)
    assert (targets != IGNORE_INDEX).all()
    assert len(np.unique(targets[:, 0])) == len(batches) == 1


def test_a_memory_map_is_not_copied(tmp_path):
    np.arange(1000, dtype=np.uint16).tofile(tmp_path / "ids")
    ids = np.memmap(tmp_path / "ids", np.uint16, "r")
    batches = BlockBatches(ids, 8, 4, START)
    assert np.shares_memory(batches.ids, ids)
    assert joined(batches)[1].ravel().tolist() == list(range(1000)) + [IGNORE_INDEX] * 24


def test_a_resumed_pipeline_hands_over_the_rest_of_the_epoch():
    batches = BlockBatches(np.arange(90), 4, 5, START, shuffle=True, ramp=[(0, 2), (6, 5)])
    pipeline = to_mindspore(batches, first_epoch=1, skip=1)
    assert pipeline.get_dataset_size() == batches.steps_per_epoch - 1
    assert equal(pipeline.create_tuple_iterator(num_epochs=1, output_numpy=True), batches.epoch(1, 1))


def test_rows_are_scored_once_and_mixed_for_training():
    input_ids = np.arange(14).reshape(7, 2)
    scoring = RowBatches(input_ids, input_ids + 1, 3)
    assert [len(batch) for batch, _ in scoring.epoch()] == [3, 3, 3]
    found, targets = joined(scoring)
    assert found[:7].tolist() == input_ids.tolist()
    assert targets[:7].tolist() == (input_ids + 1).tolist()
    assert (targets[7:] == IGNORE_INDEX).all()
    training = RowBatches(input_ids, input_ids + 1, 3, shuffle=True)
    found, targets = joined(training)
    assert training.columns == ["input_ids", "targets"]
    assert (targets == found + 1).all()
    assert len({tuple(row) for row in found}) == 6
    assert len(joined(RowBatches(input_ids, input_ids, 20, shuffle=True))[0]) == 20


def test_filling_up_leaves_the_data_as_it_was():
    input_ids = np.arange(6, dtype=np.int32).reshape(3, 2)
    batches = RowBatches(input_ids, input_ids, 2)
    list(batches.epoch())
    assert batches.targets.tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(("make", "words"), [
    (lambda: BlockBatches(np.arange(7), 8, 2, 0), "the text has 7 tokens, fewer than block_size=8"),
    (lambda: BlockBatches(np.arange(7), 0, 2, 0), "block_size=0"),
    (lambda: BlockBatches(np.arange(7), 2, 0, 0), "batch_size=0"),
    (lambda: BlockBatches(np.arange(7), 2, 2, 0, shuffle=True, ramp=[(0, 0)]), "batch_size=0"),
    (lambda: RowBatches(np.empty((0, 3)), np.empty((0, 3)), 2), "there is no row"),
])
def test_what_makes_no_batches_is_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_blocks_longer_than_the_model_are_refused(tmp_path):
    from ms_gpt import GPTConfig, GPTLMHeadModel, Trainer, TrainingArguments

    model = GPTLMHeadModel(GPTConfig(20, 8, n_layer=1, n_head=2, n_embd=8))
    with pytest.raises(UserError, match="block_size=9 is more than n_positions=8"):
        Trainer(model, TrainingArguments(str(tmp_path)), BlockBatches(np.arange(20), 9, 2, START))
