"""Sums as text: parted by unordered pair, scored on the answer, read back."""

from __future__ import annotations

import numpy as np
import pytest

from ms_gpt.data import arithmetic
from ms_gpt.data.batches import IGNORE_INDEX
from ms_gpt.data.blocks import RowBatches
from ms_gpt.errors import UserError
from ms_gpt.tokenizer import CharacterTokenizer


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_every_sum_is_in_one_part_and_its_swap_in_the_same(digits):
    parts = arithmetic.make_addition(digits, seed=1)
    assert list(parts) == ["train", "validation", "test"]
    codes = {name: pairs[:, 0].astype(np.int64) * 10**digits + pairs[:, 1] for name, pairs in parts.items()}
    assert np.array_equal(np.sort(np.concatenate(list(codes.values()))), np.arange(100**digits))
    for pairs, found in zip(parts.values(), codes.values(), strict=True):
        swapped = pairs[:, 1].astype(np.int64) * 10**digits + pairs[:, 0]
        assert np.array_equal(np.sort(swapped), np.sort(found))


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_a_tenth_of_the_unordered_pairs_is_held_out(digits):
    parts = arithmetic.make_addition(digits)
    unordered = {name: int((pairs[:, 0] <= pairs[:, 1]).sum()) for name, pairs in parts.items()}
    total = 10**digits * (10**digits + 1) // 2
    assert sum(unordered.values()) == total
    assert 0.1 * total <= unordered["test"] < 0.1 * total + 1


def test_the_seed_decides_the_parts():
    first, again, other = (arithmetic.make_addition(2, seed)["test"] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_sums_are_written_with_zeros():
    tokenizer = arithmetic.addition_tokenizer()
    pairs = np.array([[85, 50], [3, 9], [99, 99], [0, 0]])
    input_ids, targets = arithmetic.encode_addition(pairs, 2, tokenizer)
    assert input_ids.dtype == targets.dtype == np.int32
    texts = [tokenizer.decode([*row, last]) for row, last in zip(input_ids, targets[:, -1], strict=True)]
    assert texts == ["85+50=135", "03+09=012", "99+99=198", "00+00=000"]


def test_only_the_answer_counts_and_is_the_next_token():
    tokenizer = arithmetic.addition_tokenizer()
    input_ids, targets = arithmetic.encode_addition(np.array([[12, 34]]), 2, tokenizer)
    assert (targets[0, :5] == IGNORE_INDEX).all()
    assert targets[0, 5:-1].tolist() == input_ids[0, 6:].tolist()
    assert RowBatches(input_ids, targets, 1).answer_length == 3


def test_any_tokenizer_of_characters_will_do():
    tokenizer = CharacterTokenizer("xyz=+9876543210")
    input_ids, targets = arithmetic.encode_addition(np.array([[12, 34]]), 2, tokenizer)
    assert tokenizer.decode([*input_ids[0], targets[0, -1]]) == "12+34=046"


def test_what_cannot_be_made_is_refused():
    with pytest.raises(UserError, match="digits=4 is outside 1 to 3"):
        arithmetic.make_addition(4)
    with pytest.raises(UserError, match="shares .* sum to 1"):
        arithmetic.make_addition(2, shares=(0.8, 0.1, 0.2))
