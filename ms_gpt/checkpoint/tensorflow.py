"""TensorFlow checkpoints (``PREFIX.index`` and ``PREFIX.data-00000-of-00001``), read without TensorFlow.

The index is a sorted string table that tells where in the data files each variable lies; tensors are memory-mapped.

Source: TensorFlow's ``core/protobuf/tensor_bundle.proto`` and the table format of LevelDB, which it builds on.
"""

from __future__ import annotations

import functools
import math
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ms_gpt.checkpoint.errors import CheckpointError, one_line, some
from ms_gpt.checkpoint.protobuf import BYTES, VARINT, decode_varint, fields
from ms_gpt.checkpoint.tensors import LazyTensors, TensorInfo, map_array

STATE_FILE = "checkpoint"
_SUFFIX = ".index"
_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_FOOTER = 48
_TRAILER = 5
# A few times what the largest GPT with its optimizer's state needs; a hostile index can ask for work in Python with
# every byte and for memory with every name.
_MAX_INDEX = 2**20
_MAX_ENTRIES = 20_000
_MAX_NAME = 1024
_MAX_NDIM = 32
_STRING = 7
_DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 9: "int64", 10: "bool",
    14: "bfloat16", 17: "uint16", 19: "float16", 22: "uint32", 23: "uint64",
}
# Field number to wire type, of the messages BundleHeaderProto, BundleEntryProto, TensorShapeProto and its Dim.
_HEADER = {1: VARINT, 2: VARINT}
_ENTRY = {1: VARINT, 2: BYTES, 3: VARINT, 4: VARINT, 5: VARINT, 7: BYTES}
_SHAPE = {2: BYTES, 3: VARINT}
_DIM = {1: VARINT}
_STATE_PATH = re.compile(rb'^\s*model_checkpoint_path\s*:\s*"((?:[^"\\\n]|\\.)*)"', re.MULTILINE)
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)")


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: which data file, and from which byte on."""

    info: TensorInfo
    shard: int
    offset: int


def looks_like(path: str | Path) -> bool:
    """Say whether a file ends as the index of a TensorFlow checkpoint does."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(_MAGIC)))
        return size >= _FOOTER and file.read(len(_MAGIC)) == _MAGIC


def find_index(folder: Path) -> Path | None:
    """Find the index of a folder's checkpoint.

    Args:
        folder: The folder.

    Returns:
        The ``.index`` file that the text file ``checkpoint`` names, otherwise the only one there is. TensorFlow
        writes whole paths there: only their last part is used, so nothing outside the folder is. ``None`` if the
        folder holds no ``.index`` file.

    Raises:
        CheckpointError: The one that is named is missing, or none is named and there are several.
    """
    names = sorted(file.name for file in folder.glob(f"*{_SUFFIX}") if not file.name.startswith("."))
    if not names:
        return None
    state = folder / STATE_FILE
    stated = _stated_path(state)
    if stated is not None:
        name = re.split(r"[/\\]", stated)[-1] + _SUFFIX
        if name not in names:
            raise CheckpointError(f"{state} names {stated[:200]!r}, but {_short(name)} is not in its folder; found: "
                                  f"{some(names)}: name one of these")
        return folder / name
    if len(names) > 1:
        raise CheckpointError(f"{folder} holds {len(names)} {_SUFFIX} files ({some(names)}): name one")
    return folder / names[0]


def read_tensorflow(path: str | Path) -> LazyTensors:
    """Open a TensorFlow checkpoint of format V2, as ``tf.compat.v1.train.Saver`` writes it.

    Checksums of the index are verified, those of the data are not. Entries of strings, which hold no numbers, are
    left out.

    Args:
        path: The ``.index`` file, or its path without that suffix; the data files stand beside it.

    Returns:
        Its tensors under the names they have there, such as ``model/h0/attn/c_attn/w``, sorted by name.

    Raises:
        CheckpointError: The index or a data file is missing or damaged, or holds what is not supported: big-endian
            numbers, compressed blocks, partitioned variables, complex or quantized numbers.
    """
    path = Path(path)
    if path.suffix != _SUFFIX:
        path = Path(f"{path}{_SUFFIX}")
    try:
        shard_count, entries = _parse_index(_read_bytes(path))
        by_shard: dict[int, list[str]] = {}
        for name, entry in entries.items():
            by_shard.setdefault(entry.shard, []).append(name)
        shards = {shard: path.with_suffix(f".data-{shard:05d}-of-{shard_count:05d}") for shard in sorted(by_shard)}
        for shard, file in shards.items():
            _check_places(file, {name: entries[name] for name in by_shard[shard]})
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as a TensorFlow checkpoint: {one_line(error)}") from None
    infos = {name: entry.info for name, entry in entries.items()}
    return LazyTensors(infos, lambda name: map_array(shards[entries[name].shard], infos[name], entries[name].offset))


