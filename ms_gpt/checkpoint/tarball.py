"""Model folders packed as ``.tar`` or ``.tar.gz``: unpacked, within limits, into a folder that goes away again.

Python's ``tarfile`` is not used: it makes terabytes of holes that take no room in the archive, and on headers made for
that its patterns run for hours.

Source: the pax format of POSIX.1-2008, and the GNU tar manual on long names and large sizes.
"""

from __future__ import annotations

import re
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ms_gpt.checkpoint.errors import CheckpointError, one_line

_BLOCK = 512
_CHUNK, _PACKED_CHUNK = 2**20, 2**16
_MAX_MEMBERS = 1_000
# What may come before a member (its long name, times, attributes), and before all of them.
_MAX_EXTRA, _MAX_EXTRAS = 2**16, 2**20
# Weights hardly shrink when packed; what unpacks to much more is a bomb.
_FREE_BYTES, _RATIO = 64 * 2**20, 20
_GZIP = b"\x1f\x8b"
_FILE, _FOLDER, _LONG_NAME, _PAX, _PAX_FOR_ALL = (b"0", b"\0", b"7"), b"5", b"L", b"x", b"g"
_RECORD = re.compile(rb"([1-9]\d{0,5}) ")


def looks_like(path: str | Path) -> bool:
    """Say whether a file begins as gzip or, where tar has its mark, as tar."""
    with open(path, "rb") as file:
        start = file.read(265)
    return start[:2] == _GZIP or start[257:262] == b"ustar"


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
        with open(path, "rb") as file:
            _unpack_all(_Stream(file, _FREE_BYTES + _RATIO * path.stat().st_size), Path(holder.name))
        folders = {file.parent for file in Path(holder.name).rglob("*") if file.is_file()}
        if len(folders) != 1:
            raise _BadTarError(f"it holds files in {len(folders)} folders, and one model folder was expected")
    except (_BadTarError, OSError, ValueError, zlib.error) as error:
        holder.cleanup()
        raise CheckpointError(f"{path} is not a sound tar archive: {one_line(error)}") from None
    return folders.pop(), holder


class _BadTarError(Exception):
    """The reason why an archive is refused."""


@dataclass(frozen=True)
class _Member:
    """A file or folder in an archive.

    Args:
        name: Its name.
        size: Bytes of its content, which follows.
        is_folder: Whether it is a folder.
    """

    name: str
    size: int
    is_folder: bool


class _Stream:
    """The bytes of an archive, unpacked if they are packed, up to a limit.

    Args:
        file: The file.
        limit: How many may come in all.
    """

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file, self._left, self._limit = file, limit, limit
        self._engine = zlib.decompressobj(zlib.MAX_WBITS | 16) if file.read(2) == _GZIP else None
        file.seek(0)

    def read(self, size: int) -> bytes:
        """Read just ``size`` bytes, ``_CHUNK`` at most; fewer come only at the end."""
        data = self._file.read(size) if self._engine is None else self._unpack(size)
        self._left -= len(data)
        if self._left < 0:
            raise _BadTarError(f"it unpacks to more than {self._limit} bytes: a bomb")
        return data

    def _unpack(self, size: int) -> bytes:
        result = bytearray()
        while len(result) < size and not self._engine.eof:
            packed = self._engine.unconsumed_tail or self._file.read(_PACKED_CHUNK)
            piece = self._engine.decompress(packed, size - len(result))
            if not packed and not piece:
                raise _BadTarError("it is cut short")
            result += piece
        return bytes(result)


