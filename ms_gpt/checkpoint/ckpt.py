"""MindSpore's ``.ckpt`` files, without MindSpore: read through memory maps and written as a stream.

A file is the protocol buffer ``Checkpoint { repeated Value value = 1 }``, ``Value { string tag = 1; TensorProto tensor
= 2; MapTensorProto maptensor = 3 }``, ``TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes
tensor_content = 3 }``. A large tensor is several values in a row under one tag; a checksum may follow the last.

Source: ``checkpoint.proto`` and ``mindspore/train/serialization.py`` of MindSpore 2.7 to 2.10.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ms_gpt.checkpoint.atomic import replace_file
from ms_gpt.checkpoint.errors import CheckpointError, one_line
from ms_gpt.checkpoint.protobuf import BYTES, VARINT, decode_varint, encode_varint
from ms_gpt.checkpoint.tensors import LazyTensors, TensorInfo, bits_dtype, map_array, stored_dtype

_NAMES = {
    "Float64": "float64", "Float32": "float32", "Float16": "float16", "BFloat16": "bfloat16", "Bool": "bool",
    "Int64": "int64", "Int32": "int32", "Int16": "int16", "Int8": "int8",
    "UInt64": "uint64", "UInt32": "uint32", "UInt16": "uint16", "UInt8": "uint8",
}
_TYPES = {name: kind for kind, name in _NAMES.items()}
_TEXT, _MAP = "str", "MapTensor"
# What MindSpore puts into one value: its SLICE_SIZE of 512 * 1024 KB.
_SLICE_BYTES = 512 * 2**20
_CHECKSUM_MARK, _CHECKSUM_SIZE = b"crc_num", 17
# A value has 7 fields or so, which makes this some 25,000 tensors: a second of reading.
_MAX_FIELDS = 180_000
_MAX_NAME, _MAX_TYPE, _MAX_NDIM = 4096, 64, 32
# A field's tag and length, or its tag and value: two varints.
_MAX_HEAD = 20


def looks_like(path: str | Path) -> bool:
    """Say whether a file begins as a ``.ckpt`` does: a value that starts with its tag, and then a tensor."""
    with open(path, "rb") as file:
        start = file.read(_MAX_HEAD + _MAX_NAME)
    try:
        if start[:1] != b"\n":
            return False
        position = decode_varint(start, 1)[1]
        length, begin = decode_varint(start, position + 1)
    except ValueError:
        return False
    name, following = start[begin:begin + length], start[begin + length:begin + length + 1]
    return start[position:position + 1] == b"\n" and bool(name) and min(name) > 32 and following in (b"\x12", b"\x1a")


def read_ckpt(path: str | Path) -> LazyTensors:
    """Open a ``.ckpt`` file. Texts in it are left out, and its checksum is not compared.

    Args:
        path: The file.

    Returns:
        Its tensors under the names they have there, in the file's order. One of several slices (MindSpore cuts at
        512 MB) is put together in memory, and kept until the next such one is read.

    Raises:
        CheckpointError: The file cannot be read, is damaged or encrypted, or holds what this reader does not know.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file: give a .ckpt file")
    infos: dict[str, TensorInfo] = {}
    parts: dict[str, list[range]] = {}
    for tag, group in itertools.groupby(_read_values(path), key=lambda value: value.tag):
        values = list(group)
        if tag in infos:
            raise CheckpointError(f"{path} is not a sound .ckpt file: {tag!r} stands twice")
        if any(value.kind != _TEXT for value in values):
            infos[tag] = _check_tensor(path, values)
            parts[tag] = [value.content for value in values]
    if not infos:
        raise CheckpointError(f"{path} holds no tensors")
    joined: dict[str, np.ndarray] = {}

    def load(name: str) -> np.ndarray:
        if len(parts[name]) == 1:
            return map_array(path, infos[name], parts[name][0].start)
        # The last one is kept because a tensor is asked for once for each block that is written from it.
        if name not in joined:
            joined.clear()
            joined[name] = _join(path, infos[name], parts[name])
        return joined[name]

    return LazyTensors(infos, load)