def _stated_path(state: Path) -> str | None:
    """Return what the text file ``checkpoint`` gives as the latest checkpoint."""
    try:
        if not state.is_file():
            return None
        with state.open("rb") as file:
            found = _STATE_PATH.search(file.read(2**16))
    except OSError as error:
        raise CheckpointError(f"{state} cannot be read: {one_line(error)}") from None
    # TensorFlow writes what is not ASCII as octal numbers of UTF-8 bytes.
    return found and _ESCAPE.sub(_unescape, found[1]).decode("utf-8", errors="replace")


def _unescape(escape: re.Match[bytes]) -> bytes:
    return bytes([int(escape[1], 8) & 0xFF]) if escape[1][:1] in b"01234567" else escape[1]


def _read_bytes(path: Path) -> memoryview:
    if not path.is_file():
        raise ValueError("there is no such file")
    with path.open("rb") as file:
        data = file.read(_MAX_INDEX + 1)
    if len(data) > _MAX_INDEX:
        raise ValueError(f"an index of more than {_MAX_INDEX} bytes is not supported")
    if len(data) < _FOOTER or not data.endswith(_MAGIC):
        raise ValueError("it does not end as an index does: it is cut short or another kind of file")
    return memoryview(data)


def _parse_index(data: memoryview) -> tuple[int, dict[str, _Entry]]:
    """Return the number of data files, and the entries of all variables by name."""
    rows = _table(data)
    # The header stands under the empty name, so it comes first.
    name, message = next(rows, (None, None))
    if name != b"":
        raise ValueError("it lacks its header")
    header = _collect(message, _HEADER)
    shard_count = _last(header[1])
    if _last(header[2]) != 0:
        raise ValueError("its numbers are big-endian, which is not supported")
    entries = {}
    for name, message in rows:
        if name.startswith(b"\0"):
            # The data of a slice: the name follows, and behind it the extent in an ordered code.
            raise ValueError(_partitioned(name[1:].split(b"\0\1")[0]))
        try:
            text = name.decode("utf-8")
            entry = _parse_entry(name, message, shard_count)
        except ValueError as error:
            raise ValueError(f"{_short(name)}: {one_line(error)}") from None
        if entry is not None:
            entries[text] = entry
    return shard_count, entries


def _parse_entry(name: bytes, message: memoryview, shard_count: int) -> _Entry | None:
    values = _collect(message, _ENTRY)
    if values[7]:
        raise ValueError(_partitioned(name))
    dtype = _last(values[1])
    if dtype == _STRING:
        return None
    if dtype not in _DTYPES:
        raise ValueError(f"TensorFlow's dtype {dtype} is not supported")
    shape = _collect(values[2][-1], _SHAPE) if values[2] else {2: [], 3: []}
    if _last(shape[3]):
        raise ValueError("its shape is not known")
    info = TensorInfo(tuple(_last(_collect(dim, _DIM)[1]) for dim in shape[2]), _DTYPES[dtype])
    # Also of empty tensors, whose other dimensions numpy multiplies.
    if math.prod(max(1, length) for length in info.shape) >= 2**60:
        raise ValueError(f"no tensor has the shape {list(info.shape)}")
    shard, offset, size = (_last(values[number]) for number in (3, 4, 5))
    if size != info.nbytes:
        raise ValueError(f"it has {size} bytes, but its shape and dtype need {info.nbytes}")
    if shard >= shard_count:
        raise ValueError(f"it lies in data file {shard} of {shard_count}, counted from 0")
    return _Entry(info, shard, offset)


