"""Safetensors files: read through memory maps one tensor at a time, and written the same way.

Source: the format's description in the safetensors project (an 8-byte length, a JSON header, the data).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ms_gpt.checkpoint.atomic import explain_os_errors, replace_file
from ms_gpt.checkpoint.errors import CheckpointError, check_is_file, one_line
from ms_gpt.checkpoint.tensors import LazyTensors, TensorInfo, item_size, map_array, stored_dtype
from ms_gpt.errors import UserError

_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}
_CODES = {name: code for code, name in _NAMES.items()}
# Room for some 60,000 tensors. The reference implementation's limit is ten times that, but JSON made to be hostile
# can grow a hundredfold in memory, and short names of empty tensors are many.
_MAX_HEADER, _MAX_TENSORS = 10_000_000, 60_000
_MAX_NDIM = 32


def looks_like(path: str | Path) -> bool:
    """Say whether a file begins as a safetensors file does."""
    with open(path, "rb") as file:
        start = file.read(9)
        size = file.seek(0, 2)
    return len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] <= size - 8


def read_safetensors(path: str | Path) -> LazyTensors:
    """Open a safetensors file.

    Args:
        path: The file.

    Returns:
        Its tensors, in the file's order.

    Raises:
        CheckpointError: The file cannot be read, or its header breaks the format's rules.
    """
    path = Path(path)
    entries, start = _read_header(path)[1:]
    infos = {name: info for name, (info, _) in entries.items()}
    return LazyTensors(infos, lambda name: map_array(path, entries[name][0], start + entries[name][1]))


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the text entries of a safetensors file's ``__metadata__``.

    Args:
        path: The file.

    Returns:
        The entries; empty if there are none.

    Raises:
        CheckpointError: The file cannot be read, or its header breaks the format's rules.
    """
    return _read_header(Path(path))[0]


def write_safetensors(path: str | Path, tensors: Mapping[str, np.ndarray], dtype: str | None = None,
                      metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, all or nothing, holding one tensor in memory at a time.

    Args:
        path: The file.
        tensors: Name to array; a ``LazyTensors`` keeps the dtypes of its file, bfloat16 included.
        dtype: Write floating tensors as ``"float32"``, ``"float16"`` or ``"bfloat16"``; ``None`` keeps theirs.
        metadata: Text entries; ``{"format": "pt"}`` if not given, which transformers asks for.

    Raises:
        CheckpointError: A dtype is not known to the format, or a value does not fit ``dtype``.
        UserError: The file cannot be written.
    """
    with replace_file(path) as temporary:
        write_to(temporary, tensors, dtype, metadata)


def write_to(path: Path, tensors: Mapping[str, np.ndarray], dtype: str | None = None,
             metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file in place; see ``write_safetensors``."""
    tensors = LazyTensors.wrap(tensors)
    stored = {name: TensorInfo(info.shape, stored_dtype(info, dtype)) for name, info in tensors.infos.items()}
    for name, info in stored.items():
        if info.dtype not in _CODES:
            raise CheckpointError(f"{name} has the dtype {info.dtype}, which safetensors files cannot hold")
    # Widest first, so that every tensor starts at a multiple of its item size, as the format asks.
    order = sorted(stored, key=lambda name: (-item_size(stored[name].dtype), name))
    with open(path, "wb") as file:
        file.write(_header(order, stored, {"format": "pt"} if metadata is None else metadata))
        for name in order:
            for block in tensors.blocks(name, stored[name].dtype):
                file.write(block.data)


def _header(order: list[str], infos: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in order:
        end = position + infos[name].nbytes
        header[name] = {"dtype": _CODES[infos[name].dtype], "shape": list(infos[name].shape),
                        "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _read_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[TensorInfo, int]], int]:
    check_is_file(path)
    try:
        with explain_os_errors(path, "read"), open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            header, start = _parse_header(file, size)
        return _check_header(header, size - start) + (start,)
    except _BadHeaderError as error:
        raise CheckpointError(f"{path} is not a sound safetensors file: {error}") from None
    except UserError as error:
        raise CheckpointError(str(error)) from None


class _BadHeaderError(Exception):
    """The reason why a header is refused."""


def _parse_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise _BadHeaderError(f"it has {size} bytes, fewer than the 8 of a header's length")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(size - 8, _MAX_HEADER):
        raise _BadHeaderError(f"its header claims {length} bytes of a file of {size}")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _BadHeaderError(f"its header is not JSON ({one_line(error, 80)})") from None
    if not isinstance(header, dict):
        raise _BadHeaderError("its header is not a JSON object")
    return header, 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name stands twice")
    return values


def _check_header(header: dict[str, Any], data_size: int) -> tuple[dict[str, str], dict[str, tuple[TensorInfo, int]]]:
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _BadHeaderError("its __metadata__ is not a table of texts")
    if len(header) > _MAX_TENSORS:
        raise _BadHeaderError(f"it has {len(header)} tensors, more than {_MAX_TENSORS}")
    entries: dict[str, tuple[TensorInfo, int]] = {}
    for name, entry in header.items():
        info, begin, end = _check_entry(name, entry)
        needed = info.nbytes
        if end - begin != needed:
            raise _BadHeaderError(f"{name!r} spans {end - begin} bytes, but its shape and dtype need {needed}")
        entries[name] = (info, begin)
    position = 0
    for name, (info, begin) in sorted(entries.items(), key=lambda item: (item[1][1], item[1][0].nbytes)):
        if begin != position:
            raise _BadHeaderError(f"{name!r} starts at byte {begin} of the data and not at {position}: "
                                  f"tensors {'overlap' if begin < position else 'leave a gap'}")
        position += info.nbytes
    if position != data_size:
        raise _BadHeaderError(f"its tensors need {position} bytes and {data_size} are there"
                              f"{': it is cut short' if data_size < position else ''}")
    return metadata, entries


def _check_entry(name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise _BadHeaderError(f"{name!r} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _NAMES:
        raise _BadHeaderError(f"{name!r} has the dtype {str(dtype)[:40]!r}, which is not supported")
    for label, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise _BadHeaderError(f"{name!r} has {label} that are not whole numbers of at least 0")
    if len(offsets) != 2 or len(shape) > _MAX_NDIM:
        raise _BadHeaderError(f"{name!r} has {len(shape)} dimensions and {len(offsets)} offsets")
    return TensorInfo(tuple(shape), _NAMES[dtype]), offsets[0], offsets[1]
