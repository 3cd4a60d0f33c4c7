"""Do two checkpoints hold the same function? Both are run on random ids, by another library where there is one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor

from ms_gpt import runtime
from ms_gpt.checkpoint import resolve
from ms_gpt.config import GPTConfig
from ms_gpt.heads import AutoModel

_LENGTH = 64
_TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-1}
_PEER = "ms_gpt.bench.peers.transformers_outputs"
_PEER_SECONDS = 600


@dataclass(frozen=True)
class Comparison:
    """What came of running two checkpoints.

    Args:
        first: What ran the first, in words.
        second: What ran the second.
        largest_difference: Between their outputs, over all positions.
        largest_output: The largest output, to judge the difference by.
    """

    first: str
    second: str
    largest_difference: float
    largest_output: float

    def is_close(self, dtype: str) -> bool:
        """Say whether the two agree as well as weights of a dtype let them."""
        return self.largest_difference <= _TOLERANCES[dtype] * max(1.0, self.largest_output)


def compare(source: str | Path, target: str | Path, known: Mapping[str, Any]) -> Comparison:
    """Run the source and the result of a conversion on the same random ids.

    The source is run by transformers on PyTorch where they are installed and can load it, else by MindSpore. The result
    is run by MindSpore, or by transformers where only the result is a folder that it loads.

    Args:
        source: What was converted.
        target: What was written.
        known: Fields of the configuration that the source does not tell, such as ``n_head``.

    Returns:
        The largest difference.

    Raises:
        UserError: One of the two cannot be loaded.
    """
    runtime.setup("cpu", "pynative")
    source = resolve(str(source))
    model = AutoModel.from_pretrained(target, **known)
    ids = _random_ids(model.config, is_choice=hasattr(model, "multiple_choice_head"))
    first, first_outputs = "the source by transformers", _by_transformers(source, ids)
    second, second_outputs = "the result by MindSpore", model(Tensor(ids.astype(np.int32)))[0].asnumpy()
    if first_outputs is None:
        reference = AutoModel.from_pretrained(source, **known)
        first, first_outputs = "the source by MindSpore", reference(Tensor(ids.astype(np.int32)))[0].asnumpy()
        by_transformers = _by_transformers(Path(target), ids)
        if by_transformers is not None:
            second, second_outputs = "the result by transformers", by_transformers
    difference = np.abs(first_outputs.astype(np.float64) - second_outputs).max()
    return Comparison(first, second, float(difference), float(np.abs(first_outputs).max()))


def _random_ids(config: GPTConfig, is_choice: bool) -> np.ndarray:
    length = min(_LENGTH, config.n_positions)
    # One row: transformers' classifiers refuse more where there is no padding token.
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, length))
    if config.pad_token_id is not None and config.vocab_size > 1:
        # A classifier without a mask would look for the end of the text before a padding token.
        ids[ids == config.pad_token_id] = (config.pad_token_id + 1) % config.vocab_size
    return ids.reshape(1, 1, length) if is_choice else ids


def _by_transformers(folder: Path, ids: np.ndarray) -> np.ndarray | None:
    """Run a model folder in a process of its own; ``None`` where transformers is absent or cannot load it."""
    if not (folder / "config.json").is_file() or any(importlib.util.find_spec(name) is None
                                                      for name in ("torch", "transformers")):
        return None
    if "architectures" not in GPTConfig.from_json(folder).extra:
        return None
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(prefix="ms_gpt-") as scratch:
        np.save(Path(scratch) / "ids.npy", ids)
        command = [sys.executable, "-m", _PEER, str(folder), str(Path(scratch) / "ids.npy"), f"{scratch}/outputs.npy"]
        try:
            done = subprocess.run(command, capture_output=True, env=environment, check=False, timeout=_PEER_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        return np.load(f"{scratch}/outputs.npy") if done.returncode == 0 else None
