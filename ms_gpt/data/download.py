"""Data sets from their official addresses, kept in a cache folder."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO

from ms_gpt.errors import UserError
from ms_gpt.runtime import cache_dir

Progress = Callable[[int, "int | None"], None]
CHUNK = 1 << 20
TIMEOUT = 30


@dataclass(frozen=True)
class Archive:
    """Where a data set comes from.

    Args:
        title: Its name for messages.
        url: Address of the archive.
        md5: Checksum of the archive.
        folder: The folder in the archive that holds the data; of a bare file the place in the cache.
        wanted: Pattern of the files to keep, as paths in the archive; none if it is no archive but a bare file.
    """

    title: str
    url: str
    md5: str
    folder: str
    wanted: str = ""


ARCHIVES = {
    "imdb": Archive(
        title="IMDB",
        url="https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
        md5="7c2ac02c03563afcf9b574c7e56c153a",
        folder="aclImdb",
        wanted=r"aclImdb/(train|test)/(pos|neg)/[^/]+\.txt",
    ),
    # The archive's test.tsv has no labels, so dev.tsv is the part that results are reported on.
    "sst2": Archive(
        title="SST-2",
        url="https://dl.fbaipublicfiles.com/glue/data/SST-2.zip",
        md5="9f81648d4199384278b86e315dac217c",
        folder="SST-2",
        wanted=r"SST-2/(train|dev)\.tsv",
    ),
}

# Texts without labels.
TEXT_ARCHIVES = {
    # Its first address, s3.amazonaws.com/research.metamind.io, is gone; the author keeps the archive here.
    "wikitext2": Archive(
        title="WikiText-2",
        url="https://wikitext.smerity.com/wikitext-2-v1.zip",
        md5="542ccefacc6c27f945fb54453812b3cd",
        folder="wikitext-2",
        wanted=r"wikitext-2/wiki\.(train|valid|test)\.tokens",
    ),
    "shakespeare": Archive(
        title="tiny Shakespeare",
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        md5="6fb458f1232090904fb40fe944165e91",
        folder="tinyshakespeare.txt",
    ),
}


def fetch(name: str, progress: Progress | None = None) -> Path:
    """Return the folder, or the file, of a known data set, downloading it the first time.

    Args:
        name: A key of ``ARCHIVES`` or ``TEXT_ARCHIVES``.
        progress: Called with the bytes so far and the bytes in all (None if unknown) while downloading.

    Returns:
        The unpacked folder, or the file, in the cache.

    Raises:
        UserError: If the download fails (no network, no space, wrong checksum); the message says what to do.
    """
    archive = {**ARCHIVES, **TEXT_ARCHIVES}[name]
    target = cache_dir() / archive.folder
    if target.exists():
        return target
    packed = cache_dir() / archive.url.rpartition("/")[2] if archive.wanted else target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not packed.is_file():
            download(archive.url, packed, archive.md5, progress)
        if archive.wanted:
            unpack(packed, target, archive.folder, archive.wanted)
            packed.unlink()
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise UserError(
            f"cannot download {archive.title} from {archive.url} ({reason}): check the network, or put the "
            f"{'unpacked folder' if archive.wanted else 'file'} at {target}"
        ) from None
    except OSError as error:
        raise UserError(f"cannot write {archive.title} to {target.parent}: {error.strerror or error}") from None
    return target


def download(url: str, target: Path, md5: str, progress: Progress | None = None) -> None:
    """Download a file, going on from where an earlier try stopped; ``target`` appears only when it is whole.

    Args:
        url: Address.
        target: Where the file goes. What is there so far lies beside it, under the suffix ``.part``.
        md5: Expected checksum.
        progress: Called with the bytes so far and the bytes in all (None if unknown).

    Raises:
        UserError: If the connection breaks off, or the checksum is wrong.
        OSError: If the address cannot be reached or the file not be written.
    """
    part = target.with_name(target.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    with _open_from(url, have) as response:
        have = have if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if have else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                if progress is not None:
                    progress(have, total)
    if total is not None and have < total:
        raise UserError(f"the download of {url} broke off at {have} of {total} bytes: run again to go on from there")
    found = _md5(part)
    if found != md5:
        part.unlink()
        raise UserError(f"{url} has the MD5 checksum {found} instead of {md5}: it was removed; try again later")
    os.replace(part, target)


def unpack(packed: Path, target: Path, folder: str, wanted: str) -> None:
    """Unpack the wanted files of one folder of an archive; ``target`` appears only when all are there.

    Args:
        packed: A .zip or .tar(.gz) file.
        target: The folder to make.
        folder: The folder in the archive that becomes ``target``.
        wanted: Pattern of the paths to keep; links and special files never are.

    Raises:
        UserError: If the archive is damaged, a path leads out of the folder, or no file is wanted.
    """
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name, source in _members(packed, wanted):
            path = (beside / name).resolve()
            if not path.is_relative_to((beside / folder).resolve()):
                raise UserError(f"{packed} holds the path {name!r}, which leads out of its folder: do not use it")
            path.parent.mkdir(parents=True, exist_ok=True)
            with source, path.open("wb") as file:
                shutil.copyfileobj(source, file)
        if not (beside / folder).is_dir():
            raise UserError(f"{packed} holds none of the expected files: remove it and try again")
        os.replace(beside / folder, target)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{packed} is damaged ({error}): remove it and try again") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def _open_from(url: str, have: int) -> Iterator[IO[bytes]]:
    """Ask for the rest of a file; from the start where the server has no such rest."""
    request = urllib.request.Request(url, headers={"User-Agent": "ms_gpt", **_range(have)})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        request.remove_header("Range")
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    with response:
        yield response


def _range(have: int) -> dict[str, str]:
    return {"Range": f"bytes={have}-"} if have else {}


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _members(packed: Path, wanted: str) -> Iterator[tuple[str, IO[bytes]]]:
    pattern = re.compile(wanted)
    if zipfile.is_zipfile(packed):
        with zipfile.ZipFile(packed) as archive:
            for info in archive.infolist():
                if not info.is_dir() and pattern.fullmatch(info.filename):
                    yield info.filename, archive.open(info)
        return
    with tarfile.open(packed) as archive:
        for member in archive:
            source = archive.extractfile(member) if member.isreg() and pattern.fullmatch(member.name) else None
            if source is not None:
                yield member.name, source
