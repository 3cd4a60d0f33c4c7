"""Zip archives: what is written any zip reader reads, and what is hostile is refused before it costs anything."""

from __future__ import annotations

import io
import os
import random
import struct
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from checkpoint_helpers import assert_one_line

from ms_gpt.checkpoint import CheckpointError, TensorInfo
from ms_gpt.checkpoint.archive import ZipArchive, ZipWriter

BYTES = np.arange(256, dtype=np.uint8)
INFO = TensorInfo((8, 16), "float16")


def make_zip(path, entries, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def raw_zip(path, entries, data=b""):
    """A directory alone: keyword arguments of each entry's header over those of an empty stored one."""
    records = []
    for entry in entries:
        field = {"flags": 0, "method": 0, "compressed": 0, "size": 0, "offset": 0, "extra": b"", "name": b"x", **entry}
        records.append(struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, field["flags"], field["method"], 0, 0, 0,
                                   field["compressed"], field["size"], len(field["name"]), len(field["extra"]), 0, 0,
                                   0, 0, field["offset"]) + field["name"] + field["extra"])
    directory = b"".join(records)
    count = min(len(entries), 0xFFFF)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, len(entries), len(entries), len(directory),
                        len(data)) + struct.pack("<4sLQL", b"PK\6\7", 0, len(data) + len(directory), 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), len(data), 0)
    path.write_bytes(data + directory + (end64 if count == 0xFFFF else b"") + end)
    return path


def refusal(path, *parts):
    with pytest.raises(CheckpointError) as error:
        ZipArchive(path)
    assert_one_line(error, str(path), *parts)


class TestReading:
    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_entries_come_back_as_zipfile_wrote_them(self, tmp_path, method):
        archive = ZipArchive(make_zip(tmp_path / "a.zip", {"a": b"", "b/ü": BYTES.tobytes(), "b/c": b"c" * 9}, method))
        assert archive.names() == ["a", "b/ü", "b/c"]
        assert [archive.size(name) for name in archive.names()] == [0, 256, 9]
        assert archive.read("b/ü", 256) == BYTES.tobytes()
        assert archive.start("b/ü", 3) == b"\0\1\2"
        assert archive.read("a", 0) == b""
        bits = archive.array("b/ü", INFO)
        assert bits.tobytes() == BYTES.tobytes()
        assert (bits.shape, bits.dtype, bits.flags.writeable) == (INFO.shape, np.float16, False)
        assert archive.array("b/ü", TensorInfo((2,), "bfloat16"), 4).tolist() == [0x0504, 0x0706]
        assert archive.array("a", TensorInfo((0, 3), "float32")).shape == (0, 3)

    def test_a_stored_entry_is_mapped_where_it_lies(self, tmp_path):
        path = make_zip(tmp_path / "a.zip", {"a": b"first", "b": BYTES.tobytes()})
        archive = ZipArchive(path)
        assert path.read_bytes()[archive.offset("b"):][:256] == BYTES.tobytes()
        assert isinstance(archive.array("b", INFO), np.memmap)

    def test_a_compressed_entry_has_no_offset_and_is_unpacked_once(self, tmp_path, monkeypatch):
        archive = ZipArchive(make_zip(tmp_path / "a.zip", {"a": BYTES.tobytes()}, zipfile.ZIP_DEFLATED))
        assert archive.offset("a") is None
        first = archive.array("a", INFO)
        monkeypatch.setattr(zlib, "decompressobj", None)
        assert archive.array("a", INFO).tobytes() == first.tobytes()

    def test_a_compressed_entry_of_many_chunks(self, tmp_path):
        data = np.random.default_rng(0).integers(0, 40, 5 * 2**20, dtype=np.uint8)
        archive = ZipArchive(make_zip(tmp_path / "a.zip", {"a": data.tobytes()}, zipfile.ZIP_DEFLATED))
        assert archive.array("a", TensorInfo(data.shape, "uint8")).tobytes() == data.tobytes()

    def test_folders_are_left_out(self, tmp_path):
        assert ZipArchive(make_zip(tmp_path / "a.zip", {"b/": b"", "b/c": b"1"})).names() == ["b/c"]

    def test_the_file_is_closed_in_between(self, tmp_path):
        if not os.path.isdir("/proc/self/fd"):
            pytest.skip("open files are counted in /proc")
        path = make_zip(tmp_path / "a.zip", {"a": b"abc"})
        before = len(os.listdir("/proc/self/fd"))
        archive = ZipArchive(path)
        archive.read("a", 3)
        archive.offset("a")
        assert len(os.listdir("/proc/self/fd")) == before

    def test_zip64_headers(self, tmp_path, monkeypatch):
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
        path = make_zip(tmp_path / "a.zip", {"a": b"a" * 20, "b": BYTES.tobytes()})
        assert b"PK\6\6" in path.read_bytes()
        archive = ZipArchive(path)
        assert archive.read("a", 20) == b"a" * 20
        assert archive.array("b", INFO).tobytes() == BYTES.tobytes()


