"""OpenAI's release of GPT-1: all weights one after another in ``params_0.npy`` ..., their shapes in a JSON list.

The list has no names. Its order is fixed: position table, token table, then twelve tensors for each layer. The files
cut the stream without regard to tensors.

Source: ``load_params`` in openai/finetune-transformer-lm (``train.py``).
"""

from __future__ import annotations

import itertools
import json
import re
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ms_gpt.checkpoint.errors import CheckpointError, check_is_file, one_line
from ms_gpt.checkpoint.npz import npy_array
from ms_gpt.checkpoint.tensors import LazyTensors, TensorInfo, item_size, map_array

SHAPES_FILE = "params_shapes.json"
_BLOCK = ("attn/c_attn/w", "attn/c_attn/b", "attn/c_proj/w", "attn/c_proj/b", "ln_1/g", "ln_1/b", "mlp/c_fc/w",
          "mlp/c_fc/b", "mlp/c_proj/w", "mlp/c_proj/b", "ln_2/g", "ln_2/b")
_MAX_TENSORS = 100_000
_MAX_JSON = 2**20


@dataclass(frozen=True)
class _Piece:
    path: Path
    info: TensorInfo
    offset: int


def read_openai(folder: str | Path) -> LazyTensors:
    """Read OpenAI's GPT-1 files.

    Args:
        folder: Holds ``params_shapes.json`` and ``params_0.npy``, ``params_1.npy`` and so on.

    Returns:
        The tensors under the names they have in OpenAI's program: ``model/pe``, ``model/we``,
        ``model/h0/attn/c_attn/w`` and so on.

    Raises:
        CheckpointError: A file is missing or damaged, or the shapes are not those of a GPT-1.
    """
    folder = Path(folder)
    shapes = _read_shapes(folder / SHAPES_FILE)
    pieces = _find_pieces(folder)
    dtype = pieces[0].info.dtype
    infos = {name: TensorInfo(shape, dtype) for name, shape in zip(_names(len(shapes)), shapes, strict=True)}
    needed, found = sum(info.size for info in infos.values()), sum(piece.info.size for piece in pieces)
    if needed != found:
        raise CheckpointError(f"{folder}: the shapes in {SHAPES_FILE} need {needed} numbers, and the {len(pieces)} "
                              f"params files hold {found}")
    starts = dict(zip(infos, itertools.accumulate((info.size for info in infos.values()), initial=0), strict=False))
    ends = list(itertools.accumulate(piece.info.size for piece in pieces))

    def read(name: str) -> np.ndarray:
        parts = _cut(pieces, ends, starts[name], infos[name].size)
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(infos[name].shape)

    return LazyTensors(infos, read)


def _names(count: int) -> list[str]:
    layers = (count - 2) // len(_BLOCK)
    return ["model/pe", "model/we", *(f"model/h{layer}/{part}" for layer in range(layers) for part in _BLOCK)]


def _read_shapes(path: Path) -> list[tuple[int, ...]]:
    if check_is_file(path) > _MAX_JSON:
        raise CheckpointError(f"{path} is larger than a list of shapes")
    try:
        shapes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {one_line(error)}") from None
    if not isinstance(shapes, list) or not all(isinstance(shape, list) and 0 < len(shape) < 5 and
                                               all(type(size) is int and 0 < size < 2**40 for size in shape)
                                               for shape in shapes):
        raise CheckpointError(f"{path} is not a list of shapes")
    if len(shapes) < 14 or (len(shapes) - 2) % len(_BLOCK) or len(shapes) > _MAX_TENSORS:
        raise CheckpointError(f"{path} lists {len(shapes)} shapes: GPT-1 has 2 and {len(_BLOCK)} for each layer")
    return [tuple(shape) for shape in shapes]


def _find_pieces(folder: Path) -> list[_Piece]:
    numbers = sorted(int(match[1]) for file in folder.glob("params_*.npy")
                     if (match := re.fullmatch(r"params_(\d{1,4})\.npy", file.name)))
    if not numbers or numbers != list(range(len(numbers))):
        lacking = min(set(range(len(numbers) + 1)) - set(numbers))
        raise CheckpointError(f"{folder} lacks params_{lacking}.npy: it holds {len(numbers)} files of this kind")
    pieces = []
    for number in numbers:
        path = folder / f"params_{number}.npy"
        check_is_file(path)
        info, offset, _ = npy_array(path)
        if len(info.shape) != 1 or not info.dtype.startswith("float"):
            raise CheckpointError(f"{path} holds an array of shape {info.shape} and dtype {info.dtype}: a row of "
                                  "floats was expected")
        pieces.append(_Piece(path, info, offset))
    if len({piece.info.dtype for piece in pieces}) > 1:
        raise CheckpointError(f"{folder}: its params files are of different dtypes")
    return pieces


def _cut(pieces: list[_Piece], ends: list[int], start: int, size: int) -> list[np.ndarray]:
    """Return the parts of ``size`` numbers from ``start`` on; ``ends`` is where the pieces end."""
    parts, position, number = [], start, bisect_right(ends, start)
    while position < start + size:
        piece, last = pieces[number], min(start + size, ends[number])
        if position < last:
            within = position - (ends[number] - piece.info.size)
            part = TensorInfo((last - position,), piece.info.dtype)
            parts.append(map_array(piece.path, part, piece.offset + within * item_size(piece.info.dtype)))
        position, number = max(position, last), number + 1
    return parts
