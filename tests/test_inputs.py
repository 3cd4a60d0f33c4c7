"""What a model is called with: mistakes are one line, and what a subclass adds is let through."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor
from model_helpers import MODES, close, random_ids, random_model, set_mode, tiny_config

from ms_gpt import GPTLMHeadModel
from ms_gpt.errors import UserError


@pytest.mark.parametrize(("given", "message"), [
    ({"input_ids": [[1, 2]]}, "input_ids is of type list: give a Tensor"),
    ({"input_ids": np.ones((1, 2), np.int32)}, "input_ids is of type ndarray"),
    ({"input_ids": Tensor([1, 2])}, r"of shape \(2,\) and dtype Int64: give whole numbers \(B, T\)"),
    ({"input_ids": Tensor([[[1, 2]]])}, r"of shape \(1, 1, 2\)"),
    ({"input_ids": Tensor([[1.0, 2.0]])}, "dtype Float32: give whole numbers"),
    ({"inputs_embeds": Tensor([[1.0, 2.0]])}, r"give numbers \(B, T, D\)"),
    ({"input_ids": Tensor([[1, 2]]), "attention_mask": Tensor([[1, 1, 1]])}, "attention_mask is of .*one for each"),
    ({"input_ids": Tensor([[1, 2]]), "labels": Tensor([[1]])}, "labels is of shape .*one for each"),
    ({"input_ids": Tensor([[1, 2]]), "label": Tensor([[1, 2]])}, "'label' is no input .*Did you mean 'labels'"),
    ({"input_ids": Tensor(np.ones((1, 9), np.int32))}, "a sequence of 9 tokens is longer than n_positions=8"),
    ({}, "exactly one of"),
])
def test_wrong_inputs_are_one_line(given, message):
    model = random_model(GPTLMHeadModel, tiny_config())
    with pytest.raises(UserError, match=message) as error:
        model(**given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mode", MODES)
def test_a_model_of_ones_own_takes_inputs_of_its_own(mode):
    class Passing(GPTLMHeadModel):
        def construct(self, *args, **kwargs):
            return super().construct(*args, **kwargs)

    class Scaled(GPTLMHeadModel):
        def construct(self, input_ids, scale):
            return super().construct(input_ids)[0] * scale

    set_mode(mode)
    config = tiny_config()
    ids = Tensor(random_ids(config, 2, 4))
    expected = random_model(GPTLMHeadModel, config)(ids)[0].asnumpy()
    passing, scaled = random_model(Passing, config), random_model(Scaled, config)
    close(passing(ids)[0].asnumpy(), expected)
    close(passing(input_ids=ids)[0].asnumpy(), expected)
    close(scaled(ids, 2.0).asnumpy(), 2 * expected)
    with pytest.raises(UserError, match="longer than n_positions"):
        passing(Tensor(np.ones((1, 9), np.int32)))
    # One row of a mask holds for all.
    mask = Tensor([[1, 1, 1, 0]])
    close(passing(ids, mask)[0].asnumpy(), passing(ids, Tensor(np.repeat(mask.asnumpy(), 2, 0)))[0].asnumpy())
    set_mode("graph")
