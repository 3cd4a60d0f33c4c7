"""Named arrays that are loaded when they are asked for, and the half precisions numpy lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ms_gpt.checkpoint.errors import CheckpointError
from ms_gpt.errors import suggest

FLOAT_DTYPES = ("float32", "float16", "bfloat16")
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


class LazyTensors(Mapping):
    """A mapping from name to array; each array is read on access and not kept.

    ``bfloat16`` tensors come as float32, which holds their values exactly; ``infos`` tells what the file holds.

    Args:
        infos: Name to shape and dtype, in the file's order.
        load: Function that reads the array of one name.
    """

    def __init__(self, infos: Mapping[str, TensorInfo], load: Callable[[str], np.ndarray]) -> None:
        """Keep what is known and how to load; nothing is read."""
        self.infos = dict(infos)
        self._load = load

    def __getitem__(self, name: str) -> np.ndarray:
        """Load the array of a name."""
        if name not in self.infos:
            raise KeyError(name)
        return self._load(name)

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
        return cls(infos, lambda name: widen(tensors[name]))

    def renamed(self, names: Mapping[str, str]) -> LazyTensors:
        """Select and rename.

        Args:
            names: New name to the name in this mapping.

        Returns:
            The tensors under the new names, still lazy.
        """
        return LazyTensors({new: self.infos[old] for new, old in names.items()}, lambda new: self[names[new]])


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


def widen(array: np.ndarray) -> np.ndarray:
    """Return an array that numpy can calculate with: MindSpore's own bfloat16 arrays become float32."""
    array = np.asarray(array)
    return bits_to_float32(array.view(np.uint16)) if array.dtype.name == "bfloat16" else array


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


def cast(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """Return an array as it is stored under a dtype.

    Args:
        name: The tensor's name, for the message.
        array: Its values.
        dtype: numpy's name of a dtype, or ``"bfloat16"``.

    Returns:
        The array, as uint16 bits for bfloat16.

    Raises:
        CheckpointError: A finite value becomes infinite.
    """
    if dtype != "bfloat16" and array.dtype == np.dtype(dtype):
        return array
    with np.errstate(over="ignore"):
        bits = float32_to_bits(array) if dtype == "bfloat16" else None
        narrow = array.astype(dtype) if bits is None else bits_to_float32(bits)
    is_float = np.issubdtype(narrow.dtype, np.floating)
    if is_float and np.count_nonzero(np.isinf(narrow)) > np.count_nonzero(np.isinf(array)):
        raise CheckpointError(f"{name} has values beyond the range of {dtype}: choose another dtype")
    return narrow if bits is None else bits
