"""Small sound checkpoints of every format, in the pieces that the fuzzer damages."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from checkpoint_helpers import ROOT, on_disk, random_arrays, small_config
from hostile_helpers import KNOWN, opcodes, pickled, read_all, stream, whole

from ms_gpt import checkpoint
from ms_gpt.checkpoint import ckpt, npz, tensorflow, torch_file
from ms_gpt.checkpoint.protobuf import decode_varint

TENSORFLOW = ROOT / "tests" / "files" / "tensorflow_gpt2"
Parts = dict[str, bytes]


@dataclass(frozen=True)
class Seed:
    """A sound checkpoint in pieces.

    Args:
        format: Its name in the summary.
        parts: The pieces that are damaged.
        write: Function that puts the pieces together in a folder and gives the path to open.
        read: Function that opens the path and reads all of it.
    """

    format: str
    parts: Parts
    write: Callable[[Path, Parts], Path]
    read: Callable[[Path], None]


def make_seeds(folder: Path) -> list[Seed]:
    """Write a small GPT-2 in every format, and cut it into pieces."""
    config = small_config("gpt2")
    arrays = on_disk(config, random_arrays(config, "GPT2LMHeadModel"))
    empty_folder(folder)
    return [*_plain(folder, arrays), *_torch(folder, arrays), *_numpy(folder, arrays), *_tensorflow(),
            *_folders(folder, arrays), *_tarred(folder, arrays)]


def empty_folder(folder: Path) -> Path:
    """Make a folder anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _as_files(*names: str, opened: str = "") -> Callable[[Path, Parts], Path]:
    """Write each piece as a file; what is opened is the first, or the folder, or ``opened``."""

    def write(folder: Path, parts: Parts) -> Path:
        for name in names:
            (folder / name).write_bytes(parts[name])
        return folder / (opened or names[0])

    return write


def _open(path: Path) -> None:
    read_all(checkpoint.open_checkpoint(path, **KNOWN).tensors)


