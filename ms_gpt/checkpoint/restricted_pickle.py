"""The pickles inside PyTorch files, read as data: no class is looked up, nothing is called.

``pickletools`` cuts the stream into opcodes and a small stack machine here carries out those that build plain
containers. Of the globals a pickle may name, only a handful are known, and each stands for a few lines of this module;
any other is refused by its dotted name as soon as it appears.

Source: the opcode descriptions in CPython's ``pickletools``.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

# A large model with its optimizer's state takes some 100,000 opcodes.
MAX_OPCODES = 500_000
# Elements that calls may go through: with one list and many calls a small pickle could take any time and memory.
_MAX_GONE_THROUGH = 2**20
_MAX_LONG = 2**63
# The magic number of torch.save has 77. Python refuses to print numbers of some thousand digits.
_MAX_BITS = 512
_MAX_NDIM = 32
_MAX_ELEMENTS = 2**60

STORAGE_DTYPES = {
    "torch.DoubleStorage": "float64", "torch.FloatStorage": "float32", "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16", "torch.LongStorage": "int64", "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16", "torch.CharStorage": "int8", "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool", "torch.ComplexFloatStorage": "complex64", "torch.ComplexDoubleStorage": "complex128",
}
_DTYPES = {"double", "float", "half", "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8",
           "uint8", "bool", "long", "int", "short"}
_KEY_TYPES = (str, int, float, bool, bytes, type(None))


class PickleError(Exception):
    """Why a pickle is refused."""


@dataclass(frozen=True)
class Storage:
    """A run of elements that stands elsewhere in the file.

    Args:
        key: Its name there.
        dtype: numpy's name of the elements' dtype, or ``"bfloat16"``.
        size: Number of elements.
        start: Index of its first element, for a storage that is a view of another.
    """

    key: str
    dtype: str
    size: int
    start: int = 0


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a view of a storage.

    Args:
        storage: Where its elements are.
        offset: Index of its first element there.
        shape: Its shape.
        strides: Steps in elements along each axis.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie one after another in C order."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


@dataclass(frozen=True)
class _Global:
    name: str


class _Mark:
    """What MARK puts on the stack."""


def load(stream: BinaryIO, max_opcodes: int = MAX_OPCODES) -> tuple[Any, dict[str, tuple[str, int]]]:
    """Read one pickle; the stream is left behind its end.

    Args:
        stream: Bytes in memory.
        max_opcodes: The most opcodes that the pickle may have.

    Returns:
        Plain values, lists, tuples and dicts, with ``StoredTensor`` for tensors; and the dtype and the number of
        elements of every storage by its key.

    Raises:
        PickleError: The pickle is damaged, or asks for anything but tensors and plain containers.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > max_opcodes:
                raise PickleError(f"it has more than {max_opcodes:,} steps")
            machine.step(opcode.name, argument)
        return machine.pop(), machine.storages
    except PickleError:
        raise
    except Exception as error:  # noqa: BLE001 - pickletools raises whatever parsing text and numbers raises
        reason = " ".join(str(error).split())[:80]
        raise PickleError(f"its pickle is damaged ({reason or type(error).__name__})") from None


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, tuple[str, int]] = {}
        self.gone_through = 0

    def step(self, name: str, argument: Any) -> None:
        """Carry out one opcode."""
        if name in _PUSH:
            if isinstance(argument, int) and argument.bit_length() > _MAX_BITS:
                raise PickleError(f"it has a number of {argument.bit_length()} bits")
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise PickleError(f"it makes objects by {name}, which tensors and plain containers do not need")

    def pop(self) -> Any:
        """Take the top of the stack."""
        value = self.stack.pop()
        if value is _Mark:
            raise PickleError("its pickle is damaged (a mark stands where a value should)")
        return value

    def pop_marked(self) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _Mark:
                values = self.stack[index + 1:]
                del self.stack[index:]
                return values
        raise PickleError("its pickle is damaged (no mark)")

    def top(self, kind: type) -> Any:
        """Return the top of the stack, which has to be a container of a kind."""
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise PickleError(f"its pickle is damaged (no {kind.__name__} to fill)")
        return self.stack[-1]

    def append(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise PickleError("its pickle is damaged (a key without a value)")
        _fill(self.top(dict), zip(values[::2], values[1::2], strict=True))

    def make_dict(self, values: list[Any]) -> None:
        self.stack.append({})
        self.set_items(values)

    def find(self, name: str) -> None:
        self.stack.append(_known_global(name))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("its pickle is damaged (a global without a name)")
        self.find(f"{module} {name}")

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise PickleError("it calls something that is not a function")
        build = _FUNCTIONS.get(function.name)
        if build is None:
            raise PickleError(f"it calls {function.name}, which is not a function")
        self.gone_through += sum(len(item) for item in arguments if isinstance(item, list | tuple | dict | str))
        if self.gone_through > _MAX_GONE_THROUGH:
            raise PickleError(f"its calls are given more than {_MAX_GONE_THROUGH:,} elements")
        self.stack.append(build(*arguments))

    def build(self) -> None:
        # The one state that plain containers come with is what OrderedDict carries beside its items, such as the
        # version numbers of a state dict.
        self.pop()
        self.top(dict)

    def storage(self) -> None:
        storage, size = _storage(self.pop())
        if self.storages.setdefault(storage.key, (storage.dtype, size)) != (storage.dtype, size):
            raise PickleError(f"it describes the storage {storage.key[:40]!r} in two ways")
        self.stack.append(storage)

    def get(self, index: Any) -> None:
        index = int(index)
        if index not in self.memo:
            raise PickleError(f"its pickle is damaged (nothing was remembered as {index})")
        self.stack.append(self.memo[index])

    def put(self, index: Any) -> None:
        self.memo[int(index)] = self.stack[-1]


_PUSH = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
         "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
         "BINBYTES8"}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_LIST": list, "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple, "EMPTY_SET": list, "MARK": lambda: _Mark,
}
# Sets come as lists: nothing here needs their uniqueness, and members would have to be hashed.
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "POP": lambda self, _: self.stack.pop(),
    "POP_MARK": lambda self, _: self.pop_marked(),
    "DUP": lambda self, _: self.stack.append(self.stack[-1]),
    "APPEND": lambda self, _: self.append([self.pop()]),
    "APPENDS": lambda self, _: self.append(self.pop_marked()),
    "ADDITEMS": lambda self, _: self.append(self.pop_marked()),
    "LIST": lambda self, _: self.stack.append(self.pop_marked()),
    "FROZENSET": lambda self, _: self.stack.append(self.pop_marked()),
    "TUPLE": lambda self, _: self.stack.append(tuple(self.pop_marked())),
    "TUPLE1": lambda self, _: self.stack.append((self.pop(),)),
    "TUPLE2": lambda self, _: self.stack.append((self.pop(), self.pop())[::-1]),
    "TUPLE3": lambda self, _: self.stack.append((self.pop(), self.pop(), self.pop())[::-1]),
    "DICT": lambda self, _: self.make_dict(self.pop_marked()),
    "SETITEM": lambda self, _: self.set_items([self.pop(), self.pop()][::-1]),
    "SETITEMS": lambda self, _: self.set_items(self.pop_marked()),
    "GLOBAL": lambda self, name: self.find(name),
    "STACK_GLOBAL": lambda self, _: self.stack_global(),
    "REDUCE": lambda self, _: self.reduce(),
    "BUILD": lambda self, _: self.build(),
    "BINPERSID": lambda self, _: self.storage(),
    "GET": lambda self, index: self.get(index),
    "BINGET": lambda self, index: self.get(index),
    "LONG_BINGET": lambda self, index: self.get(index),
    "PUT": lambda self, index: self.put(index),
    "BINPUT": lambda self, index: self.put(index),
    "LONG_BINPUT": lambda self, index: self.put(index),
    "MEMOIZE": lambda self, _: self.put(len(self.memo)),
}


