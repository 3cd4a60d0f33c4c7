"""A cache of keys and values changes nothing but the time it takes: the same ids and logits as reading whole rows."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor
from model_helpers import close, random_ids, random_model, set_mode, tiny_config

from ms_gpt import GPTLMHeadModel, UserError
from ms_gpt.generation import GenerationSettings, Session
from ms_gpt.generation.engine import Reader
from ms_gpt.generation.session import bucket

pytestmark = pytest.mark.usefixtures("graph_mode")

# Rows outgrow the model's context, and slide.
LIMIT, STEPS = 12, 14
FREE = {"vocab_size": 29, "n_positions": LIMIT, "tie_word_embeddings": False}
ARCHITECTURES = {
    "gpt1": tiny_config("openai-gpt", **FREE),
    "gpt2": tiny_config("gpt2", **FREE),
    "banded": tiny_config("ms_gpt", window_size=3, **FREE),
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    """A model for all tests of an architecture, which share its graphs."""
    return random_model(GPTLMHeadModel, ARCHITECTURES[request.param])


def ragged(batch: int, vocab_size: int = 29, seed: int = 0) -> list[list[int]]:
    """Rows of 3 to 10 tokens."""
    ids = np.random.default_rng(seed).integers(0, vocab_size, (batch, 10))
    return [row[: 3 + (7 * index) % 8].tolist() for index, row in enumerate(ids)]


def written(model, rows, steps: int = STEPS, shift: int = 0, **settings) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest tokens (steps, B) and the logits (steps, B, V) that they are chosen from.

    With a shift the rows go on with others, step by step, so that a model which likes to repeat itself reads many.
    """
    reader = Reader(model, rows, GenerationSettings(max_new_tokens=steps, **settings))
    tokens, logits = [], []
    for step in range(steps):
        likeliest, scores = (item.asnumpy() for item in reader.read())
        tokens.append(likeliest)
        logits.append(scores)
        reader.append((likeliest + shift * step) % model.config.vocab_size)
    return np.stack(tokens), np.stack(logits)


