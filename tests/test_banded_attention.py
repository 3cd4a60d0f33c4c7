"""GPT-3's locally banded layers: a window of tokens, the current one counted, in every second layer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from mindspore import Tensor
from model_helpers import MODES, close, positions_of, random_ids, random_model, run, set_mode, tiny_config

from ms_gpt import AutoModel, GPTConfig, GPTLMHeadModel, GPTModel, UserError, checkpoint
from ms_gpt.checkpoint import CheckpointError

pytestmark = pytest.mark.usefixtures("graph_mode")
LOWEST = np.finfo(np.float32).min


def banded(window_size: int, **changes) -> GPTConfig:
    return tiny_config("ms_gpt", window_size=window_size, n_layer=4, **changes)


def written_out(length: int, window: int, real: np.ndarray) -> np.ndarray:
    """What a query may look at, one pair at a time."""
    bias = np.full((len(real), 1, length, length), LOWEST, np.float32)
    for row in range(len(real)):
        for query in range(length):
            for key in range(length):
                if key <= query and query - key < window and real[row, key]:
                    bias[row, 0, query, key] = 0
    return bias


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize("padding", [0, 2])
def test_it_equals_a_dense_mask_written_out(mode, window, padding):
    set_mode(mode)
    model = random_model(GPTModel, banded(window))
    ids, real = random_ids(model.config, 2, 8), np.ones((2, 8), np.int32)
    real[0, :padding] = 0
    found = run(model, input_ids=ids, attention_mask=real, position_ids=positions_of(real))[0]
    hidden = model.embed(Tensor(ids), None, Tensor(positions_of(real)), None)
    for layer, block in enumerate(model.h):
        hidden, _ = block(hidden, Tensor(written_out(8, window if layer in (1, 3) else 8, real)))
    expected = model.ln_f(hidden).asnumpy()
    close(found[real == 1], expected[real == 1])


def test_a_window_as_long_as_the_text_changes_nothing():
    model = random_model(GPTLMHeadModel, banded(8))
    dense = random_model(GPTLMHeadModel, banded(8).replace(window_size=None))
    ids = random_ids(model.config, 2, 8)
    close(run(model, input_ids=ids)[0], run(dense, input_ids=ids)[0])


def test_changing_a_token_never_changes_earlier_logits_nor_those_beyond_all_windows():
    # With dense layers in between everything later may change; with one local layer alone only its window does.
    model = random_model(GPTLMHeadModel, banded(2))
    ids = random_ids(model.config, 1, 8)
    before = run(model, input_ids=ids)[0]
    for place in range(8):
        changed = ids.copy()
        changed[0, place] = (ids[0, place] + 1) % model.config.vocab_size
        after = run(model, input_ids=changed)[0]
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        assert np.abs(after[:, place] - before[:, place]).max() > 1e-3


def test_only_every_second_layer_is_local():
    model = random_model(GPTModel, banded(2).replace(output_attentions=True))
    attentions = run(model, input_ids=random_ids(model.config, 1, 8))[-1]
    # run leaves tuples as they are.
    for layer, weights in enumerate(attentions):
        reach = (weights.asnumpy()[0, 0] > 0).sum(-1)
        expected = np.minimum(np.arange(1, 9), 2) if layer % 2 else np.arange(1, 9)
        assert reach.tolist() == expected.tolist()


def test_it_is_saved_under_a_model_type_of_its_own(tmp_path):
    model = random_model(GPTLMHeadModel, banded(3))
    model.save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    assert (stated["model_type"], stated["window_size"]) == ("ms_gpt", 3)
    ids = random_ids(model.config, 1, 8)
    close(run(AutoModel.from_pretrained(tmp_path), input_ids=ids)[0], run(model, input_ids=ids)[0], atol=0)
    with pytest.raises(CheckpointError, match="cannot express"):
        checkpoint.convert(tmp_path, tmp_path / "w.pt", "mingpt")


@pytest.mark.parametrize(("values", "message"), [
    ({"model_type": "gpt2", "window_size": 256}, "window_size=256 is a setting that"),
    ({"model_type": "openai-gpt", "window_size": 256}, "set model_type='ms_gpt'"),
    ({"model_type": "ms_gpt", "window_size": 0}, "window_size=0 is not a whole number"),
])
def test_bad_values_are_one_line(values, message):
    with pytest.raises(UserError, match=message):
        GPTConfig(**values)


@pytest.mark.parametrize(("preset", "parameters"), [
    ("gpt1", 116_534_784), ("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080),
    ("gpt2-xl", 1_557_611_200), ("gpt3-125m", 125_226_240), ("gpt3-350m", 355_871_744), ("gpt3-760m", 760_300_032),
    ("gpt3-1.3b", 1_315_723_264), ("gpt3-2.7b", 2_651_553_280), ("gpt3-6.7b", 6_658_404_352),
    ("gpt3-13b", 12_853_386_240), ("gpt3-175b", 174_604_259_328)])
def test_published_sizes_are_counted_without_building_them(preset, parameters):
    assert checkpoint.count_parameters(GPTConfig.preset(preset)) == parameters