class TestRefusals:
    @pytest.mark.parametrize(("name", "reason"), [
        (b"/etc/x", "leaves"), (b"../x", "leaves"), (b"a/../../x", "leaves"), (b"a\\x", "leaves"), (b"C:/x", "leaves"),
        (b"", "unusable"), (b"a\0b", "unusable"),
    ])
    def test_names(self, tmp_path, name, reason):
        refusal(raw_zip(tmp_path / "a.zip", [{"name": name}], b" " * 30), "entry", reason)

    @pytest.mark.parametrize("name", ["a..b", "w:0", "model/h0/w:0"])
    def test_names_that_only_resemble_those(self, tmp_path, name):
        assert ZipArchive(make_zip(tmp_path / "a.zip", {name: b""})).names() == [name]

    @pytest.mark.parametrize(("entry", "reason"), [
        ({"flags": 1}, "encrypted"),
        ({"flags": 0x41}, "encrypted"),
        ({"method": zipfile.ZIP_BZIP2}, "method 12"),
        ({"method": 99}, "method 99"),
        ({"size": 5, "compressed": 4}, "claims 5 bytes and stores 4"),
        ({"size": 500, "compressed": 500}, "outside the file"),
        ({"offset": 500}, "outside the file"),
        ({"extra": b"\1\0\xff\xff"}, "extra field"),
        ({"size": 0xFFFFFFFF, "extra": struct.pack("<HHQ", 1, 8, 2**63)}, "claims"),
        ({"method": 8, "compressed": 4, "size": 2**31}, "zip bomb"),
    ])
    def test_entries(self, tmp_path, entry, reason):
        refusal(raw_zip(tmp_path / "a.zip", [entry], b" " * 100), reason)

    def test_a_name_twice(self, tmp_path):
        refusal(raw_zip(tmp_path / "a.zip", [{}, {"offset": 30}], b" " * 60), "'x' stands twice")

    def test_overlapping_entries(self, tmp_path):
        entries = [{"name": b"%d" % number, "size": 900, "compressed": 900} for number in range(1000)]
        refusal(raw_zip(tmp_path / "a.zip", entries, b" " * 1000), "overlaps")
        half = [{"name": b"a", "size": 500, "compressed": 500}, {"name": b"b", "offset": 300, "size": 10,
                                                                  "compressed": 10}]
        refusal(raw_zip(tmp_path / "a.zip", half, b" " * 1000), "'b' overlaps")

    def test_a_bomb_is_refused_before_it_is_unpacked(self, tmp_path):
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, \
                archive.open("a", "w") as entry:
            for _ in range(2**8):
                entry.write(bytes(2**20))
        tracemalloc.start()
        refusal(path, "zip bomb", str(2**28))
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
        tracemalloc.stop()

    def test_an_entry_that_unpacks_to_more_than_it_claims(self, tmp_path):
        path = make_zip(tmp_path / "a.zip", {"a": bytes(30 * 2**20)}, zipfile.ZIP_DEFLATED)
        raw = path.read_bytes()
        path.write_bytes(raw.replace(struct.pack("<L", 30 * 2**20), struct.pack("<L", 1000)))
        archive = ZipArchive(path)
        assert archive.size("a") == 1000
        tracemalloc.start()
        with pytest.raises(CheckpointError, match="checksum"):
            archive.read("a", 1000)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
        tracemalloc.stop()

    def test_an_entry_that_unpacks_to_less_than_it_claims(self, tmp_path):
        path = make_zip(tmp_path / "a.zip", {"a": bytes(1000)}, zipfile.ZIP_DEFLATED)
        path.write_bytes(path.read_bytes().replace(struct.pack("<L", 1000), struct.pack("<L", 2000)))
        with pytest.raises(CheckpointError, match="ends after 1000 of 2000 bytes"):
            ZipArchive(path).array("a", TensorInfo((2000,), "uint8"))

    def test_a_compressed_entry_above_the_limit(self, tmp_path, monkeypatch):
        monkeypatch.setattr("ms_gpt.checkpoint.archive._MAX_INFLATED", 100)
        archive = ZipArchive(make_zip(tmp_path / "a.zip", {"a": BYTES.tobytes()}, zipfile.ZIP_DEFLATED))
        with pytest.raises(CheckpointError) as error:
            archive.array("a", INFO)
        assert_one_line(error, "'a' has 256 bytes", "uncompressed")

    @pytest.mark.parametrize(("count", "extra"), [(50_000, b""), (33, struct.pack("<HH", 0x9999, 0) * 16_383)])
    def test_a_directory_that_costs_too_much(self, tmp_path, count, extra):
        entries = [{"name": b"%d" % number, "extra": extra} for number in range(count)]
        refusal(raw_zip(tmp_path / "a.zip", entries), "directory")

    def test_a_directory_that_claims_the_whole_of_a_large_file(self, tmp_path):
        path = tmp_path / "a.zip"
        path.write_bytes(b"")
        os.truncate(path, 2**31)
        with path.open("ab") as file:
            file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 2**31 - 100, 0, 0))
        tracemalloc.start()
        refusal(path, "directory")
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
        tracemalloc.stop()

    @pytest.mark.parametrize("content", [b"", b"PK", b"PK\3\4" + b"x" * 500, b"PK\5\6" + b"\xff" * 18,
                                         b"PK\5\6" + bytes(10) + b"\xff" * 8])
    def test_what_is_no_archive(self, tmp_path, content):
        (tmp_path / "a.zip").write_bytes(content)
        refusal(tmp_path / "a.zip", "not a sound zip archive")

    def test_the_largest_directories_that_are_read(self, tmp_path):
        path, data = tmp_path / "a.zip", b" " * 30 * 20_000
        entries = [{"name": b"%032d" % number, "offset": 30 * number} for number in range(20_000)]
        assert len(ZipArchive(raw_zip(path, entries, data)).names()) == 20_000

    def test_a_missing_file(self, tmp_path):
        refusal(tmp_path / "a.zip", "No such file")
        refusal(tmp_path, "cannot be read")

    def test_a_local_header_that_points_outside(self, tmp_path):
        path = make_zip(tmp_path / "a.zip", {"a": BYTES.tobytes()})
        raw = bytearray(path.read_bytes())
        raw[28:30] = b"\xff\xff"
        path.write_bytes(raw)
        with pytest.raises(CheckpointError, match="outside the file"):
            ZipArchive(path).array("a", INFO)
        raw[0] = 0
        path.write_bytes(raw)
        with pytest.raises(CheckpointError, match="no header"):
            ZipArchive(path).offset("a")

    def test_what_is_asked_for_wrongly(self, tmp_path):
        archive = ZipArchive(make_zip(tmp_path / "a.zip", {"a": BYTES.tobytes()}))
        for ask, reason in ((lambda: archive.size("b"), "no entry 'b'"),
                            (lambda: archive.read("a", 255), "more than the 255"),
                            (lambda: archive.array("a", TensorInfo((2**40, 2**40), "float32")), "needs"),
                            (lambda: archive.array("a", INFO, 1), "needs 257"),
                            (lambda: archive.array("a", INFO, -1), "needs")):
            with pytest.raises(CheckpointError) as error:
                ask()
            assert_one_line(error, str(archive.path), reason)

    def test_a_file_cut_after_it_was_opened(self, tmp_path):
        path = make_zip(tmp_path / "a.zip", {"a": BYTES.tobytes()})
        archive = ZipArchive(path)
        os.truncate(path, 100)
        with pytest.raises(CheckpointError, match="outside the file"):
            archive.array("a", INFO)

    def test_damage_is_only_ever_refused(self, tmp_path):
        rng, path = random.Random(0), tmp_path / "a.zip"
        make_zip(path, {"a": BYTES.tobytes(), "b/c": b"text"})
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("d", BYTES.tobytes() * 4)
        good, messages = path.read_bytes(), []
        for _ in range(2000):
            raw = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                raw[rng.randrange(len(raw))] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
            path.write_bytes(raw[:rng.choice((None, None, rng.randrange(len(raw))))])
            try:
                archive = ZipArchive(path)
                for name in archive.names():
                    archive.start(name, 50)
                    archive.array(name, TensorInfo((archive.size(name),), "uint8"))
            except CheckpointError as error:
                messages.append(str(error))
        assert 500 < len(messages) < 2000
        assert "\n" not in "".join(messages)


