"""Hostile checkpoints: pieces to build them from, and a process of its own in which they are opened within limits."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms_gpt import checkpoint
from ms_gpt.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
# A hang is told from a slow machine.
SECONDS = 60
EXTRA_BYTES = 2**30
KNOWN = {"n_head": 2, "activation_function": "gelu_new"}


class Raw(bytes):
    """Opcodes that stand in a pickle as they are."""


def opcodes(value: Any) -> bytes:
    """The opcodes that put a value on the stack, as ``torch.save`` would write them but for the memo."""
    if isinstance(value, Raw):
        return value
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(data)) + data
    if isinstance(value, dict):
        return b"}(" + b"".join(opcodes(key) + opcodes(item) for key, item in value.items()) + b"u"
    items = b"".join(map(opcodes, value))
    return b"(" + items + b"t" if isinstance(value, tuple) else b"](" + items + b"e"


def pickled(value: Any) -> bytes:
    """A pickle of protocol 2."""
    return b"\x80\x02" + opcodes(value) + b"."


def named(module: str, name: str) -> Raw:
    """A global."""
    return Raw(f"c{module}\n{name}\n".encode())


def called(function: bytes, *arguments: Any) -> Raw:
    """A call."""
    return Raw(opcodes(Raw(function)) + opcodes(arguments) + b"R")


def storage(key: Any = "0", count: Any = 8, kind: str = "FloatStorage", *view: Any) -> Raw:
    """A reference to a storage."""
    return Raw(opcodes(("storage", named("torch", kind), key, "cpu", count, *view)) + b"Q")


def tensor(stored: bytes | None = None, offset: Any = 0, shape: Any = (2, 4), strides: Any = (4, 1)) -> Raw:
    """A tensor, of 2 x 4 float32 numbers if not told otherwise."""
    hooks = called(named("collections", "OrderedDict"))
    stored = storage() if stored is None else stored
    return called(named("torch._utils", "_rebuild_tensor_v2"), stored, offset, shape, strides, False, hooks)


def whole(key: str, shape: tuple[int, ...]) -> Raw:
    """A float32 tensor that has a storage to itself."""
    strides = tuple(math.prod(shape[axis + 1:]) for axis in range(len(shape)))
    return tensor(storage(key, math.prod(shape)), 0, shape, strides)


def write_zip(path: Path, content: bytes, storages: Mapping[str, bytes] | None = None,
              method: int = zipfile.ZIP_STORED) -> Path:
    """PyTorch's zip format around a pickle."""
    storages = {"0": bytes(32)} if storages is None else storages
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in {"data.pkl": content, "byteorder": b"little",
                           **{f"data/{key}": data for key, data in storages.items()}, "version": b"3\n"}.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data, method)
    return path


def write_raw_zip(path: Path, entries: Mapping[str, tuple[bytes, int]]) -> Path:
    """A zip archive of deflated entries: name to what stands in the file, and the size that it claims to unpack to."""
    body, directory = b"", b""
    for name, (data, size) in entries.items():
        fields = struct.pack("<5H3L2H", 20, 0, zipfile.ZIP_DEFLATED, 0, 0, 0, len(data), size, len(name), 0)
        directory += b"PK\1\2\x14\0" + fields + struct.pack("<3H2L", 0, 0, 0, 0, len(body)) + name.encode()
        body += b"PK\3\4" + fields + name.encode() + data
    count = len(entries)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)
    path.write_bytes(body + directory + end)
    return path


def deflated(data: bytes) -> bytes:
    """Deflate; the result may be repeated."""
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return engine.compress(data) + engine.flush(zlib.Z_FULL_FLUSH)


def stream(content: bytes, storages: Mapping[str, tuple[int, bytes]] | None = None) -> bytes:
    """PyTorch's stream format around a pickle; each storage has a number of elements and bytes."""
    storages = {"0": (8, bytes(32))} if storages is None else storages
    head = b"".join(map(pickled, (MAGIC, PROTOCOL, SYSTEM)))
    return head + content + pickled(list(storages)) + b"".join(struct.pack("<q", count) + data
                                                              for count, data in storages.values())


