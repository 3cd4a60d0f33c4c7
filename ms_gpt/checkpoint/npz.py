"""numpy's files: ``.npz``, a zip archive of arrays, and ``.npy``, a single one. Nothing in them is unpickled.

Source: ``numpy.lib.format``, which describes the header: a magic string, a version, a length, a Python dictionary.
"""

from __future__ import annotations

import ast
import io
import itertools
import math
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ms_gpt.checkpoint.archive import ZipArchive, ZipWriter
from ms_gpt.checkpoint.errors import CheckpointError, one_line
from ms_gpt.checkpoint.tensors import LazyTensors, TensorInfo, bits_dtype, map_array, stored_dtype

_MAGIC = b"\x93NUMPY"
_SUFFIX = ".npy"
_DTYPES = {
    "f8": "float64", "f4": "float32", "f2": "float16", "b1": "bool",
    "i8": "int64", "i4": "int32", "i2": "int16", "i1": "int8",
    "u8": "uint64", "u4": "uint32", "u2": "uint16", "u1": "uint8",
}
# numpy writes 128 bytes for what is read here. The two limits keep an archive of hostile headers near a second.
_MAX_HEADER = 512
_MAX_ARRAYS = 5_000
_MAX_NDIM = 32


def read_npz(path: str | Path) -> LazyTensors:
    """Open an ``.npz`` file, compressed or not, or an ``.npy`` file.

    Args:
        path: The file.

    Returns:
        Its tensors under their names without ``.npy``; that of a single file under the file's name. Arrays that are
        not compressed are mapped.

    Raises:
        CheckpointError: The file cannot be read or is damaged, or holds anything but arrays of plain numbers.
    """
    path = Path(path)
    if _starts_as_npy(path):
        header = _read_header(path)
        info = header.flat_info
        return LazyTensors({path.stem: header.info}, lambda _: header.arrange(map_array(path, info, header.size)))
    archive = ZipArchive(path)
    headers: dict[str, _Header] = {}
    if len(archive.names()) > _MAX_ARRAYS:
        raise CheckpointError(f"{path} is refused: it has {len(archive.names())} entries, more than {_MAX_ARRAYS}")
    for entry in archive.names():
        name = entry.removesuffix(_SUFFIX)
        if name == entry:
            raise CheckpointError(f"{path} is not a sound .npz file: its entry {entry[:80]!r} is no .npy file")
        try:
            headers[name] = _parse_header(archive.start(entry, _MAX_HEADER), archive.size(entry))
        except _BadArrayError as error:
            raise CheckpointError(f"{path}: the array {name[:80]!r} {error}") from None
    if not headers:
        raise CheckpointError(f"{path} holds no tensors")

    def load(name: str) -> np.ndarray:
        header = headers[name]
        return header.arrange(archive.array(name + _SUFFIX, header.flat_info, header.size))

    return LazyTensors({name: header.info for name, header in headers.items()}, load)


def npy_array(path: str | Path, offset: int = 0, limit: int | None = None) -> tuple[TensorInfo, int, bool]:
    """Find the elements of an ``.npy`` file that is to be mapped as it is.

    Args:
        path: The file, or one that contains it.
        offset: Where it starts, in bytes.
        limit: How many bytes it has; ``None`` if it goes to the end of the file.

    Returns:
        Shape and dtype; where the elements start in the file, in bytes; whether they lie in Fortran order.

    Raises:
        CheckpointError: The file cannot be read or is damaged, or holds no plain numbers, or big-endian ones.
    """
    header = _read_header(Path(path), offset, limit)
    if header.big_endian:
        raise CheckpointError(f"{path} holds big-endian numbers: save it again on an ordinary machine")
    return header.info, offset + header.size, header.fortran_order


def write_to(path: str | Path, tensors: Mapping[str, np.ndarray], dtype: str | None = None) -> None:
    """Write an ``.npz`` file in place, uncompressed, holding one block of an array in memory at a time.

    Args:
        path: The file.
        tensors: Name to array. ``numpy.load`` gives the same names back.
        dtype: Write floating tensors as ``"float32"`` or ``"float16"``; ``None`` keeps theirs.

    Raises:
        CheckpointError: There is nothing to write, a name cannot stand in an archive, a dtype is not numpy's, or a
            value does not fit ``dtype``.
        OSError: The file cannot be written.
    """
    tensors = LazyTensors.wrap(tensors)
    stored = {name: TensorInfo(info.shape, stored_dtype(info, dtype)) for name, info in tensors.infos.items()}
    if not stored:
        raise CheckpointError("the checkpoint is empty: there is nothing to write")
    for name, info in stored.items():
        if info.dtype == "bfloat16":
            raise CheckpointError(f"{name} is bfloat16, which numpy's files cannot hold: "
                                  "choose --dtype float32 or float16")
        if info.dtype not in _DTYPES.values():
            raise CheckpointError(f"{name} has the dtype {info.dtype}, which is not written to .npz files")
    with ZipWriter(path) as archive:
        for name, info in stored.items():
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, {"descr": bits_dtype(info.dtype).str, "fortran_order": False,
                                                          "shape": info.shape})
            head = header.getvalue()
            content = itertools.chain([head], tensors.blocks(name, info.dtype))
            archive.add(name + _SUFFIX, len(head) + info.nbytes, content)


