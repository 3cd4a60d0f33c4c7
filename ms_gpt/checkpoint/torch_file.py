"""PyTorch's files, read and written without PyTorch: the zip format, and the stream format from before version 1.6.

Either holds a pickle, in which a tensor is a view of a storage, and the storages as plain bytes, which are mapped.

Source: ``torch.save`` and ``torch.load`` of PyTorch (``torch/serialization.py``) for the two formats.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ms_gpt.checkpoint.archive import ZipArchive, ZipWriter
from ms_gpt.checkpoint.atomic import explain_os_errors
from ms_gpt.checkpoint.errors import CheckpointError
from ms_gpt.checkpoint.restricted_pickle import (
    MAX_OPCODES,
    STORAGE_DTYPES,
    PickleError,
    Storage,
    StoredTensor,
    load,
)
from ms_gpt.checkpoint.tensors import LazyTensors, TensorInfo, bits_dtype, item_size, map_array, stored_dtype
from ms_gpt.errors import UserError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MAX_PICKLE = 16 * 2**20
# Tensors may share their numbers, as tied weights do; a thousand layers of the same numbers would fill any disk.
_FREE_BYTES, _SHARING = 64 * 2**20, 20
# Of the pickles around the object in a stream, and of the list of its storages' names.
_FEW_OPCODES, _MANY_OPCODES = 1_000, 100_000
# Where training programs put the state dict among other things.
_NESTED = ("model", "state_dict", "model_state_dict", "model_state", "module")
_STORAGE_NAMES = {dtype: name.removeprefix("torch.") for name, dtype in STORAGE_DTYPES.items()}
_ALIGNMENT = 64


def looks_like_stream(path: str | Path) -> bool:
    """Say whether a file begins as a pickle of protocol 2 or later does, and so PyTorch's stream format."""
    with open(path, "rb") as file:
        start = file.read(2)
    return len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5


def looks_like_zip(archive: ZipArchive) -> bool:
    """Say whether a zip archive is one of ``torch.save``."""
    return _pickle_name(archive) is not None


def read_zip(path: str | Path, archive: ZipArchive) -> tuple[LazyTensors, dict[str, Any]]:
    """Read the zip format.

    Args:
        path: The file.
        archive: The same file, opened.

    Returns:
        The tensors of its state dict, mapped on access, and the plain values that stand beside it.

    Raises:
        CheckpointError: The file is damaged, or its pickle asks for anything but tensors and plain containers.
    """
    path = Path(path)
    pickle_name = _pickle_name(archive)
    if pickle_name is None:
        raise CheckpointError(f"{path} is a zip archive without a data.pkl: it is no file of torch.save")
    folder = pickle_name.removesuffix("data.pkl")
    names = set(archive.names())
    if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder", 16).strip() != b"little":
        raise CheckpointError(f"{path} is big-endian: save it on a little-endian machine")
    content, storages = _load(path, io.BytesIO(archive.read(pickle_name, _MAX_PICKLE)))

    def read_storage(storage: Storage, offset: int, count: int) -> np.ndarray:
        start = (storage.start + offset) * item_size(storage.dtype)
        return archive.array(f"{folder}data/{storage.key}", TensorInfo((count,), storage.dtype), start)

    tensors, settings = _state_dict(path, content)
    for key in {tensor.storage.key for tensor in tensors.values()}:
        record, (dtype, count) = f"{folder}data/{key}", storages[key]
        found = archive.size(record) if record in names else 0
        if found < count * item_size(dtype):
            raise CheckpointError(f"{path} is not a sound PyTorch file: its storage {key[:40]!r} has {found} bytes "
                                  f"and {count * item_size(dtype)} are needed")
    _check_sharing(path, tensors, storages)
    return _lazy(tensors, read_storage), settings


def read_stream(path: str | Path) -> tuple[LazyTensors, dict[str, Any]]:
    """Read the stream format: magic number, version, system, object, storage keys, storages.

    Args:
        path: The file.

    Returns:
        As ``read_zip``.

    Raises:
        CheckpointError: As ``read_zip``.
    """
    path = Path(path)
    try:
        with explain_os_errors(path, "read"), open(path, "rb") as file:
            stream = io.BytesIO(file.read(_MAX_PICKLE))
            size = file.seek(0, io.SEEK_END)
    except UserError as error:
        raise CheckpointError(str(error)) from None
    if _load(path, stream, _FEW_OPCODES)[0] != _MAGIC:
        raise CheckpointError(f"{path} is a pickle, but not one of torch.save")
    version, system = _load(path, stream, _FEW_OPCODES)[0], _load(path, stream, _FEW_OPCODES)[0]
    if version != _PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{path} is of an unknown version of PyTorch's stream format, or big-endian")
    content, storages = _load(path, stream)
    tensors, settings = _state_dict(path, content)
    keys = _load(path, stream, _MANY_OPCODES)[0]
    starts = _storage_starts(path, keys, storages, stream.tell(), size)
    _check_sharing(path, tensors, storages)

    def read_storage(storage: Storage, offset: int, count: int) -> np.ndarray:
        start = starts[storage.key] + (storage.start + offset) * item_size(storage.dtype)
        return map_array(path, TensorInfo((count,), storage.dtype), start)

    return _lazy(tensors, read_storage), settings


