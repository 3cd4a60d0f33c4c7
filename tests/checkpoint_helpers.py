"""Small models as names and arrays, for the tests of checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ms_gpt import checkpoint
from ms_gpt.checkpoint.layouts import architecture_name, expected_shapes
from ms_gpt.config import GPTConfig

ROOT = Path(__file__).resolve().parents[1]
HEADS = ("Model", "LMHeadModel", "DoubleHeadsModel", "ForSequenceClassification")
FAMILIES = ("openai-gpt", "gpt2", "ms_gpt")
PREFIX = "transformer."


def small_config(family: str = "openai-gpt", **changes) -> GPTConfig:
    sizes = {"vocab_size": 11, "n_positions": 7, "n_embd": 4, "n_layer": 2, "n_head": 2, "num_labels": 3}
    return GPTConfig(**{**sizes, "model_type": family, **changes})


def random_arrays(config: GPTConfig, architecture: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays under names in memory."""
    rng = np.random.default_rng(seed)
    shapes = expected_shapes(config, architecture)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def on_disk(config: GPTConfig, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {checkpoint.hf_name(name, config.model_type): array for name, array in arrays.items()}


def assert_same(first, second) -> None:
    assert set(first) == set(second)
    for name in first:
        assert first[name].dtype == second[name].dtype, name
        assert first[name].shape == second[name].shape, name
        assert first[name].tobytes() == second[name].tobytes(), name


def assert_one_line(error: pytest.ExceptionInfo, *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def make_folder(path: Path, family: str = "gpt2", head: str = "LMHeadModel", **changes):
    config = small_config(family, **changes)
    architecture = architecture_name(family, head)
    arrays = random_arrays(config, architecture)
    checkpoint.write_folder(path, config, arrays, architecture)
    return config, arrays
