"""Tensors out of files and folders, each kind recognised by its content; what the names mean is ``sources``' matter."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ms_gpt.checkpoint import ckpt, npz, openai, safetensors, tarball, tensorflow, torch_file
from ms_gpt.checkpoint.archive import ZipArchive
from ms_gpt.checkpoint.errors import CheckpointError, check_is_file, one_line, some
from ms_gpt.checkpoint.tensors import LazyTensors, TensorInfo

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_SUFFIX = ".index.json"
HPARAMS_FILE = "hparams.json"
GENERATION_FILE = "generation_config.json"
# The two files of a BPE under the names of Hugging Face, of OpenAI's GPT-1 and of OpenAI's GPT-2.
BPE_FILES = (("vocab.json", "merges.txt"), ("encoder_bpe_40000.json", "vocab_40000.bpe"), ("encoder.json", "vocab.bpe"))
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                   *BPE_FILES[0], *BPE_FILES[1])
# OpenAI's names of GPT-2's vocabulary, and those that transformers looks for.
OPENAI_TOKENIZER = dict(zip(BPE_FILES[2], BPE_FILES[0], strict=True))
# In a folder the first that is there is taken: transformers' own order.
MODEL_FILES = (WEIGHTS_FILE, f"{WEIGHTS_FILE}{INDEX_SUFFIX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX_SUFFIX}")
_SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth", ".npz", INDEX_SUFFIX)
# What stands in model folders under such a suffix and is no model.
_NO_MODEL = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt",
             "training_state.safetensors")
# JSON made to be hostile can grow thirtyfold in memory.
_LFS = b"version https://git-lfs"
_MAX_JSON = 8 * 2**20
_MAX_DEPTH = 100


@dataclass(frozen=True)
class Content:
    """What a file or folder holds.

    Args:
        format: Its kind, such as ``"safetensors"`` or ``"torch-shards"``.
        tensors: Its tensors under its own names.
        settings: Plain values that stand beside the tensors in the file (nanoGPT's ``model_args``, OpenAI's hparams).
        folder: Where its companions (configuration, tokenizer) are to be looked for.
        config_file: Its configuration, if there is one.
    """

    format: str
    tensors: LazyTensors
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    config_file: Path | None = None


@dataclass(frozen=True)
class FileFormat:
    """A kind of file that tensors are read from.

    Args:
        name: Its name in reports.
        suffixes: Those under which it is found; used only to choose whose complaint is shown about a damaged file.
        looks_like: Function that recognises it by its first bytes.
        read: Function that opens it and gives its tensors and settings.
    """

    name: str
    suffixes: tuple[str, ...]
    looks_like: Callable[[Path], bool]
    read: Callable[[Path], tuple[LazyTensors, dict[str, Any]]]


def _alone(read: Callable[[Path], LazyTensors]) -> Callable[[Path], tuple[LazyTensors, dict[str, Any]]]:
    return lambda path: (read(path), {})


def _starts_as_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _read_zip(path: Path) -> tuple[LazyTensors, dict[str, Any]]:
    archive = ZipArchive(path)
    if torch_file.looks_like_zip(archive):
        return torch_file.read_zip(path, archive)
    if any(name.endswith(".npy") for name in archive.names()):
        return npz.read_npz(path), {}
    raise CheckpointError(f"{path} is a zip archive of {some(archive.names()) or 'nothing'}: neither PyTorch's nor "
                          "NumPy's")


FILE_FORMATS = (
    FileFormat("safetensors", (".safetensors",), safetensors.looks_like, _alone(safetensors.read_safetensors)),
    FileFormat("zip", (".npz",), _starts_as_zip, _read_zip),
    FileFormat("torch-stream", (".bin", ".pt", ".pth"), torch_file.looks_like_stream, torch_file.read_stream),
    FileFormat("openai-gpt2", (".index",), tensorflow.looks_like, _alone(tensorflow.read_tensorflow)),
    FileFormat("ckpt", (".ckpt",), ckpt.looks_like, _alone(ckpt.read_ckpt)),
)


def read_content(path: Path) -> Content:
    """Open a file or folder of tensors.

    Args:
        path: A file of any known kind, a shard index, a packed folder (``.tar``, ``.tar.gz``), or a folder.

    Returns:
        What it holds.

    Raises:
        CheckpointError: The path is missing, is of no known format, or is damaged.
    """
    if path.is_dir():
        return _read_folder(path)
    if path.name == openai.SHAPES_FILE:
        return _read_folder(path.parent)
    check_is_file(path)
    try:
        packed = tarball.looks_like(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from None
    if packed:
        folder, holder = tarball.unpack(path)
        try:
            content = _read_folder(folder)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(folder), str(path))) from None
        # The temporary folder goes away with its last reference, so the tensors hold one.
        content.tensors.holder = holder
        return content
    if path.name.endswith(INDEX_SUFFIX):
        return replace(_read_shards(path), config_file=config_beside(path))
    name, tensors, settings = read_file(path)
    if name == "openai-gpt2":
        return _tensorflow_content(path, tensors)
    return Content(name, tensors, path.parent, settings, config_beside(path))


def read_file(path: Path) -> tuple[str, LazyTensors, dict[str, Any]]:
    """Open one file of tensors, recognised by its content.

    Args:
        path: The file.

    Returns:
        The format's name, the tensors, and the plain values beside them.

    Raises:
        CheckpointError: The file is of no known format, or is damaged.
    """
    empty = check_is_file(path) == 0
    try:
        known = next((item for item in FILE_FORMATS if item.looks_like(path)), None)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from None
    if known is None and not empty:
        known = next((item for item in FILE_FORMATS if path.suffix in item.suffixes), None)
    if _is_lfs_pointer(path):
        raise CheckpointError(f"{path} is a pointer of git-lfs and not the file itself: run git lfs pull")
    if known is None:
        raise CheckpointError(f"{path} is empty" if empty else
                              f"{path} is of no known format: its content is none of safetensors, PyTorch's, NumPy's "
                              "npz, MindSpore's ckpt, TensorFlow's index")
    tensors, settings = known.read(path)
    if known.name == "zip":
        return "npz" if path.suffix == ".npz" and not settings else "torch", tensors, settings
    return "torch" if known.name == "torch-stream" else known.name, tensors, settings


def _is_lfs_pointer(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(_LFS)) == _LFS


def config_path_of(path: Path) -> Path:
    """Return where the configuration of a weights file stands: ``NAME_config.json``, or ``config.json`` for "model"."""
    stem = path.name.removesuffix(INDEX_SUFFIX)
    stem = Path(stem).stem
    return path.with_name(CONFIG_FILE if stem in ("model", "pytorch_model") else f"{stem}_config.json")


def config_beside(path: Path) -> Path | None:
    """Return the configuration that a weights file is read with, its own before ``config.json``, if there is one."""
    return next((file for file in (config_path_of(path), path.with_name(CONFIG_FILE)) if _is_file(file)), None)


def has_tokenizer(names: Collection[str]) -> bool:
    """Say whether files of these names make a tokenizer, and not only a part of one."""
    return "tokenizer.json" in names or any(set(pair) <= set(names) for pair in BPE_FILES)


def is_weights(path: Path) -> bool:
    """Say whether a file is one of weights, by its name."""
    name = path.name
    return name.endswith(_SUFFIXES) and name not in _NO_MODEL and not name.startswith((".", "rng_state_"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file, of 8 MB at most.

    Returns:
        The object.

    Raises:
        CheckpointError: The file cannot be read, is too large, or holds something else.
    """
    if check_is_file(path) > _MAX_JSON:
        raise CheckpointError(f"{path.name} is larger than {_MAX_JSON} bytes: that is no settings file")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        _check_depth(values)
        # JSON can spell halves of characters, which cannot be written again.
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} cannot be read as JSON: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path.name} holds a JSON {type(values).__name__}: an object was expected")
    return values


