"""No logit and no loss depends on a later token: for every architecture, with a cache and without."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from model_helpers import close, random_ids, random_model, run, set_mode, tiny_config

from ms_gpt import GPTLMHeadModel
from ms_gpt.generation import KVCache, Session
from ms_gpt.losses import IGNORE_INDEX
from ms_gpt.training.step import TargetLoss

LENGTH = 8
pytestmark = pytest.mark.usefixtures("graph_mode")

# tests/test_banded_attention.py says what else a window hides.
ARCHITECTURES = {
    "gpt1": tiny_config("openai-gpt", n_positions=LENGTH),
    "gpt2": tiny_config("gpt2", n_positions=LENGTH),
    "banded": tiny_config("ms_gpt", n_positions=LENGTH, window_size=3),
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    return random_model(GPTLMHeadModel, ARCHITECTURES[request.param])


def changed_tokens(config) -> np.ndarray:
    """A row, and below it for each place t the row with another token at t."""
    rows = np.repeat(random_ids(config, 1, LENGTH), LENGTH + 1, 0)
    for place in range(LENGTH):
        rows[place + 1, place] = (rows[0, place] + 1) % config.vocab_size
    return rows


def assert_causal(logits: np.ndarray) -> None:
    """Compare logits (1 + T, T, V) of ``changed_tokens``: a token shows in its own place, and in none before it."""
    for place in range(LENGTH):
        difference = np.abs(logits[place + 1] - logits[0]).max(-1)
        assert difference[:place].max(initial=0) <= 5e-6, f"token {place} changes earlier logits"
        assert difference[place] > 1e-3, f"token {place} does not change its own logits"


class AllLogits(nn.Cell):
    """A model that reads some columns, those before them being in the cache, and gives the logits of each."""

    def __init__(self, model, batch_size):
        super().__init__(auto_prefix=False)
        self.model, self.cache = model, KVCache(model, batch_size, LENGTH)

    def construct(self, input_ids, cache_position):
        return self.model(input_ids, past_key_values=self.cache(), cache_position=cache_position)[0]


def cached_logits(model, ids: np.ndarray, columns: int) -> np.ndarray:
    """All logits, reading so many columns at a time."""
    cell = AllLogits(model, len(ids)).set_train(False)
    places = np.arange(LENGTH, dtype=np.int32).reshape(-1, columns)
    return np.concatenate([cell(Tensor(ids[:, place]), Tensor(place)).asnumpy() for place in places], 1)


def test_without_a_cache(model):
    assert_causal(run(model, input_ids=changed_tokens(model.config))[0])


# All at once, as a prompt is read, and part by part, as a conversation goes on; below, one by one, as text is written.
@pytest.mark.parametrize("columns", [LENGTH, 2])
def test_with_a_cache(model, columns):
    ids = changed_tokens(model.config)
    logits = cached_logits(model, ids, columns)
    assert_causal(logits)
    close(logits, run(model, input_ids=ids)[0])


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
def test_a_session_as_generation_uses_it(model, use_cache):
    ids = changed_tokens(model.config)
    session = Session(model, len(ids), use_cache=use_cache)
    # The first call reads a prompt of two, each further call a token more.
    steps = [session.read(ids[:, :end].tolist())[1].asnumpy() for end in range(2, LENGTH + 1)]
    first = run(model, input_ids=ids)[0][:, :1]
    assert_causal(np.concatenate([first, np.stack(steps, 1)], 1))


def leaking_bias(length, attention_mask, window_size=None, query_position=None):
    """A mask off by one: each query sees the token that it is to predict."""
    position = ops.arange(0, length, 1, dtype=ms.int32)
    query = position if query_position is None else query_position
    allowed = (query.reshape((-1, 1)) + 1 >= position.reshape((1, length))).reshape((1, 1, -1, length))
    return ops.where(allowed, Tensor(0.0, ms.float32), Tensor(-1e9, ms.float32))


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
def test_a_leak_would_be_caught(monkeypatch, use_cache):
    # Op by op, so that no compiled graph hides the other mask.
    set_mode("pynative")
    model = random_model(GPTLMHeadModel, ARCHITECTURES["gpt2"])
    # Nor a kernel, which never looks at what comes later.
    model.use_kernels(False)
    ids = changed_tokens(model.config)

    def logits():
        return cached_logits(model, ids, LENGTH) if use_cache else run(model, input_ids=ids)[0]

    assert_causal(logits())
    monkeypatch.setattr("ms_gpt.model.attention_bias", leaking_bias)
    with pytest.raises(AssertionError, match="token 1 changes earlier logits"):
        assert_causal(logits())


def only(targets: np.ndarray, place: int) -> np.ndarray:
    """Targets of which one counts."""
    kept = np.full_like(targets, IGNORE_INDEX)
    kept[:, place] = targets[:, place]
    return kept


def assert_loss_is_causal(loss, ids: np.ndarray) -> None:
    """Check that the loss of position t, whose target is token t + 1, depends on token t and on none behind it."""
    for place in range(LENGTH - 1):
        expected = loss(ids, place)
        other = ids.copy()
        other[:, place + 1 :] = (other[:, place + 1 :] + 5) % 13
        assert abs(loss(other, place) - expected) <= 5e-6, f"tokens behind {place} change its loss"
        other[:, place] = (ids[:, place] + 1) % 13
        assert abs(loss(other, place) - expected) > 1e-4, f"token {place} does not change its loss"


def test_the_loss_of_a_model(model):
    ids = random_ids(model.config, 1, LENGTH)

    def loss(changed, place):
        # Labels are shifted inside: the label at t + 1 is scored at t. It stays as it was.
        return run(model, input_ids=changed, labels=only(ids, place + 1))[0]

    assert_loss_is_causal(loss, ids)


def test_the_loss_of_pre_training():
    model = random_model(GPTLMHeadModel, ARCHITECTURES["gpt2"])
    ids = random_ids(model.config, 1, LENGTH)
    targets, cell = np.roll(ids, -1, 1), TargetLoss(model).set_train(False)

    def loss(changed, place):
        return float(cell(Tensor(changed), Tensor(only(targets, place))).asnumpy())

    assert_loss_is_causal(loss, ids)
