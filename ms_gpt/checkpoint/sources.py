"""Where tensors come from: files recognised by their content, and folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ms_gpt.checkpoint import ckpt, safetensors
from ms_gpt.checkpoint.errors import CheckpointError, one_line, some
from ms_gpt.checkpoint.keymap import hf_name
from ms_gpt.checkpoint.layouts import architecture_name, family_of, head_in, infer_config
from ms_gpt.checkpoint.tensors import LazyTensors, TensorInfo
from ms_gpt.config import GPTConfig
from ms_gpt.errors import UserError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class FileFormat:
    """A kind of file that tensors are read from.

    Args:
        name: Its name in reports.
        looks_like: Function that recognises it by its first bytes.
        read: Function that opens it.
    """

    name: str
    looks_like: Callable[[Path], bool]
    read: Callable[[Path], LazyTensors]


FILE_FORMATS = (
    FileFormat("safetensors", safetensors.looks_like, safetensors.read_safetensors),
    FileFormat("ckpt", ckpt.looks_like, ckpt.read_ckpt),
)


@dataclass(frozen=True)
class Checkpoint:
    """A model as names and arrays.

    Args:
        format: What was recognised: ``"safetensors"``, ``"safetensors-shards"`` or ``"ckpt"``.
        config: The model's configuration, read or inferred.
        architecture: Its class name as ``config.json`` has it.
        tensors: The tensors under Hugging Face's names, prefix and all as the source has them.
    """

    format: str
    config: GPTConfig
    architecture: str
    tensors: LazyTensors


def read_folder(path: str | Path) -> tuple[GPTConfig, LazyTensors]:
    """Read a model folder: ``config.json`` and ``model.safetensors``, its shards, or one ``.ckpt``.

    Args:
        path: The folder.

    Returns:
        The configuration, and the tensors under Hugging Face's names, loaded on access.

    Raises:
        CheckpointError: Something is missing (the message names what was found) or damaged, or the tensors are of
            another family than ``config.json`` says.
    """
    path = Path(path)
    _check_exists(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file: give the folder of a model, with {CONFIG_FILE} and {WEIGHTS_FILE}")
    if not (path / CONFIG_FILE).is_file():
        raise CheckpointError(f"{path} has no {CONFIG_FILE}; found: {_listing(path)}")
    checkpoint = open_checkpoint(path)
    return checkpoint.config, checkpoint.tensors


def open_checkpoint(path: str | Path, n_head: int | None = None) -> Checkpoint:
    """Open a model folder or a single file of tensors.

    The configuration is the folder's ``config.json``; beside a file ``NAME.safetensors`` it is
    ``NAME_config.json`` or ``config.json``. Without one it is inferred from names and shapes.

    Args:
        path: The folder or file.
        n_head: Number of attention heads, asked for where no configuration is found.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: The path is missing, is of no known format, is damaged, or holds no GPT.
        UserError: The configuration is wrong, or ``n_head`` is missing or contradicts it.
    """
    path = Path(path)
    _check_exists(path)
    file_format, tensors = _read_weights(path)
    config_file = _find_config(path)
    try:
        family = family_of(tensors)
        config = _read_config(config_file, family) if config_file else infer_config(tensors, n_head)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if n_head not in (None, config.n_head):
        raise UserError(f"n_head={n_head} contradicts {config_file}, which says {config.n_head}: leave it out")
    if config.post_norm != (family == "openai-gpt"):
        raise CheckpointError(f"{config_file} says model_type={config.model_type!r}, but the tensors are of {family}: "
                              "the file and its configuration do not belong together")
    names = {hf_name(name, config.model_type): name for name in tensors}
    if len(names) < len(tensors):
        twice = next(name for name in tensors if name not in names.values())
        raise CheckpointError(f"{path} holds {hf_name(twice, config.model_type)} twice, under two names")
    tensors = tensors.renamed(names)
    return Checkpoint(file_format, config, _architecture(config, tensors), tensors)


def config_path_of(path: Path) -> Path:
    """Return where the configuration of a weights file stands: ``NAME_config.json``, or ``config.json`` for "model"."""
    return path.with_name(CONFIG_FILE if path.stem == "model" else f"{path.stem}_config.json")


def read_file(path: Path) -> tuple[str, LazyTensors]:
    """Open one file of tensors, recognised by its content.

    Args:
        path: The file.

    Returns:
        The format's name and the tensors.

    Raises:
        CheckpointError: The file is of no known format, or is damaged.
    """
    try:
        known = next((item for item in FILE_FORMATS if item.looks_like(path)), None)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from None
    if known is None:
        # The suffix is trusted only to choose whose complaint about the content is shown.
        known = next((item for item in FILE_FORMATS if path.suffix == f".{item.name}"), None)
    if known is None:
        names = ", ".join(item.name for item in FILE_FORMATS)
        raise CheckpointError(f"{path} is of no known format: its content is none of {names}")
    return known.name, known.read(path)


def _read_weights(path: Path) -> tuple[str, LazyTensors]:
    if not path.is_dir():
        return read_file(path)
    if (path / WEIGHTS_FILE).is_file():
        return read_file(path / WEIGHTS_FILE)
    if (path / INDEX_FILE).is_file():
        return "safetensors-shards", _read_shards(path)
    files = sorted(file for file in path.glob("*.ckpt") if not file.name.startswith("."))
    if len(files) == 1:
        return read_file(files[0])
    if files:
        names = some([file.name for file in files])
        raise CheckpointError(f"{path} holds {len(files)} .ckpt files ({names}): name one")
    raise CheckpointError(f"{path} has no {WEIGHTS_FILE}, no {INDEX_FILE} and no .ckpt; found: {_listing(path)}")


def _read_shards(folder: Path) -> LazyTensors:
    index = folder / INDEX_FILE
    try:
        weight_map = _read_json(index).get("weight_map")
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names")
    shards: dict[str, LazyTensors] = {}
    infos: dict[str, TensorInfo] = {}
    for name, file in weight_map.items():
        if file not in shards:
            if Path(file).name != file:
                raise CheckpointError(f"{index} names the shard {file!r}: shards stand in the folder itself")
            if not (folder / file).is_file():
                raise CheckpointError(f"{folder} lacks the shard {file} that {INDEX_FILE} names; "
                                      f"found: {_listing(folder)}")
            shards[file] = safetensors.read_safetensors(folder / file)
        if name not in shards[file]:
            raise CheckpointError(f"{folder / file} lacks the tensor {name} that {INDEX_FILE} promises")
        infos[name] = shards[file].infos[name]

    def load(name: str) -> np.ndarray:
        return shards[weight_map[name]][name]

    return LazyTensors(infos, load)


def _find_config(path: Path) -> Path | None:
    candidates = [path / CONFIG_FILE] if path.is_dir() else [config_path_of(path), path.with_name(CONFIG_FILE)]
    return next((file for file in candidates if file.is_file()), None)


def _read_config(path: Path, family: str) -> GPTConfig:
    values = _read_json(path)
    # Old files do not say; the tensors do.
    values.setdefault("model_type", family)
    return GPTConfig.from_dict(values)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} cannot be read as JSON: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path.name} holds a JSON {type(values).__name__}: an object was expected")
    return values


def _architecture(config: GPTConfig, tensors: LazyTensors) -> str:
    stated = config.extra.get("architectures")
    if isinstance(stated, list) and stated and isinstance(stated[0], str):
        return stated[0]
    return architecture_name(config.model_type, head_in(tensors))


def _check_exists(path: Path) -> None:
    try:
        path.stat()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from None


def _listing(folder: Path) -> str:
    return some(sorted(item.name for item in folder.iterdir()), shown=8) or "nothing"
