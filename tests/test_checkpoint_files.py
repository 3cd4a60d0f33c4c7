"""Files of tensors: what is written comes back bit by bit, and what is damaged says so."""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from checkpoint_helpers import (
    ROOT,
    assert_one_line,
    assert_same,
)
from hypothesis import given
from hypothesis import strategies as st

from ms_gpt import checkpoint
from ms_gpt.checkpoint import CheckpointError
from ms_gpt.checkpoint.tensors import bits_to_float32, dtype_name, float32_to_bits
from ms_gpt.errors import UserError


def raw_safetensors(path: Path, header, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


class TestSafetensors:
    ARRAYS = {
        "f32": np.array([[1.5, -0.0], [np.nan, np.inf]], np.float32),
        "f16": np.array([1, 2.5, -65504], np.float16),
        "f64": np.array(np.pi),
        "scalar": np.array(7, np.int64),
        "none": np.zeros((2, 0, 3), np.float32),
        "i8": np.arange(-3, 4, dtype=np.int8),
        "u16": np.arange(3, dtype=np.uint16),
        "flags": np.array([True, False, True]),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "big-endian": np.arange(4, dtype=">i4"),
    }

    def test_the_reference_library_reads_what_we_write(self, tmp_path):
        checkpoint.write_safetensors(tmp_path / "a.safetensors", self.ARRAYS)
        theirs = safetensors.numpy.load_file(tmp_path / "a.safetensors")
        ours = checkpoint.read_safetensors(tmp_path / "a.safetensors")
        assert_same(theirs, {name: np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
                             .reshape(array.shape) for name, array in self.ARRAYS.items()})
        assert_same(theirs, ours)
        assert checkpoint.read_metadata(tmp_path / "a.safetensors") == {"format": "pt"}

    def test_we_read_what_the_reference_library_writes(self, tmp_path):
        arrays = {name: np.ascontiguousarray(array) for name, array in self.ARRAYS.items() if name != "big-endian"}
        safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors", metadata={"who": "them"})
        assert_same(checkpoint.read_safetensors(tmp_path / "a.safetensors"), arrays)
        assert checkpoint.read_metadata(tmp_path / "a.safetensors") == {"who": "them"}

    def test_every_bfloat16_pattern_survives_widening_and_rounding(self, tmp_path):
        bits = np.arange(2**16, dtype=np.uint16)
        header = {"x": {"dtype": "BF16", "shape": [256, 256], "data_offsets": [0, 2**17]}}
        raw = raw_safetensors(tmp_path / "a.safetensors", header, bits.tobytes())
        read = checkpoint.read_safetensors(raw)
        assert read.infos["x"].dtype == "bfloat16"
        assert read["x"].dtype == np.float32
        checkpoint.write_safetensors(tmp_path / "b.safetensors", read)
        assert (tmp_path / "b.safetensors").read_bytes()[-(2**17):] == bits.tobytes()

    @given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
    def test_bfloat16_rounds_to_the_nearest(self, values):
        exact = np.array(values, np.float32)
        bits = float32_to_bits(exact)
        finite = np.isfinite(exact) & (np.abs(exact) < 3e38)
        chosen = bits_to_float32(bits)[finite].astype(np.float64)
        for step in (-1, 1):
            neighbour = bits_to_float32((bits.astype(np.int32) + step).astype(np.uint16))[finite].astype(np.float64)
            error, other = np.abs(chosen - exact[finite]), np.abs(neighbour - exact[finite])
            assert np.all((error < other) | ((error == other) & (bits[finite] % 2 == 0)) | ~np.isfinite(neighbour))

    def test_bfloat16_ties_go_to_the_even_neighbour(self):
        halfway = np.array([0x3F808000, 0x3F818000, 0xBF808000, 0x7F7F8000], np.uint32).view(np.float32)
        assert float32_to_bits(halfway).tolist() == [0x3F80, 0x3F82, 0xBF80, 0x7F80]

    def test_nan_never_rounds_to_infinity(self):
        nans = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF], np.uint32).view(np.float32)
        assert np.isnan(bits_to_float32(float32_to_bits(nans))).all()

    def test_opening_reads_the_header_only(self, tmp_path):
        size = 2**36
        header = {"small": {"dtype": "F32", "shape": [2], "data_offsets": [size - 8, size]},
                  "huge": {"dtype": "U8", "shape": [size - 8], "data_offsets": [0, size - 8]}}
        path = raw_safetensors(tmp_path / "a.safetensors", header)
        try:
            os.truncate(path, path.stat().st_size + size)
        except OSError:
            pytest.skip("this file system has no sparse files of 64 GB")
        assert checkpoint.read_safetensors(path)["small"].tolist() == [0, 0]

    @pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float16"])
    def test_arrays_state_no_byte_order(self, tmp_path, dtype):
        checkpoint.write_safetensors(tmp_path / "a.safetensors", {"x": np.ones(3, dtype)})
        read = checkpoint.read_safetensors(tmp_path / "a.safetensors")["x"]
        # MindSpore 2.7 refuses "<i" where it takes "i".
        assert memoryview(read).format == memoryview(np.ones(3, dtype)).format

    def test_arrays_are_private_and_writable(self, tmp_path):
        path = tmp_path / "a.safetensors"
        checkpoint.write_safetensors(path, {"x": np.zeros(3, np.float32)})
        read = checkpoint.read_safetensors(path)
        read["x"][:] = 5
        assert read["x"].tolist() == [0, 0, 0]
        assert set(read) == {"x"}
        assert "y" not in read
        with pytest.raises(KeyError):
            read["y"]

    @pytest.mark.parametrize(("dtype", "name"), [("fp16", "float16"), ("bf16", "bfloat16"), ("float32", "float32")])
    def test_dtype_is_changed_for_floats_only(self, tmp_path, dtype, name):
        path = tmp_path / "a.safetensors"
        checkpoint.write_safetensors(path, {"w": np.array([1.5], np.float32), "n": np.array([3])},
                                     dtype=dtype_name(dtype))
        read = checkpoint.read_safetensors(path)
        assert read.infos["w"].dtype == name
        assert read.infos["n"].dtype == "int64"
        assert read["w"].tolist() == [1.5]

    def test_a_value_beyond_the_dtype_is_refused_and_nothing_is_written(self, tmp_path):
        with pytest.raises(CheckpointError) as error:
            checkpoint.write_safetensors(tmp_path / "a.safetensors", {"w": np.array([1e6], np.float32)}, "float16")
        assert_one_line(error, "w", "float16")
        assert list(tmp_path.iterdir()) == []

    def test_a_dtype_the_format_lacks_is_refused(self, tmp_path):
        with pytest.raises(CheckpointError, match="complex64"):
            checkpoint.write_safetensors(tmp_path / "a.safetensors", {"z": np.zeros(1, np.complex64)})

    GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

    @pytest.mark.parametrize(("header", "data", "reason"), [
        (b"", b"", "not JSON"),
        (b"[1]", b"", "not a JSON object"),
        (b"{" * 100_000, b"", "not JSON"),
        (b"\xff\xfe{}", b"", "not JSON"),
        (b'{"x": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}, "x": 1}', b"1234", "twice"),
        ({"x": 3}, b"", "lacks dtype"),
        ({"x": {**GOOD, "dtype": "F8_E4M3"}}, b"12345678", "F8_E4M3"),
        ({"x": {**GOOD, "dtype": ["F32"]}}, b"12345678", "not supported"),
        ({"x": {**GOOD, "shape": [-2]}}, b"12345678", "shape"),
        ({"x": {**GOOD, "shape": [2.0]}}, b"12345678", "shape"),
        ({"x": {**GOOD, "shape": [True, 2]}}, b"12345678", "shape"),
        ({"x": {**GOOD, "shape": [2**62, 2**62]}}, b"12345678", "spans 8 bytes"),
        ({"x": {**GOOD, "shape": [1] * 40}}, b"12345678", "40 dimensions"),
        ({"x": {**GOOD, "data_offsets": [0]}}, b"12345678", "1 offsets"),
        ({"x": {**GOOD, "data_offsets": [8, 0]}}, b"12345678", "spans -8 bytes"),
        ({"x": GOOD, "y": {**GOOD, "data_offsets": [4, 12]}}, b"0" * 12, "overlap"),
        ({"x": GOOD, "y": {**GOOD, "data_offsets": [12, 20]}}, b"0" * 20, "gap"),
        ({"x": GOOD}, b"1234567", "cut short"),
        ({"x": GOOD}, b"123456789", "need 8 bytes and 9"),
        ({"__metadata__": {"a": 1}, "x": GOOD}, b"12345678", "__metadata__"),
    ])
    def test_damaged_headers_are_refused_by_reason(self, tmp_path, header, data, reason):
        path = raw_safetensors(tmp_path / "a.safetensors", header, data)
        with pytest.raises(CheckpointError) as error:
            checkpoint.read_safetensors(path)
        assert_one_line(error, str(path), reason)

    @pytest.mark.parametrize("length", [100 * 2**30, 2**63, 100])
    def test_a_header_longer_than_the_file_is_refused(self, tmp_path, length):
        path = raw_safetensors(tmp_path / "a.safetensors", b"{}", length=length)
        with pytest.raises(CheckpointError, match="its header claims"):
            checkpoint.read_safetensors(path)

    def test_a_file_of_three_bytes_is_refused(self, tmp_path):
        (tmp_path / "a.safetensors").write_bytes(b"abc")
        with pytest.raises(CheckpointError, match="fewer than the 8"):
            checkpoint.read_safetensors(tmp_path / "a.safetensors")

    def test_a_missing_file_is_one_line(self, tmp_path):
        with pytest.raises(CheckpointError) as error:
            checkpoint.read_safetensors(tmp_path / "none.safetensors")
        assert_one_line(error, "none.safetensors", "No such file")

    def test_a_file_cut_after_it_was_opened_is_one_line(self, tmp_path):
        path = tmp_path / "a.safetensors"
        checkpoint.write_safetensors(path, {"x": np.zeros(5000, np.float32)})
        read = checkpoint.read_safetensors(path)
        os.truncate(path, 200)
        with pytest.raises(CheckpointError, match="cannot be read"):
            read["x"]


