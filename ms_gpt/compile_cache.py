"""Compiled graphs kept on disk, so that the next start loads them instead of compiling them again.

MindSpore has such a cache, but knows a graph by nothing than its number: the first one that a process compiles is taken
for the first one that another process has compiled, whatever its constants and shapes are. Here each graph has a file
of its own, named by a key that holds all the graph depends on (``graph_key``). Just before a graph is compiled its file
is laid where MindSpore, in a folder that is this process's alone, looks for the graph of the number that is next; and
after that the folder is emptied.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import logging
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import nn
from mindspore._c_expression import ms_ctx_param
from mindspore.nn.cell import _cell_graph_executor

from ms_gpt.checkpoint.atomic import replace_file
from ms_gpt.errors import UserError
from ms_gpt.graph_key import UnknownPartError, graph_key, signature
from ms_gpt.runtime import cache_dir, is_switched_off, uninterrupted

_SUFFIX = ".graph"
_HASH_BYTES = 32
# A graph of 12 layers has 2 MB. Beyond the limit the graphs that were not used for the longest time go.
_MOST_BYTES = 256 << 20
_LEAST_FREE_BYTES = 256 << 20


class CachedGraph(nn.Cell):
    """A Cell whose graph, when it is the outermost one that is compiled, is taken from the cache.

    ``MS_GPT_COMPILE_CACHE`` names the cache's folder, or is ``off``; the default is ``graphs`` in the folder of
    downloads. It is used on the CPU only.

    A class attribute ``not_compiled`` names attributes that its graph does not see, or that are made of nothing but
    other attributes.
    """

    not_compiled: tuple[str, ...] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; at every call MindSpore sets this one in all cells within, which takes milliseconds."""
        if name != "compile_phase" or value != getattr(self, "_compile_phase", None):
            super().__setattr__(name, value)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the graph for inputs like these, or load it; nothing if that is done already."""
        with uninterrupted():
            return self._compile(*args, **kwargs)

    def _compile(self, *args: Any, **kwargs: Any) -> None:
        try:
            inputs = self.phase, self.training, signature((args, kwargs))
        except UnknownPartError:
            return super().compile(*args, **kwargs)
        met = _MET.setdefault(self, set())
        if inputs in met:
            return super().compile(*args, **kwargs)
        met.add(inputs)
        entry = _find(self, inputs)
        if entry is None:
            return super().compile(*args, **kwargs)
        try:
            with entry:
                super().compile(*args, **kwargs)
        except Exception:
            if not entry.is_loaded:
                raise
            # The file is whole, so MindSpore does not know its form.
            with contextlib.suppress(OSError):
                entry.path.unlink()
            super().compile(*args, **kwargs)


# The inputs that each Cell has been compiled for.
_MET: weakref.WeakKeyDictionary[nn.Cell, set[tuple]] = weakref.WeakKeyDictionary()


class _Stage:
    """The folder where MindSpore looks for graphs; it can be chosen once in a process.

    Args:
        folder: An empty folder that no one else uses.
    """

    def __init__(self, folder: str) -> None:
        self.process = os.getpid()
        self.folder = Path(folder) / "rank_0" / "graph_cache"
        self.folder.mkdir(parents=True)
        # The number MindSpore gives the next graph; None after a failure, until a graph has shown it.
        self.count: int | None = 0
        ms.context._context().set_param(ms_ctx_param.compile_cache_path, folder)

    def lay(self, content: bytes) -> None:
        """Lay a graph where MindSpore will look for the next one."""
        self.path_of(self.count).write_bytes(content)

    def take(self, is_laid: bool) -> bytes | None:
        """Empty the folder; return the graph that MindSpore has put there, or ``None`` if it has taken the one laid."""
        laid = self.path_of(self.count) if is_laid else None
        new = [path for path in self.folder.glob("compile_cache_*.mindir") if path != laid]
        content = new[0].read_bytes() if len(new) == 1 else None
        if content is not None:
            self.count = int(new[0].stem.rpartition("_")[2]) + 1
        else:
            self.count = self.count + 1 if is_laid and not new else None
        self.clear()
        return content

    def path_of(self, number: int) -> Path:
        """Return the place of a graph."""
        return self.folder / f"compile_cache_{number}.mindir"

    def clear(self) -> None:
        """Empty the folder."""
        for path in self.folder.iterdir():
            path.unlink()


_stage: _Stage | None = None


def _folder() -> Path | None:
    """Return the folder of the cache, or ``None`` where it is off."""
    if is_switched_off("MS_GPT_COMPILE_CACHE"):
        return None
    chosen = os.environ.get("MS_GPT_COMPILE_CACHE", "")
    return Path(chosen).expanduser().absolute() if chosen else cache_dir() / "graphs"


def _is_usable() -> bool:
    """Tell whether graphs are compiled here as the cache knows it: on one CPU, without a cache of the user's."""
    context = ms.context._context()
    its_path = context.get_param(ms_ctx_param.compile_cache_path)
    return (context.get_param(ms_ctx_param.device_target) == "CPU"
            and ms.get_auto_parallel_context("parallel_mode") == "stand_alone"
            and not {"MS_ROLE", "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"} & set(os.environ)
            and int(os.environ.get("RANK_SIZE") or 1) == 1
            and context.get_param(ms_ctx_param.enable_compile_cache) not in (True, 1)
            and (not its_path if _stage is None else _stage.process == os.getpid()))


