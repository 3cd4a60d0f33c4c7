"""What the rows are made of: where and how large they run, what they find, and models equal on every device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor

from ms_gpt import GPTConfig


@dataclass(frozen=True)
class Setting:
    """Where and how large a row runs.

    Args:
        device: ``"cpu"``, ``"gpu"`` or ``"ascend"``.
        quick: Take the smallest sizes.
        is_reference: This run is what another one is compared with.
        folder: An empty folder.
    """

    device: str
    quick: bool
    is_reference: bool
    folder: Path

    @property
    def steps(self) -> int:
        """Updates in a training run."""
        return 6 if self.quick else 20

    @property
    def length(self) -> int:
        """Tokens in a row."""
        return 12 if self.quick else 64

    def config(self, family: str = "gpt2", **changes: Any) -> GPTConfig:
        """Return the configuration of a small model without dropout."""
        size = {"vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 2}
        if not self.quick:
            size = {"vocab_size": 1000, "n_embd": 128, "n_layer": 4, "n_head": 4}
        dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
        fixed = {"model_type": family, "n_positions": 2 * self.length, "num_labels": 3, "pad_token_id": 0}
        return GPTConfig(**{**fixed, **size, **dropout, **changes})


@dataclass
class Outcome:
    """What a row found.

    Args:
        arrays: What is compared with the reference, by name; whole numbers must be equal.
        note: Figures for the report.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Args:
        title: What holds if it passes.
        run: Computes it; raises where it does not hold.
        against: What its arrays are compared with: ``"cpu"``, ``"itself"`` in another process, or nothing.
        tolerance: The largest difference allowed, as a share of the largest number of an array.
        devices: Where it can run.
        is_timed: It is run while nothing else is.
    """

    title: str
    run: Callable[[Setting], Outcome]
    against: str | None = "cpu"
    tolerance: float = 1e-4
    devices: tuple[str, ...] = ("cpu", "gpu", "ascend")
    is_timed: bool = False


def require(holds: bool, message: str) -> None:
    """Fail the row with one line."""
    if not holds:
        raise AssertionError(message)


def random_ids(config: GPTConfig, batch: int, length: int, seed: int = 0) -> np.ndarray:
    """Return int32 (batch, length) tokens other than padding."""
    return np.random.default_rng(seed).integers(1, config.vocab_size, (batch, length)).astype(np.int32)


def strong_model(kind: type, config: GPTConfig) -> Any:
    """Return a model whose every weight, biases and gains too, is large enough to matter; equal on every device."""
    model = kind(config)
    rng = np.random.default_rng(0)
    for name, parameter in model.weights().items():
        values = rng.standard_normal(parameter.shape) * (2.0 / math.sqrt(config.n_embd))
        parameter.set_data(Tensor((values + name.endswith("gamma")).astype(np.float32)))
    model.match_kernels()
    return model.set_train(False)
