"""Hostile files: nothing in them runs, and they cost neither time nor memory before they are refused."""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from checkpoint_helpers import make_folder, on_disk, random_arrays, small_config
from fuzz_checkpoints import fuzz
from hostile_helpers import (
    TORCH_KINDS,
    Command,
    Prison,
    Raw,
    assert_refused,
    called,
    command_pickle,
    deflated,
    named,
    opcodes,
    pickled,
    storage,
    stream,
    tensor,
    whole,
    write_raw_zip,
    write_torch,
    write_zip,
)

from ms_gpt import checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured as on Linux")
HUGE = 2**62
ORDERED_DICT = named("collections", "OrderedDict")


class TableOfMine(OrderedDict):
    """A class that only the attacker has."""


@pytest.fixture(scope="module")
def prison():
    prison = Prison()
    yield prison
    prison.close()


@pytest.fixture
def refused(prison, tmp_path):
    """A function that asserts that a file can be neither opened nor converted, and that neither ran its command."""

    def check(path, *reasons, action="open"):
        assert_refused([prison(path, action)], *reasons)
        assert_refused([prison(path, "convert", tmp_path / "out")], *(reasons if action == "open" else ()))
        assert not (tmp_path / "canary").exists()
        assert not (tmp_path / "out").exists()

    return check


def table(*values, name="h.0.ln_1.weight"):
    """A pickle of a state dict."""
    return pickled({f"{name}{'x' * number}": value for number, value in enumerate(values)})


