"""MindSpore's ``.ckpt`` without MindSpore: each reads what the other writes, bit by bit."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from checkpoint_helpers import ROOT, assert_one_line, assert_same

from ms_gpt import checkpoint
from ms_gpt.checkpoint import CheckpointError, ckpt
from ms_gpt.checkpoint.protobuf import encode_varint
from ms_gpt.checkpoint.tensors import float32_to_bits

RNG = np.random.default_rng(0)
NANS = np.array([0x7F800001, 0xFFC12345, 0x7FFFFFFF, 0x80000000], np.uint32).view(np.float32)
ARRAYS = {
    "h.0.ln_1.gamma": np.array([1, 2.5, -0.125], np.float32),
    "scalar": np.array(3, np.float32),
    "nans": NANS,
    "f16": np.array([[1, 2.5], [-65504, np.inf]], np.float16),
    "f64": np.array([np.pi]),
    "flags": np.array([[True, False, True]]),
    "größe": np.arange(6, dtype=np.int32).reshape(1, 2, 3),
    "i64": np.array(-(2**62)),
    "i16": np.array([-300, 300], np.int16),
    "i8": np.arange(-3, 4, dtype=np.int8),
    "u8": np.arange(250, 256, dtype=np.uint8),
    "u16": np.array([65535], np.uint16),
    "u32": np.array([2**32 - 1], np.uint32),
    "u64": np.array([2**64 - 1], np.uint64),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
}


def varint(number, value):
    return encode_varint(number << 3) + encode_varint(value)


def field(number, content):
    return encode_varint(number << 3 | 2) + encode_varint(len(content)) + content


def tensor(dims=(2,), kind="Float32", content=b"12345678"):
    return b"".join(varint(1, size) for size in dims) + field(2, kind.encode()) + field(3, content)


def value(tag="w", message=None, number=2):
    return field(1, field(1, tag.encode()) + field(number, tensor() if message is None else message))


@pytest.fixture(scope="module")
def mindspore():
    return pytest.importorskip("mindspore")


class TestAgainstMindSpore:
    def test_it_loads_what_we_write(self, tmp_path, mindspore):
        checkpoint.write_ckpt(tmp_path / "a.ckpt", ARRAYS)
        theirs = mindspore.load_checkpoint(str(tmp_path / "a.ckpt"))
        assert list(theirs) == list(ARRAYS)
        assert_same({name: parameter.asnumpy() for name, parameter in theirs.items()},
                    {name: np.array(array, order="C") for name, array in ARRAYS.items()})

    def test_it_loads_the_bfloat16_we_write(self, tmp_path, mindspore):
        values = np.array([1.5, -2**100, 3e-39, 0], np.float32)
        checkpoint.write_ckpt(tmp_path / "a.ckpt", {"w": values, "s": values[0]}, "bfloat16")
        theirs = mindspore.load_checkpoint(str(tmp_path / "a.ckpt"))
        assert theirs["w"].dtype == theirs["s"].dtype == mindspore.bfloat16
        assert theirs["s"].shape == ()
        bits = float32_to_bits(theirs["w"].astype(mindspore.float32).asnumpy())
        assert bits.tolist() == float32_to_bits(values).tolist()

    def test_it_loads_the_slices_we_write(self, tmp_path, mindspore, monkeypatch):
        monkeypatch.setattr(ckpt, "_SLICE_BYTES", 1000)
        arrays = {"large": RNG.standard_normal((50, 30)).astype(np.float32), "small": np.zeros(250, np.float32)}
        checkpoint.write_ckpt(tmp_path / "a.ckpt", arrays)
        assert (tmp_path / "a.ckpt").read_bytes().count(b"large") == 6
        theirs = mindspore.load_checkpoint(str(tmp_path / "a.ckpt"))
        assert_same({name: parameter.asnumpy() for name, parameter in theirs.items()}, arrays)
        assert_same(checkpoint.read_ckpt(tmp_path / "a.ckpt"), arrays)

    @pytest.mark.parametrize("options", [{}, {"crc_check": True}])
    def test_we_read_what_it_writes(self, tmp_path, mindspore, options):
        arrays = {name: np.array(array, order="C") for name, array in ARRAYS.items()}
        entries = [{"name": name, "data": mindspore.Tensor(array)} for name, array in arrays.items()]
        entries.append({"name": "half", "data": mindspore.Tensor(np.array([1.5, -3]), mindspore.bfloat16)})
        mindspore.save_checkpoint(entries, str(tmp_path / "a.ckpt"), **options)
        ours = checkpoint.read_ckpt(tmp_path / "a.ckpt")
        assert list(ours) == [*arrays, "half"]
        assert ours.infos["half"].dtype == "bfloat16"
        assert ours.bits("half").tolist() == [0x3FC0, 0xC040]
        assert_same({name: ours[name] for name in arrays}, arrays)

    @pytest.mark.parametrize("as_numpy", [False, True])
    def test_we_read_its_slices(self, tmp_path, mindspore, monkeypatch, as_numpy):
        monkeypatch.setattr("mindspore.train.serialization.SLICE_SIZE", 1)
        array = RNG.standard_normal((50, 33)).astype(np.float32)
        if as_numpy:
            from mindspore.train.serialization import _exec_save

            _exec_save(str(tmp_path / "a.ckpt"), {"w": [[50, 33], "Float32", array],
                                                  "b": [[1], "Bool", np.ones(1, bool)]})
        else:
            mindspore.save_checkpoint([{"name": "w", "data": mindspore.Tensor(array)},
                                       {"name": "b", "data": mindspore.Tensor([True])}], str(tmp_path / "a.ckpt"))
        assert (tmp_path / "a.ckpt").read_bytes().count(b"Float32") > 5
        assert_same(checkpoint.read_ckpt(tmp_path / "a.ckpt"), {"w": array, "b": np.array([True])})

    def test_we_read_a_cell_and_leave_texts_out(self, tmp_path, mindspore):
        cell = mindspore.nn.Dense(3, 2)
        mindspore.save_checkpoint(cell, str(tmp_path / "a.ckpt"), crc_check=True,
                                  append_dict={"note": "größe", "epoch": 7, "loss": 0.5, "done": True})
        ours = checkpoint.read_ckpt(tmp_path / "a.ckpt")
        assert list(ours) == ["weight", "bias", "epoch", "loss", "done"]
        assert ours["weight"].tobytes() == cell.weight.asnumpy().tobytes()
        assert (ours["epoch"].shape, ours["epoch"].tolist(), ours["done"].tolist()) == ((), 7, True)

    def test_the_checksum_it_writes_is_that_of_what_stands_before(self, tmp_path, mindspore):
        checkpoint.write_ckpt(tmp_path / "a.ckpt", ARRAYS)
        raw = (tmp_path / "a.ckpt").read_bytes()
        (tmp_path / "a.ckpt").write_bytes(raw + b"crc_num" + zlib.crc32(raw).to_bytes(10, "big"))
        assert len(mindspore.load_checkpoint(str(tmp_path / "a.ckpt"), crc_check=True)) == len(ARRAYS)
        assert list(checkpoint.read_ckpt(tmp_path / "a.ckpt")) == list(ARRAYS)

    def test_its_generated_code_agrees_on_every_byte(self, tmp_path, mindspore):
        from mindspore.train.checkpoint_pb2 import Checkpoint

        checkpoint.write_ckpt(tmp_path / "a.ckpt", ARRAYS)
        raw = (tmp_path / "a.ckpt").read_bytes()
        parsed = Checkpoint.FromString(raw)
        assert parsed.SerializeToString() == raw
        assert [tuple(entry.tensor.dims) for entry in parsed.value] == [array.shape for array in ARRAYS.values()]

    def test_an_encrypted_file_is_not_sound(self, tmp_path, mindspore):
        mindspore.save_checkpoint([{"name": "w", "data": mindspore.Tensor([1.0])}], str(tmp_path / "a.ckpt"),
                                  enc_key=b"0123456789abcdef")
        assert not ckpt.looks_like(tmp_path / "a.ckpt")
        with pytest.raises(CheckpointError) as error:
            checkpoint.read_ckpt(tmp_path / "a.ckpt")
        assert_one_line(error, "a.ckpt is not a sound .ckpt file")


class TestRoundTrip:
    @pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
    def test_round_trip(self, tmp_path, dtype):
        arrays = {"h.0.ln_1.gamma": np.array([1, 2.5, -0.125], np.float32), "scalar": np.array(3, np.float32)}
        checkpoint.write_ckpt(tmp_path / "a.ckpt", arrays, dtype)
        assert ckpt.looks_like(tmp_path / "a.ckpt")
        read = checkpoint.read_ckpt(tmp_path / "a.ckpt")
        assert {info.dtype for info in read.infos.values()} == {dtype or "float32"}
        assert {name: array.tolist() for name, array in read.items()} == {
            "h.0.ln_1.gamma": [1, 2.5, -0.125], "scalar": 3}
        assert read.infos["scalar"].shape == ()
        assert stat.S_IMODE((tmp_path / "a.ckpt").stat().st_mode) == 0o644
        assert list(tmp_path.iterdir()) == [tmp_path / "a.ckpt"]

    @pytest.mark.parametrize("slice_bytes", [2**29, 7])
    def test_every_bit_survives(self, tmp_path, monkeypatch, slice_bytes):
        monkeypatch.setattr(ckpt, "_SLICE_BYTES", slice_bytes)
        checkpoint.write_ckpt(tmp_path / "a.ckpt", ARRAYS)
        assert_same(checkpoint.read_ckpt(tmp_path / "a.ckpt"),
                    {name: np.array(array, order="C") for name, array in ARRAYS.items()})

    def test_every_bfloat16_pattern_survives(self, tmp_path):
        bits = np.arange(2**16, dtype="<u2")
        (tmp_path / "a.ckpt").write_bytes(value("w", tensor((2, 2**15), "BFloat16", bits.tobytes())))
        checkpoint.write_ckpt(tmp_path / "b.ckpt", checkpoint.read_ckpt(tmp_path / "a.ckpt"))
        assert (tmp_path / "b.ckpt").read_bytes() == (tmp_path / "a.ckpt").read_bytes()

    def test_opening_and_writing_hold_one_block_in_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr("ms_gpt.checkpoint.tensors.BLOCK_BYTES", 2**16)
        checkpoint.write_ckpt(tmp_path / "a.ckpt", {"w": np.ones((2**10, 2**12), np.float32)})
        tracemalloc.start()
        checkpoint.write_ckpt(tmp_path / "b.ckpt", checkpoint.read_ckpt(tmp_path / "a.ckpt"))
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()

    def test_mindspore_is_not_imported(self, tmp_path):
        program = ("import sys, numpy; from ms_gpt import checkpoint\n"
                   "checkpoint.write_ckpt(sys.argv[1], {'w': numpy.ones(3)}, 'bfloat16')\n"
                   "assert checkpoint.read_ckpt(sys.argv[1])['w'].tolist() == [1, 1, 1]\n"
                   "assert not {'mindspore', 'google.protobuf'} & set(sys.modules)\n")
        subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.ckpt")], cwd=ROOT, check=True)

    @pytest.mark.parametrize(("path", "arrays", "reason"), [
        ("a.bin", {"w": np.zeros(1)}, "does not end in .ckpt"),
        ("a.ckpt", {}, "is empty"),
        ("a.ckpt", {"w": np.zeros((0, 2))}, "w is empty"),
        ("a.ckpt", {"w": np.zeros(1, np.complex64)}, "w has the dtype complex64"),
        ("a.ckpt", {"": np.zeros(1)}, "'' cannot be a tensor's name"),
        ("a.ckpt", {"\ud800": np.zeros(1)}, "cannot be a tensor's name"),
        ("a.ckpt", {"w": np.array([1e6], np.float32)}, "w has values beyond the range of float16"),
    ])
    def test_what_cannot_be_written(self, tmp_path, path, arrays, reason):
        with pytest.raises(CheckpointError) as error:
            checkpoint.write_ckpt(tmp_path / path, arrays, "float16")
        assert_one_line(error, reason)
        assert list(tmp_path.iterdir()) == []


class TestWireForm:
    def read(self, path, content):
        (path / "a.ckpt").write_bytes(content)
        return checkpoint.read_ckpt(path / "a.ckpt")

    @pytest.mark.parametrize(("message", "shape"), [
        (tensor((2, 1)), (2, 1)),
        (field(1, b"\2\1") + tensor(()), (2, 1)),
        (field(1, b"\2") + tensor((1,)), (2, 1)),
        (field(3, b"12345678") + field(2, b"Float32") + varint(1, 2), (2,)),
        (tensor((0,), content=b"1234"), ()),
        (tensor((), content=b"1234"), ()),
        (tensor((0,), content=b""), (0,)),
        (tensor((3, 0), content=b""), (3, 0)),
    ])
    def test_shapes(self, tmp_path, message, shape):
        assert self.read(tmp_path, value("w", message)).infos["w"].shape == shape

    def test_a_tag_behind_its_tensor(self, tmp_path):
        assert list(self.read(tmp_path, field(1, field(2, tensor()) + field(1, b"w")))) == ["w"]

    SLICE = tensor((4,))

    @pytest.mark.parametrize(("content", "reason"), [
        (b"", "empty"),
        (b"\n", "ends within a number"),
        (b"garbage" * 50, "wire type 7"),
        (b"\n\x05\n\x03abc", "no tensor"),
        (b"\xff" * 50, "more than 64 bits"),
        (value()[:-4], "cut short"),
        (value() + b"crc_num", "wire type 3"),
        (value() + varint(2, 1), "field 2"),
        (varint(1, 1), "number where a message"),
        (field(1, b""), "no name"),
        (field(1, field(2, tensor())), "no name"),
        (field(1, varint(1, 1) + field(2, tensor())), "number where a text"),
        (field(1, field(1, b"w")), "no tensor"),
        (field(1, field(1, b"w") + varint(2, 1)), "number where a message"),
        (field(1, field(1, b"w") + field(1, b"w") + field(2, tensor())), "no name"),
        (field(1, field(1, b"w") + field(2, tensor()) + field(4, b"")), "field 4"),
        (field(1, field(1, b"\xff") + field(2, tensor())), "utf-8"),
        (value("w" * 5000), "5000 bytes"),
        (value("w", tensor()[:-10]), "no type or no content"),
        (value("w", field(2, b"Float32") + varint(3, 1)), "no type or no content"),
        (value("w", tensor(kind="F" * 100)), "100 bytes"),
        (value("w", tensor((3,))), "has 8 bytes, but its shape and type need 12"),
        (value("w", tensor((2**40, 2**40))), "'w' has the shape"),
        (value("w", tensor((2**62, 0, 2**62), content=b"")), "'w' has the shape"),
        (value("w", tensor((2**64 - 2,))), "'w' has the shape"),
        (value("w", tensor((1,) * 33)), "'w' has the shape"),
        (value("w", field(1, b"\1" * 33) + tensor(())), "'w' has the shape"),
        (value("w", field(1, b"\1" * 400) + tensor(())), "400 bytes"),
        (value("w", field(1, b"\x81") + tensor(())), "ends within a number"),
        (value("w", SLICE) + value("w", tensor((3,))), "differ in type or shape"),
        (value("w", SLICE) + value("w", tensor((4,), "Int32")), "differ in type or shape"),
        (value("w", SLICE) + value("w", tensor((4,), "str")), "differ in type or shape"),
        (value("w", SLICE) * 3, "has 24 bytes"),
        (value("w") + value("v") + value("w"), "'w' stands twice"),
        (value("w\n", tensor((3,))), r"'w\n' has 8 bytes"),
    ])
    def test_damage_is_one_line(self, tmp_path, content, reason, capfd):
        with pytest.raises(CheckpointError) as error:
            self.read(tmp_path, content)
        assert_one_line(error, f"{tmp_path / 'a.ckpt'} is not a sound .ckpt file: ", reason)
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(("content", "reason"), [
        (value("w", tensor(kind="Int4")), "'w' is of MindSpore's type 'Int4', which is not supported"),
        (value("w", tensor(kind="")), "type ''"),
        (value() + value("m", field(1, tensor()), 3), "'m' is of MindSpore's type 'MapTensor'"),
        (value("w", tensor(kind="str")), "holds no tensors"),
    ])
    def test_what_is_sound_and_not_for_us(self, tmp_path, content, reason):
        with pytest.raises(CheckpointError) as error:
            self.read(tmp_path, content)
        assert_one_line(error, str(tmp_path / "a.ckpt"), reason)

    @pytest.mark.parametrize("content", [b"\n\0" * 300_000, value("w", tensor((1,) * 200_000)),
                                         field(1, field(1, b"w") * 200_000)])
    def test_endless_fields_are_refused(self, tmp_path, content):
        with pytest.raises(CheckpointError, match="180000 fields|no name"):
            self.read(tmp_path, content)

    def test_no_file(self, tmp_path):
        for path in (tmp_path / "none.ckpt", tmp_path):
            with pytest.raises(CheckpointError, match="not a file"):
                checkpoint.read_ckpt(path)

    def test_a_file_cut_after_it_was_opened(self, tmp_path):
        checkpoint.write_ckpt(tmp_path / "a.ckpt", {"w": np.zeros(5000, np.float32)})
        read = checkpoint.read_ckpt(tmp_path / "a.ckpt")
        os.truncate(tmp_path / "a.ckpt", 200)
        with pytest.raises(CheckpointError, match="cannot be read"):
            read["w"]

    def test_mutations_are_only_ever_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(ckpt, "_SLICE_BYTES", 20)
        path, rng, messages = tmp_path / "a.ckpt", random.Random(0), []
        checkpoint.write_ckpt(path, ARRAYS)
        good = path.read_bytes()
        for _ in range(2000):
            raw = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                raw[rng.randrange(len(raw))] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
            path.write_bytes(raw[:rng.choice((None, None, rng.randrange(len(raw))))])
            ckpt.looks_like(path)
            try:
                dict(checkpoint.read_ckpt(path))
            except CheckpointError as error:
                messages.append(str(error))
        assert 500 < len(messages) < 2000
        assert "\n" not in "".join(messages)

    @pytest.mark.parametrize(("content", "expected"), [
        (value(), True), (value("größe"), True), (value("w" * 4000), True), (value("m", b"", 3), True),
        (b"", False), (b"\n", False), (b"\n\x05\n\x03abc", False), (b"\n\n\n\n\n\n\n\n", False), (b"{}", False),
        (value("a b\n"), False), (field(1, field(1, b"")), False),
    ])
    def test_recognition(self, tmp_path, content, expected):
        (tmp_path / "a").write_bytes(content)
        assert ckpt.looks_like(tmp_path / "a") is expected