def listing(folder: Path) -> str:
    """Return the names of the first few files of a folder, for a message."""
    try:
        return some(sorted(item.name for item in folder.iterdir()), shown=8) or "nothing"
    except OSError as error:
        return one_line(error)


def _check_depth(values: Any) -> None:
    """Refuse deeply nested JSON: what Python still parses, it may not be able to print."""
    level = [values]
    for _ in range(_MAX_DEPTH):
        level = [child for item in level if isinstance(item, dict | list)
                 for child in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {_MAX_DEPTH} levels")


def _read_folder(folder: Path) -> Content:
    try:
        names = sorted(item.name for item in folder.iterdir() if not item.name.startswith("."))
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {one_line(error)}") from None
    config_file = folder / CONFIG_FILE if CONFIG_FILE in names else None
    if openai.SHAPES_FILE in names:
        return Content("openai-gpt1", openai.read_openai(folder), folder, config_file=config_file)
    weights = next((name for name in MODEL_FILES if name in names), None)
    if weights is None:
        index = tensorflow.find_index(folder)
        if index is not None:
            return _tensorflow_content(index, tensorflow.read_tensorflow(index))
        weights = _only_weights(folder, names)
    if weights.endswith(INDEX_SUFFIX):
        return replace(_read_shards(folder / weights), config_file=config_file)
    name, tensors, settings = read_file(folder / weights)
    return Content(name, tensors, folder, settings, config_file or config_beside(folder / weights))


def _only_weights(folder: Path, names: list[str]) -> str:
    found = [name for name in names if name.endswith(_SUFFIXES) and name not in _NO_MODEL]
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(f"{folder} holds {len(found)} files of weights ({some(found)}): name one")
    best = folder / "best"
    hint = f". The model of a run is in {best}" if (best / CONFIG_FILE).is_file() else ""
    raise CheckpointError(f"{folder} has no {WEIGHTS_FILE}, no {WEIGHTS_FILE}{INDEX_SUFFIX}, no pytorch_model.bin and "
                          f"no other weights; found: {listing(folder)}{hint}")


def _tensorflow_content(index: Path, tensors: LazyTensors) -> Content:
    hparams = index.with_name(HPARAMS_FILE)
    try:
        settings = read_json(hparams) if _is_file(hparams) else {}
    except CheckpointError as error:
        raise CheckpointError(f"{index.parent}: {error}") from None
    return Content("openai-gpt2", tensors, index.parent, settings, config_beside(index))


def _read_shards(index: Path) -> Content:
    folder = index.parent
    try:
        weight_map = read_json(index).get("weight_map")
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names")
    shards: dict[str, LazyTensors] = {}
    infos: dict[str, TensorInfo] = {}
    kinds: set[str] = set()
    for name, file in weight_map.items():
        if file not in shards:
            if Path(file).name != file:
                raise CheckpointError(f"{index} names the shard {file!r}: shards stand in the folder itself")
            if not _is_file(folder / file):
                raise CheckpointError(f"{folder} lacks the shard {file} that {index.name} names; "
                                      f"found: {listing(folder)}")
            kind, shards[file], _ = read_file(folder / file)
            kinds.add(kind)
        if name not in shards[file]:
            raise CheckpointError(f"{folder / file} lacks the tensor {name} that {index.name} promises")
        infos[name] = shards[file].infos[name]

    def read(name: str) -> np.ndarray:
        return shards[weight_map[name]].bits(name)

    return Content(f"{kinds.pop() if len(kinds) == 1 else 'mixed'}-shards", LazyTensors(infos, read), folder)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        # Such as a name that is too long.
        return False