class TestWriting:
    ENTRIES = {"a": [b"abc", b"d"], "empty": [], "größe/b": [BYTES, BYTES[:5]],
               "f": [np.linspace(0, 1, 7, dtype=np.float32), np.array([True, False]), np.ones(3, np.float16)]}
    CONTENTS = {name: b"".join(bytes(block) for block in blocks) for name, blocks in ENTRIES.items()}

    def write(self, path, **options):
        with ZipWriter(path) as archive:
            for name, blocks in self.ENTRIES.items():
                archive.add(name, len(self.CONTENTS[name]), iter(blocks), **options)
        return path

    def test_zipfile_and_we_read_it(self, tmp_path):
        path = self.write(tmp_path / "a.zip")
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            assert {name: archive.read(name) for name in archive.namelist()} == self.CONTENTS
            assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        ours = ZipArchive(path)
        assert {name: ours.read(name, 1000) for name in ours.names()} == self.CONTENTS

    @pytest.mark.parametrize("limit", [zipfile.ZIP64_LIMIT, 3, 250])
    @pytest.mark.parametrize("align", [1, 64, 4096])
    def test_data_starts_at_round_offsets(self, tmp_path, monkeypatch, align, limit):
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
        archive = ZipArchive(self.write(tmp_path / "a.zip", align=align))
        assert {archive.offset(name) % align for name in archive.names()} == {0}
        assert {name: archive.read(name, 1000) for name in archive.names()} == self.CONTENTS

    def test_the_same_entries_give_the_same_bytes(self, tmp_path, monkeypatch):
        first = self.write(tmp_path / "a.zip").read_bytes()
        monkeypatch.setattr(time, "time", lambda: 2e9)
        assert self.write(tmp_path / "b.zip").read_bytes() == first

    def test_an_entry_above_4_gb(self, tmp_path):
        size, block = 2**32 + 2**20, bytes(2**20)
        path = tmp_path / "a.zip"

        class Sparse(io.FileIO):
            """Leaves holes where zeros are written."""

            def write(self, data):
                if memoryview(data).nbytes < len(block):
                    return super().write(data)
                self.seek(len(block), 1)
                return len(block)

        archive = ZipWriter(path)
        archive._file.close()
        archive._file = archive._zip.fp = Sparse(path, "wb")
        with archive, pytest.MonkeyPatch.context() as patch:
            patch.setattr(zlib, "crc32", lambda *_: 0)
            archive.add("a", size, (block for _ in range(size // len(block))))
            patch.undo()
            archive.add("b", 3, [b"abc"])
        read = ZipArchive(path)
        assert read.size("a") == size
        assert read.offset("a") == 64
        assert read.array("a", TensorInfo((size // 4,), "float32"))[-1] == 0
        assert read.read("b", 3) == b"abc"

    @pytest.mark.parametrize(("name", "reason"), [("../a", "leaves"), ("/a", "leaves"), ("a\\b", "leaves"),
                                                  ("", "unusable"), ("\ud800", "unusable"), ("a" * 70_000, "unusable"),
                                                  ("twice", "twice")])
    def test_names_that_reading_would_refuse(self, tmp_path, name, reason):
        with ZipWriter(tmp_path / "a.zip") as archive:
            archive.add("twice", 0, [])
            with pytest.raises(CheckpointError) as error:
                archive.add(name, 0, [])
            assert_one_line(error, "zip archive", reason)

    @pytest.mark.parametrize("size", [2, 4])
    def test_a_size_that_is_not_kept(self, tmp_path, size):
        with ZipWriter(tmp_path / "a.zip") as archive, pytest.raises(ValueError, match="announced"):
            archive.add("a", size, [b"abc"])

    def test_an_interruption_comes_through(self, tmp_path):
        def blocks():
            yield b"abc"
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), ZipWriter(tmp_path / "a.zip") as archive:
            archive.add("a", 6, blocks())

    def test_a_full_disk_is_an_os_error(self):
        if not os.path.exists("/dev/full"):
            pytest.skip("this system has no /dev/full")
        with pytest.raises(OSError, match="No space"), ZipWriter("/dev/full") as archive:
            archive.add("a", 2**20, [bytes(2**20)])
