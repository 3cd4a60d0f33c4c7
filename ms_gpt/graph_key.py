"""What a compiled graph depends on, as one key: two graphs that may differ never have the same."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import inspect
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore._c_expression import ms_ctx_param

from ms_gpt import __version__

_PACKAGE = Path(__file__).resolve().parent
_SOURCES = {".py", ".c", ".cc", ".cpp", ".h"}
# Where what a graph is made of may come from: what cannot change while the versions in the key stay the same.
_KNOWN_ROOTS = {"ms_gpt", "mindspore", "numpy"} | set(sys.stdlib_module_names)
# What MindSpore notes in a Cell while it compiles and runs it.
_BOOKKEEPING = {
    "_create_time", "arguments_key", "_compile_cache", "_phase_cache", "_id", "_exist_objs", "_exist_names",
    "_lazy_construct_sig", "_jit_graph_name", "_compiled", "_init_flag", "_is_check_and_refresh", "_compile_phase",
    "current_phase", "compile_phase", "_has_mutable_args_list", "sequence_modified", "is_top_cell",
    "_lazy_user_parameters", "_scope",
}
# Settings of MindSpore that say where and how fast, not what is computed.
_NO_MATTER = {
    "enable_compile_cache", "compile_cache_path", "save_graphs", "save_graphs_path", "cur_step_num", "need_ckpt",
    "save_checkpoint_steps", "last_triggered_step", "device_id", "max_device_memory", "mempool_block_size",
    "inter_op_parallel_num", "runtime_num_threads",
}
_NO_MATTER_ENVIRONMENT = {"MS_GPT_CACHE", "MS_GPT_COMPILE_CACHE", "MS_GPT_TEST_DATA"}


# Modules that no graph has anything of.
_OUTSIDE = {"ms_gpt.compile_cache", __name__}


class UnknownPartError(Exception):
    """A graph has a part of which nobody can say whether it has changed."""


def signature(values: Iterable[Any]) -> tuple:
    """Return what a graph's inputs decide about it: shapes and dtypes.

    Args:
        values: Tensors, ``None``, plain numbers, and tuples, lists or dicts of these.

    Returns:
        A tuple that can be hashed.

    Raises:
        UnknownPartError: For any other input.
    """
    found = []
    for value in values:
        if isinstance(value, Tensor) and not isinstance(value, Parameter):
            if -1 in value.shape or getattr(value, "const_arg", False):
                raise UnknownPartError("a shape that is open")
            found.append(("Tensor", tuple(value.shape), str(value.dtype)))
        elif value is None or isinstance(value, (bool, int, float, str)):
            found.append((type(value).__name__, repr(value)))
        elif isinstance(value, (tuple, list)):
            found.append((type(value).__name__, signature(value)))
        elif isinstance(value, dict):
            found.append(("dict", tuple(value), signature(value.values())))
        else:
            raise UnknownPartError(f"an input of type {type(value).__name__}")
    return tuple(found)


def graph_key(cell: nn.Cell, inputs: tuple) -> str:
    """Return the key of the graph that a Cell is compiled to.

    Versions, the library's sources, MindSpore's settings, the inputs' shapes, and everything that the Cell and the
    Cells in it consist of, go into it: the names and shapes of parameters, and the values of all else.

    Args:
        cell: The outermost Cell.
        inputs: From ``signature``.

    Returns:
        Hexadecimal digits.

    Raises:
        UnknownPartError: The Cell has a part whose value cannot be told, such as code of the user's.
    """
    key = _Key()
    key.add((__version__, ms.__version__, np.__version__, sys.version_info[:3], sys.platform))
    key.add_sources()
    context = ms.context._context()
    key.add({name: context.get_param(member) for name, member in sorted(ms_ctx_param.__members__.items())
             if name not in _NO_MATTER})
    key.add({name: value for name, value in sorted(os.environ.items())
             if name.startswith("MS_") and name not in _NO_MATTER_ENVIRONMENT})
    key.add(inputs)
    key.add(cell)
    key.add_modules()
    return key.digest.hexdigest()


class _Key:
    """A hash of Python objects."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=20)
        # Cells, parameters and operators met before, by id, and kept so that no id is given twice.
        self.met: dict[int, tuple[int, Any]] = {}
        self.modules: list[str] = []
        self.classes: set[type] = set()

    def put(self, *words: str | bytes) -> None:
        """Add words, each with its length, so that no two sequences of words look alike."""
        for word in words:
            data = word if isinstance(word, bytes) else word.encode()
            self.digest.update(len(data).to_bytes(8, "little") + data)

    def add(self, value: Any) -> None:
        """Add an object and all it is made of."""
        if value is None or isinstance(value, (bool, int, float, str, bytes, np.generic, np.dtype, Path)):
            self.put(type(value).__name__, repr(value))
        elif not isinstance(value, (Tensor, nn.Cell, ops.Primitive)):
            self.add_plain(value)
        elif id(value) in self.met:
            # The second use of an object, such as a tied weight, is not the same as another one like it.
            self.put("again", str(self.met[id(value)][0]))
        else:
            self.met[id(value)] = len(self.met), value
            self.add_part(value)

    def add_plain(self, value: Any) -> None:
        """Add a container, a function, a setting."""
        if isinstance(value, (tuple, list)):
            self.put(type(value).__name__, str(len(value)))
            for item in value:
                self.add(item)
        elif isinstance(value, (set, frozenset)):
            self.add(sorted(value, key=repr))
        elif isinstance(value, dict):
            self.put("dict", str(len(value)))
            for name, item in value.items():
                self.add(name)
                self.add(item)
        elif isinstance(value, np.ndarray):
            self.put("array", str(value.dtype), str(value.shape), np.ascontiguousarray(value).tobytes())
        elif inspect.isroutine(value) or isinstance(value, type):
            self.add_code(value)
        elif type(value).__module__ == "mindspore._c_expression.typing":
            self.put(repr(value))
        elif isinstance(value, enum.Enum):
            self.put(type(value).__qualname__, value.name)
        elif hasattr(value, "__dict__") and (dataclasses.is_dataclass(value) or _root(value) == "mindspore"):
            self.add_code(type(value))
            self.add(dict(sorted(vars(value).items())))
        else:
            raise UnknownPartError(f"a {type(value).__module__}.{type(value).__qualname__}")

    def add_part(self, value: Tensor | nn.Cell | ops.Primitive) -> None:
        """Add a part of a graph that has not been met."""
        if isinstance(value, Parameter):
            if value.has_init:
                raise UnknownPartError(f"the parameter {value.name}, which has no value yet")
            self.put("Parameter", value.name, str(value.shape), str(value.dtype), str(value.requires_grad))
        elif isinstance(value, Tensor):
            same = value.astype(ms.float32) if value.dtype == ms.bfloat16 else value
            self.put("Tensor", str(value.dtype), str(value.shape), same.asnumpy().tobytes())
        else:
            self.add_code(type(value))
            skipped: set[str] = set()
            if isinstance(value, nn.Cell):
                skipped = _BOOKKEEPING | set(getattr(value, "not_compiled", ()))
                if isinstance(value, nn.Embedding):
                    # What its table was made from, as large as the table is, and read by nothing else.
                    skipped.add("init_tensor")
                for kind in type(value).__mro__[: type(value).__mro__.index(nn.Cell)]:
                    self.add_class(kind)
            # A "_lazy" dict, such as that of hooks, is made, empty, when MindSpore first looks for it.
            self.add({name: item for name, item in sorted(vars(value).items())
                      if name not in skipped and (not name.startswith("_lazy") or item)})

    def add_code(self, value: Any) -> None:
        """Add a function or class by its name; what it says is in the sources, or in a version."""
        self.name(value)
        for held in (getattr(value, "__closure__", None) or ()):
            self.add(held.cell_contents)
        for held in (getattr(value, "__self__", None), getattr(value, "__defaults__", None)):
            if held is not None and not isinstance(held, ModuleType):
                self.add(held)

    def name(self, value: Any) -> None:
        """Add the name of a function or class, and note its module."""
        module = getattr(value, "__module__", None) or "builtins"
        if _root(value) not in _KNOWN_ROOTS:
            raise UnknownPartError(f"code of {module}")
        if _root(value) == "ms_gpt" and module not in self.modules:
            self.modules.append(module)
        self.put(module, getattr(value, "__qualname__", type(value).__qualname__))

    def add_sources(self) -> None:
        """Add the content of every source file of the library."""
        for path in sorted(_PACKAGE.rglob("*")):
            if path.suffix in _SOURCES:
                self.put(path.relative_to(_PACKAGE).as_posix(), path.read_bytes())

    def add_modules(self) -> None:
        """Add what the noted modules, and those they use, hold now: constants, functions and classes may be replaced.

        The sources would not show it.
        """
        # The list grows while it is gone through.
        for module in self.modules:
            if module in _OUTSIDE:
                continue
            self.put(module)
            for name, value in sorted(vars(sys.modules[module]).items()):
                if isinstance(value, ModuleType):
                    if value.__name__.startswith("ms_gpt.") and value.__name__ not in self.modules:
                        self.modules.append(value.__name__)
                elif name.startswith("__"):
                    continue
                elif callable(value):
                    self.put(name)
                    self.name(value)
                    if isinstance(value, type) and value.__module__ == module:
                        self.add_class(value)
                elif name.strip("_").isupper():
                    self.put(name)
                    self.add_constant(value)

    def add_class(self, value: type) -> None:
        """Add a class's methods by name, and its constants."""
        if value in self.classes:
            return
        self.classes.add(value)
        for name, item in sorted(vars(value).items()):
            function = getattr(item, "__func__", getattr(item, "fget", item))
            if inspect.isroutine(function):
                self.put(name)
                self.name(function)
            elif not name.startswith("__"):
                self.put(name)
                self.add_constant(item)

    def add_constant(self, value: Any) -> None:
        """Add a constant that is likely no part of the graph, so that one of an unknown kind is no harm."""
        try:
            self.add(value)
        except UnknownPartError:
            self.put(type(value).__qualname__)


def _root(value: Any) -> str:
    return (getattr(value, "__module__", None) or "builtins").partition(".")[0]
