"""Texts to learn a language from: where they come from, how they are parted, and their token ids in the cache."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import lzma
import os
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_gpt.data import corpus, download, load_text, tokenize
from ms_gpt.data.corpus import Documents, read_parts
from ms_gpt.errors import UserError
from ms_gpt.tokenizer import CharacterTokenizer, Tokenizer, WordTokenizer

WORLD = "Hello, world!\n你好，世界。\n🙂👩‍👩‍👧 naïve café\n"
WHOLE = {"train": 0.8, "validation": 0.2, "test": 0.0}


def refuses(*words: str):
    """Expect a UserError of one line that holds the words in this order."""
    return pytest.raises(UserError, match=r"\A(?=[^\n]*\Z).*" + ".*".join(words))


def whole(documents: Documents) -> list[str]:
    """Return documents whole."""
    found, text = [], ""
    for piece, ends in documents.pieces():
        text += piece
        if ends:
            found.append(text)
            text = ""
    assert not text
    return found


def of(texts: list[str]) -> Documents:
    return Documents(lambda: ([text] for text in texts))


def write(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(texts).encode())
    return path


def jsonl(path: Path, texts: list) -> Path:
    return write(path, *(json.dumps({"text": text}) + "\n" for text in texts))


def test_a_single_text_is_cut_at_the_exact_character(tmp_path):
    text = WORLD * 50
    parts = load_text(write(tmp_path / "x.txt", text), shares={"train": 0.9, "validation": 0.1, "test": 0}).parts
    assert {name: whole(part) for name, part in parts.items()} == {
        "train": [text[: int(len(text) * 0.9)]], "validation": [text[int(len(text) * 0.9) :]]}
    three = load_text(tmp_path / "x.txt")
    assert "".join(three.train) + "".join(three.validation) + "".join(three.test) == text
    assert len("".join(three.train)) == int(len(text) * 0.8)


@pytest.mark.parametrize(("name", "pack"), [("x.txt", bytes), ("x", bytes), ("x.gz", gzip.compress),
                                            ("x.txt.xz", lzma.compress), ("x.md", bytes)])
def test_files_are_read_as_they_are_but_for_the_byte_order_mark(tmp_path, name, pack):
    text = "first\r\nsecond\n\n  third\u2028" + WORLD
    (tmp_path / name).write_bytes(pack(b"\xef\xbb\xbf" + text.encode()))
    assert whole(read_parts(tmp_path / name)["train"]) == [text]


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.tsv", "x.json"])
def test_rows_of_tables_are_documents(tmp_path, name):
    texts = [f"row {index} 你好" for index in range(30)]
    lines = {"x.jsonl": [json.dumps({"id": 1, "Review": text}) for text in texts],
             "x.csv": ["id,Review", *(f'1,"{text}"' for text in texts)],
             "x.tsv": ["id\tReview", *(f"1\t{text}" for text in texts)],
             "x.json": [json.dumps([{"id": 1, "Review": text} for text in texts])]}[name]
    path = write(tmp_path / name, "\n".join(lines))
    assert whole(read_parts(path)["train"]) == texts
    assert whole(read_parts(path, text_column="id" if "json" not in name else "Review")["train"])[0] in ("1", texts[0])
    found = {part: whole(documents) for part, documents in load_text(path).parts.items()}
    assert [len(found[part]) for part in ("train", "validation", "test")] == [24, 3, 3]
    assert sorted(sum(found.values(), [])) == sorted(texts)


def test_files_of_a_folder_are_documents(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/y.txt", ".hidden/x.txt", ".DS_Store"):
        write(tmp_path / name, name)
    assert whole(read_parts(tmp_path)["train"]) == ["a/y.txt", "a/z.txt", "b.txt"]


@pytest.mark.parametrize("names", [("train.txt", "valid.txt", "test.txt"),
                                   ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
                                   ("training/a.txt", "dev/b.txt", "test/c.txt"),
                                   ("train-0.jsonl", "validation.jsonl", "test_set.jsonl")])
def test_names_in_a_folder_tell_the_parts(tmp_path, names):
    for name in names:
        jsonl(tmp_path / name, [name]) if name.endswith(".jsonl") else write(tmp_path / name, name)
    write(tmp_path / "README.md", "not a part")
    parts = load_text(tmp_path).parts
    assert list(parts) == ["train", "validation", "test"]
    assert [whole(part) for part in parts.values()] == [[name] for name in names]


def test_words_that_begin_like_a_part_are_none(tmp_path):
    for name in ("trains.txt", "valerie.txt", "device.txt", "testament.txt"):
        write(tmp_path / name, name)
    assert len(whole(read_parts(tmp_path)["train"])) == 4


def test_a_missing_validation_part_comes_off_the_training_documents(tmp_path):
    for index in range(18):
        write(tmp_path / "train" / f"{index}.txt", f"train {index}")
    write(tmp_path / "test.txt", "test")
    parts = load_text(tmp_path).parts
    assert [len(whole(part)) for part in parts.values()] == [16, 2, 1]
    write(tmp_path / "valid.txt", "validation")
    (tmp_path / "test.txt").unlink()
    parts = load_text(tmp_path)
    assert (len(whole(parts.train)), whole(parts.validation), parts.test) == (18, ["validation"], None)


def test_other_files_can_be_the_validation_and_test_parts(tmp_path):
    data, other = write(tmp_path / "x.txt", "a" * 90), write(tmp_path / "y.txt", "b" * 9)
    corpus_of_both = load_text(data, other, other)
    assert [whole(part) for part in corpus_of_both.parts.values()] == [["a" * 90], ["b" * 9], ["b" * 9]]
    parts = load_text(data, eval_data=other).parts
    assert [whole(part) for part in parts.values()] == [["a" * 80], ["b" * 9], ["a" * 10]]


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=3,
                      unique=True), seed=st.integers(0, 3), copies=st.integers(1, 2))
def test_documents_are_parted_whole_and_equal_ones_together(texts, seed, copies):
    parts = corpus._split(of(texts * copies), {"train": 0.8, "validation": 0.1, "test": 0.1}, seed, "x")
    found = [whole(part) for part in parts.values()]
    assert all(found)
    assert sorted(sum(found, [])) == sorted(texts * copies)
    assert not set(found[0]) & set(found[1]) | set(found[1]) & set(found[2]) | set(found[0]) & set(found[2])
    again = corpus._split(of(texts * copies), {"train": 0.8, "validation": 0.1, "test": 0.1}, seed, "x")
    assert [whole(part) for part in again.values()] == found
    assert len(set(found[2])) <= max(1, round(0.1 * len(texts)) + 1)


def test_the_seed_decides_the_split(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [f"text {index}" for index in range(50)])
    assert whole(load_text(path, seed=0).test) == whole(load_text(path, seed=0).test)
    assert whole(load_text(path, seed=0).test) != whole(load_text(path, seed=1).test)


def test_blank_documents_belong_to_no_part(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", ["one", " ", "two", "", "three"])
    found = [whole(part) for part in load_text(path).parts.values()]
    assert sorted(sum(found, [])) == ["one", "three", "two"]
    for index, text in enumerate(["one", "\n", "two", "", "three"]):
        write(tmp_path / "folder" / f"{index}.txt", text)
    found = [whole(part) for part in load_text(tmp_path / "folder").parts.values()]
    assert sorted(sum(found, [])) == ["one", "three", "two"]


def test_the_sample_has_its_own_parts():
    parts = load_text("sample").parts
    assert [len(whole(part)) for part in parts.values()] == [3000, 500, 500]


@given(texts=st.lists(st.text(st.sampled_from("ab, .\n\r你🙂"), max_size=30), max_size=5))
def test_pieces_join_to_the_document_and_are_short(texts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE", 7)
        pieces = list(Documents(lambda: [texts]).pieces())
    assert "".join(text for text, _ in pieces) == "".join(texts)
    assert all(0 < len(text) <= 7 for text, _ in pieces)
    assert [ends for _, ends in pieces] == [False] * (len(pieces) - 1) + [True] * bool(pieces)


@given(parts=st.lists(st.sampled_from(["the ", "film ", "was", " it's", " don't ", "good . ", "\n", "\n\n", "  ",
                                       " 你好", "🙂", " a-b"]), min_size=10, max_size=60))
def test_tokens_of_the_pieces_are_those_of_the_whole(parts, learnt):
    text = "the film was good\n".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE", 60)
        pieces = list(of([text]))
    for tokenizer in (CharacterTokenizer(sorted(set(text))), *learnt):
        assert sum(tokenizer.encode_batch(pieces), []) == tokenizer.encode(text)


@pytest.fixture(scope="module")
def learnt():
    texts = ["the film was good . it's not bad\n\n  the  film\n"] * 3
    return (WordTokenizer.train(texts, "whitespace"), WordTokenizer.train(texts), Tokenizer.train(texts, 200),
            Tokenizer.train(texts, 280, kind="byte-bpe"))


@pytest.mark.parametrize(("name", "content", "words"), [
    ("x.txt", b"", ["x.txt is empty"]),
    ("x.txt", b" \n\n", ["x.txt is empty"]),
    ("x.txt", "caf\u00e9".encode("latin-1"), ["x.txt is not UTF-8 text", "byte 3"]),
    ("x.txt", b"\xef\xbb\xbf" + b"a" * (1 << 20) + b"\xe4\xbd", ["x.txt is not UTF-8 text", "byte 1048579"]),
    ("x.txt", "text".encode("utf-16"), ["x.txt is not UTF-8 text", "byte 0"]),
    ("x.txt", b"a\0b", ["x.txt is not UTF-8 text", "zero bytes"]),
    ("x.txt.gz", b"text", ["not a whole .gz file"]),
    ("x.txt", b"ab", ["x.txt has 2 characters", "too few"]),
    ("x.jsonl", b'{"a": 1}\n', ["x.jsonl has no text column", "text_column"]),
    ("x.jsonl", b'{"text": "a"}\n{"text": null}\n', ["x.jsonl, line 2", "'text' is None"]),
    ("x.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}\n', ["x.jsonl, line 2", "surrogate"]),
    ("x.jsonl", b'{"text": "a"}\n{"text"\n', ["x.jsonl, line 2", "bad JSON"]),
    ("x.jsonl", b'{"text": "a"}\n{"text": "b"}\n', ["2 different documents", "too few for the 3 parts"]),
    ("x.csv", b"text\n", ["no rows"]),
])
def test_bad_files_are_named_in_one_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with refuses(*words):
        load_text(tmp_path / name)


def test_what_is_not_there_is_named(tmp_path):
    with refuses("no text", "wikitext3", "known names", "Did you mean 'wikitext2'"):
        load_text("wikitext3")
    with refuses("holds no file"):
        load_text(tmp_path)
    write(tmp_path / "train.txt", "text")
    write(tmp_path / "valid.txt", " ")
    with refuses("validation text", "is empty"):
        load_text(tmp_path)
    with refuses("no column 'txet'", "Did you mean 'text'"):
        load_text(jsonl(tmp_path / "x.jsonl", ["a"]), text_column="txet")


@pytest.mark.parametrize("shares", [{"train": 1.0}, {"train": 0.5, "validation": 0.6},
                                    {"train": 1.0, "validation": 0.0},
                                    {"train": 0.9, "validation": 0.05, "tset": 0.05}])
def test_wrong_shares_are_refused(shares):
    with refuses("shares"):
        load_text("sample", shares=shares)


def test_texts_are_downloaded_once(monkeypatch, tmp_path):
    text = WORLD * 20
    source = write(tmp_path / "source.txt", text)
    archive = download.Archive("tiny", source.as_uri(), hashlib.md5(text.encode()).hexdigest(), "tiny.txt")
    monkeypatch.setitem(download.TEXT_ARCHIVES, "shakespeare", archive)
    monkeypatch.setenv("MS_GPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "_open_from", lambda url, have: FakeResponse(text.encode()))
    assert "".join(load_text("shakespeare", shares=WHOLE).train) == text[: int(len(text) * 0.8)]
    monkeypatch.setattr(download, "_open_from", None)
    assert "".join(load_text("shakespeare", shares=WHOLE).validation) == text[int(len(text) * 0.8) :]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny.txt"]


class FakeResponse:
    status, headers = 200, {}

    def __init__(self, body: bytes) -> None:
        self.parts = [body, b""]

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        pass

    def read(self, size: int) -> bytes:
        return self.parts.pop(0)


def test_ids_are_those_of_the_documents_with_a_separator_after_each(tmp_path):
    texts = [WORLD, "second", WORLD * 2]
    tokenizer = CharacterTokenizer.train(texts, {"eos_token": "<eos>"})
    ids = tokenize(texts, tokenizer, tmp_path, tokenizer.eos_token_id)
    assert ids.dtype == np.uint16
    assert isinstance(ids, np.memmap)
    assert ids.tolist() == sum((tokenizer.encode(text) + [tokenizer.eos_token_id] for text in texts), [])
    assert tokenizer.decode(tokenize(texts, tokenizer, tmp_path)) == "".join(texts)


def test_a_long_document_has_one_separator_and_batches_change_nothing(tmp_path, monkeypatch):
    text = "one two three\n" * 40
    tokenizer = CharacterTokenizer.train([text], {"eos_token": "<eos>"})
    expected = tokenize([text, text], tokenizer, tmp_path / "a", tokenizer.eos_token_id).tolist()
    monkeypatch.setattr(corpus, "PIECE", 50)
    monkeypatch.setattr("ms_gpt.data.token_cache._BATCH_CHARACTERS", 120)
    seen = []
    ids = tokenize([text, text], tokenizer, tmp_path / "b", tokenizer.eos_token_id, seen.append)
    assert ids.tolist() == expected
    assert ids.tolist().count(tokenizer.eos_token_id) == 2
    assert seen == sorted(seen)
    assert seen[-1] == len(ids)


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    tokenizer = WordTokenizer(map(str, range(70000)), special_tokens={"unk_token": "0"})
    ids = tokenize(["69999 65536 1"], tokenizer, tmp_path)
    assert (ids.dtype, ids.tolist()) == (np.uint32, [69999, 65536, 1])


def test_the_cache_is_used_until_anything_changes(tmp_path, monkeypatch):
    texts = ["abc", "cab"]
    tokenizer = CharacterTokenizer("abc", {"eos_token": "<eos>"})
    first = tokenize(texts, tokenizer, tmp_path, 3)
    times, usual = [], CharacterTokenizer.encode_batch
    monkeypatch.setattr(CharacterTokenizer, "encode_batch", lambda self, texts: times.append(1) or usual(self, texts))
    assert tokenize(of(texts), tokenizer, tmp_path, 3).tolist() == first.tolist()
    assert not times
    changed = [(["abc", "cba"], tokenizer, 3), (["abccab"], tokenizer, 3), (["cab", "abc"], tokenizer, 3),
               (texts, tokenizer, None), (texts, CharacterTokenizer("bac", {"eos_token": "<eos>"}), 3)]
    for count, (other, other_tokenizer, separator) in enumerate(changed, start=1):
        tokenize(other, other_tokenizer, tmp_path, separator)
        assert len(times) == count
    assert len(list(tmp_path.iterdir())) == len(changed) + 1


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:-2], lambda content: b"",
                                    lambda content: content[:-1] + bytes([content[-1] ^ 1])])
def test_a_file_that_is_not_whole_is_made_anew(tmp_path, damage):
    tokenizer = CharacterTokenizer("abc")
    tokenize(["abcabc"], tokenizer, tmp_path)
    path, = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert tokenize(["abcabc"], tokenizer, tmp_path).tolist() == [0, 1, 2, 0, 1, 2]


class Full(io.RawIOBase):
    """A file on a full disk."""

    def __init__(self, file: IO) -> None:
        self.file = file

    def close(self) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def write(self: Path, *rest, **named):
        file = usual(self, *rest, **named)
        return Full(file) if self.suffix == ".bin" else file

    usual = Path.open
    monkeypatch.setattr(Path, "open", write)
    with refuses(str(tmp_path / "cache"), "cannot be written: No space left on device", "--cache-dir"):
        tokenize(["abc"], CharacterTokenizer("abc"), tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    write(tmp_path / "file", "")
    with refuses("file is a file where a folder is needed"):
        tokenize(["abc"], CharacterTokenizer("abc"), tmp_path / "file")


def test_an_interruption_or_an_error_leaves_nothing(tmp_path):
    for texts, error in ((["ab", "x"], UserError), ([], UserError), ([""], UserError)):
        with pytest.raises(error):
            tokenize(texts, CharacterTokenizer("abc"), tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        tokenize(["abc"], CharacterTokenizer("abc"), tmp_path / "cache", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def interrupt(count: int) -> None:
    raise KeyboardInterrupt


def test_texts_that_change_while_they_are_read_are_refused(tmp_path):
    states = iter(["ab", "abc"])
    with refuses("changed while they were read"):
        tokenize(Documents(lambda: [[next(states)]]), CharacterTokenizer("abc"), tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def test_ids_lie_in_the_users_cache_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("MS_GPT_CACHE", str(tmp_path))
    tokenize(["abc"], CharacterTokenizer("abc"))
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def test_wikitext_has_its_official_tokens(data_dir, tmp_path):
    texts = load_text(data_dir / "wikitext2")
    tokenizer = WordTokenizer.train(texts.test, "whitespace")
    assert list(texts.parts) == ["train", "validation", "test"]
    assert len(tokenize(texts.test, tokenizer, tmp_path)) == 245_569
    assert sum(len(text.split()) + text.count("\n") for text in texts.test) == 245_569


def test_tiny_shakespeare_is_cut_as_nanogpt_does(data_dir):
    texts = load_text(data_dir / "shakespeare" / "input.txt", shares={"train": 0.9, "validation": 0.1, "test": 0})
    assert [sum(map(len, part)) for part in texts.parts.values()] == [1_003_854, 111_540]
