"""``ms-gpt tokenizer``: texts in, a tokenizer out that loads and is described; mistakes are one line."""

from __future__ import annotations

import json
from typing import get_args, get_type_hints

import pytest

from ms_gpt import cli
from ms_gpt.cli.tokenizer import TokenizerOptions
from ms_gpt.tokenizer import CLEANINGS, TOKENIZER_KINDS, WORD_MODES, Tokenizer

TEXT = "The film wasn't good.\n\nThe acting was; 中文电影 😀.\n" * 20


@pytest.fixture
def book(tmp_path):
    (tmp_path / "book.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "book.txt"


def told(capsys, *words):
    """Run the verb with --json and return what it tells."""
    assert cli.main(["tokenizer", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_choices_are_those_of_the_library():
    hints = get_type_hints(TokenizerOptions)
    assert [get_args(hints[name]) for name in ("kind", "cleaning", "word_mode")] == [
        TOKENIZER_KINDS, CLEANINGS, WORD_MODES]


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_train_show_and_decode(capsys, book, tmp_path, kind):
    numbers = [] if kind == "characters" else ["--vocab-size", 300, "--min-frequency", 3]
    made = told(capsys, "train", book, "--kind", kind, *numbers, "--output-dir", tmp_path / "t")
    tokenizer = Tokenizer.from_pretrained(tmp_path / "t")
    ids = tokenizer.encode(TEXT)
    assert made["output_dir"] == str(tmp_path / "t")
    assert made["vocab_size"] == len(tokenizer) <= 300
    assert (made["characters"], made["tokens"]) == (len(TEXT), len(ids))
    assert made["characters_per_token"] == len(TEXT) / len(ids)
    assert made["example"]["ids"] == tokenizer.encode("The film wasn't good.")
    shown = told(capsys, "show", tmp_path / "t", "The film", "good")
    assert shown["special_tokens"] == made["special_tokens"] == tokenizer.special_tokens
    assert [row["ids"] for row in shown["texts"]] == tokenizer.encode_batch(["The film", "good"])
    assert shown["texts"][0]["tokens"] == [tokenizer.id_to_token(i) for i in shown["texts"][0]["ids"]]
    assert told(capsys, "decode", tmp_path / "t", *ids[:9])["text"] == tokenizer.decode(ids[:9], False)


def test_what_is_printed_names_size_ratio_and_example(capsys, book, tmp_path):
    assert cli.main(["tokenizer", "train", str(book), "--output-dir", str(tmp_path / "t")]) == 0
    out = capsys.readouterr().out
    size = len(Tokenizer.from_pretrained(tmp_path / "t"))
    assert f"\n{size} tokens; " in out
    assert "characters a token" in out
    assert "is The | Ġfilm | Ġwasn" in out
    assert f"pretrain --data {book} --tokenizer {tmp_path / 't'}" in out
    assert cli.main(["tokenizer", "show", str(tmp_path / "t"), "film 中"]) == 0
    assert "' 中'" in capsys.readouterr().out


def test_several_sources_and_tables_are_read(capsys, book, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("aa", encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"words": "bb"}\n{"words": "cc"}\n', encoding="utf-8")
    made = told(capsys, "train", tmp_path / "folder", tmp_path / "rows.jsonl", "--text-column", "words", "--kind",
                "characters", "--output-dir", tmp_path / "t")
    assert (made["vocab_size"], made["characters"]) == (3, 6)


def test_of_data_in_parts_only_the_training_part_is_learnt(capsys, tmp_path):
    for part, text in (("train", "ab"), ("valid", "bc"), ("test", "cd")):
        (tmp_path / f"{part}.txt").write_text(text, encoding="utf-8")
    assert told(capsys, "train", tmp_path, "--kind", "characters", "--output-dir", tmp_path / "t")["vocab_size"] == 2


def test_the_modes_reach_the_tokenizer(capsys, book, tmp_path):
    told(capsys, "train", book, "--kind", "bpe", "--cleaning", "original", "--output-dir", tmp_path / "b")
    assert Tokenizer.from_pretrained(tmp_path / "b").cleaning == "original"
    told(capsys, "train", book, "--kind", "words", "--word-mode", "basic_english", "--output-dir", tmp_path / "w")
    assert Tokenizer.from_pretrained(tmp_path / "w").mode == "basic_english"


@pytest.mark.parametrize(("words", "message"), [
    (["trian", "x"], "ACTION='trian' is not one of train, show, decode. Did you mean 'train'?"),
    (["train"], "tokenizer train needs a text to learn from"),
    (["decode"], "tokenizer decode needs a tokenizer's folder"),
    (["train", "{book}", "--kind", "bytes"], "--kind='bytes' is not one of byte-bpe, bpe, words, characters"),
    (["train", "{book}", "--kind", "characters", "--vocab-size", "9"], "--vocab-size is for --kind byte-bpe or bpe or"),
    (["train", "{book}", "--cleaning", "hf"], "--cleaning is for --kind bpe, not for byte-bpe"),
    (["train", "{book}", "--vocab-size", "9"], "vocab_size=9 leaves no room for merges: give at least 258"),
    (["train", "{book}.none"], "book.txt.none"),
    (["train", "{folder}/empty.txt"], "the training texts hold no words"),
    (["train", "{folder}/latin1.txt"], "latin1.txt is not UTF-8 text"),
    (["train", "{book}", "--output-dir", "{folder}/kept"], "kept already holds a tokenizer (vocab.json)"),
    (["show", "{folder}"], "holds no tokenizer"),
    (["decode", "{folder}/good", "9999999999999"], "'9999999999999' is not an id of"),
    (["decode", "{folder}/good", "1.5"], "'1.5' is not an id of"),
])
def test_mistakes_are_one_line_and_lose_nothing(capsys, book, tmp_path, words, message):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin1.txt").write_bytes("café\n".encode("latin-1"))
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "vocab.json").write_text("{}")
    Tokenizer.train([TEXT], 300).save_pretrained(tmp_path / "good")
    words = [word.format(book=book, folder=tmp_path) for word in words]
    output = [] if "--output-dir" in words else ["--output-dir", str(tmp_path / "new")]
    assert cli.main(["tokenizer", *words, *output]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["vocab.json"]