def write_ckpt(path: str | Path, tensors: Mapping[str, np.ndarray], dtype: str | None = None) -> None:
    """Write a ``.ckpt`` file, all or nothing, holding one block of a tensor in memory at a time.

    Args:
        path: The file; its name ends in ``.ckpt``.
        tensors: Name to array. MindSpore's ``load_checkpoint`` gives the same names back.
        dtype: Write floating tensors as ``"float32"``, ``"float16"`` or ``"bfloat16"``; ``None`` keeps theirs.

    Raises:
        CheckpointError: The name does not end in ``.ckpt``, there is nothing to write, or a dtype or value does not
            fit.
        UserError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".ckpt":
        raise CheckpointError(f"{path} does not end in .ckpt: MindSpore insists on it")
    with replace_file(path) as temporary:
        write_to(temporary, tensors, dtype)


def write_to(path: Path, tensors: Mapping[str, np.ndarray], dtype: str | None = None) -> None:
    """Write a ``.ckpt`` file in place; see ``write_ckpt``."""
    tensors = LazyTensors.wrap(tensors)
    stored = {name: TensorInfo(info.shape, stored_dtype(info, dtype)) for name, info in tensors.infos.items()}
    if not stored:
        raise CheckpointError("the checkpoint is empty: there is nothing to write")
    for name, info in stored.items():
        if not info.size:
            raise CheckpointError(f"{name} is empty (shape {info.shape}), and MindSpore loads no empty tensors")
        if info.dtype not in _TYPES:
            raise CheckpointError(f"{name} has the dtype {info.dtype}, which .ckpt files cannot hold")
        _encoded_name(name)
    with open(path, "wb") as file:
        for name, info in stored.items():
            _write_tensor(file, name, info, tensors.blocks(name, info.dtype))


def _write_tensor(file: BinaryIO, name: str, info: TensorInfo, blocks: Iterable[np.ndarray]) -> None:
    left, room = info.nbytes, 0
    for block in blocks:
        data = block.view(np.uint8)
        while len(data):
            if not room:
                room = min(_SLICE_BYTES, left)
                file.write(_value_head(name, info, room))
            piece = data[:room]
            file.write(piece.data)
            data = data[len(piece):]
            room -= len(piece)
            left -= len(piece)


def _value_head(name: str, info: TensorInfo, content_size: int) -> bytes:
    """Return all of a value that stands before the bytes of its content."""
    head = b"".join(_varint_field(1, size) for size in info.shape)
    head += _bytes_field(2, _TYPES[info.dtype].encode("ascii")) + _bytes_head(3, content_size)
    tag = _bytes_field(1, _encoded_name(name))
    tensor = _bytes_head(2, len(head) + content_size) + head
    return _bytes_head(1, len(tag) + len(tensor) + content_size) + tag + tensor


def _encoded_name(name: str) -> bytes:
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        encoded = b""
    if not 0 < len(encoded) <= _MAX_NAME:
        raise CheckpointError(f"{name[:80]!r} cannot be a tensor's name in a .ckpt file: "
                              f"it has to be 1 to {_MAX_NAME} bytes of UTF-8")
    return encoded


def _varint_field(number: int, value: int) -> bytes:
    return encode_varint(number << 3 | VARINT) + encode_varint(value)


def _bytes_head(number: int, size: int) -> bytes:
    return encode_varint(number << 3 | BYTES) + encode_varint(size)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _bytes_head(number, len(value)) + value


@dataclass(frozen=True)
class _Value:
    """One value of a file: a tensor, or a slice of one.

    Args:
        tag: The tensor's name.
        kind: MindSpore's name of its type.
        shape: The shape of the whole tensor.
        content: The bytes of the file that hold its elements.
    """

    tag: str
    kind: str
    shape: tuple[int, ...]
    content: range


def _check_tensor(path: Path, values: list[_Value]) -> TensorInfo:
    tag, kind, shape = values[0].tag, values[0].kind, values[0].shape
    if kind not in _NAMES:
        raise CheckpointError(f"{path} cannot be read: {tag!r} is of MindSpore's type {kind!r}, which is not supported")
    size = sum(len(value.content) for value in values)
    # MindSpore loads the shape (0,) as a scalar, which older versions wrote so.
    info = TensorInfo(() if shape == (0,) and size else shape, _NAMES[kind])
    if any((value.kind, value.shape) != (kind, shape) for value in values):
        raise CheckpointError(f"{path} is not a sound .ckpt file: the slices of {tag!r} differ in type or shape")
    if info.nbytes != size:
        raise CheckpointError(f"{path} is not a sound .ckpt file: {tag!r} has {size} bytes, "
                              f"but its shape and type need {info.nbytes}")
    return info


def _join(path: Path, info: TensorInfo, parts: list[range]) -> np.ndarray:
    pieces = [map_array(path, TensorInfo((len(part),), "uint8"), part.start) for part in parts]
    array = np.concatenate(pieces).view(bits_dtype(info.dtype)).reshape(info.shape)
    array.flags.writeable = False
    return array


def _read_values(path: Path) -> list[_Value]:
    try:
        with open(path, "rb") as file:
            return _MessageWalk(file).values()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not a sound .ckpt file: {one_line(error)}") from None


class _MessageWalk:
    """Goes through the messages of a file and tells where the contents of tensors lie, without loading them.

    Args:
        file: The file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._fields_left = _MAX_FIELDS

    def values(self) -> list[_Value]:
        size = self._file.seek(0, 2)
        if not size:
            raise ValueError("it is empty")
        end = size - _CHECKSUM_SIZE
        if end < 0 or self._bytes(range(end, end + len(_CHECKSUM_MARK)), size) != _CHECKSUM_MARK:
            end = size
        return [self._value(value) for value in self._message(range(end), 1)[0]]

    def _value(self, span: int | range) -> _Value:
        tags, tensors, maps = self._message(span, 3)
        if len(tags) != 1 or len(tensors) + len(maps) != 1:
            raise ValueError("a value has no name or no tensor")
        tag = self._text(tags[0], _MAX_NAME)
        if maps:
            return _Value(tag, _MAP, (), range(0))
        dims, types, contents = self._message(tensors[0], 3)
        if len(types) != 1 or len(contents) != 1 or not isinstance(contents[0], range):
            raise ValueError(f"{tag!r} has no type or no content")
        return _Value(tag, self._text(types[0], _MAX_TYPE), self._shape(tag, dims), contents[0])

    def _shape(self, tag: str, dims: list[int | range]) -> tuple[int, ...]:
        shape: list[int] = []
        for field in dims:
            if isinstance(field, int):
                shape.append(field)
                continue
            # The same list in its packed form.
            packed, position = self._bytes(field, 10 * _MAX_NDIM), 0
            while position < len(packed):
                size, position = decode_varint(packed, position)
                shape.append(size)
        # numpy multiplies the sizes other than 0, and has to be able to.
        if len(shape) > _MAX_NDIM or math.prod(size for size in shape if size) >= 2**60:
            raise ValueError(f"{tag!r} has the shape {str(tuple(shape))[:80]}")
        return tuple(shape)

    def _message(self, span: int | range, last: int) -> list[list[int | range]]:
        """Return what stands in the fields 1 to ``last`` of a message: numbers, and where bytes lie."""
        found: list[list[int | range]] = [[] for _ in range(last)]
        for number, value in self._fields(span):
            if not 1 <= number <= last:
                raise ValueError(f"it holds a field {number}, which checkpoints do not have")
            found[number - 1].append(value)
        return found

    def _fields(self, span: int | range) -> Iterator[tuple[int, int | range]]:
        if isinstance(span, int):
            raise ValueError("it holds a number where a message should be")
        position = span.start
        while position < span.stop:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise ValueError(f"it has more than {_MAX_FIELDS} fields")
            self._file.seek(position)
            head = self._file.read(min(_MAX_HEAD, span.stop - position))
            key, used = decode_varint(head, 0)
            value, used = decode_varint(head, used)
            position += used
            if key & 7 == BYTES:
                if value > span.stop - position:
                    raise ValueError(f"a field of {value} bytes has {span.stop - position} left: it is cut short")
                yield key >> 3, range(position, position + value)
                position += value
            elif key & 7 == VARINT:
                yield key >> 3, value
            else:
                raise ValueError(f"it holds a field of wire type {key & 7}, which checkpoints do not have")

    def _bytes(self, span: range, limit: int) -> bytes:
        if len(span) > limit:
            raise ValueError(f"it holds a name or shape of {len(span)} bytes")
        self._file.seek(span.start)
        return self._file.read(len(span))

    def _text(self, span: int | range, limit: int) -> str:
        if isinstance(span, int):
            raise ValueError("it holds a number where a text should be")
        return self._bytes(span, limit).decode("utf-8")