def _unpack_all(stream: _Stream, folder: Path) -> None:
    for count, member in enumerate(_members(stream)):
        name = PurePosixPath(member.name)
        if count >= _MAX_MEMBERS:
            raise _BadTarError(f"it holds more than {_MAX_MEMBERS} files: no model folder does")
        if name.is_absolute() or ".." in name.parts or "\\" in member.name or "\0" in member.name:
            raise _BadTarError(f"it holds {member.name[:80]!r}, a name that leaves the archive")
        if member.is_folder:
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        left = member.size
        with open(target, "xb") as file:
            while left:
                data = stream.read(min(left, _CHUNK))
                if not data:
                    raise _BadTarError(f"{member.name[:80]!r} is cut short: {left} of {member.size} bytes are missing")
                file.write(data)
                left -= len(data)
        stream.read(-member.size % _BLOCK)


def _members(stream: _Stream) -> Iterator[_Member]:
    """Go through the members; whoever asks for the next has read the content of the last."""
    name, size, extras = None, None, 0
    while (header := _header(stream)) is not None:
        kind, length = header[156:157], _number(header[124:136])
        if kind in (_LONG_NAME, _PAX, _PAX_FOR_ALL):
            extras += _BLOCK + length
            if length > _MAX_EXTRA or extras > _MAX_EXTRAS:
                raise _BadTarError(f"it says {extras} bytes about its members: that is more than names")
            extra = _extra(stream, length)
            if kind == _LONG_NAME:
                name = extra.split(b"\0", 1)[0].decode("utf-8")
            elif kind == _PAX:
                said = _records(extra.rstrip(b"\0"))
                name, size = said.get("path", name), said.get("size", size)
            continue
        stated = _name(header)
        name = stated if name is None else name
        if kind not in (*_FILE, _FOLDER):
            raise _BadTarError(f"it holds {name[:80]!r}, which is neither a file nor a folder")
        # Old archives mark folders by their names alone.
        is_folder = kind == _FOLDER or stated.endswith("/")
        yield _Member(name, 0 if is_folder else length if size is None else _decimal(size), is_folder)
        name, size = None, None


def _header(stream: _Stream) -> bytes | None:
    """Read a header; ``None`` at the end, which a block of zeros marks."""
    header = stream.read(_BLOCK)
    if not header.strip(b"\0"):
        return None
    if len(header) < _BLOCK:
        raise _BadTarError("it is cut short")
    if _number(header[148:156]) != sum(header[:148]) + sum(header[156:]) + 8 * ord(" "):
        raise _BadTarError("a header does not match its checksum")
    return header


def _name(header: bytes) -> str:
    """Return the name that stands in a header; POSIX's headers have room for what stands in front of it."""
    name, front = (part.split(b"\0", 1)[0] for part in (header[:100], header[345:500]))
    is_posix = header[257:263] == b"ustar\0"
    return (front + b"/" + name if is_posix and front else name).decode("utf-8")


def _extra(stream: _Stream, length: int) -> bytes:
    data = stream.read(length)
    stream.read(-length % _BLOCK)
    if len(data) < length:
        raise _BadTarError("it is cut short")
    return data


def _records(data: bytes) -> dict[str, str]:
    """Read pax's records: the length of the record, a space, a key, an equals sign, a value, a newline."""
    found: dict[str, str] = {}
    position = 0
    while position < len(data):
        match = _RECORD.match(data, position)
        record = data[match.end():position + int(match[1])] if match else b""
        key, equals, value = record.partition(b"=")
        if not equals or not record.endswith(b"\n") or position + int(match[1]) > len(data):
            raise _BadTarError("what it says about a member is damaged")
        if key.startswith(b"GNU.sparse"):
            raise _BadTarError("it holds a file with holes: pack it without")
        if key in (b"path", b"size"):
            found[key.decode("ascii")] = value[:-1].decode("utf-8")
        position += int(match[1])
    return found


def _number(field: bytes) -> int:
    """Read a number of a header: octal, or, as GNU tar writes what is large, binary."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]*", text):
        raise _BadTarError("a header holds a damaged number")
    return int(text or b"0", 8)


def _decimal(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise _BadTarError(f"it holds a file of the size {text[:40]!r}")
    return int(text)