def write_to(path: Path, tensors: Mapping[str, np.ndarray], dtype: str | None = None,
             model_args: Mapping[str, Any] | None = None) -> None:
    """Write the zip format in place, so that ``torch.load(path, weights_only=True)`` reads it.

    Args:
        path: The file.
        tensors: Name to array.
        dtype: Write floating tensors as ``"float32"``, ``"float16"`` or ``"bfloat16"``; ``None`` keeps theirs.
        model_args: If given, the file holds ``{"model": state dict, "model_args": model_args}``, as nanoGPT's do.

    Raises:
        CheckpointError: A dtype is not known to PyTorch's storages, or a value does not fit ``dtype``.
    """
    tensors = LazyTensors.wrap(tensors)
    infos = {name: TensorInfo(info.shape, stored_dtype(info, dtype)) for name, info in tensors.infos.items()}
    for name, info in infos.items():
        if info.dtype not in _STORAGE_NAMES:
            raise CheckpointError(f"{name} has the dtype {info.dtype}, which PyTorch's files cannot hold here")
    pickler = _Pickler()
    if model_args is None:
        pickler.state_dict(infos)
    else:
        pickler.table({"model": infos, "model_args": dict(model_args)})
    pickle = pickler.finish()
    with ZipWriter(path) as archive:
        archive.add("archive/data.pkl", len(pickle), [pickle], align=_ALIGNMENT)
        archive.add("archive/byteorder", 6, [b"little"], align=_ALIGNMENT)
        for number, (name, info) in enumerate(infos.items()):
            archive.add(f"archive/data/{number}", info.nbytes, tensors.blocks(name, info.dtype), align=_ALIGNMENT)
        archive.add("archive/version", 2, [b"3\n"], align=_ALIGNMENT)


def _pickle_name(archive: ZipArchive) -> str | None:
    return next((name for name in archive.names() if name == "data.pkl" or name.endswith("/data.pkl")), None)


def _load(path: Path, stream: io.BytesIO, max_opcodes: int = MAX_OPCODES) -> Any:
    try:
        return load(stream, max_opcodes)
    except PickleError as error:
        raise CheckpointError(f"{path} is refused: {error}") from None


def _state_dict(path: Path, content: Any) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Find the tensors by name in what the pickle holds, and the plain values beside them."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__} and no table of tensors: "
                              "save model.state_dict()")
    inner = next((content[key] for key in _NESTED if isinstance(content.get(key), dict) and _tensors(content[key])),
                 None)
    tensors = _tensors(content if inner is None else inner)
    if not tensors:
        keys = ", ".join(repr(key)[:30] for key in list(content)[:6])
        raise CheckpointError(f"{path} holds no tensors by name ({keys or 'it is empty'}): save model.state_dict()")
    return tensors, {} if inner is None else {key: value for key, value in content.items() if value is not inner}


def _tensors(table: dict[Any, Any]) -> dict[str, StoredTensor]:
    return {name: value for name, value in table.items() if isinstance(name, str) and isinstance(value, StoredTensor)}


def _check_sharing(path: Path, tensors: Mapping[str, StoredTensor], storages: Mapping[str, tuple[str, int]]) -> None:
    used = [storages[key] for key in {tensor.storage.key for tensor in tensors.values()}]
    stored = sum(count * item_size(dtype) for dtype, count in used)
    sizes = ((math.prod(tensor.shape), tensor.storage) for tensor in tensors.values())
    # Those that are larger than their storage are refused when they are read.
    needed = sum(size * item_size(storage.dtype) for size, storage in sizes if size <= storage.size)
    if needed > _FREE_BYTES + _SHARING * stored:
        raise CheckpointError(f"{path} is refused: its tensors share their numbers, and {stored} bytes would become "
                              f"{needed}")


