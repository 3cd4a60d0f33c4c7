"""Model folders packed as ``.tar`` or ``.tar.gz``: unpacked, within limits, into a folder that goes away again."""

from __future__ import annotations

import gzip
import io
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ms_gpt.checkpoint.errors import CheckpointError, one_line

_MAX_MEMBERS = 1_000
_MAX_READ = 2**20
# Weights hardly shrink when packed; what unpacks to much more is a bomb.
_FREE_BYTES, _RATIO = 64 * 2**20, 20


def looks_like(path: str | Path) -> bool:
    """Say whether a file begins as gzip or, where tar has its mark, as tar."""
    with open(path, "rb") as file:
        start = file.read(265)
    return start[:2] == b"\x1f\x8b" or start[257:262] == b"ustar"


def unpack(path: str | Path) -> tuple[Path, tempfile.TemporaryDirectory]:
    """Unpack a model folder.

    Args:
        path: The archive. Members that are no plain files or folders, or whose names leave the archive, are refused.

    Returns:
        The folder that holds the files, and the temporary folder, which goes away with the object.

    Raises:
        CheckpointError: The archive is damaged, unpacks to much more than its size, or holds no files.
    """
    path = Path(path)
    holder = tempfile.TemporaryDirectory(prefix="ms_gpt-", ignore_cleanup_errors=True)
    try:
        limit = _FREE_BYTES + _RATIO * path.stat().st_size
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            source = _Bounded(gzip.GzipFile(fileobj=file) if packed else file, limit)
            _unpack_all(path, source, Path(holder.name))
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} is not a sound tar archive: {one_line(error)}") from None
    folders = {file.parent for file in Path(holder.name).rglob("*") if file.is_file()}
    if len(folders) != 1:
        raise CheckpointError(f"{path} holds files in {len(folders)} folders: one model folder was expected")
    return folders.pop(), holder


class _Bounded(io.RawIOBase):
    """A stream that refuses single reads beyond what tar needs, and to give more than a limit in all."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        super().__init__()
        self._stream, self._left, self._limit = stream, limit, limit

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > _MAX_READ:
            raise ValueError("it asks for more at once than a tar archive does")
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"it unpacks to more than {self._limit} bytes: a bomb")
        return data


def _unpack_all(path: Path, source: _Bounded, folder: Path) -> None:
    with tarfile.open(fileobj=source, mode="r|") as archive:
        for count, member in enumerate(archive):
            name = PurePosixPath(member.name)
            if count >= _MAX_MEMBERS:
                raise CheckpointError(f"{path} holds more than {_MAX_MEMBERS} files: no model folder does")
            if name.is_absolute() or ".." in name.parts or "\\" in member.name:
                raise CheckpointError(f"{path} holds {member.name[:80]!r}, a name that leaves the archive")
            if member.isdir():
                continue
            content = archive.extractfile(member) if member.isreg() else None
            if content is None:
                raise CheckpointError(f"{path} holds {member.name[:80]!r}, which is neither a file nor a folder")
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb") as file:
                while block := content.read(_MAX_READ):
                    file.write(block)
