"""Generation: what is drawn, when it ends, the text that comes out piece by piece, and every mistake in one line."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mindspore import Tensor
from model_helpers import few, random_model, tiny_config

from ms_gpt import GPTLMHeadModel, UserError, generate
from ms_gpt.generation import GenerationSettings, TokenStream, stream_generate
from ms_gpt.generation.beam import beam_search
from ms_gpt.generation.processors import NoRepeatNGram, RepetitionPenalty, TopK, TopP, log_softmax
from ms_gpt.generation.sampling import draw
from ms_gpt.tokenizer.kinds import train_tokenizer

pytestmark = pytest.mark.usefixtures("graph_mode")

TEXT = "the dog barks, and the cat sleeps. 中文 電影 😀 👩‍👩‍👧 é naïve\n"
KINDS = ("byte-bpe", "characters", "words", "bpe")


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: train_tokenizer([TEXT] * 3, kind, 300 if "bpe" in kind else None) for kind in KINDS}


@pytest.fixture(scope="module")
def model(tokenizers):
    """Knows the tokens of every tokenizer."""
    size = max(map(len, tokenizers.values()))
    return random_model(GPTLMHeadModel, tiny_config("gpt2", vocab_size=size, n_positions=32, tie_word_embeddings=False))


@pytest.fixture
def says(monkeypatch):
    """Makes models write given tokens, a list for each row; what comes after them is token 0."""
    def script(*rows: list[int]) -> None:
        monkeypatch.setattr(TokenStream, "_choose", lambda self, step: np.array(
            [row[step] if step < len(row) else 0 for row in rows]))

    return script


def chunks_of(model, tokenizer, prompt, ids, says, **settings):
    says(ids)
    settings = {"max_new_tokens": len(ids), "eos_token_id": -1, **settings}
    return list(stream_generate(model, tokenizer, prompt, **settings))


def text_of(chunks) -> str:
    return "".join(chunk.text for chunk in chunks)


class TestDraws:
    """One graph shape for all tests: four rows of the same model."""

    ROWS = ([1, 2, 3], [4], [5, 6], [7, 8, 9, 10, 11])

    def ids(self, model, rows=ROWS, **settings):
        found = model.generate(rows, eos_token_id=-1, **{"max_new_tokens": 10, **settings})
        return found.asnumpy()[:, -10:]

    def test_the_likeliest_token_unless_drawing_is_asked_for(self, model):
        greedy = self.ids(model)
        np.testing.assert_array_equal(greedy, self.ids(model, do_sample=False, seed=5))
        np.testing.assert_array_equal(greedy, self.ids(model, top_k=1))
        np.testing.assert_array_equal(greedy, self.ids(model, temperature=1e-6))
        np.testing.assert_array_equal(greedy, self.ids(model, top_p=1e-9))
        for drawing in ({"temperature": 1.0}, {"top_k": 50}, {"top_p": 1.0}, {"do_sample": True}):
            assert GenerationSettings.of(drawing).samples
            assert not np.array_equal(greedy, self.ids(model, **drawing))

    def test_the_seed_decides(self, model):
        first, again, other = (self.ids(model, temperature=2.0, seed=seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any(-1).all()
        # NumPy's global generator has no part in it.
        np.random.seed(0)
        np.testing.assert_array_equal(first, self.ids(model, temperature=2.0, seed=1))

    @pytest.mark.parametrize("drawing", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "drawn"])
    def test_a_row_does_not_depend_on_its_neighbours(self, model, drawing):
        others = [[9, 9, 9, 9, 9, 9, 9], [3, 1], self.ROWS[2], [1]]
        np.testing.assert_array_equal(self.ids(model, **drawing)[2], self.ids(model, others, **drawing)[2])

    def test_equal_rows_and_return_sequences_differ(self, model):
        found = self.ids(model, [[1, 2, 3]], temperature=1.0, num_return_sequences=4)
        assert len(np.unique(found, axis=0)) == 4
        np.testing.assert_array_equal(found, self.ids(model, [[1, 2, 3]] * 4, temperature=1.0))

    def test_they_follow_the_distribution(self):
        logits = np.log(np.tile([0.1, 0.2, 0.3, 0.4], (10000, 1)))
        for step in (0, 7):
            shares = np.bincount(draw(logits, 0, step), minlength=4) / 10000
            np.testing.assert_allclose(shares, [0.1, 0.2, 0.3, 0.4], atol=0.02)
        logits[:, [0, 1, 3]] = -np.inf
        assert (draw(logits, 0, 0) == 2).all()


class TestProcessors:
    # tests/test_generation_parity.py holds them against transformers'.
    LOGITS = np.log(np.array([[0.5, 0.25, 0.15, 0.1]], np.float32))

    @pytest.mark.parametrize(("processor", "kept"), [
        (TopK(1), [0]), (TopK(3), [0, 1, 2]), (TopK(9), [0, 1, 2, 3]),
        (TopP(0.4), [0]), (TopP(0.6), [0, 1]), (TopP(0.95), [0, 1, 2, 3]),
        (NoRepeatNGram(1), [1, 3]), (NoRepeatNGram(2), [0, 1, 3]), (NoRepeatNGram(9), [0, 1, 2, 3])])
    def test_what_may_be_chosen(self, processor, kept):
        # After 2 came 0 and then 2 again: once more 0 would be a second "2 0", and once more 2 none.
        row = [0, 2, 0]
        assert np.flatnonzero(np.isfinite(processor([row], self.LOGITS)[0])).tolist() == kept

    def test_repetition_penalty(self):
        found = RepetitionPenalty(2.0)([[0, 1, 1]], np.array([[3.0, -3.0, 3.0]]))
        assert found.tolist() == [[1.5, -6.0, 3.0]]


class Chain:
    """Reads rows whose next token depends on the last one only."""

    def __init__(self, logits: np.ndarray, rows: list[list[int]]) -> None:
        self.logits, self.rows = logits, rows

    def read(self, source=None):
        return None, Tensor(self.logits[[row[-1] for row in self.rows]].astype(np.float32))

    def append(self, tokens, source):
        self.rows = [[*self.rows[index], token] for index, token in zip(source, tokens, strict=True)]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
def test_beams_that_leave_nothing_out_find_the_likeliest_rows(length_penalty):
    size, steps, end = 3, 3, 2
    logits = np.random.default_rng(1).normal(0, 1, (size, size))
    log_probs = log_softmax(logits.astype(np.float32))
    scores = {}
    for tokens in itertools.product(range(size), repeat=steps):
        tokens = list(tokens[: tokens.index(end) + 1] if end in tokens else tokens)
        total = sum(log_probs[pair] for pair in itertools.pairwise([0, *tokens]))
        scores[tuple(tokens)] = total / len(tokens) ** length_penalty
    expected = sorted(scores, key=scores.get, reverse=True)[:3]
    beams = size**steps
    settings = GenerationSettings.of({"max_new_tokens": steps, "num_beams": beams, "num_return_sequences": 3,
                                      "length_penalty": length_penalty, "early_stopping": "never"})
    found = beam_search(Chain(logits, [[0]] * beams), settings, end)
    assert [tuple(row) for row in found] == expected


class TestText:
    @pytest.mark.parametrize("kind", KINDS)
    def test_chunks_join_to_the_text_that_generate_gives(self, model, tokenizers, kind, says):
        tokenizer = tokenizers[kind]
        # Long enough that the first tokens are not decoded again and again.
        prompt, ids = "the dog", tokenizer.encode(" barks, and" + TEXT * 4)
        chunks = chunks_of(model, tokenizer, prompt, ids, says)
        whole = tokenizer.decode(tokenizer.encode(prompt) + ids)
        assert prompt + text_of(chunks) == whole
        assert generate(model, tokenizer, prompt, max_new_tokens=len(ids), eos_token_id=-1) == [whole]
        assert [token for chunk in chunks for token in chunk.token_ids] == ids
        assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
        assert chunks[-1].tokens_per_second > 0

    @given(text=st.text(min_size=1, max_size=90))
    @few(30)
    def test_any_text(self, model, tokenizers, text):
        tokenizer = tokenizers["byte-bpe"]
        ids = tokenizer.encode(text) or [0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TokenStream, "_choose", lambda self, step: np.array([ids[step]]))
            chunks = list(stream_generate(model, tokenizer, "é", max_new_tokens=len(ids), eos_token_id=-1))
        assert "é" + text_of(chunks) == tokenizer.decode(tokenizer.encode("é") + ids)

    def test_no_chunk_ends_within_a_character(self, model, tokenizers, says):
        text = "😀 🦆 鴨 👩‍👩‍👧"
        ids = tokenizers["byte-bpe"].encode(text)
        assert len(ids) > len(text)
        chunks = chunks_of(model, tokenizers["byte-bpe"], "a", ids, says)
        assert text_of(chunks) == text
        assert "\ufffd" not in text_of(chunks)
        # Cut by the number of tokens, the rest of a character is shown as what it is.
        chunks = chunks_of(model, tokenizers["byte-bpe"], "a", ids, says, max_new_tokens=len(ids) - 1)
        assert text_of(chunks) == text[:-1] + "\ufffd"

    @pytest.mark.parametrize(("stop", "expected"), [
        ("bark", "the dog "), (["cat", "dog"], "the "), ("gs", None), (", and t", "the dog barks"), ("\n", None),
        ("t", ""), (["sleeps!", "and"], "the dog barks, ")])
    @pytest.mark.parametrize("kind", ["byte-bpe", "characters"])
    def test_it_ends_before_a_stop_text(self, model, tokenizers, kind, stop, expected, says):
        text = "the dog barks, and the cat sleeps"
        ids = tokenizers[kind].encode(text)
        chunks = chunks_of(model, tokenizers[kind], "a", ids, says, stop=stop)
        assert text_of(chunks) == (text if expected is None else expected)
        assert chunks[-1].finish_reason == ("length" if expected is None else "stop")
        found = generate(model, tokenizers[kind], "a", max_new_tokens=len(ids), eos_token_id=-1, stop=stop)
        assert found == ["a" + text_of(chunks)]
        # What might begin a stop text is not shown before it is certain, and no step too many is done.
        assert sum(len(chunk.token_ids) for chunk in chunks) <= len(ids)
        if expected is not None:
            assert len(tokenizers[kind].encode(expected)) < sum(len(chunk.token_ids) for chunk in chunks)

    def test_the_end_token_ends_it_and_is_not_shown(self, model, tokenizers, says):
        tokenizer = tokenizers["byte-bpe"]
        ids = [*tokenizer.encode("the dog"), tokenizer.eos_token_id, *tokenizer.encode(" barks")]
        # It is the tokenizer's where neither the call nor the model says another.
        chunks = chunks_of(model, tokenizer, "a", ids, says, eos_token_id=None)
        assert (text_of(chunks), chunks[-1].finish_reason) == ("the dog", "stop")
        says(ids)
        assert generate(model, tokenizer, "a", max_new_tokens=9) == ["athe dog"]
        chunks = chunks_of(model, tokenizer, "a", ids, says, eos_token_id=tokenizer.encode("the dog")[0])
        assert (text_of(chunks), len(chunks)) == ("", 1)

    def test_each_row_ends_by_itself(self, model, tokenizers, says):
        tokenizer = tokenizers["characters"]
        says(*(tokenizer.encode(text) for text in ("the cat", "dog the", "and cat")))
        settings = {"max_new_tokens": 7, "eos_token_id": -1}
        assert generate(model, tokenizer, ["a", "bcd", "é"], stop=["cat", " t"], **settings) == [
            "athe ", "bcddog", "éand "]
        # Rows that have ended get padding, whatever the model would write.
        end, pad = tokenizer.encode("t")[0], tokenizer.encode("d")[0]
        found = model.generate([[1], [2], [3]], eos_token_id=end, pad_token_id=pad, max_new_tokens=7).asnumpy()[:, 1:]
        assert tokenizer.decode(found[0]) == "tdddddd"
        assert tokenizer.decode(found[1]) == "dog tdd"

    def test_an_empty_prompt_starts_from_the_start_or_end_token(self, model, tokenizers, says):
        tokenizer = tokenizers["byte-bpe"]
        ids = tokenizer.encode("the dog")
        assert text_of(chunks_of(model, tokenizer, "", ids, says)) == "the dog"
        assert generate(model, tokenizer, "", max_new_tokens=len(ids)) == ["the dog"]
        # Characters have neither, but a line end.
        tokenizer = tokenizers["characters"]
        assert text_of(chunks_of(model, tokenizer, "", tokenizer.encode("the"), says)) == "the"
        bare = SimpleNamespace(encode=lambda text: [], bos_token_id=None, eos_token_id=None, start_token_id=None)
        with pytest.raises(UserError, match="prompt='' holds no token"):
            stream_generate(model, bare, "")

    def test_of_a_prompt_that_is_too_long_the_end_is_seen_and_that_is_said(self, model, tokenizers):
        tokenizer, prompt = tokenizers["characters"], "the cat sleeps. " * 3
        seen, settings = prompt[-32:], {"max_new_tokens": 3, "eos_token_id": -1}
        with pytest.warns(UserWarning, match="a prompt of 48 tokens is longer than n_positions=32") as said:
            long = generate(model, tokenizer, prompt, **settings)
        assert said[0].filename == __file__
        assert long[0].removeprefix(prompt) == generate(model, tokenizer, seen, **settings)[0].removeprefix(seen)
        chunks = list(stream_generate(model, tokenizer, prompt, **settings))
        assert chunks[0].prompt_tokens_cut == 16
        assert prompt + text_of(chunks) == long[0]
        with pytest.warns(UserWarning, match="a prompt of 48 tokens") as said:
            model.generate([tokenizer.encode(prompt)], **settings)
        assert said[0].filename == __file__


class TestMistakes:
    @pytest.mark.parametrize(("settings", "message"), [
        ({"temperature": 0}, "temperature=0 is not greater than 0"),
        ({"temperature": -0.5}, "temperature=-0.5 is not greater than 0"),
        ({"top_p": 0.0}, r"top_p=0.0 is outside \(0, 1\]"),
        ({"top_p": 1.01}, r"top_p=1.01 is outside \(0, 1\]"),
        ({"top_p": float("nan")}, "top_p=nan is outside"),
        ({"top_k": 0}, "top_k=0 is not a whole number of at least 1"),
        ({"top_k": 2.5}, "top_k=2.5 is not a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"seed": -1}, "seed=-1"),
        ({"context_stride": 0}, "context_stride=0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size=-1"),
        ({"num_beams": 2, "temperature": 1.0}, "temperature=1.0 has no meaning beside it"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3 is greater than num_beams=2"),
        ({"num_beams": 2, "early_stopping": "sometimes"}, "early_stopping='sometimes'"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 needs texts that differ"),
        ({"do_sample": False, "top_k": 3}, "top_k=3 has no meaning with do_sample=False"),
        ({"stop": [""]}, "stop holds ''"),
        ({"eos_token_id": "<eos>"}, "eos_token_id='<eos>' is not a token id"),
        ({"temprature": 1.0}, "'temprature' is not a setting of generation. Did you mean 'temperature'"),
        ({"max_length": 9}, "'max_length' is not a setting of generation"),
    ])
    def test_settings_in_one_line(self, model, tokenizers, settings, message):
        for call in (lambda: generate(model, tokenizers["characters"], "a", **settings),
                     lambda: model.generate([[1]], **settings),
                     lambda: stream_generate(model, tokenizers["characters"], "a", **settings)):
            with pytest.raises(UserError, match=message) as error:
                call()
            assert "\n" not in str(error.value)

    @pytest.mark.parametrize(("rows", "more", "message"), [
        ([], {}, "there are no rows"),
        ([[1], []], {}, "row 1 is empty"),
        ([[1, 2000]], {}, "token 2000 in row 0 is outside the model's vocabulary"),
        ([[1, -1]], {}, "token -1 in row 0 is outside"),
        ([1, 2], {}, "give a list of rows, even for one"),
        (np.array([1, 2]), {}, r"shape \(2,\)"),
        (np.array([[1.0, 2.0]]), {}, "give whole numbers"),
        (np.array([[1, 2]]), {"attention_mask": np.array([[1]])}, r"attention_mask is of shape \(1, 1\)"),
        (np.array([[1, 2]]), {"attention_mask": np.array([[0, 0]])}, "row 0 is empty"),
        ([[1], [2, 3]], {"attention_mask": np.array([[1, 1], [1, 1]])}, "rows of unequal length"),
        ([[1]], {"stop": "a"}, "stop holds texts, which a model does not know"),
    ])
    def test_rows_in_one_line(self, model, rows, more, message):
        with pytest.raises(UserError, match=message) as error:
            model.generate(rows, **more)
        assert "\n" not in str(error.value)

    def test_several_texts_cannot_be_streamed(self, model, tokenizers):
        with pytest.raises(UserError, match="several texts at once cannot be streamed"):
            stream_generate(model, tokenizers["characters"], "a", num_beams=2)

    def test_numbers_of_numpy_are_numbers(self):
        settings = GenerationSettings.of({"temperature": np.float32(0.5), "top_k": np.int64(3), "seed": np.int32(1)})
        assert settings.samples
