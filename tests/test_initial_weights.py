"""Initial weights: their spread, their repeatability and how many there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mindspore import nn
from model_helpers import FAMILIES, configs, few, tiny_config

from ms_gpt import GPTConfig, GPTDoubleHeadsModel, GPTForSequenceClassification, GPTLMHeadModel, GPTModel
from ms_gpt.checkpoint.layouts import architecture_name, expected_shapes
from ms_gpt.layers import Conv1D, LayerNorm

HEADS = (GPTModel, GPTLMHeadModel, GPTDoubleHeadsModel, GPTForSequenceClassification)


@pytest.mark.parametrize(("family", "head"), list(itertools.product(FAMILIES, HEADS)))
def test_initial_weights_of_every_kind_of_cell(family, head):
    config = GPTConfig(vocab_size=300, n_positions=60, n_embd=64, n_layer=3, n_head=2, model_type=family,
                       tie_word_embeddings=False, num_labels=40, summary_proj_to_labels=False)
    drawn, seen = {}, set()
    for name, cell in head(config).cells_and_names():
        seen.add(type(cell))
        if isinstance(cell, LayerNorm):
            np.testing.assert_array_equal(cell.gamma.asnumpy(), np.ones(64))
            np.testing.assert_array_equal(cell.beta.asnumpy(), np.zeros(64))
        elif isinstance(cell, (Conv1D, nn.Dense)):
            drawn[name] = cell.weight.asnumpy()
            if cell.bias is not None:
                assert not cell.bias.asnumpy().any()
        elif isinstance(cell, nn.Embedding):
            drawn[name] = cell.embedding_table.asnumpy()
        elif name == "lm_head":
            drawn[name] = cell.weight.asnumpy()
    assert {Conv1D, LayerNorm, nn.Embedding} <= seen
    assert (nn.Dense in seen) == (head in (GPTDoubleHeadsModel, GPTForSequenceClassification))
    for name, values in drawn.items():
        residual = name.endswith("c_proj") and family == "gpt2"
        std = 0.02 / np.sqrt(2 * 3) if residual else 0.02
        assert values.std() == pytest.approx(std, rel=0.06), name
        assert abs(values.mean()) < 4 * std / np.sqrt(values.size), name
    flattened = [values.reshape(-1)[:2000] / values.std() for values in drawn.values()]
    for first, second in itertools.combinations(flattened, 2):
        size = min(len(first), len(second))
        assert abs((first[:size] * second[:size]).mean()) < 5 / np.sqrt(size)


def test_initial_weights_repeat_by_seed_and_do_not_depend_on_depth():
    first, second, other, deeper = (
        {name: item.asnumpy() for name, item in GPTDoubleHeadsModel(tiny_config(**changes)).weights().items()}
        for changes in ({}, {}, {"seed": 1}, {"n_layer": 3}))
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])
        np.testing.assert_array_equal(values, deeper[name])
        assert name.endswith(("bias", "beta", "gamma")) or not np.array_equal(values, other[name])


@pytest.mark.parametrize(("preset", "head", "parameters"), [
    ("gpt1", "LMHeadModel", 116_534_784),
    ("gpt1", "Model", 116_534_784),
    ("gpt2", "LMHeadModel", 124_439_808),
    ("gpt2-medium", "LMHeadModel", 354_823_168),
    ("gpt2-large", "LMHeadModel", 774_030_080),
    ("gpt2-xl", "LMHeadModel", 1_557_611_200),
])
def test_published_parameter_counts(preset, head, parameters):
    config = GPTConfig.preset(preset)
    shapes = expected_shapes(config, architecture_name(config.model_type, head))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == parameters


@few(8)
@given(configs(), st.sampled_from(HEADS))
def test_models_have_the_expected_parameters(config, head):
    model = head(config)
    shapes = expected_shapes(config, head.architecture[config.model_type])
    assert {name: tuple(item.shape) for name, item in model.weights().items()} == shapes
    assert model.num_parameters() == sum(int(np.prod(shape)) for shape in shapes.values())