@dataclass(frozen=True)
class _Header:
    """What the header of an ``.npy`` file says.

    Args:
        info: Shape and dtype of the array.
        size: Bytes before its elements.
        fortran_order: The first index changes fastest.
        big_endian: The elements' first byte is their highest.
    """

    info: TensorInfo
    size: int
    fortran_order: bool
    big_endian: bool

    @property
    def flat_info(self) -> TensorInfo:
        """The elements as a row."""
        return TensorInfo((self.info.size,), self.info.dtype)

    def arrange(self, flat: np.ndarray) -> np.ndarray:
        """Give a row of little-endian elements the byte order, shape and order that they have."""
        return (flat.byteswap() if self.big_endian else flat).reshape(self.info.shape,
                                                                      order="F" if self.fortran_order else "C")


class _BadArrayError(Exception):
    """The reason why an array is refused, to follow its name."""


def _starts_as_npy(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from None


def _read_header(path: Path, offset: int = 0, limit: int | None = None) -> _Header:
    try:
        with open(path, "rb") as file:
            available = max(0, file.seek(0, 2) - offset)
            file.seek(offset)
            start = file.read(min(_MAX_HEADER, available))
        return _parse_header(start, available if limit is None else min(limit, available))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from None
    except _BadArrayError as error:
        raise CheckpointError(f"{path}: the array {error}") from None


def _parse_header(start: bytes, total: int) -> _Header:
    """Read a header.

    Args:
        start: The first bytes of the ``.npy`` file, ``_MAX_HEADER`` if it has so many.
        total: How many bytes the file has.
    """
    if start[:6] != _MAGIC or len(start) < 12:
        raise _BadArrayError("has no .npy header")
    if start[6] not in (1, 2, 3):
        raise _BadArrayError(f"is of version {start[6]} of the .npy format, and 1 to 3 are known")
    length, begin = (struct.unpack("<H", start[8:10])[0], 10) if start[6] == 1 else (
        struct.unpack("<I", start[8:12])[0], 12)
    if begin + length > len(start):
        raise _BadArrayError(f"has a header of {length} bytes: it is cut short, or holds no plain numbers")
    values = _parse_dictionary(start[begin:begin + length].decode("latin1"))
    dtype, big_endian = _parse_dtype(values["descr"])
    info = TensorInfo(_parse_shape(values["shape"]), dtype)
    fortran_order = values["fortran_order"]
    if not isinstance(fortran_order, bool):
        raise _BadArrayError("has a fortran_order that is neither True nor False")
    if begin + length + info.nbytes != total:
        raise _BadArrayError(f"has {total - begin - length} bytes of data, but its shape {info.shape} and dtype "
                             f"{dtype} need {info.nbytes}")
    return _Header(info, begin + length, fortran_order, big_endian)


def _parse_dictionary(text: str) -> dict[str, Any]:
    # numpy's own reader is not used: it reads a header that is no dictionary a second time, slowly and with a warning.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            values = ast.literal_eval(text.strip())
        except Exception:  # noqa: BLE001 - of what is no literal, Python's parser complains in many ways
            values = None
    if not isinstance(values, dict) or set(values) != {"descr", "fortran_order", "shape"}:
        raise _BadArrayError("has a header that is no dictionary of descr, fortran_order and shape")
    return values


def _parse_dtype(descr: Any) -> tuple[str, bool]:
    if not isinstance(descr, str):
        raise _BadArrayError("has a structured dtype: only plain numbers are read")
    match = re.fullmatch(r"([<>|])([a-z]\d)", descr)
    if match and match[2] in _DTYPES:
        return _DTYPES[match[2]], match[1] == ">"
    if descr.lstrip("<>|=").startswith("O"):
        raise _BadArrayError("holds pickled Python objects, which are never loaded: save it as numbers")
    reason = " (numpy's files cannot hold bfloat16: save it as float32)" if descr.endswith("V2") else ""
    raise _BadArrayError(f"has the dtype {descr[:40]!r}, which is not supported{reason}")


def _parse_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise _BadArrayError("has a shape that is not a tuple of whole numbers of at least 0")
    # numpy multiplies the sizes other than 0, and has to be able to.
    if len(shape) > _MAX_NDIM or math.prod(size for size in shape if size) >= 2**60:
        raise _BadArrayError(f"has the shape {str(shape)[:80]}")
    return shape
