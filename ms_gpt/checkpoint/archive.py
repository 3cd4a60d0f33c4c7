"""Zip archives: read without trust in what they claim, and written as a stream of aligned, uncompressed entries.

Source: the zip format's APPNOTE, read and written through Python's ``zipfile``; PyTorch's padding of entries.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import weakref
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from ms_gpt.checkpoint.errors import CheckpointError, one_line
from ms_gpt.checkpoint.tensors import TensorInfo, bits_dtype, map_array

# zipfile reads the whole directory at once and goes through its extra fields in quadratic time: at this size the
# worst directory takes it about a second. An honest one of 2 MB has some 20,000 entries, and none has 50,000.
_MAX_READ = 2 * 2**20
_MAX_INFLATED = 2**30
_INFLATED_FREE, _INFLATED_RATIO = 64 * 2**20, 20
_MAX_PENDING = 4
_CHUNK = 2**20
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_EXTRA = struct.Struct("<HH")
_ZIP64_EXTRA_SIZE = 20
_LOCAL_SIGNATURE = b"PK\x03\x04"
_ENCRYPTED = 0x1 | 0x40
# PyTorch's own id for the extra field that moves an entry's data to a round offset.
_PADDING_ID = 0x4246


class ZipArchive:
    """The entries of a zip archive, each read when it is asked for; the file is not kept open in between.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file cannot be read, is no sound zip archive, or holds what a file of tensors never does:
            encrypted entries, names that leave the archive, entries that overlap, or a zip bomb.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._sound(), open(self.path, "rb") as file:
            size = file.seek(0, 2)
            with zipfile.ZipFile(_BoundedReads(file)) as archive:
                entries = archive.infolist()
            _check_entries(entries, size)
        self._entries = {entry.filename: entry for entry in entries if not entry.is_dir()}

    def names(self) -> list[str]:
        """Return the names of the entries in the directory's order, folders left out."""
        return list(self._entries)

    def size(self, name: str) -> int:
        """Return the number of bytes of an entry, uncompressed."""
        return self._entry(name).file_size

    def offset(self, name: str) -> int | None:
        """Find where the data of an entry starts.

        Args:
            name: The entry.

        Returns:
            Its first byte's place in the file, or ``None`` if the entry is compressed.

        Raises:
            CheckpointError: There is no such entry, or its data lies outside the file.
        """
        entry = self._entry(name)
        if entry.compress_type != zipfile.ZIP_STORED:
            return None
        with self._open(entry) as file:
            return file.tell()

    def read(self, name: str, limit: int) -> bytes:
        """Read a small entry whole and check its checksum.

        Args:
            name: The entry.
            limit: The most bytes it may have.

        Returns:
            All of its bytes, uncompressed.

        Raises:
            CheckpointError: There is no such entry, it is larger, or it is damaged.
        """
        size = self.size(name)
        if size > limit:
            raise CheckpointError(f"{self.path} is refused: its entry {_shown(name)} has {size} bytes, "
                                  f"more than the {limit} that are read")
        return self.start(name, size)

    def start(self, name: str, length: int) -> bytes:
        """Read the first bytes of an entry; the checksum is checked if that is all of them.

        Args:
            name: The entry.
            length: How many bytes; fewer come if the entry has fewer.

        Returns:
            The bytes, uncompressed.

        Raises:
            CheckpointError: There is no such entry, or it is damaged.
        """
        return bytes(self._start(name, length))

    def array(self, name: str, info: TensorInfo, offset: int = 0) -> np.ndarray:
        """Return a tensor that lies in an entry as plain little-endian bytes.

        Args:
            name: The entry.
            info: Shape and dtype.
            offset: Where the tensor starts in the entry, in bytes.

        Returns:
            A read-only view of the file, or of memory if the entry is compressed; bfloat16 as uint16 bits.

        Raises:
            CheckpointError: There is no such entry, it is too short or damaged, or it is compressed and above 1 GB.
        """
        size = self.size(name)
        if not 0 <= offset <= size - info.nbytes:
            raise CheckpointError(f"{self.path} is not a sound zip archive: its entry {_shown(name)} has {size} bytes, "
                                  f"and a tensor of shape {info.shape} needs {offset + info.nbytes}")
        start = self.offset(name)
        if start is not None:
            return map_array(self.path, info, start + offset)
        if not info.size:
            return np.empty(info.shape, bits_dtype(info.dtype))
        # The last one is kept because many tensors may lie in one entry.
        found = _INFLATED.get(self)
        if found is None or found[0] != name:
            _INFLATED.clear()
            if size > _MAX_INFLATED:
                raise CheckpointError(f"{self.path} is refused: its entry {_shown(name)} has {size} bytes and is "
                                      f"compressed; above {_MAX_INFLATED} bytes save it uncompressed")
            found = _INFLATED[self] = (name, self._start(name, size))
        array = np.frombuffer(found[1], bits_dtype(info.dtype), info.size, offset).reshape(info.shape)
        array.flags.writeable = False
        return array

    def _start(self, name: str, length: int) -> bytes | bytearray:
        entry = self._entry(name)
        length = min(length, entry.file_size)
        with self._open(entry) as file:
            stored = entry.compress_type == zipfile.ZIP_STORED
            data = file.read(length) if stored else _inflate(file, entry.compress_size, length)
            if len(data) < length:
                raise _BadZipError(f"its entry {_shown(name)} ends after {len(data)} of {length} bytes")
            if length == entry.file_size and zlib.crc32(data) != entry.CRC:
                raise _BadZipError(f"its entry {_shown(name)} does not match its checksum")
        return data

    def _entry(self, name: str) -> zipfile.ZipInfo:
        try:
            return self._entries[name]
        except KeyError:
            raise CheckpointError(f"{self.path} has no entry {_shown(name)}") from None

    @contextlib.contextmanager
    def _open(self, entry: zipfile.ZipInfo) -> Iterator[BinaryIO]:
        """Open the file where the data of an entry starts."""
        with self._sound(), open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(entry.header_offset)
            header = file.read(_LOCAL_HEADER.size)
            if len(header) < _LOCAL_HEADER.size or header[:4] != _LOCAL_SIGNATURE:
                raise _BadZipError(f"its entry {_shown(entry.filename)} has no header where the directory says")
            # The lengths of name and extra field; only the local header tells where the data starts.
            start = entry.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header)[-2:])
            if start + entry.compress_size > size:
                raise _BadZipError(f"its entry {_shown(entry.filename)} lies outside the file")
            file.seek(start)
            yield file

    @contextlib.contextmanager
    def _sound(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {one_line(error)}") from None
        except Exception as error:  # noqa: BLE001 - a damaged archive makes zipfile raise almost anything
            raise CheckpointError(f"{self.path} is not a sound zip archive, as PyTorch's and NumPy's files are, but "
                                  f"cut short or damaged: {one_line(error)}") from None


# Of all archives only one entry is kept: with one for each, many small shards could fill any memory.
_INFLATED: weakref.WeakKeyDictionary[ZipArchive, tuple[str, bytes | bytearray]] = weakref.WeakKeyDictionary()


class ZipWriter:
    """Writes a zip archive of uncompressed entries; the same entries give the same bytes at any time.

    Use it in a ``with`` block; what the block leaves behind when it raises is no archive.

    Args:
        path: The file to write in place.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by __exit__
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)
        self._summing = ThreadPoolExecutor(1)

    def __enter__(self) -> ZipWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        with self._file, self._summing:
            self._zip.close()

    def add(self, name: str, size: int, blocks: Iterable[np.ndarray | bytes], align: int = 64) -> None:
        """Write one entry piece by piece.

        Args:
            name: Its name.
            size: The number of bytes that ``blocks`` have together.
            blocks: Its content.
            align: The data starts at a multiple of this many bytes.

        Raises:
            CheckpointError: The name leaves the archive or is taken.
            ValueError: ``blocks`` have more or fewer bytes.
            OSError: The file cannot be written.
        """
        reason = "stands twice" if name in self._zip.NameToInfo else _fault_of_name(name)
        if reason:
            raise CheckpointError(f"{_shown(name)} cannot be written to a zip archive: it {reason}")
        entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
        entry.create_system, entry.external_attr, entry.CRC = 3, 0o600 << 16, 0
        entry.file_size = entry.compress_size = size
        entry.header_offset = self._file.tell()
        large = size > zipfile.ZIP64_LIMIT
        header = _LOCAL_HEADER.size + len(name.encode("utf-8")) + _EXTRA.size + (_ZIP64_EXTRA_SIZE if large else 0)
        padding = -(entry.header_offset + header) % align
        entry.extra = _EXTRA.pack(_PADDING_ID, padding) + b"\0" * padding
        self._file.write(entry.FileHeader(zip64=large))
        written, entry.CRC = self._write_blocks(blocks)
        if written != size:
            raise ValueError(f"{name} was announced with {size} bytes and has {written}")
        end = self._file.tell()
        self._file.seek(entry.header_offset)
        self._file.write(entry.FileHeader(zip64=large))
        self._file.seek(end)
        # The directory needs no padding.
        entry.extra = b""
        self._directory(entry, end)

    def _write_blocks(self, blocks: Iterable[np.ndarray | bytes]) -> tuple[int, int]:
        """Write blocks while another thread sums them up, which takes as long; return their length and the sum."""
        written = checksum = 0
        pending: deque[Future] = deque()

        def add_up(view: memoryview) -> None:
            nonlocal checksum
            checksum = zlib.crc32(view, checksum)

        for block in blocks:
            view = memoryview(block).cast("B")
            pending.append(self._summing.submit(add_up, view))
            self._file.write(view)
            written += len(view)
            # What waits to be summed up stays in memory.
            if len(pending) > _MAX_PENDING:
                pending.popleft().result()
        for future in pending:
            future.result()
        return written, checksum

    def _directory(self, entry: zipfile.ZipInfo, end: int) -> None:
        """Have zipfile write an entry's line in the directory when it closes the archive."""
        self._zip.filelist.append(entry)
        self._zip.NameToInfo[entry.filename] = entry
        self._zip.start_dir, self._zip._didModify = end, True


class _BadZipError(Exception):
    """The reason why an archive is refused."""


class _BoundedReads:
    """A file that refuses to read much at once: zipfile asks for as many bytes as the file claims to need.

    Args:
        file: The file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """Read ``size`` bytes, or to the end if it is negative."""
        left = max(0, self._size - self._file.tell())
        size = left if size < 0 else min(size, left)
        if size > _MAX_READ:
            raise _BadZipError(f"its directory is larger than {_MAX_READ} bytes")
        return self._file.read(size)


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    seen: set[str] = set()
    for entry in entries:
        reason = "stands twice" if entry.filename in seen else _fault_of_name(entry.orig_filename)
        reason = reason or _fault_of_entry(entry)
        if reason:
            raise _BadZipError(f"its entry {_shown(entry.orig_filename)} {reason}")
        seen.add(entry.filename)
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise _BadZipError(f"its entry {_shown(entry.filename)} overlaps another")
        end = entry.header_offset + _LOCAL_HEADER.size + entry.compress_size
        if end > size:
            raise _BadZipError(f"its entry {_shown(entry.filename)} lies outside the file")
    inflated = sum(entry.file_size for entry in entries if entry.compress_type != zipfile.ZIP_STORED)
    if inflated > _INFLATED_FREE + _INFLATED_RATIO * size:
        raise _BadZipError(f"it is a zip bomb: {size} bytes that claim to unpack to {inflated}")


def _fault_of_name(name: str) -> str | None:
    try:
        length = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        length = 0
    if not 0 < length < 2**16 or "\0" in name:
        return "has an unusable name"
    # Nothing is unpacked to the disk here, but a name like this was made for somebody who does.
    if name.startswith("/") or "\\" in name or ".." in name.split("/") or re.match("[A-Za-z]:/", name):
        return "has a name that leaves the archive"
    return None


def _fault_of_entry(entry: zipfile.ZipInfo) -> str | None:
    if entry.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {entry.compress_type}: only stored and deflated ones are read"
    if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
        return f"claims {entry.file_size} bytes and stores {entry.compress_size}"
    return None


def _inflate(file: BinaryIO, available: int, length: int) -> bytearray:
    """Decompress the first ``length`` bytes from the next ``available`` ones of a file; fewer if it has fewer."""
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    result = bytearray()
    while len(result) < length and not engine.eof:
        data = engine.unconsumed_tail
        if not data:
            data = file.read(min(_CHUNK, available))
            available -= len(data)
        piece = engine.decompress(data, min(_CHUNK, length - len(result)))
        if not data and not piece:
            break
        result += piece
    return result


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:77] + "...")