def _check_places(file: Path, entries: dict[str, _Entry]) -> None:
    """Check that tensors lie within their data file and do not overlap."""
    if not file.is_file():
        raise ValueError(f"{file.name} is missing beside it")
    file_size = file.stat().st_size
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].info.nbytes)):
        end = entry.offset + entry.info.nbytes
        if end > file_size:
            raise ValueError(f"{_short(name)} ends at byte {end} of {file.name}, which has {file_size}")
        if entry.offset < position:
            raise ValueError(f"{_short(name)} overlaps another tensor in {file.name}")
        position = end


def _table(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Go through the keys and values of a table, in order."""
    footer = data[-_FOOTER:-len(_MAGIC)]
    position = 0
    # The first two numbers place a block of statistics, which TensorFlow leaves empty.
    for _ in range(2):
        position = decode_varint(footer, position)[1]
    index, _ = _block(data, footer[position:])
    last_key, last_end, count = None, 0, 0
    for _, handle in _rows(index):
        # Blocks that overlap would let a small file stand for a long table.
        block, last_end = _block(data, handle, last_end)
        for key, value in _rows(block):
            count += 1
            if count > _MAX_ENTRIES:
                raise ValueError(f"more than {_MAX_ENTRIES} variables are not supported")
            if last_key is not None and key <= last_key:
                raise ValueError(f"{_short(key)} stands twice or out of order")
            last_key = key
            yield key, value


def _block(data: memoryview, handle: memoryview, start: int = 0) -> tuple[memoryview, int]:
    """Return the content of the block that a handle points to, and where the block ends."""
    offset, position = decode_varint(handle, 0)
    size, _ = decode_varint(handle, position)
    end = offset + size + _TRAILER
    if not start <= offset <= end <= len(data) - _FOOTER:
        raise ValueError(f"a block is said to lie from byte {offset} to {end}, where it cannot be")
    content, compression = data[offset:offset + size], data[offset + size]
    (stored,) = struct.unpack("<I", data[end - 4:end])
    if _masked_crc32c(data[offset:offset + size + 1]) != stored:
        raise ValueError(f"the checksum of the block at byte {offset} is wrong: the file is damaged")
    if compression:
        raise ValueError(f"the block at byte {offset} is compressed (type {compression}), which TensorFlow never does "
                         "and is not supported")
    return content, end


def _rows(block: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Go through the keys and values of a block; each key omits what it shares with the start of the last."""
    # Restart points, which serve to search a block, follow the rows.
    end = len(block) - 4
    restarts = struct.unpack("<I", block[end:])[0] if end >= 0 else 0
    end -= 4 * restarts
    if end < 0:
        raise ValueError(f"a block of {len(block)} bytes is said to hold {restarts} restart points")
    rows, position, key = block[:end], 0, b""
    while position < end:
        shared, position = decode_varint(rows, position)
        added, position = decode_varint(rows, position)
        length, position = decode_varint(rows, position)
        if shared > len(key) or shared + added > _MAX_NAME or added + length > end - position:
            raise ValueError(f"after {_short(key)} comes a name of {shared} + {added} bytes with {length} of content, "
                             f"longer than {_MAX_NAME} or than what is left")
        key = key[:shared] + bytes(rows[position:position + added])
        position += added
        yield key, rows[position:position + length]
        position += length


def _collect(message: memoryview, wire_types: dict[int, int]) -> dict[int, list]:
    """Return the values of some fields of a message; other fields are passed over."""
    found: dict[int, list] = {number: [] for number in wire_types}
    for number, wire_type, value in fields(message):
        if number not in wire_types:
            continue
        if wire_type != wire_types[number]:
            raise ValueError(f"field {number} has the wire type {wire_type} and not {wire_types[number]}")
        if len(found[number]) == _MAX_NDIM:
            raise ValueError(f"field {number} comes more than {_MAX_NDIM} times")
        found[number].append(value)
    return found


def _last(values: list[int]) -> int:
    return values[-1] if values else 0


def _partitioned(name: bytes) -> str:
    return f"{_short(name)} is a partitioned variable, which is not supported: save it whole"


def _short(name: str | bytes) -> str:
    text = name if isinstance(name, str) else name.decode("utf-8", errors="replace")
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


@functools.cache
def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def _masked_crc32c(data: memoryview) -> int:
    """Return the CRC-32C of some bytes, rotated and shifted as tables store it.

    Source: RFC 3720, appendix B.4, for the polynomial; LevelDB's ``crc32c.h`` for the mask.
    """
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