def _zipped(path: Path, entries: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return path


def _plain(folder: Path, arrays: dict[str, np.ndarray]) -> list[Seed]:
    checkpoint.write_safetensors(folder / "a.safetensors", arrays)
    checkpoint.write_ckpt(folder / "a.ckpt", arrays)
    size, ckpt._SLICE_BYTES = ckpt._SLICE_BYTES, 40
    checkpoint.write_ckpt(folder / "b.ckpt", arrays)
    ckpt._SLICE_BYTES = size
    whole_file = (folder / "a.safetensors").read_bytes()
    end = 8 + struct.unpack("<Q", whole_file[:8])[0]

    def write_header(folder: Path, parts: Parts) -> Path:
        header = parts["header"]
        (folder / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + whole_file[end:])
        return folder / "a.safetensors"

    return [
        Seed("safetensors", {"a.safetensors": whole_file}, _as_files("a.safetensors"), _open),
        Seed("safetensors header", {"header": whole_file[8:end]}, write_header, _open),
        Seed("ckpt", {"a.ckpt": (folder / "a.ckpt").read_bytes()}, _as_files("a.ckpt"), _open),
        Seed("ckpt in slices", {"a.ckpt": (folder / "b.ckpt").read_bytes()}, _as_files("a.ckpt"), _open),
    ]


def _torch(folder: Path, arrays: dict[str, np.ndarray]) -> list[Seed]:
    torch_file.write_to(folder / "a.pt", arrays)
    torch_file.write_to(folder / "b.pt", arrays, model_args={"n_head": 2, "dropout": 0.5, "bias": False})
    with zipfile.ZipFile(folder / "b.pt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    table = {name: whole(str(number), array.shape) for number, (name, array) in enumerate(arrays.items())}
    # With a memo, as real ones have.
    content = b"\x80\x02}q\x00(" + b"".join(opcodes(name) + b"q\x01" + value + b"r\x02\x00\x00\x00"
                                           for name, value in table.items()) + b"u."
    storages = {str(number): (array.size, array.tobytes()) for number, array in enumerate(arrays.values())}

    def write_pickle(folder: Path, parts: Parts) -> Path:
        return _zipped(folder / "a.pt", {**entries, "archive/data.pkl": parts["data.pkl"]})

    def write_stream(folder: Path, parts: Parts) -> Path:
        (folder / "a.pt").write_bytes(stream(parts["pickle"], storages))
        return folder / "a.pt"

    pickle = {"data.pkl": entries["archive/data.pkl"]}
    return [
        Seed("torch zip", {"a.pt": (folder / "a.pt").read_bytes()}, _as_files("a.pt"), _open),
        Seed("torch zip, pickle", pickle, write_pickle, _open),
        Seed("torch stream", {"a.bin": stream(content, storages)}, _as_files("a.bin"), _open),
        Seed("torch stream, pickle", {"pickle": content}, write_stream, _open),
        Seed("torch stream, pickle", {"pickle": pickled({"model": table, "model_args": {"n_head": 2}})}, write_stream,
             _open),
    ]


def _numpy(folder: Path, arrays: dict[str, np.ndarray]) -> list[Seed]:
    np.savez(folder / "a.npz", **arrays)
    np.savez_compressed(folder / "b.npz", **{name: np.asfortranarray(array) for name, array in arrays.items()})
    with zipfile.ZipFile(folder / "a.npz") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}

    def write_entries(folder: Path, parts: Parts) -> Path:
        return _zipped(folder / "a.npz", parts, zipfile.ZIP_DEFLATED)

    alone = {"a.npy": entries["transformer.wpe.weight.npy"]}
    return [
        Seed("npz", {"a.npz": (folder / "a.npz").read_bytes()}, _as_files("a.npz"), _open),
        Seed("npz deflated", {"a.npz": (folder / "b.npz").read_bytes()}, _as_files("a.npz"), _open),
        Seed("npz, arrays", entries, write_entries, _open),
        Seed("npy", alone, _as_files("a.npy"), lambda path: read_all(npz.read_npz(path))),
    ]


def _tensorflow() -> list[Seed]:
    files = {path.name: path.read_bytes() for path in sorted(TENSORFLOW.iterdir()) if path.suffix != ".py"}
    index = next(name for name in files if name.endswith(".index"))
    blocks = _block_places(files[index])

    def write_mended(folder: Path, parts: Parts) -> Path:
        data = bytearray(parts[index])
        for offset, size in blocks:
            if offset + size + 5 <= len(data):
                crc = tensorflow._masked_crc32c(memoryview(data)[offset:offset + size + 1])
                data[offset + size + 1:offset + size + 5] = struct.pack("<I", crc)
        return _as_files(*files, opened=index)(folder, {**files, index: bytes(data)})

    return [
        Seed("tensorflow", files, _as_files(*files, opened=index), _open),
        Seed("tensorflow, checksums mended", {index: files[index]}, write_mended, _open),
    ]


def _block_places(index: bytes) -> list[tuple[int, int]]:
    """Find the blocks of an index: that of the handles, and those that it points to."""
    numbers, position = [], len(index) - 48
    for _ in range(4):
        number, position = decode_varint(index, position)
        numbers.append(number)
    places = [tuple(numbers[2:])]
    for _, handle in tensorflow._rows(memoryview(index)[numbers[2]:sum(numbers[2:])]):
        offset, used = decode_varint(handle, 0)
        places.append((offset, decode_varint(handle, used)[0]))
    return places


def _folders(folder: Path, arrays: dict[str, np.ndarray]) -> list[Seed]:
    config = small_config("gpt2")
    checkpoint.write_folder(folder / "hf", config, arrays, "GPT2LMHeadModel")
    model = {name: (folder / "hf" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    names = list(arrays)
    files = {}
    for number, part in enumerate((names[:9], names[9:])):
        checkpoint.write_safetensors(folder / f"{number}.safetensors", {name: arrays[name] for name in part})
        files[f"{number}.safetensors"] = (folder / f"{number}.safetensors").read_bytes()
    index = {"metadata": {"total_size": 1}, "weight_map": {name: f"{int(name in names[9:])}.safetensors"
                                                           for name in names}}
    shards = {**files, "model.safetensors.index.json": json.dumps(index).encode()}

    def write_config(folder: Path, parts: Parts) -> Path:
        return _as_files(*model, opened=".")(folder, {**model, **parts})

    def write_index(folder: Path, parts: Parts) -> Path:
        return _as_files(*shards, opened=".")(folder, {**shards, **parts})

    openai = _openai_parts()
    return [
        Seed("config.json", {"config.json": model["config.json"]}, write_config, _open),
        Seed("shard index", {"model.safetensors.index.json": shards["model.safetensors.index.json"]}, write_index,
             _open),
        Seed("OpenAI's GPT-1", openai, _as_files(*openai, opened="."), _open),
    ]


def _openai_parts() -> Parts:
    width, shapes = 4, [[7, 4], [11, 4]]
    for _ in range(2):
        shapes += [[1, width, 3 * width], [3 * width], [1, width, width], [width], [width], [width],
                   [1, width, 4 * width], [4 * width], [1, 4 * width, width], [width], [width], [width]]
    row = np.arange(sum(int(np.prod(shape)) for shape in shapes), dtype=np.float32)
    parts = {"params_shapes.json": json.dumps(shapes).encode()}
    for number, piece in enumerate(np.array_split(row, 3)):
        file = io.BytesIO()
        np.save(file, piece)
        parts[f"params_{number}.npy"] = file.getvalue()
    return parts


def _tarred(folder: Path, arrays: dict[str, np.ndarray]) -> list[Seed]:
    checkpoint.write_folder(folder / "hf", small_config("gpt2"), arrays, "GPT2LMHeadModel")
    seeds = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
            # A name that is too long for a plain header.
            inside = "hf" if kind == tarfile.USTAR_FORMAT else "hf" + "x" * 150
            archive.add(folder / "hf", inside, filter=_without_origin)
        packed = file.getvalue()
        seeds += [Seed("tar", {"a.tar": packed}, _write_tar, _open),
                  Seed("tar.gz", {"a.tar.gz": gzip.compress(packed, mtime=0)}, _as_files("a.tar.gz"), _open)]
    return seeds


def _without_origin(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out when and by whom a file was written: the same seed is to give the same damages anywhere."""
    info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode = 0, 0, 0, "", "", 0o755
    return info


def _write_tar(folder: Path, parts: Parts) -> Path:
    """Write the archive, gzipped, with checksums that are right: damages would be refused for them alone."""
    data = bytearray(parts["a.tar"])
    for start in range(0, len(data) - 511, 512):
        if data[start + 257:start + 262] == b"ustar":
            data[start + 148:start + 156] = b" " * 8
            data[start + 148:start + 156] = b"%06o\0 " % sum(data[start:start + 512])
    (folder / "a.tar.gz").write_bytes(gzip.compress(bytes(data), 1, mtime=0))
    return folder / "a.tar.gz"