def alone(model, row: list[int], steps: int = STEPS, shift: int = 0) -> tuple[list[int], np.ndarray]:
    """The same for one row: no batch, no padding, no cache, no graph."""
    set_mode("pynative")
    window, tokens, logits = list(row), [], []
    for step in range(steps):
        logits.append(model(Tensor(np.array([window], np.int32)))[0].asnumpy()[0, -1])
        tokens.append(int(logits[-1].argmax()))
        window.append((tokens[-1] + shift * step) % model.config.vocab_size)
        if len(window) > LIMIT:
            window = window[LIMIT // 2 :]
    set_mode("graph")
    return tokens, np.stack(logits)


def assert_same(first, second) -> None:
    np.testing.assert_array_equal(first[0], second[0])
    close(first[1], second[1])


@pytest.mark.parametrize(("batch", "stride"), [(8, None), (1, 1), pytest.param(1, None, marks=pytest.mark.slow),
                                               pytest.param(8, 1, marks=pytest.mark.slow)])
def test_cached_equals_uncached(model, batch, stride):
    rows = ragged(batch)
    cached = written(model, rows, shift=7, context_stride=stride)
    assert_same(cached, written(model, rows, shift=7, context_stride=stride, use_cache=False))
    if stride is None:
        for index in {0, batch - 1}:
            assert_same((cached[0][:, index], cached[1][:, index]), alone(model, rows[index], shift=7))


def test_generate_gives_the_same_ids(model):
    rows = ragged(8)
    mask = np.array([[0] * (10 - len(row)) + [1] * len(row) for row in rows])
    ids = np.array([[7] * (10 - len(row)) + row for row in rows])
    expected = written(model, rows)[0].T
    for use_cache in (True, False):
        found = model.generate(ids, mask, max_new_tokens=STEPS, eos_token_id=-1, use_cache=use_cache).asnumpy()
        np.testing.assert_array_equal(found, np.concatenate([ids, expected], 1))
    # Padding on the right, and a list of rows, mean the same prompts.
    right = np.array([row + [7] * (10 - len(row)) for row in rows])
    settings = {"max_new_tokens": STEPS, "eos_token_id": -1}
    np.testing.assert_array_equal(model.generate(right, right_mask(rows), **settings).asnumpy()[:, 10:], expected)
    np.testing.assert_array_equal(model.generate(rows, **settings).asnumpy()[:, 10:], expected)


def right_mask(rows) -> np.ndarray:
    return np.array([[1] * len(row) + [0] * (10 - len(row)) for row in rows])


def test_beam_search_gives_the_same_ids():
    model = random_model(GPTLMHeadModel, ARCHITECTURES["banded"])
    rows, settings = ragged(2, seed=3), {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": STEPS}
    found = [model.generate(rows, use_cache=use_cache, eos_token_id=5, **settings).asnumpy()
             for use_cache in (True, False)]
    np.testing.assert_array_equal(*found)
    assert len(np.unique(found[0], axis=0)) == 8


def test_of_pruned_heads():
    model = random_model(GPTLMHeadModel, ARCHITECTURES["gpt2"])
    rows = ragged(2, seed=4)
    whole = written(model, rows)
    model.prune_heads({0: [1], 1: [0, 2]})
    cached = written(model, rows)
    assert_same(cached, written(model, rows, use_cache=False))
    assert np.abs(cached[1][0] - whole[1][0]).max() > 1e-3


def test_op_by_op():
    set_mode("pynative")
    model = random_model(GPTLMHeadModel, ARCHITECTURES["banded"])
    assert_same(written(model, ragged(3)), written(model, ragged(3), use_cache=False))


def test_a_session_reads_any_rows_whatever_it_held():
    # Prompts that grow by one or many, are cut, changed in the middle, or change places: as a chat or a search does.
    model = random_model(GPTLMHeadModel, tiny_config("gpt2", **{**FREE, "n_positions": 40}))
    cached, whole = Session(model, 2), Session(model, 2, use_cache=False)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 29, size).tolist() for size in (3, 5)]
    for step in range(40):
        close(cached.read(rows)[1].asnumpy(), whole.read(rows)[1].asnumpy())
        kind = ("one more", "many more", "cut", "changed", "same", "one more", "turned", "one row")[step % 8]
        source = [1, 0] if kind == "turned" else None
        for row in rows[: 1 if kind == "one row" else 2]:
            if kind == "cut":
                del row[max(len(row) // 2, 1) :]
            elif kind == "changed":
                row[len(row) // 2] = (row[len(row) // 2] + 1) % 29
            elif kind != "same":
                row += rng.integers(0, 29, 1 if kind in ("one more", "turned") else 6).tolist()
            del row[:-40]
        if source:
            # The rows change places and have grown by a token, as at a step of a beam search.
            rows = [rows[1], rows[0]]
            close(cached.read(rows, source)[1].asnumpy(), whole.read(rows)[1].asnumpy())


def test_a_call_goes_on_where_the_last_one_ended():
    model = random_model(GPTLMHeadModel, ARCHITECTURES["gpt2"])
    session, settings = Session(model, 1), {"max_new_tokens": 4, "eos_token_id": -1}
    prefill, prompts = session._prefill, []
    session._prefill = lambda *inputs: prompts.append(inputs[0].shape) or prefill(*inputs)
    first = model.generate([[1, 2, 3]], past_key_values=session, **settings).asnumpy()
    second = model.generate(first, past_key_values=session, **settings).asnumpy()
    # The second call had nothing to read but the last token of the first.
    assert prompts == [(1, LIMIT)]
    np.testing.assert_array_equal(second, model.generate([[1, 2, 3]], **{**settings, "max_new_tokens": 8}).asnumpy())


def test_buckets_are_few():
    assert [bucket(length, 100) for length in (1, 16, 17, 33, 64, 65, 100)] == [16, 16, 32, 64, 64, 100, 100]
    assert bucket(5, 12) == 12


class TestGraphs:
    @pytest.fixture
    def model(self):
        return random_model(GPTLMHeadModel, tiny_config("gpt2", n_layer=1, **FREE))

    @pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
    def test_a_second_call_of_the_same_shape_compiles_nothing(self, model, compilations, use_cache):
        settings = {"max_new_tokens": 6, "eos_token_id": -1, "use_cache": use_cache}
        model.generate(ragged(2), **settings)
        assert sorted(compilations) == (["_Decode", "_Prefill"] if use_cache else ["_Forward"])
        compilations.clear()
        model.generate(ragged(2, seed=1), **settings)
        # Neither do other lengths of the same bucket, drawing, or a model that is being trained.
        model.set_train(True)
        model.generate([[1], [2, 3]], **{**settings, "max_new_tokens": 8, "temperature": 2.0})
        assert model.training
        assert not compilations

    def test_weights_that_have_changed_are_seen(self, model):
        rows = ragged(1)
        before = written(model, rows, 4)
        for parameter in model.weights().values():
            parameter.set_data(Tensor(-parameter.asnumpy()))
        after = written(model, rows, 4)
        assert np.abs(after[1] - before[1]).max() > 1e-2
        assert_same((after[0][:, 0], after[1][:, 0]), alone(model, rows[0], 4))

    def test_a_structure_that_has_changed_is_seen(self, model):
        rows = ragged(1, vocab_size=20)
        for change in (lambda: None, lambda: model.prune_heads({0: [1]}), lambda: model.resize_token_embeddings(20),
                       model.forget_graphs):
            change()
            tokens, logits = written(model, rows, 4)
            assert logits.shape[-1] == model.config.vocab_size
            assert_same((tokens[:, 0], logits[:, 0]), alone(model, rows[0], 4))

    def test_dropout_is_off(self):
        config = ARCHITECTURES["gpt2"].replace(resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5)
        model = random_model(GPTLMHeadModel, config).set_train(True)
        rows = random_ids(config, 1, 5)
        first, second = (model.generate(rows, max_new_tokens=6, eos_token_id=-1).asnumpy() for _ in range(2))
        np.testing.assert_array_equal(first, second)
        tokens, _ = alone(model.set_train(False), rows[0].tolist(), 6)
        assert first[0, 5:].tolist() == tokens

    def test_few_shapes_are_kept(self, model):
        for batch in range(1, 9):
            Reader(model, ragged(batch), GenerationSettings())
        assert len(model.graphs) == 4


class TestSessionMistakes:
    @pytest.fixture
    def model(self):
        return random_model(GPTLMHeadModel, ARCHITECTURES["gpt2"])

    @pytest.mark.parametrize(("make", "message"), [
        (lambda model: Session(model, 3), "batch_size=3, and there are 1 rows"),
        (lambda model: Session(model, length=5), "length=5, and 6 tokens"),
        (lambda model: "session", "not a generation.Session of this model"),
        (lambda model: Session(random_model(GPTLMHeadModel, model.config)), "not a generation.Session of this model"),
        (lambda model: Session(model, length=13), "length=13 is not a whole number from 1 to n_positions=12"),
        (lambda model: Session(model, length=0), "length=0 is not"),
        (lambda model: Session(model, batch_size=0), "batch_size=0 is not"),
    ])
    def test_one_line_each(self, model, make, message):
        with pytest.raises(UserError, match=message) as error:
            model.generate([[1, 2, 3]], past_key_values=make(model), max_new_tokens=4)
        assert "\n" not in str(error.value)

    def test_of_another_structure(self):
        model = random_model(GPTLMHeadModel, ARCHITECTURES["gpt2"])
        session = Session(model)
        model.prune_heads({0: [0]})
        with pytest.raises(UserError, match="before the model's structure changed"):
            model.generate([[1]], past_key_values=session)
