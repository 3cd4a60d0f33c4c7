"""TensorFlow checkpoints: what TensorFlow wrote is read bit by bit, and what is damaged or hostile says so."""

from __future__ import annotations

import math
import random
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from checkpoint_helpers import assert_one_line
from hypothesis import given
from hypothesis import strategies as st

from ms_gpt.checkpoint import CheckpointError
from ms_gpt.checkpoint.protobuf import decode_varint, encode_varint, fields
from ms_gpt.checkpoint.tensorflow import find_index, looks_like, read_tensorflow

# Written by TensorFlow 2.21; make.py beside the files is the script.
GPT2 = Path(__file__).parent / "files" / "tensorflow_gpt2"
MAGIC = bytes.fromhex("57fb808b247547db")
FLOAT, DOUBLE, INT32, UINT8, INT16, INT8, STRING, COMPLEX, INT64, BOOL = range(1, 11)
BFLOAT16, UINT16, HALF, RESOURCE, UINT32, UINT64 = 14, 17, 19, 20, 22, 23


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + varint(value // 128)


def message(*pairs: tuple[int, int | bytes]) -> bytes:
    return b"".join(varint(8 * number) + varint(value) if isinstance(value, int)
                    else varint(8 * number + 2) + varint(len(value)) + value for number, value in pairs)


def header(shards: int = 1, **changes: int) -> bytes:
    return message((1, shards), (2, changes.get("endianness", 0)), (3, message((1, 1))))


def entry(shape=(2,), dtype: int = FLOAT, shard: int = 0, offset: int = 0, size: int = 8, extra=()) -> bytes:
    dims = message(*((2, message((1, length))) for length in shape))
    checksum = varint(8 * 6 + 5) + bytes(4)
    return message((1, dtype), (2, dims), (3, shard), (4, offset), (5, size), *extra) + checksum


def crc32c(data: bytes) -> int:
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder // 2 ^ 0x82F63B78 * (remainder % 2)
    return remainder ^ 0xFFFFFFFF


def sealed(content: bytes, compression: int = 0) -> bytes:
    crc = crc32c(content + bytes([compression]))
    masked = ((crc >> 15) + (crc << 17) % 2**32 + 0xA282EAD8) % 2**32
    return content + bytes([compression]) + struct.pack("<I", masked)


def rows(pairs: list[tuple[bytes, bytes]], interval: int = 3) -> bytes:
    content, restarts, last = b"", [], b""
    for number, (key, value) in enumerate(pairs):
        shared = 0
        if number % interval == 0:
            restarts.append(len(content))
        else:
            while key[:shared + 1] == last[:shared + 1] and shared < len(key):
                shared += 1
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    restarts = restarts or [0]
    return content + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def table(pairs, rows_per_block: int = 100, compression: int = 0, spoil=lambda content: content) -> bytes:
    data, handles = b"", []
    for start in range(0, len(pairs), rows_per_block):
        some = pairs[start:start + rows_per_block]
        block = sealed(spoil(rows(some)), compression)
        handles.append((some[-1][0] + b"~", varint(len(data)) + varint(len(block) - 5)))
        data += block
    places = b""
    for block in (sealed(rows([])), sealed(spoil(rows(handles)))):
        places += varint(len(data)) + varint(len(block) - 5)
        data += block
    return data + places.ljust(40, b"\0") + MAGIC


def write(folder: Path, entries: dict[str | bytes, bytes], *data: bytes, head: bytes | None = None, **options) -> Path:
    names = {name.encode() if isinstance(name, str) else name: value for name, value in entries.items()}
    pairs = [(b"", header(len(data)) if head is None else head), *sorted(names.items())]
    (folder / "x.index").write_bytes(table(pairs, **options))
    for number, shard in enumerate(data):
        (folder / f"x.data-{number:05d}-of-{len(data):05d}").write_bytes(shard)
    return folder / "x.index"


def refuse(path: Path, *parts: str) -> None:
    with pytest.raises(CheckpointError) as error:
        read_tensorflow(path)
    assert_one_line(error, str(path), *parts)


@pytest.fixture
def gpt2(tmp_path) -> Path:
    for file in GPT2.glob("*"):
        shutil.copy(file, tmp_path)
    return tmp_path


class TestProtobuf:
    @given(st.integers(0, 2**64 - 1))
    def test_varints_come_back(self, value):
        encoded = encode_varint(value)
        assert encoded == varint(value)
        assert decode_varint(b"\xff" + encoded + b"\xff", 1) == (value, len(encoded) + 1)

    @pytest.mark.parametrize("value", [-1, 2**64])
    def test_varints_have_64_bits(self, value):
        with pytest.raises(ValueError, match="2\\*\\*64"):
            encode_varint(value)

    def test_fields_come_in_order_and_unopened(self):
        buffer = b"\x08\x96\x01\x12\x02\x08\x01\x1d\x01\x00\x00\x80\x21" + b"\xff" * 8 + b"\x08\x00"
        found = [(number, kind, bytes(value) if kind == 2 else value) for number, kind, value in fields(buffer)]
        assert found == [(1, 0, 150), (2, 2, b"\x08\x01"), (3, 5, 2**31 + 1), (4, 1, 2**64 - 1), (1, 0, 0)]

    def test_long_values_are_not_copied(self):
        buffer = bytearray(message((1, bytes(1000))))
        (_, _, value), = fields(buffer)
        buffer[-1] = 7
        assert value[-1] == 7

    @pytest.mark.parametrize("buffer", [
        b"\x08", b"\x08\x80", b"\x80", b"\x08" + b"\xff" * 9 + b"\x02", b"\x08" + b"\x80" * 10 + b"\x01",
        b"\x0a\x01", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0d\0\0\0", b"\x09" + bytes(7),
        b"\x00\x00", b"\x0b", b"\x0c", b"\x0e", b"\x0f", varint(2**32) + b"\0",
    ], ids=lambda buffer: buffer.hex())
    def test_malformed_messages_are_refused(self, buffer):
        with pytest.raises(ValueError, match="."):
            list(fields(buffer))


class TestRead:
    def test_a_gpt2_that_tensorflow_wrote_is_read_bit_by_bit(self):
        tensors = read_tensorflow(GPT2 / "model.ckpt.index")
        width, shapes = 8, {}
        for layer in ("model/h0", "model/h1"):
            for norm in ("ln_1", "ln_2"):
                shapes |= {f"{layer}/{norm}/g": (width,), f"{layer}/{norm}/b": (width,)}
            for name, n_in, n_out in (("attn/c_attn", 8, 24), ("attn/c_proj", 8, 8), ("mlp/c_fc", 8, 32),
                                      ("mlp/c_proj", 32, 8)):
                shapes |= {f"{layer}/{name}/w": (1, n_in, n_out), f"{layer}/{name}/b": (n_out,)}
        shapes |= {"model/ln_f/g": (width,), "model/ln_f/b": (width,), "model/wpe": (12, width),
                   "model/wte": (17, width)}
        assert list(tensors) == sorted(shapes)
        for name, shape in shapes.items():
            expected = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(math.prod(shape))
            assert tensors.infos[name].dtype == "float32"
            assert tensors[name].shape == shape
            assert tensors[name].tobytes() == expected.astype("<f4").tobytes(), name

    def test_the_suffix_may_be_left_out(self):
        assert dict(read_tensorflow(GPT2 / "model.ckpt").infos) == read_tensorflow(GPT2 / "model.ckpt.index").infos

    def test_dtypes_keep_their_bits(self, tmp_path):
        codes = {FLOAT: "f4", DOUBLE: "f8", INT32: "i4", UINT8: "u1", INT16: "i2", INT8: "i1", INT64: "i8", BOOL: "?",
                 UINT16: "u2", HALF: "f2", UINT32: "u4", UINT64: "u8"}
        data, entries, expected = b"", {}, {}
        for code, dtype in codes.items():
            array = np.array([[0, 1, 3], [7, 100, 1]]).astype(dtype)
            name = f"a/{code}"
            entries[name] = entry((2, 3), code, offset=len(data), size=array.nbytes)
            expected[name] = array
            data += array.astype(array.dtype.newbyteorder("<")).tobytes()
        tensors = read_tensorflow(write(tmp_path, entries, data))
        assert set(tensors) == set(expected)
        for name, array in expected.items():
            assert tensors.infos[name].dtype == array.dtype.name
            assert tensors[name].dtype == array.dtype
            assert np.array_equal(tensors[name], array)

    def test_bfloat16_is_told_and_widened(self, tmp_path):
        index = write(tmp_path, {"b": entry((2,), BFLOAT16, size=4)}, bytes.fromhex("803f20c0"))
        tensors = read_tensorflow(index)
        assert tensors.infos["b"].dtype == "bfloat16"
        assert tensors.bits("b").tolist() == [0x3F80, 0xC020]
        assert tensors["b"].tolist() == [1.0, -2.5]

    def test_scalars_and_empty_tensors(self, tmp_path):
        index = write(tmp_path, {"empty": entry((2, 0, 3), size=0, offset=4), "scalar": entry((), INT32, size=4)},
                      bytes([5, 0, 0, 0]))
        tensors = read_tensorflow(index)
        assert tensors["scalar"].shape == ()
        assert tensors["scalar"] == 5
        assert tensors["empty"].shape == (2, 0, 3)

    def test_texts_are_left_out(self, tmp_path):
        index = write(tmp_path, {"_CHECKPOINTABLE_OBJECT_GRAPH": entry((), STRING, size=3), "w": entry()}, bytes(8))
        assert list(read_tensorflow(index)) == ["w"]

    @pytest.mark.parametrize("rows_per_block", [1, 3, 1000])
    def test_many_blocks_and_data_files(self, tmp_path, rows_per_block):
        count, shards = 50, [b"", b"", b""]
        entries, expected = {}, {}
        for number in range(count):
            array = np.arange(number, number + 3, dtype="<i2")
            name, shard = f"layer_{number}/w", number % 3
            entries[name] = entry((3,), INT16, shard, len(shards[shard]), 6)
            shards[shard] += array.tobytes()
            expected[name] = array.tolist()
        tensors = read_tensorflow(write(tmp_path, entries, *shards, rows_per_block=rows_per_block))
        assert {name: array.tolist() for name, array in tensors.items()} == expected

    def test_other_data_files_are_not_needed(self, tmp_path):
        index = write(tmp_path, {"w": entry(shard=1)}, b"", bytes(8))
        (tmp_path / "x.data-00000-of-00002").unlink()
        assert list(read_tensorflow(index)) == ["w"]

    def test_recognised_by_content(self, tmp_path):
        assert looks_like(GPT2 / "model.ckpt.index")
        assert not looks_like(GPT2 / "model.ckpt.data-00000-of-00001")
        for content in (b"", MAGIC, bytes(40) + MAGIC[::-1]):
            (tmp_path / "x").write_bytes(content)
            assert not looks_like(tmp_path / "x")


class TestRefused:
    def test_damaged_magic(self, gpt2):
        index = gpt2 / "model.ckpt.index"
        index.write_bytes(index.read_bytes()[:-1] + b"\0")
        refuse(index, "does not end as an index")

    @pytest.mark.parametrize("length", [0, 7, 47, 48, 300])
    def test_cut_index(self, gpt2, length):
        index = gpt2 / "model.ckpt.index"
        index.write_bytes(index.read_bytes()[:length])
        refuse(index, "cut short")

    def test_missing_index(self, tmp_path):
        refuse(tmp_path / "model.ckpt.index", "no such file")

    def test_wrong_checksum(self, tmp_path):
        index = write(tmp_path, {"w": entry()}, bytes(8))
        content = bytearray(index.read_bytes())
        content[content.index(b"w")] ^= 1
        index.write_bytes(content)
        refuse(index, "checksum")

    def test_cut_data_file(self, gpt2):
        data = gpt2 / "model.ckpt.data-00000-of-00001"
        data.write_bytes(data.read_bytes()[:-1])
        refuse(gpt2 / "model.ckpt.index", "'model/wte'", data.name)

    def test_data_file_cut_after_opening(self, gpt2):
        tensors = read_tensorflow(gpt2 / "model.ckpt.index")
        data = gpt2 / "model.ckpt.data-00000-of-00001"
        data.write_bytes(data.read_bytes()[:-1])
        with pytest.raises(CheckpointError) as error:
            tensors["model/wte"]
        assert_one_line(error, str(data))

    def test_missing_data_file(self, gpt2):
        (gpt2 / "model.ckpt.data-00000-of-00001").unlink()
        refuse(gpt2 / "model.ckpt.index", "model.ckpt.data-00000-of-00001 is missing")

    @pytest.mark.parametrize(("made", "reason"), [
        (entry(offset=1), "ends at byte 9"),
        (entry(offset=2**63), "ends at byte"),
        (entry(size=12), "need 8"),
        (entry(shape=(3,)), "need 12"),
        (entry(dtype=INT16), "need 4"),
        (entry(shape=(2**62, 0, 2**62), size=0), "no tensor has the shape"),
        (entry(shape=(2**64 - 1,)), "no tensor has the shape"),
        (entry(shape=(1,) * 33), "more than 32"),
        (entry(shard=1), "data file 1 of 1"),
        (entry(shard=2**64 - 1), "data file"),
        (entry(dtype=COMPLEX), "dtype 8"),
        (entry(dtype=RESOURCE), "dtype 20"),
        (message((5, 0)), "dtype 0"),
        (message((1, b"\1")), "wire type"),
        (message((1, FLOAT), (2, message((3, 1))), (5, 4)), "shape is not known"),
        (message((1, FLOAT), (2, b"\x12")), "ends within"),
        (b"\x0a\xff", "ends within"),
    ])
    def test_entries_that_cannot_be(self, tmp_path, made, reason):
        refuse(write(tmp_path, {"a/w": made}, bytes(8)), "'a/w'", reason)

    def test_sliced_variables(self, tmp_path):
        refuse(write(tmp_path, {"a/w": entry(extra=[(7, b"")], size=0)}, bytes(8)), "'a/w' is a partitioned variable")
        slices = {b"\0a/w\0\1\1\1\x80\x82": entry(), "b": entry(offset=8)}
        refuse(write(tmp_path, slices, bytes(16)), "'a/w' is a partitioned variable")

    def test_compressed_blocks(self, tmp_path):
        refuse(write(tmp_path, {"w": entry()}, bytes(8), compression=1), "compressed")

    def test_big_endian(self, tmp_path):
        refuse(write(tmp_path, {"w": entry()}, bytes(8), head=header(endianness=1)), "big-endian")

    def test_overlapping_tensors(self, tmp_path):
        refuse(write(tmp_path, {"a": entry(), "b": entry(offset=4)}, bytes(12)), "'b' overlaps")

    @pytest.mark.parametrize("pairs", [[], [(b"w", entry())], [(b"", header()), (b"w", entry()), (b"w", entry())],
                                       [(b"", header()), (b"w", entry()), (b"v", entry(offset=8))],
                                       [(b"", header()), (b"\xff", entry())],
                                       [(b"", header()), (b"w" * 5000, entry())]],
                             ids=["empty", "headless", "twice", "unordered", "not-text", "long"])
    def test_names_that_cannot_be(self, tmp_path, pairs):
        index = write(tmp_path, {}, bytes(16))
        index.write_bytes(table(pairs))
        refuse(index)

    def test_blocks_that_cannot_be(self, tmp_path):
        index = write(tmp_path, {"w": entry()}, bytes(8))
        content = index.read_bytes()
        for handle in (varint(0) + varint(len(content)), varint(2**64 - 1) + varint(1), varint(len(content) - 50)):
            index.write_bytes(content[:-48] + (b"\0\0" + handle).ljust(40, b"\0") + MAGIC)
            refuse(index)

    def test_one_block_cannot_stand_for_many(self, tmp_path):
        index = write(tmp_path, {}, bytes(8))
        block = sealed(rows([(b"", header())]))
        handle = varint(0) + varint(len(block) - 5)
        places = sealed(rows([(b"a", handle), (b"b", handle)]))
        footer = b"\0\0" + varint(len(block)) + varint(len(places) - 5)
        index.write_bytes(block + places + footer.ljust(40, b"\0") + MAGIC)
        refuse(index, "a block is said to lie")

    @pytest.mark.parametrize(("content", "reason"), [
        (b"", "restart points"),
        (b"\0\0\0", "restart points"),
        (b"\xff\xff\xff\xff", "restart points"),
        (b"\x05\x01\x02a\0\0" + bytes(4), "a name of 5 + 1 bytes"),
        (b"\0\x01\x09a\0" + bytes(4), "with 9 of content"),
        (b"\0\xff" + bytes(4), "ends within a number"),
    ])
    def test_rows_that_cannot_be(self, tmp_path, content, reason):
        refuse(write(tmp_path, {}, bytes(8), spoil=lambda _: content), reason)

    def test_too_many_names(self, tmp_path):
        index = write(tmp_path, {}, b"")
        index.write_bytes(table([(b"", header())] + [(b"%05d" % n, message((1, STRING))) for n in range(20_000)],
                                rows_per_block=20_001))
        refuse(index, "more than 20000 variables")

    def test_too_large_an_index(self, tmp_path):
        index = write(tmp_path, {"w": entry()}, bytes(8))
        index.write_bytes(bytes(3 * 2**20) + index.read_bytes())
        refuse(index, "not supported")


class TestFindIndex:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        for name in ("a.ckpt-1.index", "a.ckpt-2.index", "量.index", ".hidden.index"):
            (folder / name).touch()
        return folder

    def test_the_release_of_gpt2(self):
        assert find_index(GPT2) == GPT2 / "model.ckpt.index"

    @pytest.mark.parametrize(("stated", "found"), [
        ("a.ckpt-1", "a.ckpt-1.index"),
        ("/home/someone/run/a.ckpt-2", "a.ckpt-2.index"),
        ("../other/a.ckpt-2", "a.ckpt-2.index"),
        (r"C:\\runs\\a.ckpt-2", "a.ckpt-2.index"),
        (r"\351\207\217", "量.index"),
        ("量", "量.index"),
    ])
    def test_the_state_file_chooses(self, folder, stated, found):
        text = f'model_checkpoint_path: "{stated}"\nall_model_checkpoint_paths: "a.ckpt-1"\n'
        (folder / "checkpoint").write_text(text, encoding="utf-8")
        assert find_index(folder) == folder / found

    @pytest.mark.parametrize("stated", ["../outside", "/outside", "..", "", ".hidden", "x" * 5000, r"\377", r"a\000"])
    def test_nothing_outside_the_folder_is_followed(self, folder, stated):
        (folder.parent / "outside.index").touch()
        (folder / "checkpoint").write_text(f'model_checkpoint_path: "{stated}"\n')
        with pytest.raises(CheckpointError) as error:
            find_index(folder)
        assert_one_line(error, str(folder / "checkpoint"), "a.ckpt-1.index")

    @pytest.mark.parametrize("state", [None, b"", b"\xff\0", b'all_model_checkpoint_paths: "a.ckpt-1"'])
    def test_several_are_named(self, folder, state):
        if state is not None:
            (folder / "checkpoint").write_bytes(state)
        with pytest.raises(CheckpointError) as error:
            find_index(folder)
        assert_one_line(error, str(folder), "a.ckpt-1.index", "a.ckpt-2.index")

    def test_the_only_one_needs_no_state_file(self, tmp_path):
        assert find_index(tmp_path) is None
        (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"')
        assert find_index(tmp_path) is None
        (tmp_path / "checkpoint").unlink()
        (tmp_path / "any.index").touch()
        assert find_index(tmp_path) == tmp_path / "any.index"


def mutated(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    kind = rng.choice(("flips", "cut", "splice", "number"))
    start, end = sorted(rng.randrange(len(changed) + 1) for _ in range(2))
    if kind == "flips":
        for _ in range(rng.choice((1, 1, 2, 8))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del changed[start:rng.choice((end, len(changed), start + 1))]
    elif kind == "splice":
        place = rng.randrange(len(changed) + 1)
        changed[place:place] = changed[start:end]
    else:
        changed[start:start + 1] = varint(rng.choice((0, 127, 2**31, 2**32 - 1, 2**63, 2**64 - 1)))
    return bytes(changed)


def test_no_mutation_does_more_than_be_refused(tmp_path):
    rng = random.Random(0)
    entries = {f"model/h{number}/w": entry((2, 2), offset=16 * number // 2, shard=number % 2, size=16)
               for number in range(12)}
    outcomes = {True: 0, False: 0}
    for number in range(2000):
        # Half of the changes are made before the checksums, which would catch them all.
        if number % 2:
            place, count = rng.randrange(4), iter(range(10))
            spoil = lambda content: mutated(rng, content) if next(count) == place else content  # noqa: B023, E731
        else:
            spoil = bytes
        index = write(tmp_path, entries, bytes(range(96 * 2)), bytes(96 * 2), rows_per_block=5, spoil=spoil)
        if number % 2 == 0:
            file = rng.choice(sorted(tmp_path.glob("x.*")))
            file.write_bytes(mutated(rng, file.read_bytes()))
        refusal = None
        try:
            for array in read_tensorflow(index).values():
                assert array.nbytes <= 192
        except CheckpointError as error:
            refusal = str(error)
        assert len((refusal or "").splitlines()) <= 1
        outcomes[refusal is None] += 1
    assert min(outcomes.values()) > 100