def _known_global(name: str) -> Any:
    module, _, attribute = name.partition(" ")
    dotted = f"{module}.{attribute}"
    if module == "torch" and attribute in _DTYPES:
        return attribute
    if dotted in STORAGE_DTYPES or dotted in _FUNCTIONS:
        return _Global(dotted)
    raise PickleError(f"it asks for {dotted[:100]!r}, and only tensors and plain containers are read (a file of "
                      "model.state_dict() alone has nothing else)")


def _fill(target: dict[Any, Any], items: Any) -> None:
    for key, value in items:
        # Hashing anything deeper could be made to exhaust the stack.
        if not isinstance(key, _KEY_TYPES):
            raise PickleError(f"it has a {type(key).__name__} as the key of a table")
        target[key] = value


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    if not isinstance(items, list | tuple) or not all(isinstance(item, list | tuple) and len(item) == 2
                                                      for item in items):
        raise PickleError("it fills an OrderedDict with what are not pairs")
    _fill(result, items)
    return result


def _storage(identity: Any) -> tuple[Storage, int]:
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise PickleError("it refers to something that is not a storage")
    kind, key, _, size = identity[1:5]
    if not isinstance(kind, _Global) or kind.name not in STORAGE_DTYPES:
        raise PickleError("it has a storage of unknown dtype")
    if not isinstance(key, str) or not _is_size(size):
        raise PickleError("it has a storage without a name or with an impossible size")
    view = identity[5] if len(identity) == 6 else None
    if view is None:
        return Storage(key, STORAGE_DTYPES[kind.name], size), size
    if not isinstance(view, tuple) or len(view) != 3 or not all(map(_is_size, view[1:])):
        raise PickleError("it has a damaged view of a storage")
    start, length = view[1:]
    if start + length > size:
        raise PickleError(f"it has a view of elements {start} to {start + length} of a storage of {size}")
    return Storage(key, STORAGE_DTYPES[kind.name], length, start), size


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> StoredTensor:
    # After requires_grad and hooks: what the stored numbers are still to be put through, such as {"neg": True}.
    if len(rest) > 2 and rest[2]:
        raise PickleError("it has a tensor that is negated or conjugated only when it is read: save its resolve_neg()")
    if not isinstance(storage, Storage):
        raise PickleError("it has a tensor without a storage")
    for numbers in (shape, strides):
        if not isinstance(numbers, tuple) or len(numbers) > _MAX_NDIM or not all(map(_is_size, numbers)):
            raise PickleError("it has a tensor with an impossible shape or stride")
    if len(shape) != len(strides) or not _is_size(offset):
        raise PickleError("it has a tensor whose shape and stride do not fit")
    # Also of empty tensors, whose other sizes numpy multiplies.
    if math.prod(max(1, size) for size in shape) >= _MAX_ELEMENTS:
        raise PickleError(f"it has a tensor of the impossible shape {shape}")
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if count and last >= storage.size:
        raise PickleError(f"it has a tensor of shape {shape} that reaches beyond its {storage.size} stored elements")
    return StoredTensor(storage, offset, shape, strides)


def _parameter(data: Any = None, *_: Any) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise PickleError("it has a parameter without a tensor")
    return data


def _size(numbers: Any = ()) -> tuple[Any, ...]:
    if not isinstance(numbers, tuple):
        raise PickleError("it has a torch.Size that is not made of numbers")
    return numbers


def _members(values: Any = ()) -> list[Any]:
    if not isinstance(values, list | tuple):
        raise PickleError("it has a set that is not made of a list")
    return list(values)


def _encode(text: Any = None, encoding: Any = None) -> bytes:
    # How protocol 2 writes bytes.
    if not isinstance(text, str) or encoding != "latin1":
        raise PickleError("it encodes a text in an unusual way")
    return text.encode("latin1")


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < _MAX_LONG


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": _size,
    "builtins.set": _members,
    "__builtin__.set": _members,
    "_codecs.encode": _encode,
}
