"""MindSpore's ``.ckpt`` files, through MindSpore itself."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ms_gpt.checkpoint.atomic import replace_file
from ms_gpt.checkpoint.errors import CheckpointError, one_line
from ms_gpt.checkpoint.tensors import LazyTensors, TensorInfo, bits_to_float32, cast, stored_dtype


def looks_like(path: str | Path) -> bool:
    """Say whether a file begins as a ``.ckpt`` does: a protobuf entry that starts with a parameter's name."""
    with open(path, "rb") as file:
        stream = io.BytesIO(file.read(300))
    if stream.read(1) != b"\n" or _read_varint(stream) is None or stream.read(1) != b"\n":
        return False
    length = _read_varint(stream)
    name = stream.read(length or 0)
    return bool(name) and len(name) == length and all(33 <= byte < 127 for byte in name)


def read_ckpt(path: str | Path) -> LazyTensors:
    """Read a ``.ckpt`` file. MindSpore is imported and reads the whole file at once.

    Args:
        path: The file.

    Returns:
        Its tensors under the names they have there; bfloat16 comes as float32, and ``infos`` tells it was not.

    Raises:
        CheckpointError: The file is missing, or MindSpore cannot make sense of it.
    """
    import mindspore

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file: give a .ckpt file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty")
    try:
        with path.open("rb"):
            pass
        with _silence():
            parameters = mindspore.load_checkpoint(str(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from None
    except Exception as error:  # noqa: BLE001 - a damaged file makes protobuf and MindSpore raise almost anything
        raise CheckpointError(f"{path} is not a sound .ckpt file: {one_line(error, 80)}") from None
    arrays = {name: value.asnumpy() for name, value in parameters.items() if hasattr(value, "asnumpy")}
    if not arrays:
        raise CheckpointError(f"{path} holds no tensors")
    return LazyTensors.wrap(arrays)


def write_ckpt(path: str | Path, tensors: Mapping[str, np.ndarray], dtype: str | None = None) -> None:
    """Write a ``.ckpt`` file, all or nothing.

    Args:
        path: The file; its name ends in ``.ckpt``.
        tensors: Name to array. MindSpore's ``load_checkpoint`` gives the same names back.
        dtype: Write floating tensors as ``"float32"``, ``"float16"`` or ``"bfloat16"``; ``None`` keeps theirs.

    Raises:
        CheckpointError: The name does not end in ``.ckpt``, there is nothing to write, or a value does not fit.
        UserError: The file cannot be written.
    """
    import mindspore

    path = Path(path)
    if path.suffix != ".ckpt":
        raise CheckpointError(f"{path} does not end in .ckpt: MindSpore insists on it")
    tensors = LazyTensors.wrap(tensors)
    empty = [name for name, info in tensors.infos.items() if 0 in info.shape]
    if empty or not tensors:
        raise CheckpointError(f"{path} cannot be written: {empty[0] if empty else 'the checkpoint'} is empty")
    entries = [{"name": name, "data": _to_tensor(name, tensors[name], info, dtype)}
               for name, info in tensors.infos.items()]
    with replace_file(path) as temporary:
        with _silence():
            mindspore.save_checkpoint(entries, str(temporary))
        # MindSpore makes it readable by the owner only.
        temporary.chmod(0o644)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep MindSpore from logging what it raises as well."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _to_tensor(name: str, array: np.ndarray, info: TensorInfo, dtype: str | None):
    import mindspore

    stored = stored_dtype(info, dtype)
    values = cast(name, array, stored)
    if stored == "bfloat16":
        return mindspore.Tensor(bits_to_float32(values), mindspore.bfloat16)
    return mindspore.Tensor(np.ascontiguousarray(values).reshape(info.shape))


def _read_varint(stream: io.BytesIO) -> int | None:
    value = 0
    for shift in range(0, 64, 7):
        byte = stream.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    return None
