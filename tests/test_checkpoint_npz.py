"""numpy's files: read without unpickling, written so that ``numpy.load`` reads them."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from checkpoint_helpers import assert_one_line, assert_same

from ms_gpt import checkpoint
from ms_gpt.checkpoint import CheckpointError, TensorInfo
from ms_gpt.checkpoint.npz import npy_array, read_npz, write_to

ARRAYS = {
    "f32": np.array([[1.5, -0.0], [np.nan, np.inf]], np.float32),
    "nans": np.array([0x7F800001, 0xFFC12345], np.uint32).view(np.float32),
    "model/h0/attn/w:0": np.array([1, 2.5, -65504], np.float16),
    "größe.gamma": np.array(np.pi),
    "scalar": np.array(7, np.int64),
    "none": np.zeros((2, 0, 3), np.float32),
    "i8": np.arange(-3, 4, dtype=np.int8),
    "u16": np.arange(3, dtype=np.uint16),
    "flags": np.array([[True], [False]]),
    "fortran": np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4)),
    "big-endian": np.arange(4, dtype=">i4"),
    "both": np.asfortranarray(np.arange(6, dtype=">f8").reshape(2, 3)),
}
NATIVE = {name: np.array(array, array.dtype.newbyteorder("="), order="C") for name, array in ARRAYS.items()}


def raw_npy(header, data=b"", version=1, length=None):
    text = header.encode() if isinstance(header, str) else repr(header).encode()
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", size) + text + data


def header(**changes):
    return {"descr": "<f4", "fortran_order": False, "shape": (2,), **changes}


def refusal(path, *parts):
    with pytest.raises(CheckpointError) as error:
        read_npz(path)
    assert_one_line(error, str(path), *parts)


class TestReading:
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_we_read_what_numpy_writes(self, tmp_path, save):
        save(tmp_path / "a.npz", **ARRAYS)
        read = read_npz(tmp_path / "a.npz")
        assert list(read) == list(ARRAYS)
        assert_same(read, NATIVE)
        assert {name: (info.shape, info.dtype) for name, info in read.infos.items()} == {
            name: (array.shape, array.dtype.name) for name, array in NATIVE.items()}

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_blocks_are_in_c_order(self, tmp_path, monkeypatch, save):
        monkeypatch.setattr("ms_gpt.checkpoint.tensors.BLOCK_BYTES", 8)
        save(tmp_path / "a.npz", **ARRAYS)
        read = read_npz(tmp_path / "a.npz")
        for name, array in NATIVE.items():
            assert b"".join(block.tobytes() for block in read.blocks(name)) == array.tobytes(), name

    @pytest.mark.parametrize("name", ["f32", "fortran", "both", "scalar", "none", "flags"])
    def test_a_single_array(self, tmp_path, name):
        np.save(tmp_path / "params_0.npy", ARRAYS[name])
        assert_same(read_npz(tmp_path / "params_0.npy"), {"params_0": NATIVE[name]})

    @pytest.mark.parametrize("version", [1, 2, 3])
    def test_every_version_of_the_header(self, tmp_path, version):
        (tmp_path / "a.npy").write_bytes(raw_npy(header(), b"12345678", version))
        assert read_npz(tmp_path / "a.npy")["a"].tobytes() == b"12345678"

    def test_an_uncompressed_array_is_mapped(self, tmp_path):
        np.savez(tmp_path / "a.npz", w=ARRAYS["f32"])
        assert isinstance(read_npz(tmp_path / "a.npz").bits("w"), np.memmap)

    def test_where_the_elements_of_a_file_lie(self, tmp_path):
        path = tmp_path / "a.npy"
        np.save(path, ARRAYS["fortran"])
        raw = path.read_bytes()
        assert npy_array(path) == (TensorInfo((2, 3, 4), "float32"), 128, True)
        path.write_bytes(b"before" + raw + b"behind")
        info, start, fortran_order = npy_array(path, offset=6, limit=len(raw))
        assert (info.shape, fortran_order) == ((2, 3, 4), True)
        assert path.read_bytes()[start:start + info.nbytes] == ARRAYS["fortran"].tobytes("F")
        for offset, limit in ((6, None), (6, len(raw) - 1), (5, None), (10**9, None)):
            with pytest.raises(CheckpointError, match="a.npy"):
                npy_array(path, offset, limit)
        np.save(path, ARRAYS["big-endian"])
        with pytest.raises(CheckpointError, match="big-endian"):
            npy_array(path)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("the trap was sprung",)


class TestRefusals:
    @pytest.mark.parametrize(("array", "reason"), [
        (np.array([Trap()], object), "holds pickled Python objects, which are never loaded"),
        (np.zeros(2, "i4,f4"), "structured"),
        (np.array(["text"]), "dtype '<U4'"),
        (np.array([b"text"]), "dtype '|S4'"),
        (np.zeros(2, "V2"), "bfloat16: save it as float32"),
        (np.zeros(2, np.complex64), "dtype '<c8'"),
        (np.zeros(2, "M8[s]"), "dtype '<M8[s]'"),
    ])
    def test_what_is_no_plain_number(self, tmp_path, monkeypatch, array, reason):
        monkeypatch.chdir(tmp_path)
        np.savez("a.npz", fine=np.zeros(1), odd=array)
        refusal(tmp_path / "a.npz", "the array 'odd' ", reason)
        np.save("a.npy", array)
        refusal(tmp_path / "a.npy", reason)
        assert sorted(os.listdir()) == ["a.npy", "a.npz"]

    @pytest.mark.parametrize(("text", "data", "reason"), [
        ("   ", b"", "no dictionary"),
        ("[1]", b"", "no dictionary"),
        ("(" * 400, b"", "no dictionary"),
        ("-" * 400 + "1", b"", "no dictionary"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': 1}", b"12345678", "no dictionary"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': print(2)}", b"12345678", "no dictionary"),
        ("\\x", b"", "no dictionary"),
        ("1if 2else 3", b"", "no dictionary"),
        ("\0\0\0", b"", "no dictionary"),
        (header(shape=2), b"12345678", "shape"),
        (header(shape=(-2,)), b"12345678", "shape"),
        (header(shape=(True, 2)), b"12345678", "shape"),
        (header(shape=(2.0,)), b"12345678", "shape"),
        (header(shape=(2**40, 2**40)), b"12345678", "shape"),
        (header(shape=(2**62, 0, 2**62)), b"", "shape"),
        (header(shape=(1,) * 40), b"1234", "shape"),
        (header(shape=(10**400,)), b"1234", "shape"),
        (header(shape=(3,)), b"12345678", "8 bytes of data"),
        (header(), b"123456789", "9 bytes of data"),
        (header(fortran_order=1), b"12345678", "fortran_order"),
        (header(descr="f4"), b"12345678", "dtype 'f4'"),
        (header(descr="<f4,<f4"), b"12345678", "dtype"),
        (header(descr="(1000000000,)<f4"), b"12345678", "dtype"),
        (header(descr="<f3"), b"12345678", "dtype"),
        (header(descr=4), b"12345678", "structured"),
        (header(descr="|O"), b"12345678", "pickled"),
    ])
    def test_damaged_headers(self, tmp_path, text, data, reason, recwarn):
        (tmp_path / "a.npy").write_bytes(raw_npy(text, data))
        refusal(tmp_path / "a.npy", reason)
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("odd.npy", raw_npy(text, data))
        refusal(tmp_path / "a.npz", "'odd'", reason)
        assert not recwarn.list

    @pytest.mark.parametrize("content", [b"\x93NUMPY", b"\x93NUMPY\1\0\xff\xff" + bytes(70_000),
                                         b"\x93NUMPY\4\0" + bytes(9), raw_npy(header(), b"12345678", 2, 2**32 - 1)])
    def test_damaged_beginnings(self, tmp_path, content):
        (tmp_path / "a.npy").write_bytes(content)
        refusal(tmp_path / "a.npy", "the array ")

    def test_archives_of_something_else(self, tmp_path):
        path = tmp_path / "a.npz"
        np.savez(path)
        refusal(path, "holds no tensors")
        np.savez(path, w=np.zeros(1))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("run.py", "x")
        refusal(path, "'run.py' is no .npy file")
        path.write_bytes(b"PK\3\4 and nothing")
        refusal(path, "not a sound zip archive")
        refusal(tmp_path / "none.npz", "No such file")
        refusal(tmp_path, "cannot be read")

    def test_too_many_arrays(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            for number in range(5_001):
                archive.writestr(f"{number}.npy", b"")
        refusal(tmp_path / "a.npz", "5001 entries")

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_damage_is_only_ever_refused(self, tmp_path, save):
        path, rng, messages = tmp_path / "a.npz", random.Random(0), []
        save(path, **{name: ARRAYS[name] for name in ("f32", "fortran", "both", "none")})
        good = path.read_bytes()
        for _ in range(1000):
            raw = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                raw[rng.randrange(len(raw))] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
            path.write_bytes(raw[:rng.choice((None, None, rng.randrange(len(raw))))])
            try:
                dict(read_npz(path))
            except CheckpointError as error:
                messages.append(str(error))
        assert 250 < len(messages) < 1000
        assert "\n" not in "".join(messages)


class TestWriting:
    def test_numpy_reads_what_we_write(self, tmp_path):
        write_to(tmp_path / "a.npz", ARRAYS)
        with np.load(tmp_path / "a.npz", allow_pickle=False) as theirs:
            assert theirs.files == list(ARRAYS)
            assert_same(dict(theirs), NATIVE)
        assert_same(read_npz(tmp_path / "a.npz"), NATIVE)

    def test_elements_start_at_multiples_of_64_bytes(self, tmp_path):
        write_to(tmp_path / "a.npz", ARRAYS)
        read = read_npz(tmp_path / "a.npz")
        assert {read.bits(name).offset % 64 for name in ARRAYS if ARRAYS[name].size} == {0}

    def test_the_same_tensors_give_the_same_bytes(self, tmp_path):
        write_to(tmp_path / "a.npz", ARRAYS)
        write_to(tmp_path / "b.npz", read_npz(tmp_path / "a.npz"))
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()

    def test_dtype_is_changed_for_floats_only(self, tmp_path):
        checkpoint.write_safetensors(tmp_path / "a.safetensors", {"w": np.array([1.5, -3], np.float32),
                                                                  "n": np.array([3])}, "bfloat16")
        half = checkpoint.read_safetensors(tmp_path / "a.safetensors")
        for dtype in ("float32", "float16"):
            write_to(tmp_path / "a.npz", half, dtype)
            read = read_npz(tmp_path / "a.npz")
            assert [read.infos[name].dtype for name in ("w", "n")] == [dtype, "int64"]
            assert read["w"].tolist() == [1.5, -3]

    @pytest.mark.parametrize(("arrays", "dtype", "reason"), [
        ({}, None, "is empty"),
        ({"w": np.zeros(1, np.float32)}, "bfloat16", "w is bfloat16, which numpy's files cannot hold: choose --dtype"),
        ({"w": np.zeros(1, np.complex64)}, None, "complex64"),
        ({"w": np.array([1e6], np.float32)}, "float16", "w has values beyond the range of float16"),
        ({"../w": np.zeros(1)}, None, "leaves the archive"),
    ])
    def test_what_cannot_be_written(self, tmp_path, arrays, dtype, reason):
        with pytest.raises(CheckpointError) as error:
            write_to(tmp_path / "a.npz", arrays, dtype)
        assert_one_line(error, reason)

    def test_writing_holds_one_block_in_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr("ms_gpt.checkpoint.tensors.BLOCK_BYTES", 2**16)
        np.savez(tmp_path / "a.npz", w=np.ones((2**10, 2**12), np.float32))
        tracemalloc.start()
        write_to(tmp_path / "b.npz", read_npz(tmp_path / "a.npz"))
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()