def _find(cell: nn.Cell, inputs: tuple) -> _Entry | None:
    """Return a graph's place in the cache, or ``None`` where it cannot have one."""
    global _stage
    folder = _folder()
    if folder is None or not _is_usable() or cell._dynamic_shape_inputs is not None:
        return None
    try:
        key = graph_key(cell, inputs)
        if _stage is None:
            _stage = _Stage(_temporary_folder())
        if shutil.disk_usage(_stage.folder).free < _LEAST_FREE_BYTES:
            raise OSError("the folder of temporary files is almost full")
        return _Entry(_stage, folder / f"{key}{_SUFFIX}", cell)
    except UnknownPartError:
        return None
    except OSError as error:
        _warn(folder, str(error))
        return None


def _temporary_folder() -> str:
    folder, process = tempfile.mkdtemp(prefix="ms_gpt_graphs_"), os.getpid()

    def remove() -> None:
        if os.getpid() == process:
            shutil.rmtree(folder, ignore_errors=True)

    # What is registered last runs first: before MindSpore's own tidying up, which does not always return.
    atexit.register(remove)
    return folder


class _Entry:
    """A graph's place in the cache, entered while the graph is compiled.

    Args:
        stage: Where MindSpore reads and writes.
        path: The file: the graph, and after it a hash of it. Where that is wrong the graph is compiled.
        cell: What is compiled.
    """

    def __init__(self, stage: _Stage, path: Path, cell: nn.Cell) -> None:
        self.stage, self.path, self.cell = stage, path, cell
        self.is_loaded = False

    def __enter__(self) -> None:
        self.stage.clear()
        content = None if self.stage.count is None else self._read()
        if content is not None:
            self.stage.lay(content)
        self.is_loaded = content is not None
        context = ms.context._context()
        self.before = context.get_param(ms_ctx_param.enable_compile_cache)
        # Not by set_context: that would have MindSpore look for the source files of the program that is run.
        context.set_param(ms_ctx_param.enable_compile_cache, 1)

    def __exit__(self, kind: type | None, *_: object) -> None:
        ms.context._context().set_param(ms_ctx_param.enable_compile_cache, self.before)
        if kind is not None:
            # Nobody knows whether it was counted.
            self.stage.count = None
            self.stage.clear()
            return
        content = self.stage.take(self.is_loaded)
        if content is not None and self._is_found_by_name():
            self._write(content)

    def _is_found_by_name(self) -> bool:
        """Tell whether the graph's parameters are the Cell's, by name: so they are found when it is loaded."""
        parameters = list(self.cell.get_parameters())
        named = {item.name: item for item in parameters}
        phase = self.cell.phase_cache[self.cell.phase]
        used = _cell_graph_executor._graph_executor.get_params(phase)
        return len(named) == len(parameters) and all(named.get(name) is item for name, item in used.items())

    def _hash(self, content: bytes) -> bytes:
        return hashlib.blake2b(self.path.stem.encode() + content, digest_size=_HASH_BYTES).digest()

    def _read(self) -> bytes | None:
        try:
            data = self.path.read_bytes()
        except OSError:
            return None
        content = data[:-_HASH_BYTES]
        if not content or self._hash(content) != data[-_HASH_BYTES:]:
            return None
        with contextlib.suppress(OSError):
            os.utime(self.path)
        return content

    def _write(self, content: bytes) -> None:
        try:
            with replace_file(self.path) as temporary:
                temporary.write_bytes(content + self._hash(content))
            _shrink(self.path.parent)
        except (OSError, UserError) as error:
            _warn(self.path.parent, str(error.__cause__ or error))


def _shrink(folder: Path) -> None:
    """Remove the graphs that were not used for the longest time, beyond the limit."""
    files = []
    for path in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            stat = path.stat()
            files.append((stat.st_mtime, stat.st_size, path))
    size = 0
    for _, its_size, path in sorted(files, reverse=True):
        size += its_size
        if size > _MOST_BYTES:
            with contextlib.suppress(OSError):
                path.unlink()


@functools.cache
def _warn(folder: Path, reason: str) -> None:
    """Say once, in one line on stderr, that the cache is of no use."""
    logging.getLogger("ms_gpt").warning(
        "compiled graphs cannot be kept in %s (%s): every start compiles them again. Set MS_GPT_COMPILE_CACHE to "
        "another folder, or to off", folder, reason)