def write_torch(kind: str, folder: Path, content: bytes) -> Path:
    """A pickle as one of ``TORCH_KINDS``."""
    path = folder / ("pytorch_model.bin" if kind == "bare" else f"{kind}.pt")
    if kind == "zip":
        return write_zip(path, content)
    path.write_bytes(stream(content) if kind == "stream" else content)
    return path


TORCH_KINDS = ("zip", "stream", "bare")


class Command:
    """What a pickle should never get to do: run a shell command that makes the file ``canary``."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def command_pickle(canary: Path, protocol: int) -> bytes:
    """A pickle that runs ``Command``."""
    return pickle.dumps({"h.0.ln_1.weight": Command(canary)}, protocol)


@dataclass(frozen=True)
class Outcome:
    """How a checkpoint fared.

    Args:
        kind: ``"read"``, ``"refused"`` (a ``UserError``), ``"failed"`` (any other exception) or ``"killed"``.
        message: The error's message, or a traceback.
        grown: By how many bytes the process grew.
    """

    kind: str
    message: str = ""
    grown: int = 0


class Prison:
    """A process that forks one of its own for each checkpoint: 1 GB more memory, ``SECONDS`` of time, no way out."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def __call__(self, path: str | Path, action: str = "open", target: str | Path = "") -> Outcome:
        """Do one of ``ACTIONS`` with a checkpoint."""
        self._process.stdin.write(json.dumps([action, os.fspath(path), os.fspath(target)]) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))


def read_all(tensors: Any) -> None:
    """Go through every block of every tensor."""
    for name in tensors:
        for _ in tensors.blocks(name):
            pass


def _convert(path: str, target: str, **options: Any) -> None:
    checkpoint.convert(path, target, **KNOWN, **options)


ACTIONS: dict[str, Callable[[str, str], None]] = {
    # As what it is, without the question whether it is a GPT.
    "read": lambda path, _: read_all(checkpoint.read_content(Path(path)).tensors),
    "open": lambda path, _: read_all(checkpoint.open_checkpoint(path, **KNOWN).tensors),
    "convert": _convert,
    "to mingpt": lambda path, target: _convert(path, target, to="mingpt"),
}


@contextlib.contextmanager
def memory_limit(extra: int = EXTRA_BYTES) -> Iterator[None]:
    """Let the process grow by so many bytes at most; beyond that comes a ``MemoryError``."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def peak_bytes() -> int:
    """The most memory that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def judge(action: Callable[[], object]) -> Outcome:
    """Run something and say how it went."""
    start = peak_bytes()
    try:
        action()
    except UserError as error:
        return Outcome("refused", str(error), peak_bytes() - start)
    except Exception:  # noqa: BLE001 - that nothing else comes is what is tested
        return Outcome("failed", traceback.format_exc(), peak_bytes() - start)
    return Outcome("read", "", peak_bytes() - start)


def _serve() -> None:
    # Imported once, before the forks.
    assert checkpoint.convert
    assert checkpoint.open_checkpoint
    for line in sys.stdin:
        action, path, target = json.loads(line)
        receiver, sender = os.pipe()
        child = os.fork()
        if not child:
            signal.alarm(SECONDS)
            with memory_limit():
                outcome = judge(lambda: ACTIONS[action](path, target))  # noqa: B023 - called at once
            with open(sender, "w", encoding="utf-8") as pipe:
                json.dump(outcome.__dict__, pipe)
            os._exit(0)
        os.close(sender)
        with open(receiver, encoding="utf-8") as pipe:
            report = pipe.read()
        _, status = os.waitpid(child, 0)
        killed = {"kind": "killed", "message": f"wait status {status}"}
        sys.stdout.write((report or json.dumps(killed)) + "\n")
        sys.stdout.flush()


def assert_refused(outcomes: Sequence[Outcome], *reasons: str) -> None:
    """Assert that each was refused in one printable line that holds one of the reasons, and in little memory."""
    for outcome in outcomes:
        assert outcome.kind == "refused", outcome
        assert outcome.message.isprintable()
        assert len(outcome.message) < 5000
        assert not reasons or any(reason in outcome.message for reason in reasons), outcome.message
        assert outcome.grown < EXTRA_BYTES


if __name__ == "__main__":
    _serve()