class TestPickles:
    @pytest.mark.parametrize("protocol", range(6))
    @pytest.mark.parametrize("kind", TORCH_KINDS)
    def test_a_command(self, tmp_path, refused, kind, protocol):
        content = command_pickle(tmp_path / "canary", protocol)
        pickle.loads(content)
        assert (tmp_path / "canary").exists(), "the attack itself has to work"
        (tmp_path / "canary").unlink()
        refused(write_torch(kind, tmp_path, content), f"{os.system.__module__}.system'")

    @pytest.mark.parametrize("protocol", [0, 2, 4])
    @pytest.mark.parametrize("content", [
        np.arange(2), np.array(1.0), np.float64(1), np.dtype("f4"), np.array([{}], object), TableOfMine(a=1), print,
        eval, getattr, slice(1), range(3), 1j, bytearray(b"a"), {(1, 2): 3}, np.random.default_rng(0),
    ], ids=lambda content: f"{type(content).__module__}.{type(content).__name__}")
    @pytest.mark.parametrize("kind", TORCH_KINDS)
    def test_objects(self, tmp_path, refused, kind, content, protocol):
        refused(write_torch(kind, tmp_path, pickle.dumps({"h.0.ln_1.weight": content}, protocol)), "is refused: it ")

    @pytest.mark.parametrize(("module", "name"), [
        ("builtins", "eval"), ("builtins", "exec"), ("builtins", "getattr"), ("builtins", "__import__"),
        ("__builtin__", "eval"), ("builtins", "set.__class__"), ("os", "system"), ("posix", "system"),
        ("subprocess", "Popen"), ("importlib", "import_module"), ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"), ("numpy", "ndarray"), ("numpy", "load"), ("functools", "partial"),
        ("operator", "attrgetter"), ("collections", "OrderedDict.__class__"), ("collections", "defaultdict"),
        ("collections.OrderedDict", "fromkeys"), ("torch", "serialization.os.system"),
        ("torch serialization.os", "system"), ("torch serialization", "os.system"), ("torch.serialization", "load"),
        ("torch.storage", "_load_from_bytes"), ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch._utils._rebuild_tensor_v2", "__globals__"), ("torch._utils", "_rebuild_wrapper_subclass"),
        ("torch", "FloatStorage.__class__"), ("torch", "Size.__class__"), ("torch.jit", "load"), ("torch", "load"),
        ("torch.nn.modules.linear", "Linear"), ("_codecs", "decode"), ("_codecs", "encode.__class__"), ("", ""),
        ("torch", ""), ("torch\x1b[2J", "x"), ("täü", "ß" * 300), ("a" * 100_000, "b"), ("torch.", "Size"),
    ])
    @pytest.mark.parametrize("form", ["GLOBAL", "STACK_GLOBAL", "built", "INST"])
    def test_globals(self, tmp_path, refused, module, name, form):
        if form == "GLOBAL":
            function = named(module, name)
        elif form == "INST":
            function = Raw(f"(i{module}\n{name}\n".encode())
        elif form == "built":
            # The name comes out of the memo, and through a tuple.
            function = Raw(opcodes(name) + b"q\x000" + opcodes(module) + b"\x85q\x010" + opcodes(module) + b"h\x00\x93")
        else:
            function = Raw(opcodes(module) + opcodes(name) + b"\x93")
        for kind in TORCH_KINDS:
            refused(write_torch(kind, tmp_path, table(called(function, "touch canary"))), "is refused: it asks for",
                    "is refused: it makes objects by INST", "is refused: its pickle is damaged")

    @pytest.mark.parametrize(("name", "value"), {
        "NEWOBJ": Raw(ORDERED_DICT + b")\x81"),
        "NEWOBJ_EX": Raw(ORDERED_DICT + b")}\x92"),
        "OBJ": Raw(b"(" + ORDERED_DICT + b"o"),
        "INST": Raw(b"(icollections\nOrderedDict\n"),
        "EXT1": Raw(b"\x82\x01"),
        "EXT2": Raw(b"\x83\x01\x00"),
        "EXT4": Raw(b"\x84\x01\x00\x00\x00"),
        "PERSID": Raw(b"Pstorage\n"),
        "NEXT_BUFFER": Raw(b"\x97"),
        "READONLY_BUFFER": Raw(opcodes("a") + b"\x98"),
        "BYTEARRAY8": Raw(b"\x96" + struct.pack("<Q", 2) + b"ab"),
        "a state for a list": Raw(b"]}b"),
        "a state for a text": Raw(opcodes("a") + b"}b"),
        "a state for a tensor": Raw(tensor() + b"}b"),
        "a call of a text": called(Raw(opcodes("posix.system")), "touch canary"),
        "a call of a number": called(Raw(b"K\x01"), "touch canary"),
        "a call of a tensor": called(tensor(), "touch canary"),
        "a call of a storage": called(storage()),
        "a call of a class of storages": called(named("torch", "FloatStorage"), 10**12),
        "a call of a dtype": called(named("torch", "float32")),
        "a call without a tuple": Raw(ORDERED_DICT + b"]R"),
        "a call by a mark": Raw(ORDERED_DICT + b"(R"),
        "a call with too much": called(named("torch", "Size"), (1,), 2, 3),
        "a tensor of a mark": Raw(b"(Q"),
        "pairs that are none": called(ORDERED_DICT, [(1, 2, 3)]),
        "pairs that are texts": called(ORDERED_DICT, ["ab"]),
        "a set of a number": called(named("builtins", "set"), 10**12),
        "a codec": called(named("_codecs", "encode"), "a", "zip"),
        "a text that is not latin": called(named("_codecs", "encode"), "\u20ac", "latin1"),
        "a size of texts": tensor(shape=called(named("torch", "Size"), ("a", "b"))),
    }.items())
    def test_opcodes(self, tmp_path, refused, name, value):
        for kind in TORCH_KINDS:
            refused(write_torch(kind, tmp_path, table(value)), "is refused: it")

    def test_a_state_is_not_looked_into_but_for_what_it_names(self, tmp_path, refused, prison):
        state = {"__class__": "x", "__setstate__": 1, "_metadata": [], "items": None}
        arrays = on_disk(small_config("gpt2"), random_arrays(small_config("gpt2"), "GPT2LMHeadModel"))
        values = {name: whole(name, array.shape) for name, array in arrays.items()}
        storages = {name: array.tobytes() for name, array in arrays.items()}
        harmless = Raw(called(ORDERED_DICT) + opcodes(values)[1:] + opcodes(state) + b"b")
        path = write_zip(tmp_path / "a.pt", pickled(harmless), storages)
        assert prison(path).kind == "read"
        assert np.array_equal(checkpoint.open_checkpoint(path, 2).tensors["transformer.wte.weight"],
                              arrays["transformer.wte.weight"])
        state["x"] = Raw(command_pickle(tmp_path / "canary", 2)[2:-1])
        refused(write_zip(tmp_path / "a.pt", pickled(Raw(called(ORDERED_DICT) + opcodes(state) + b"b"))), "it asks for")

    @pytest.mark.parametrize(("name", "content"), {
        "nothing": b"",
        "no stop": b"\x80\x02}",
        "an empty stack": b"\x80\x02.",
        "a mark": b"\x80\x02(.",
        "no mark": b"\x80\x02}u.",
        "an odd table": b"\x80\x02}(K\x01u.",
        "no memo": b"\x80\x02h\x05.",
        "an unknown opcode": b"\x80\x02\xff.",
        "a huge memo index": b"\x80\x02N" + b"r\xff\xff\xff\x7f" * 400_000 + b"0]a.",
        "a memo index of 4,000 digits": b"\x80\x02Ng" + b"9" * 4000 + b"\n.",
        "10,000,000 steps": b"\x80\x02" + b"N0" * 5_000_000 + b"}.",
        "tuples in tuples": b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.",
        "tuples in tuples as a key": b"\x80\x02})" + b"\x85" * 400_000 + b"K\x01s.",
        "lists in lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        "a table as a key": b"\x80\x02}}K\x01s.",
        "a list that holds itself": b"\x80\x02]2a.",
        "a table that holds itself": b"\x80\x02}2X\x05\x00\x00\x00modelh\x00s".replace(b"h\x00", b"2") + b".",
        "LONG4 beyond the end": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "a negative LONG4": b"\x80\x02\x8b\xff\xff\xff\xff.",
        "LONG4 of 15 MB": b"\x80\x02\x8b" + struct.pack("<i", 15_000_000) + b"\x7f" * 15_000_000 + b".",
        "a LONG of 15,000,000 digits": b"L" + b"9" * 15_000_000 + b"L\n.",
        "an INT of 15,000,000 digits": b"I" + b"9" * 15_000_000 + b"\n.",
        "BINUNICODE8 of 2**60": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"a.",
        "BINUNICODE8 of 2**64 - 1": b"\x80\x04\x8d" + struct.pack("<Q", 2**64 - 1) + b"a.",
        "BINBYTES8 of 2**60": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"a.",
        "BYTEARRAY8 of 2**60": b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b"a.",
        "a FRAME of 2**60": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.",
        "bad UTF-8": b"\x80\x02X\x01\x00\x00\x00\xff.",
        "more than 16 MB": b"\x80\x02" + opcodes("a" * (17 * 2**20)) + b"0}.",
    }.items())
    def test_bombs(self, tmp_path, refused, name, content):
        for kind in TORCH_KINDS:
            refused(write_torch(kind, tmp_path, content))

    @pytest.mark.parametrize(("function", "argument"), [
        (named("builtins", "set"), Raw(b"](" + b"N" * 100_000 + b"e")),
        (named("torch", "Size"), Raw(b"(" + b"K\x01" * 100_000 + b"t")),
        (named("_codecs", "encode"), Raw(opcodes("a" * 100_000) + b"X\x06\x00\x00\x00latin1")),
        # A table that stays small, filled from a list that is long.
        (ORDERED_DICT, Raw(b"](K\x01K\x01\x86q\x01" + b"h\x01" * 100_000 + b"e")),
    ], ids=["set", "Size", "encode", "OrderedDict"])
    def test_calls_that_copy_or_go_through_much(self, tmp_path, refused, function, argument):
        content = function + b"q\x020(" + argument + b"tq\x030]" + b"h\x02h\x03Ra" * 70_000 + b"."
        for kind in TORCH_KINDS:
            path = write_torch(kind, tmp_path, b"\x80\x02" + content)
            refused(path, "is refused: its calls", "more than 1,000 steps")

    def test_five_pickles_are_not_five_times_the_steps(self, tmp_path, refused):
        busy = b"\x80\x02" + b"N0" * 240_000
        parts = [busy + pickled(value)[2:] for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        (tmp_path / "a.pt").write_bytes(b"".join(parts) + busy + table(tensor())[2:] + busy + pickled(["0"])[2:])
        refused(tmp_path / "a.pt", "steps")


class TestTensorsOfPickles:
    @pytest.mark.parametrize(("name", "value"), {
        "a negative size": tensor(shape=(-2, -4)),
        "a huge size": tensor(shape=(HUGE, 4)),
        "sizes whose product overflows": tensor(shape=(2**32, 2**32), strides=(0, 0)),
        "sizes too large for a machine's number": tensor(shape=(2**80, 0), strides=(1, 1)),
        "a stride of 0 that makes terabytes": tensor(shape=(2**40, 4), strides=(0, 0)),
        "a negative stride": tensor(offset=7, strides=(-4, -1)),
        "a huge stride": tensor(strides=(HUGE, 1)),
        "a huge stride of an axis of 1": tensor(shape=(1, 9), strides=(2**63, 1)),
        "a negative offset": tensor(offset=-1),
        "a huge offset": tensor(offset=HUGE),
        "an offset that is too large by one": tensor(offset=1),
        "a shape that is too large by one": tensor(shape=(3, 3), strides=(3, 1)),
        "more strides than sizes": tensor(strides=(4, 1, 1)),
        "33 axes": tensor(shape=(1,) * 33, strides=(1,) * 33),
        "a bool for a size": tensor(shape=(True, 4)),
        "a bool for an offset": tensor(offset=False),
        "a float for a size": tensor(shape=(2.0, 4)),
        "a text for a size": tensor(shape=("2", 4)),
        "a tuple for a size": tensor(shape=((2,), (4,))),
        "a list for a shape": tensor(shape=[2, 4]),
        "nothing for a shape": tensor(shape=None),
        "a storage as a shape": tensor(shape=storage()),
        "a tensor as a storage": tensor(tensor()),
        "a storage longer than its record": tensor(storage(count=2**40)),
        "a storage longer by one": tensor(storage(count=9)),
        "a storage of negative length": tensor(storage(count=-8)),
        "a bool for a length": tensor(storage(count=True), 0, (1,), (1,)),
        "a storage of no known dtype": tensor(storage(kind="QInt8Storage")),
        "a storage whose key is a number": tensor(storage(0)),
        "a storage whose key leaves the archive": tensor(storage("../data.pkl")),
        "a storage whose key is long": tensor(storage("x" * 100_000)),
        "a storage that is not there": tensor(storage("1")),
        "a storage of other dtype and length": tensor(storage(count=16, kind="DoubleStorage")),
        "a view beyond its storage": tensor(storage("0", 8, "FloatStorage", ("v", 4, 8))),
        "a view from below": tensor(storage("0", 8, "FloatStorage", ("v", -4, 8))),
        "a view that is none": tensor(storage("0", 8, "FloatStorage", 3)),
        "a tensor beyond its view": tensor(storage("0", 8, "FloatStorage", ("v", 4, 4))),
        "an empty tensor of huge sizes": tensor(shape=(0, HUGE, HUGE), strides=(0, 0, 0)),
        "a parameter of nothing": called(named("torch._utils", "_rebuild_parameter"), None, True, None),
        "a tensor of nothing": called(named("torch._utils", "_rebuild_tensor_v2")),
    }.items())
    def test_metadata(self, tmp_path, refused, name, value):
        (tmp_path / "a.bin").write_bytes(stream(table(value)))
        for path in (write_zip(tmp_path / "a.pt", table(value)), tmp_path / "a.bin"):
            refused(path, "is refused: it", "is not a sound PyTorch file", "is cut short", "is expanded", action="read")

    def test_a_huge_stride_where_no_step_is_taken_is_no_matter(self, tmp_path, prison):
        path = write_zip(tmp_path / "a.pt", table(tensor(shape=(2, 4, 1), strides=(1, 2, 2**62))))
        read = checkpoint.read_content(path).tensors["h.0.ln_1.weight"]
        assert np.array_equal(read, np.zeros((2, 4, 1)))

    def test_many_tensors_of_the_same_numbers(self, tmp_path, refused):
        numbers = 2**18
        content = pickled(dict.fromkeys((f"h.{layer}.x" for layer in range(100)), whole("0", (numbers,))))
        (tmp_path / "a.bin").write_bytes(stream(content, {"0": (numbers, bytes(4 * numbers))}))
        for path in (tmp_path / "a.bin", write_zip(tmp_path / "a.pt", content, {"0": bytes(4 * numbers)})):
            refused(path, "share their numbers")

    def test_a_storage_in_two_ways(self, tmp_path, refused):
        content = table(tensor(), tensor(storage(kind="IntStorage")))
        for kind in ("zip", "stream"):
            refused(write_torch(kind, tmp_path, content), "in two ways")

    @pytest.mark.parametrize(("name", "storages"), {
        "another length": {"0": (9, bytes(36))}, "cut short": {"0": (8, bytes(31))},
        "another name": {"1": (8, bytes(32))}, "none": {}, "a huge length": {"0": (2**62, bytes(32))},
        "a negative length": {"0": (-8, bytes(32))},
    }.items())
    def test_storages_of_a_stream(self, tmp_path, refused, name, storages):
        (tmp_path / "a.bin").write_bytes(stream(table(tensor()), storages))
        refused(tmp_path / "a.bin", "is not a sound PyTorch file", "is cut short")

    def test_settings_of_a_huge_number_of_heads(self, tmp_path, prison):
        make_folder(tmp_path / "hf")
        checkpoint.convert(tmp_path / "hf", tmp_path / "nano.pt", to="nanogpt")
        (tmp_path / "nano_config.json").unlink()
        assert prison(tmp_path / "nano.pt").kind == "read"
        with zipfile.ZipFile(tmp_path / "nano.pt") as archive:
            entries = {name.removeprefix("archive/"): archive.read(name) for name in archive.namelist()}
        number = Raw(b"\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000)
        content = entries["data.pkl"].replace(opcodes("n_head") + opcodes(2), opcodes("n_head") + number)
        assert len(content) > 100_000
        storages = {name.removeprefix("data/"): data for name, data in entries.items() if name.startswith("data/")}
        path = write_zip(tmp_path / "a.pt", content, storages)
        assert_refused([prison(path), prison(path, "convert", tmp_path / "out")])


class TestArchives:
    @pytest.mark.parametrize("name", ["../archive/data.pkl", "/archive/data.pkl", "archive/../../data.pkl",
                                      "C:/data.pkl", "archive\\data.pkl"])
    def test_names(self, tmp_path, refused, name):
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            archive.writestr("archive/data.pkl", table(tensor()))
            archive.writestr("archive/data/0", bytes(32))
            archive.writestr("placeholder".ljust(len(name), "x"), b"")
        raw = (tmp_path / "a.pt").read_bytes()
        (tmp_path / "a.pt").write_bytes(raw.replace(b"placeholder".ljust(len(name), b"x"), name.encode()))
        refused(tmp_path / "a.pt", "leaves the archive", "no sound zip")

    def test_an_entry_twice(self, tmp_path, refused):
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            archive.writestr("archive/data.pkl", table(tensor()))
            archive.writestr("archive/data.pk2", command_pickle(tmp_path / "canary", 2))
        raw = (tmp_path / "a.pt").read_bytes()
        (tmp_path / "a.pt").write_bytes(raw.replace(b"data.pk2", b"data.pkl"))
        refused(tmp_path / "a.pt", "stands twice")

    @pytest.mark.parametrize("bomb", ["archive/data.pkl", "archive/data/0", "archive/byteorder", "a.npy"])
    def test_zip_bombs(self, tmp_path, refused, bomb):
        content = table(whole("0", (2**30 - 4,)))
        small = {"archive/data.pkl": (deflated(content) + b"\3\0", len(content))} if "/" in bomb else {}
        path = tmp_path / ("a.pt" if small else "a.npz")
        write_raw_zip(path, {**small, bomb: (deflated(bytes(2**24)) * 256, 2**32 - 16)})
        assert path.stat().st_size < 2**23
        refused(path, "zip bomb")

    def test_many_small_bombs(self, tmp_path, prison):
        """Each shard is within its limits; together they unpack to 1.1 GB."""
        shape, names = (15 * 2**20,), [f"h.{number}.mlp.c_fc.bias" for number in range(18)]
        content = pickled(dict.fromkeys(names, whole("0", shape)))
        write_zip(tmp_path / "0.bin", content, {"0": bytes(4 * shape[0])}, zipfile.ZIP_DEFLATED)
        for number in range(1, 18):
            os.link(tmp_path / "0.bin", tmp_path / f"{number}.bin")
        index = {"weight_map": {name: f"{number}.bin" for number, name in enumerate(names)}}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        outcome = prison(tmp_path, "read")
        assert outcome.kind == "read", outcome
        assert outcome.grown < 2**29

    @pytest.mark.parametrize("data", [
        pickle.dumps(np.array([{}], object)),
        b"\x93NUMPY\x01\x00\x46\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(69) + b"\n",
    ], ids=["pickle", "header"])
    def test_object_arrays(self, tmp_path, refused, data):
        data += command_pickle(tmp_path / "canary", 2)
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("h.0.ln_1.weight.npy", data)
        refused(tmp_path / "a.npz", "the array 'h.0.ln_1.weight'")

    def test_object_arrays_of_numpy_itself(self, tmp_path, refused):
        np.savez(tmp_path / "a.npz", **{"h.0.ln_1.weight": np.array([Command(tmp_path / "canary")], object)})
        refused(tmp_path / "a.npz", "pickled Python objects")


def safetensors_file(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin=0, end=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


class TestSafetensors:
    @pytest.mark.parametrize(("name", "header"), {
        "overlapping": {"a": entry(), "b": entry(4, 12)},
        "the same place": {"a": entry(), "b": entry()},
        "beyond the end": {"a": entry(0, 2**40, (2**38,))},
        "a gap": {"a": entry(8, 16)},
        "a negative offset": {"a": entry(-8, 0)},
        "the end before the start": {"a": entry(8, 0)},
        "a huge shape": {"a": entry(shape=(2**62, 2**62))},
        "a bool for a size": {"a": entry(shape=(True, 2))},
        "a float for a size": {"a": entry(shape=(2.0,))},
        "a nested size": {"a": entry(shape=([2],))},
        "too many axes": {"a": entry(shape=(2, *[1] * 100))},
        "an unknown dtype": {"a": entry(dtype="OBJ")},
        "a list": [1],
        "nested": b"[" * 100_000,
        "nested entries": b'{"a":' * 100_000,
        "NaN": b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}',
        "a size of 4,000 digits": b'{"a":{"dtype":"F32","shape":[' + b"9" * 4000 + b'],"data_offsets":[0,8]}}',
        "a name twice": b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}",
        "a name of 9 MB": b'{"' + b"a" * 9_000_000 + b'":{}}',
        "a name of control characters": {"a\n\r\x1b[2J\u2028\ud800": {}},
        "200,000 names": b"{" + b",".join(b'"%x":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}' % number
                                            for number in range(150_000)) + b"}",
        "small tables": b'{"a":{"":[' + b"{}," * 3_000_000 + b"{}]}}",
    }.items())
    def test_headers(self, tmp_path, refused, name, header):
        refused(safetensors_file(tmp_path / "a.safetensors", header, bytes(8)), "is not a sound safetensors file")

    @pytest.mark.parametrize("length", [10**11, 2**63, 2**64 - 1, 10, 0])
    def test_lengths_of_headers(self, tmp_path, refused, length):
        path = safetensors_file(tmp_path / "a.safetensors", {"a": entry()}, bytes(8), length)
        refused(path, "header")
        os.truncate(path, 2 * 10**11)
        refused(path, "header")

    @pytest.mark.parametrize("name", ["h0/" * 2_000_000 + "\n", "h.0." * 2_000_000 + "\n", "." * 8_000_000,
                                      "h.1." + "1" * 8_000_000, "ln_1." * 1_500_000, "x.h.0.a\n\x1b[2J\ud800"],
                             ids=lambda name: repr(name[:6]))
    def test_names_that_patterns_would_take_long_over(self, tmp_path, refused, name):
        path = safetensors_file(tmp_path / "a.safetensors", {name: entry()}, bytes(8))
        refused(path, "no GPT block", "position table")

    def test_a_name_twice_among_many(self, tmp_path, refused):
        names = [f"{number}" for number in range(45_000)] + ["a.h.0.x", "h.0.x"]
        data = {name: entry(0, 0, (0,), "U8") for name in names}
        refused(safetensors_file(tmp_path / "a.safetensors", data), "no position table")
        data = {f"a.{name}": value for name, value in data.items()} | {"h.0.y": data["h.0.x"], "a.h.0.y": data["h.0.x"]}
        refused(safetensors_file(tmp_path / "a.safetensors", data), "no position table")


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_fuzz():
    summary = fuzz(4000, seed=1)
    assert not summary.findings, "\n".join(map(str, summary.findings))
    assert summary.read
    assert summary.refused
