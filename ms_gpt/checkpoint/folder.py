"""Model folders in Hugging Face's layout: ``config.json``, ``model.safetensors``, ``generation_config.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ms_gpt.checkpoint.atomic import json_bytes, replace_files
from ms_gpt.checkpoint.errors import CheckpointError
from ms_gpt.checkpoint.files import CONFIG_FILE, GENERATION_FILE, WEIGHTS_FILE
from ms_gpt.checkpoint.keymap import hf_name
from ms_gpt.checkpoint.safetensors import write_to
from ms_gpt.checkpoint.tensors import FLOAT_DTYPES, LazyTensors, stored_dtype
from ms_gpt.config import GPTConfig


def write_folder(path: str | Path, config: GPTConfig, tensors: Mapping[str, np.ndarray], architecture: str,
                 extra_files: Mapping[str, bytes] | None = None, dtype: str | None = None) -> None:
    """Write a model folder that transformers loads as it is.

    Every file is written beside its place and all are renamed at the end, so that an interrupted save leaves the
    old ones whole.

    Args:
        path: The folder; it is made if it is missing.
        config: The model's configuration.
        tensors: Name in memory (names on disk are taken too) to array.
        architecture: transformers' class name, such as ``"OpenAIGPTForSequenceClassification"``.
        extra_files: File name to content, such as a tokenizer's files; a ``generation_config.json`` among them
            takes the place of ours.
        dtype: Write floating tensors as ``"float32"``, ``"float16"`` or ``"bfloat16"``; ``None`` keeps theirs.

    Raises:
        CheckpointError: A name in ``extra_files`` is not a plain file name, or a tensor cannot be stored.
        UserError: The operating system refuses; the message names the path and the reason.
    """
    tensors = LazyTensors.wrap(tensors)
    on_disk = tensors.renamed({hf_name(name, config.model_type): name for name in tensors})
    files = files_beside(config, tensors, architecture, extra_files, dtype)
    writers: dict[str, Callable[[Path], object]] = {WEIGHTS_FILE: partial(write_to, tensors=on_disk, dtype=dtype)}
    for name, content in files.items():
        if Path(name).name != name:
            raise CheckpointError(f"extra file {name!r} is not a plain file name")
        writers[name] = partial(Path.write_bytes, data=content)
    replace_files(path, writers)


def files_beside(config: GPTConfig, tensors: Mapping[str, np.ndarray], architecture: str,
                 extra_files: Mapping[str, bytes] | None = None, dtype: str | None = None) -> dict[str, bytes]:
    """Return the files of a model folder beside its weights; the arguments are those of ``write_folder``.

    Args:
        config: The model's configuration.
        tensors: The tensors that stand beside them.
        architecture: transformers' class name.
        extra_files: File name to content.
        dtype: The dtype they are written in, if not their own.

    Returns:
        File name to content.
    """
    return {GENERATION_FILE: _generation_config(config), **(extra_files or {}),
            CONFIG_FILE: config_bytes(config, architecture, tensors, dtype)}


def config_bytes(config: GPTConfig, architecture: str, tensors: Mapping[str, np.ndarray],
                 dtype: str | None = None) -> bytes:
    """Return ``config.json``'s content with ``architectures`` and the dtype of the weights.

    Args:
        config: The model's configuration.
        architecture: Its class name.
        tensors: The tensors that stand beside it.
        dtype: The dtype they are written in, if not their own.

    Returns:
        UTF-8 JSON.
    """
    values = config.to_dict()
    values["architectures"] = [architecture]
    # transformers loads in the dtype that is written here, so one carried along from another file would be wrong.
    values.pop("torch_dtype", None)
    values["dtype"] = _common_float(LazyTensors.wrap(tensors), dtype)
    return json_bytes(values)


def _common_float(tensors: LazyTensors, dtype: str | None) -> str:
    found = {stored_dtype(info, dtype) for info in tensors.infos.values()} & set(FLOAT_DTYPES)
    return found.pop() if len(found) == 1 else "float32"


def _generation_config(config: GPTConfig) -> bytes:
    values: dict[str, Any] = {"_from_model_config": True}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, key)
        if value is not None and value >= 0:
            values[key] = value
    return json_bytes(values)