def _storage_starts(path: Path, keys: Any, storages: Mapping[str, tuple[str, int]], position: int,
                    size: int) -> dict[str, int]:
    """Find where each storage of a stream file begins: each is preceded by its number of elements."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages):
        raise CheckpointError(f"{path} is not a sound PyTorch file: its list of storages is not that of its tensors")
    starts: dict[str, int] = {}
    with explain_os_errors(path, "read"), open(path, "rb") as file:
        for key in keys:
            dtype, count = storages[key]
            end = position + 8 + count * item_size(dtype)
            if end > size:
                raise CheckpointError(f"{path} is cut short: its storages need {end} bytes and {size} are there")
            file.seek(position)
            if file.read(8) != struct.pack("<q", count):
                raise CheckpointError(f"{path} is not a sound PyTorch file: its storage {key[:40]!r} of {count} "
                                      "elements is not where it should be")
            starts[key], position = position + 8, end
    return starts


def _lazy(tensors: Mapping[str, StoredTensor], read_storage: Callable[[Storage, int, int], np.ndarray]) -> LazyTensors:
    infos = {name: TensorInfo(tensor.shape, tensor.storage.dtype) for name, tensor in tensors.items()}

    def read(name: str) -> np.ndarray:
        tensor = tensors[name]
        if infos[name].size > tensor.storage.size:
            # A stride of 0 could make terabytes of one number; what a model learns is never stored so.
            raise CheckpointError(f"{name} of shape {tensor.shape} is expanded from {tensor.storage.size} numbers: "
                                  "save its contiguous()")
        if not infos[name].size:
            return np.empty(tensor.shape, bits_dtype(tensor.storage.dtype))
        if tensor.is_contiguous:
            return read_storage(tensor.storage, tensor.offset, infos[name].size).reshape(tensor.shape)
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
        elements = read_storage(tensor.storage, tensor.offset, span)
        # Along an axis of 1 no step is taken, so its stride may be any number, and numpy takes only some.
        strides = [0 if size == 1 else stride * elements.itemsize
                   for size, stride in zip(tensor.shape, tensor.strides, strict=True)]
        return np.lib.stride_tricks.as_strided(elements, tensor.shape, strides, writeable=False)

    return LazyTensors(infos, read)


class _Pickler:
    """Writes the pickle of a state dict; PyTorch's names are written as text, so that PyTorch need not be there."""

    def __init__(self) -> None:
        self._parts = [b"\x80\x02"]
        self._storages = 0

    def finish(self) -> bytes:
        """Return the whole pickle."""
        return b"".join(self._parts) + b"."

    def table(self, values: Mapping[str, Any]) -> None:
        """Write a dict of plain values, and of state dicts where a value maps names to ``TensorInfo``."""
        self._parts.append(b"}(")
        for key, value in values.items():
            self._value(key)
            if isinstance(value, Mapping) and all(isinstance(item, TensorInfo) for item in value.values()) and value:
                self.state_dict(value)
            elif isinstance(value, Mapping):
                self.table(value)
            else:
                self._value(value)
        self._parts.append(b"u")

    def state_dict(self, infos: Mapping[str, TensorInfo]) -> None:
        """Write an ``OrderedDict`` of contiguous tensors, each in a storage of its own."""
        self._parts.append(_ORDERED_DICT + b"(")
        for name, info in infos.items():
            self._value(name)
            self._tensor(info)
        self._parts.append(b"u")

    def _tensor(self, info: TensorInfo) -> None:
        strides = [math.prod(info.shape[axis + 1:]) for axis in range(len(info.shape))]
        self._parts.append(b"ctorch._utils\n_rebuild_tensor_v2\n((")
        self._value("storage")
        self._parts.append(f"ctorch\n{_STORAGE_NAMES[info.dtype]}\n".encode())
        for value in (str(self._storages), "cpu", info.size):
            self._value(value)
        self._parts.append(b"tQ")
        for value in (0, info.shape, tuple(strides), False):
            self._value(value)
        self._parts.append(_ORDERED_DICT + b"tR")
        self._storages += 1

    def _value(self, value: Any) -> None:
        if value is None or isinstance(value, bool):
            self._parts.append({None: b"N", True: b"\x88", False: b"\x89"}[value])
        elif isinstance(value, int):
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self._parts.append(b"\x8a" + bytes([len(data)]) + data)
        elif isinstance(value, float):
            self._parts.append(b"G" + struct.pack(">d", value))
        elif isinstance(value, str):
            data = value.encode("utf-8")
            self._parts.append(b"X" + struct.pack("<I", len(data)) + data)
        else:
            self._parts.append(b"(")
            for item in value:
                self._value(item)
            self._parts.append(b"t")


_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
