"""Our generation against transformers': greedy ids, beams, and what is done to logits before a token is chosen."""

from __future__ import annotations

from itertools import pairwise

import mindspore as ms
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from parity_helpers import SIZES, torch, transformers, twins

from ms_gpt.generation import GenerationSettings
from ms_gpt.generation.processors import (
    NoRepeatNGram,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    process,
    processors_for,
)

pytestmark = pytest.mark.parity

# Seeds of models that write many different tokens; with a tied embedding a random model repeats its last one.
SEEDS = {"OpenAIGPT": 0, "GPT2": 2}
# Prompts of up to LENGTH tokens in eight rows, four beams for two: all tests of a family share their graphs.
LENGTH, NEW, ROWS, BEAMS = 12, 64, 8, 4
# transformers fills ended beams with the end token where padding is token 0.
PAD = 3
# early_stopping, length_penalty, num_return_sequences
ENDS = [(True, 0.5, 2), (True, 2.0, 4), (False, 0.5, 4), (False, 2.0, 2), ("never", 0.5, 2), ("never", 2.0, 4)]


@pytest.fixture(scope="module", autouse=True)
def graph_mode():
    """Graphs on our side; one thread on the other, since more cost such small models time."""
    mode, threads = ms.get_context("mode"), torch.get_num_threads()
    ms.set_context(mode=ms.GRAPH_MODE)
    torch.set_num_threads(1)
    yield
    ms.set_context(mode=mode)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=SEEDS)
def pair(request, tmp_path_factory):
    """A model of transformers' and ours, of equal weights and without an end token of their own."""
    return twins(f"{request.param}LMHeadModel", tmp_path_factory.mktemp(request.param), SEEDS[request.param],
                 n_positions=LENGTH + NEW + 4, eos_token_id=None, tie_word_embeddings=False)