class TestAtomic:
    def test_success_replaces_and_leaves_nothing_beside(self, tmp_path):
        path = tmp_path / "new" / "a.txt"
        checkpoint.write_text(path, "old")
        checkpoint.write_text(path, "näu")
        assert path.read_text(encoding="utf-8") == "näu"
        assert list(path.parent.iterdir()) == [path]

    def test_new_files_have_ordinary_permissions(self, tmp_path):
        checkpoint.write_json(tmp_path / "a.json", {"b": 1})
        (tmp_path / "plain").write_text("")
        modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        assert len(modes) == 1

    @pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError, SystemExit])
    def test_an_interruption_while_writing_keeps_the_old_file(self, tmp_path, interruption):
        path = tmp_path / "a.bin"
        checkpoint.write_bytes(path, b"old")

        def interrupted_save():
            with checkpoint.replace_file(path) as temporary:
                assert temporary.parent == path.parent
                temporary.write_bytes(b"half")
                raise interruption

        with pytest.raises(interruption):
            interrupted_save()
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_kill_between_write_and_rename_keeps_the_old_file(self, tmp_path):
        path = tmp_path / "a.bin"
        path.write_bytes(b"old")
        program = ("import os, signal, sys; from ms_gpt.checkpoint import atomic\n"
                   "with atomic.replace_file(sys.argv[1]) as temporary:\n"
                   "    temporary.write_bytes(b'new'); os.kill(os.getpid(), signal.SIGKILL)\n")
        done = subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, check=False)
        assert done.returncode < 0
        assert path.read_bytes() == b"old"

    @pytest.mark.parametrize(("code", "reason"), [(errno.ENOSPC, "No space left"), (errno.EACCES, "Permission denied"),
                                                  (errno.EROFS, "Read-only")])
    def test_the_system_s_refusal_is_one_line(self, tmp_path, monkeypatch, code, reason):
        def refuse(*_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(UserError) as error:
            checkpoint.write_text(tmp_path / "a.txt", "x")
        assert_one_line(error, str(tmp_path / "a.txt"), reason)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("inside", ["a", "a/b/c"])
    def test_a_file_where_a_folder_is_needed(self, tmp_path, inside):
        (tmp_path / "a").write_text("")
        with pytest.raises(UserError) as error:
            checkpoint.write_text(tmp_path / inside / "x.txt", "x")
        assert_one_line(error, f"{tmp_path / 'a'} is a file")

    def test_a_folder_in_the_file_s_place(self, tmp_path):
        (tmp_path / "a").mkdir()
        with pytest.raises(UserError) as error:
            checkpoint.write_text(tmp_path / "a", "x")
        assert_one_line(error, "cannot be written")


class TestState:
    def test_every_bit_and_number_comes_back(self, tmp_path):
        rng = np.random.default_rng(0)
        arrays = {"moment1": rng.integers(0, 2**32, (5, 3), dtype=np.uint32).view(np.float32),
                  "step": np.array(2**40), "mask": np.array([True, False]), "empty": np.zeros((0, 4), np.float32)}
        meta = {"step": np.int64(3), "best": float("inf"), "loss": 0.1 + 0.2, "order": np.array([2, 1]),
                "name": "größe"}
        checkpoint.save_state(tmp_path, arrays, meta)
        read, numbers = checkpoint.load_state(tmp_path)
        assert_same(read, arrays)
        assert numbers == {"step": 3, "best": float("inf"), "loss": 0.1 + 0.2, "order": [2, 1], "name": "größe"}

    def test_an_interrupted_save_leaves_the_old_pair(self, tmp_path, monkeypatch):
        checkpoint.save_state(tmp_path, {"w": np.zeros(4)}, {"step": 1})

        def killed(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save_state(tmp_path, {"w": np.ones(4)}, {"step": 2})
        arrays, meta = checkpoint.load_state(tmp_path)
        assert meta == {"step": 1}
        assert arrays["w"].tolist() == [0, 0, 0, 0]
        assert len(list(tmp_path.iterdir())) == 1

    def test_wrong_files_are_refused(self, tmp_path):
        with pytest.raises(CheckpointError, match="nothing to resume"):
            checkpoint.load_state(tmp_path)
        path = checkpoint.save_state(tmp_path, {}, {})
        assert checkpoint.load_state(tmp_path) == ({}, {})
        checkpoint.write_safetensors(path, {"w": np.zeros(1)})
        with pytest.raises(CheckpointError, match="no training state"):
            checkpoint.load_state(tmp_path)
        path.write_bytes(b"x" * 20)
        with pytest.raises(CheckpointError, match="not a sound"):
            checkpoint.load_state(tmp_path)
        with pytest.raises(TypeError, match="cannot hold a set"):
            checkpoint.save_state(tmp_path, {}, {"bad": {1}})
