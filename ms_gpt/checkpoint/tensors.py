"""Named arrays that are loaded when they are asked for, and the half precisions numpy lacks."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ms_gpt.checkpoint.errors import CheckpointError, one_line
from ms_gpt.errors import suggest

FLOAT_DTYPES = ("float32", "float16", "bfloat16")
# Small enough to stay in the processor's cache between being read and being written.
BLOCK_BYTES = 2**20
_BLOCKS_IN_WINDOW = 16
# Linux reads the pages of a map in one go if it is told to (since 5.14), and else one by one as they are touched, which
# takes several times as long.
_MADV_POPULATE_READ = 22
# Pages that stay mapped count as memory of the process.
_MADV_DONTNEED = 4
_DTYPE_ALIASES = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor without loading it.

    Args:
        shape: Its shape.
        dtype: Its dtype in the file: numpy's name, or ``"bfloat16"``.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * item_size(self.dtype)


class LazyTensors(Mapping):
    """A mapping from name to array; each array is read on access and not kept.

    ``bfloat16`` tensors come as float32, which holds their values exactly; ``infos`` tells what the file holds.

    Args:
        infos: Name to shape and dtype, in the file's order.
        read: Function that gives the elements of one name as the file holds them, bfloat16 as uint16 bits. The array
            may be a view of a memory map: it is asked for again for each use, copied from, and let go.
    """

    def __init__(self, infos: Mapping[str, TensorInfo], read: Callable[[str], np.ndarray]) -> None:
        self.infos = dict(infos)
        self._read = read
        self._observe: Callable[[int], None] | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        """Load the array of a name."""
        bits = self.bits(name)
        # A copy, so that a map is closed at once: pages of a kept map count as memory of the process, and a map over
        # a file that somebody truncates kills it.
        if self.infos[name].dtype == "bfloat16":
            return bits_to_float32(bits)
        # MindSpore 2.7 takes no dtype that states its byte order, even where it is the machine's.
        return np.array(bits, dtype=bits.dtype.newbyteorder("="), order="C")

    def __contains__(self, name: object) -> bool:
        """Say whether the name is there, without loading its array."""
        return name in self.infos

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self.infos)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.infos)

    @classmethod
    def wrap(cls, tensors: Mapping[str, np.ndarray]) -> LazyTensors:
        """Return ``tensors`` as a ``LazyTensors``; numpy arrays in a plain mapping are described as they are."""
        if isinstance(tensors, LazyTensors):
            return tensors
        infos = {name: TensorInfo(tuple(array.shape), array.dtype.name) for name, array in tensors.items()}
        return cls(infos, lambda name: _native(np.asarray(tensors[name])))

    def bits(self, name: str) -> np.ndarray:
        """Read the elements as the file holds them, to be copied from and let go.

        Args:
            name: The tensor's name.

        Returns:
            Array of the tensor's shape; bfloat16 comes as uint16.

        Raises:
            KeyError: There is no such tensor.
        """
        if name not in self.infos:
            raise KeyError(name)
        return self._read(name)

    def blocks(self, name: str, dtype: str | None = None) -> Iterator[np.ndarray]:
        """Go through a tensor piece by piece, so that a large one never stands in memory whole.

        Args:
            name: The tensor.
            dtype: The dtype to convert to, as ``cast`` does; ``None`` keeps its own.

        Yields:
            One-dimensional little-endian arrays of some 1 MB, whole rows, bfloat16 as uint16 bits; together they hold
            all elements in C order.

        Raises:
            CheckpointError: A value does not fit ``dtype``.
        """
        info = self.infos[name]
        if not info.size:
            return
        bits = self.bits(name)
        rows = info.shape[0] if info.shape else 1
        step = max(1, BLOCK_BYTES * rows // info.nbytes)
        for start in range(0, rows, step * _BLOCKS_IN_WINDOW):
            stop = start + step * _BLOCKS_IN_WINDOW
            window = (bits.reshape(rows, -1) if bits.flags.c_contiguous else bits)[start:stop]
            _advise(window, _MADV_POPULATE_READ)
            for piece in (window[first:first + step] for first in range(0, len(window), step)):
                if self._observe:
                    self._observe(piece.nbytes)
                yield cast(name, np.ascontiguousarray(piece).reshape(-1), info.dtype, dtype or info.dtype)
            _advise(window, _MADV_DONTNEED)

    def renamed(self, names: Mapping[str, str]) -> LazyTensors:
        """Select and rename.

        Args:
            names: New name to the name in this mapping.

        Returns:
            The tensors under the new names, still lazy.
        """
        chosen = LazyTensors({new: self.infos[old] for new, old in names.items()}, lambda new: self.bits(names[new]))
        chosen._observe = self._observe
        return chosen

    def observed(self, observe: Callable[[int], None] | None) -> LazyTensors:
        """Return the same tensors with a function that is called with the bytes of each block that is read."""
        same = self.renamed({name: name for name in self})
        same._observe = observe
        return same

    def same(self, first: str, second: str) -> bool:
        """Say whether two tensors hold the same numbers, without loading either whole where their dtypes agree."""
        infos = self.infos[first], self.infos[second]
        if infos[0].shape != infos[1].shape:
            return False
        if infos[0].dtype != infos[1].dtype:
            return np.array_equal(self[first], self[second], equal_nan=True)
        return all(a.tobytes() == b.tobytes() for a, b in zip(self.blocks(first), self.blocks(second), strict=True))


def map_array(path: str | Path, info: TensorInfo, offset: int = 0) -> np.ndarray:
    """Map a tensor that lies in a file as plain little-endian bytes.

    Args:
        path: The file.
        info: Shape and dtype.
        offset: Where it starts, in bytes.

    Returns:
        A read-only view of the file; bfloat16 as uint16 bits.

    Raises:
        CheckpointError: The file is gone, or too short.
    """
    dtype = bits_dtype(info.dtype)
    try:
        if not info.size:
            return np.empty(info.shape, dtype)
        return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=info.shape)
    except (OSError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from None


def _advise(piece: np.ndarray, advice: int) -> None:
    """Tell the system what becomes of the pages under a piece of a memory map; where it is deaf, only time is lost."""
    mapped = getattr(piece, "_mmap", None)
    if mapped is None or not piece.flags.c_contiguous:
        return
    start = piece.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    page = start // mmap.PAGESIZE * mmap.PAGESIZE
    with contextlib.suppress(OSError, ValueError, AttributeError):
        mapped.madvise(advice, page, start + piece.nbytes - page)


def item_size(dtype: str) -> int:
    """Return the bytes of one element of a dtype, by numpy's name or ``"bfloat16"``."""
    return bits_dtype(dtype).itemsize


