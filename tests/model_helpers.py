"""Small models with weights that hide nothing, for the tests of models and layers."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from mindspore import Tensor

from ms_gpt import GPTConfig, runtime

FAMILIES = ("openai-gpt", "gpt2")
MODES = ("graph", "pynative")


def few(examples: int = 4):
    """The same few examples in every run, and no search for a smaller one that fails: each may compile a graph."""
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck))


@st.composite
def configs(draw, max_layer: int = 2, **fixed) -> GPTConfig:
    """A small configuration of either family."""
    family = draw(st.sampled_from(FAMILIES))
    n_head = draw(st.integers(2, 3))
    values = {
        "model_type": family,
        "vocab_size": draw(st.integers(9, 17)),
        "n_positions": draw(st.integers(6, 9)),
        "n_layer": draw(st.integers(1, max_layer)),
        "n_head": n_head,
        "n_embd": n_head * draw(st.integers(2, 4)),
        "activation_function": draw(st.sampled_from(["gelu", "gelu_new", "relu", "silu"])),
        "tie_word_embeddings": draw(st.booleans()),
        "num_labels": draw(st.integers(2, 4)),
    }
    if family == "gpt2":
        values["n_inner"] = draw(st.sampled_from([None, 10]))
        values["scale_attn_weights"] = draw(st.booleans())
        values["scale_attn_by_inverse_layer_idx"] = draw(st.booleans())
    return GPTConfig(**{**values, **fixed})


def tiny_config(family: str = "openai-gpt", **changes) -> GPTConfig:
    sizes = {"vocab_size": 13, "n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 3, "num_labels": 3}
    return GPTConfig(**{**sizes, "model_type": family, **changes})


def random_model(model_class, config: GPTConfig, seed: int = 0):
    """A model in evaluation mode whose every weight, biases and gains too, is random and large enough to matter."""
    rng = np.random.default_rng(seed)
    model = model_class(config)
    for name, parameter in model.weights().items():
        values = 0.4 * rng.standard_normal(parameter.shape)
        parameter.set_data(Tensor((values + name.endswith("gamma")).astype(np.float32)))
    return model.set_train(False)


def random_ids(config: GPTConfig, batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.vocab_size, (batch, length)).astype(np.int32)


def run(model, **inputs):
    """Call a model with arrays; give arrays back."""
    outputs = model(**{name: Tensor(value) if isinstance(value, np.ndarray) else value
                       for name, value in inputs.items()})
    return tuple(item.asnumpy() if isinstance(item, Tensor) else item for item in outputs)


def positions_of(mask: np.ndarray) -> np.ndarray:
    """Positions that count the real tokens only."""
    return np.maximum(mask.cumsum(-1) - 1, 0).astype(np.int32)


def set_mode(mode: str) -> None:
    runtime.setup("cpu", mode)


def close(first, second, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(first, second, atol=atol, rtol=1e-5)
