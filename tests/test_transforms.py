"""GPT-1's input forms: order of the parts, special tokens that survive truncation, and the choice's extract token."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_gpt.data.transforms import TRUNCATIONS, classification, entailment, multiple_choice, similarity, truncate
from ms_gpt.errors import UserError

BOS, SEP, CLS, PAD = 100, 101, 102, 103
TOKENIZER = SimpleNamespace(bos_token_id=BOS, sep_token_id=SEP, cls_token_id=CLS, pad_token_id=PAD)
ids = st.lists(st.integers(0, 99), max_size=20)
rules = st.sampled_from(TRUNCATIONS)


@pytest.mark.parametrize(
    ("rule", "kept"), [("head", [0, 1, 2, 3, 4]), ("tail", [5, 6, 7, 8, 9]), ("head_tail", [0, 6, 7, 8, 9])]
)
def test_truncation_keeps_what_its_name_says(rule, kept):
    assert truncate(range(10), 5, rule) == (kept, True)
    assert truncate(range(5), 5, rule) == ([0, 1, 2, 3, 4], False)
    assert truncate(range(5), 0, rule) == ([], True)


def test_unknown_truncation_is_refused_even_if_nothing_is_cut():
    with pytest.raises(UserError, match="truncation='heads' is not one of.*Did you mean 'head'"):
        truncate([1], 5, "heads")


def test_classification():
    assert classification([1, 2, 3], TOKENIZER, 5) == ([BOS, 1, 2, 3, CLS], False)
    assert classification([1, 2, 3, 4, 5], TOKENIZER, 5, "tail") == ([BOS, 3, 4, 5, CLS], True)


def test_classification_leaves_out_tokens_that_the_tokenizer_lacks():
    plain = SimpleNamespace(bos_token_id=None, cls_token_id=None)
    assert classification([1, 2, 3], plain, 2, "head") == ([1, 2], True)


def test_token_id_zero_is_a_token():
    tokenizer = SimpleNamespace(bos_token_id=0, sep_token_id=0, cls_token_id=0, pad_token_id=0)
    assert classification([1], tokenizer, 8)[0] == [0, 1, 0]
    assert entailment([1], [2], tokenizer, 8)[0] == [0, 1, 0, 2, 0]


def test_entailment():
    assert entailment([1, 2], [3], TOKENIZER, 10) == ([BOS, 1, 2, SEP, 3, CLS], False)


@pytest.mark.parametrize(
    ("premise", "hypothesis", "lengths"), [(20, 20, (4, 4)), (2, 20, (2, 6)), (20, 3, (5, 3)), (4, 4, (4, 4))]
)
def test_entailment_shares_the_room(premise, hypothesis, lengths):
    sequence, truncated = entailment([1] * premise, [2] * hypothesis, TOKENIZER, 11)
    assert (sequence.count(1), sequence.count(2)) == lengths
    assert truncated == (premise + hypothesis > 8)


def test_similarity_holds_both_orders():
    rows, truncated = similarity([1, 2], [3], TOKENIZER, 10)
    assert rows == [[BOS, 1, 2, SEP, 3, CLS], [BOS, 3, SEP, 1, 2, CLS]]
    assert not truncated


def test_multiple_choice_pads_and_points_at_the_extract_tokens():
    example = multiple_choice([1, 2], [[3], [4, 5, 6]], TOKENIZER, 20)
    assert example.input_ids == [[BOS, 1, 2, SEP, 3, CLS, PAD, PAD], [BOS, 1, 2, SEP, 4, 5, 6, CLS]]
    assert example.attention_mask == [[1] * 6 + [0] * 2, [1] * 8]
    assert example.mc_token_ids == [5, 7]
    assert not example.truncated


def test_multiple_choice_cuts_the_context_before_the_answer():
    example = multiple_choice(range(20), [[90, 91, 92], [93]], TOKENIZER, 9, "tail")
    assert example.input_ids == [[BOS, 17, 18, 19, SEP, 90, 91, 92, CLS], [BOS, 15, 16, 17, 18, 19, SEP, 93, CLS]]
    assert example.truncated


@given(first=ids, second=ids, max_length=st.integers(5, 30), rule=rules)
def test_special_tokens_survive_and_the_length_holds(first, second, max_length, rule):
    pair, cut_pair = entailment(first, second, TOKENIZER, max_length, rule)
    example = multiple_choice(first, [second, first], TOKENIZER, max_length, rule)
    text, cut_text = classification(first, TOKENIZER, max_length, rule)
    for row in (pair, text, *example.input_ids):
        assert len(row) <= max_length
    for row in (pair, *(row[: end + 1] for row, end in zip(example.input_ids, example.mc_token_ids, strict=True))):
        assert [token for token in row if token >= BOS] == [BOS, SEP, CLS]
        assert (row[0], row[-1]) == (BOS, CLS)
    assert (text[0], text[-1]) == (BOS, CLS)
    assert cut_text == (len(first) > max_length - 2)
    assert cut_pair == (len(first) + len(second) > max_length - 3)
    assert example.truncated == (len(first) + max(len(first), len(second)) > max_length - 3)


def test_missing_special_tokens_are_named():
    tokenizer = SimpleNamespace(bos_token_id=1, sep_token_id=None, cls_token_id=None, pad_token_id=None)
    with pytest.raises(UserError, match="no sep_token and no cls_token"):
        entailment([1], [2], tokenizer, 10)


def test_too_small_a_length_is_refused():
    with pytest.raises(UserError, match="max_length=2 leaves no room"):
        classification([1], TOKENIZER, 2)
    with pytest.raises(UserError, match="max_length=4 leaves no room"):
        entailment([1], [2], TOKENIZER, 4)


def test_no_choices_are_refused():
    with pytest.raises(UserError, match="no choices"):
        multiple_choice([1], [], TOKENIZER, 10)