def bits_dtype(dtype: str) -> np.dtype:
    """Return the little-endian numpy dtype that holds a dtype's elements in a file: uint16 for ``"bfloat16"``."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")


def dtype_name(dtype: str) -> str:
    """Return the full name of a floating dtype.

    Args:
        dtype: ``"float32"``, ``"float16"``, ``"bfloat16"``, ``"fp32"``, ``"fp16"`` or ``"bf16"``.

    Returns:
        One of ``FLOAT_DTYPES``.

    Raises:
        CheckpointError: The name is none of these.
    """
    name = _DTYPE_ALIASES.get(dtype, dtype)
    if name not in FLOAT_DTYPES:
        known = (*FLOAT_DTYPES, *_DTYPE_ALIASES)
        raise CheckpointError(f"dtype={dtype!r} is not one of {', '.join(FLOAT_DTYPES)}.{suggest(dtype, known)}")
    return name


def _native(array: np.ndarray) -> np.ndarray:
    """Return an array in the machine's byte order; MindSpore's own bfloat16 arrays become uint16 bits."""
    if array.dtype.name == "bfloat16":
        return array.view(np.uint16)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def bits_to_float32(bits: np.ndarray) -> np.ndarray:
    """Widen bfloat16 bits (uint16) to float32, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float32_to_bits(array: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest bfloat16, ties to even, as uint16 bits; what was widened comes back bit by bit.

    Source: IEEE 754 round-half-to-even on the upper 16 bits.
    """
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    if nan.any():
        # Rounding could carry a NaN into infinity; a payload that does not survive the cut becomes a quiet NaN.
        cut = bits >> np.uint32(16)
        cut = np.where(cut & np.uint32(0x7F), cut, cut | np.uint32(0x40))
        rounded = np.where(nan, cut, rounded)
    return rounded.astype(np.uint16).reshape(np.shape(array))


def stored_dtype(info: TensorInfo, dtype: str | None) -> str:
    """Return the dtype under which a tensor is written: ``dtype`` for floats if it is given, else its own."""
    is_float = info.dtype in (*FLOAT_DTYPES, "float64")
    return dtype if dtype is not None and is_float else info.dtype


def cast(name: str, bits: np.ndarray, source: str, target: str) -> np.ndarray:
    """Convert elements from one dtype to another.

    Args:
        name: The tensor's name, for the message.
        bits: The elements, bfloat16 as uint16 bits.
        source: Their dtype.
        target: numpy's name of a dtype, or ``"bfloat16"``.

    Returns:
        The elements, bfloat16 as uint16 bits; little-endian.

    Raises:
        CheckpointError: A finite value becomes infinite.
    """
    if source == target:
        return bits.astype(bits_dtype(target), copy=False)
    values = bits_to_float32(bits) if source == "bfloat16" else bits
    with np.errstate(over="ignore"):
        result = float32_to_bits(values) if target == "bfloat16" else values.astype(bits_dtype(target))
    narrow = bits_to_float32(result) if target == "bfloat16" else result
    is_float = np.issubdtype(narrow.dtype, np.floating)
    if is_float and np.count_nonzero(np.isinf(narrow)) > np.count_nonzero(np.isinf(values)):
        raise CheckpointError(f"{name} has values beyond the range of {target}: choose another dtype")
    return result
