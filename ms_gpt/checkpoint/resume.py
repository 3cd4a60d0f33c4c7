"""The state of a training run: arrays and a few numbers in one file, so that they can never be of two moments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ms_gpt.checkpoint.errors import CheckpointError, one_line
from ms_gpt.checkpoint.safetensors import read_metadata, read_safetensors, write_safetensors

STATE_FILE = "training_state.safetensors"
_FORMAT = "ms_gpt training state"


def save_state(folder: str | Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Path:
    """Write a run's state; killed at any moment, the folder holds the old state or the new one.

    Args:
        folder: The folder; the file inside is ``STATE_FILE``.
        arrays: Weights, optimizer moments and the like, kept bit by bit.
        meta: What JSON can hold (step, epoch, data position, best metric); numpy scalars are taken too.

    Returns:
        The file.

    Raises:
        TypeError: A value of ``meta`` is nothing JSON knows.
        UserError: The file cannot be written.
    """
    path = Path(folder) / STATE_FILE
    metadata = {"format": _FORMAT, "meta": json.dumps(dict(meta), default=_plain)}
    write_safetensors(path, arrays, metadata=metadata)
    return path


def has_state(folder: str | Path) -> bool:
    """Say whether ``save_state`` has written to a folder."""
    return (Path(folder) / STATE_FILE).is_file()


def load_state(folder: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what ``save_state`` wrote.

    Args:
        folder: The folder.

    Returns:
        The arrays (bfloat16 as float32 of the same values) and the numbers.

    Raises:
        CheckpointError: There is no state in the folder, or the file is damaged.
    """
    path = Path(folder) / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {STATE_FILE}: there is nothing to resume from")
    metadata = read_metadata(path)
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is no training state of ms_gpt: give the folder of a run")
    try:
        meta = json.loads(metadata["meta"])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has damaged metadata: {one_line(error)}") from None
    return dict(read_safetensors(path)), meta


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"the training state cannot hold a {type(value).__name__}: {value!r}")