def prompts(rows: int = ROWS, padded: bool = False, seed: int = 0):
    """Ids and mask; with padding every row has another length, the first one the whole."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(PAD + 1, SIZES["vocab_size"], (rows, LENGTH))
    mask = np.ones_like(ids)
    if padded:
        mask = (np.arange(LENGTH) >= np.arange(rows)[:, None]).astype(ids.dtype)
    return np.where(mask, ids, PAD), mask


def run_theirs(pair, ids, mask, **settings):
    settings = {"eos_token_id": None, "pad_token_id": PAD, "max_new_tokens": NEW, **settings}
    return pair[0].generate(torch.tensor(ids), attention_mask=torch.tensor(mask), do_sample=False, **settings).numpy()


def assert_same(pair, ids, mask, caches: tuple[bool, ...] = (True,), **settings):
    """Compare what both models write for the same prompts and settings; return the rows."""
    expected = run_theirs(pair, ids, mask, **settings)
    for use_cache in caches:
        settings = {"max_new_tokens": NEW, "pad_token_id": PAD, **settings}
        assert pair[1].generate(ids, mask, use_cache=use_cache, **settings).asnumpy().tolist() == expected.tolist()
    return expected.tolist()


class TestGreedy:
    @pytest.mark.parametrize("padded", [False, True], ids=["whole", "left-padded"])
    def test_64_tokens_cached_and_uncached(self, pair, padded):
        rows = assert_same(pair, *prompts(padded=padded), caches=(True, False))
        assert [len(row) for row in rows] == [LENGTH + NEW] * ROWS
        assert min(len(set(row[LENGTH:])) for row in rows) > 3

    def test_rows_that_end(self, pair):
        ids, mask = prompts(padded=True)
        end = int(run_theirs(pair, ids, mask, max_new_tokens=6)[0, -1])
        rows = assert_same(pair, ids, mask, eos_token_id=end)
        assert len({row.index(end, LENGTH) if end in row[LENGTH:] else NEW for row in rows}) > 2

    def test_repetition_penalty_and_no_repeat_ngram(self, pair):
        rows = assert_same(pair, *prompts(), caches=(True, False), repetition_penalty=1.3, no_repeat_ngram_size=2)
        assert all(len(set(pairwise(row))) == len(row) - 1 for row in rows)


class TestBeams:
    @pytest.mark.parametrize("padded", [False, True], ids=["whole", "left-padded"])
    def test_four_beams_cached_and_uncached(self, pair, padded):
        rows = assert_same(pair, *prompts(2, padded), caches=(True, False), num_beams=BEAMS,
                           num_return_sequences=BEAMS)
        assert len({tuple(row) for row in rows}) == 2 * BEAMS

    def test_beams_that_end(self, pair):
        ids, mask = prompts(2, padded=True)
        end = int(run_theirs(pair, ids, mask, num_beams=BEAMS)[0, LENGTH + 1])
        lengths = {}
        for early_stopping, length_penalty, count in ENDS:
            rows = assert_same(pair, ids, mask, num_beams=BEAMS, num_return_sequences=count, eos_token_id=end,
                               length_penalty=length_penalty, early_stopping=early_stopping)
            assert len(rows) == 2 * count
            lengths[early_stopping, length_penalty] = len(rows[0]) - LENGTH
        assert max(lengths[True, 0.5], lengths[False, 0.5], lengths["never", 0.5]) < NEW
        # Where a search goes on and length pays, the longest rows win.
        assert lengths["never", 2.0] == NEW

    def test_repetition_penalty_and_no_repeat_ngram(self, pair):
        assert_same(pair, *prompts(2), num_beams=BEAMS, num_return_sequences=BEAMS, repetition_penalty=1.3,
                    no_repeat_ngram_size=2)

    def test_a_single_token(self, pair):
        # Only one of the beams, which are equal at first, may write it.
        assert_same(pair, *prompts(2), num_beams=BEAMS, num_return_sequences=BEAMS, max_new_tokens=1)


ALONE = [
    *((RepetitionPenalty(value), transformers.RepetitionPenaltyLogitsProcessor(value)) for value in (0.7, 1.3)),
    *((NoRepeatNGram(size), transformers.NoRepeatNGramLogitsProcessor(size)) for size in (1, 2, 3)),
    *((Temperature(value), transformers.TemperatureLogitsWarper(value)) for value in (0.5, 2.0)),
    *((TopK(k), transformers.TopKLogitsWarper(k)) for k in (1, 7, 100)),
    *((TopP(p), transformers.TopPLogitsWarper(p)) for p in (0.05, 0.5, 0.9, 0.999)),
]


def random_rows(seed: int):
    """Rows of few different tokens, so that much repeats, and logits without ties."""
    rng = np.random.default_rng(seed)
    ids, logits = rng.integers(0, 5, (4, 20)), rng.normal(0, 3, (4, SIZES["vocab_size"])).astype(np.float32)
    assert all(len(np.unique(row)) == row.size for row in logits)
    return ids, logits


def assert_same_scores(ours, theirs, seed: int):
    """Compare what both do to the same logits; return which tokens remain."""
    ids, logits = random_rows(seed)
    found = process(ours, ids.tolist(), logits)
    expected = torch.tensor(logits)
    for processor in theirs:
        expected = processor(torch.tensor(ids), expected)
    expected = expected.numpy()
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(expected))
    # An infinity is compared as such.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    return np.isfinite(found)


class TestProcessors:
    @pytest.mark.parametrize(("ours", "theirs"), ALONE, ids=[repr(ours) for ours, _ in ALONE])
    def test_each(self, ours, theirs):
        for seed in range(20):
            assert_same_scores([ours], [theirs], seed)

    def test_together(self):
        settings = GenerationSettings.of({"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "temperature": 0.7,
                                          "top_k": 20, "top_p": 0.9})
        theirs = [
            transformers.RepetitionPenaltyLogitsProcessor(1.3),
            transformers.NoRepeatNGramLogitsProcessor(2),
            transformers.TemperatureLogitsWarper(0.7),
            transformers.TopKLogitsWarper(20),
            transformers.TopPLogitsWarper(0.9),
        ]
        kept = [assert_same_scores(processors_for(settings), theirs, seed).sum(-1) for seed in range(50)]
        assert np.min(kept) < np.max(kept) < 20

    def test_the_input_is_left_alone(self):
        ids, logits = random_rows(0)
        for ours, _ in ALONE:
            process([ours], ids.tolist(), logits)
        np.testing.assert_array_equal(logits, random_rows(0)[1])
