"""Tokenizers learnt on texts: GPT-2's byte BPE, exact round trips, streams, the same files each time, all kinds."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from ms_gpt.errors import UserError
from ms_gpt.tokenizer import (
    TOKENIZER_KINDS,
    CharacterTokenizer,
    Tokenizer,
    WordTokenizer,
    train_tokenizer,
)
from ms_gpt.tokenizer.backend import END_OF_TEXT, word_splitter
from ms_gpt.tokenizer.cleaning import clean_original
from ms_gpt.tokenizer.training import _SEAM, MIN_BYTE_VOCAB_SIZE

ROOT = Path(__file__).resolve().parents[1]
CORPUS = [
    "The film wasn't good, but the acting was wonderful!\n\n  The end.\r\n",
    "中文电影很好看，电影很好。😀👍🏽 a\u0301 e\u0301",
    "\n\n\tif film:\n        return film  \n",
] * 5
HARD = ["", " ", "\n \n\n", "é", "e\u0301", "\u0301\u0300 x", "\x00\x07\x7f\x85", "👩\u200d👩\u200d👧🏽", "中文電影"]
HARD += ["\ufeff\u2028\u202e", "\U0010ffff\ufffd\ue000", "ÀẞİǅΣ", END_OF_TEXT, f"a{END_OF_TEXT}\n"]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("ab 中😀\u0301\n\x00\u200d"), max_size=60)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("byte")
    Tokenizer.train(CORPUS, vocab_size=320, kind="byte-bpe").save_pretrained(folder)
    return Tokenizer.from_pretrained(folder)


@given(ANY_TEXT)
@settings(max_examples=500, deadline=None)
def test_any_text_comes_back_from_bytes(trained, text):
    assert trained.decode(trained.encode(text), skip_special_tokens=False) == text


@pytest.mark.parametrize("text", [*CORPUS[:3], *HARD])
def test_hard_texts_come_back(trained, text):
    assert trained.decode(trained.encode(text), skip_special_tokens=False) == text
    if text:
        characters = CharacterTokenizer.train([text])
        assert characters.decode(characters.encode(text)) == text


def test_the_layout_is_that_of_gpt2(data_dir, trained):
    published = Tokenizer.from_pretrained(data_dir / "tokenizers" / "gpt2")
    assert [trained.id_to_token(i) for i in range(256)] == [published.id_to_token(i) for i in range(256)]
    merged = ["".join(pair) for pair in trained._merges]
    assert [trained.id_to_token(i) for i in range(256, len(trained))] == [*merged, END_OF_TEXT]
    assert (len(trained), trained.model_max_length, trained.byte_level) == (320, 1024, True)
    ids = [trained.unk_token_id, trained.bos_token_id, trained.eos_token_id]
    assert ids == [319] * 3 == trained.encode(END_OF_TEXT) * 3
    assert "Ġfilm" in merged


def test_frequent_text_takes_fewer_tokens(trained):
    assert len(trained.encode(" film")) == 1
    assert len(trained.encode("电影")) < 6


@given(st.text("ab1!'s  \n\n\t\r\x0b\x1c\x85\xa0\u2028中\u0301", max_size=30))
@settings(max_examples=500, deadline=None)
def test_a_cut_leaves_the_words_as_they_are(text):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    forms = [(None, byte_level, text), (*word_splitter("hf"), text), (*word_splitter("original"), clean_original(text))]
    for normalizer, splitter, whole in forms:
        pieces = _SEAM.split(whole)
        assert "".join(pieces) == whole
        # The splitters do not take empty texts.
        split = [normalizer.normalize_str(piece) if normalizer else piece for piece in [*pieces, whole]]
        words = [[word for word, _ in splitter.pre_tokenize_str(piece)] if piece else [] for piece in split]
        assert sum(words[:-1], []) == words[-1]


def test_an_end_token_parts_documents():
    joined = Tokenizer.train([END_OF_TEXT.join(["good film", "endoftext"])] * 9, vocab_size=300, kind="byte-bpe")
    apart = Tokenizer.train(["good film", "endoftext"] * 9, vocab_size=300, kind="byte-bpe")
    assert joined._vocab == apart._vocab


def test_rare_pairs_are_left_alone():
    texts = ["ab"] * 3 + ["cd"] * 2
    assert Tokenizer.train(texts, min_frequency=3, kind="byte-bpe")._merges == [("a", "b")]
    assert Tokenizer.train(texts, min_frequency=2, kind="byte-bpe")._merges == [("a", "b"), ("c", "d")]
    assert len(Tokenizer.train(["x"], kind="byte-bpe")) == 257


class Stream:
    """Texts that are made anew in each pass, as those of a file; counts how many are alive at once."""

    def __init__(self) -> None:
        self.passes = self.alive = self.most_alive = 0

    def __iter__(self):
        class Text(str):
            """A text that can be referred to weakly."""

        self.passes += 1
        for number in range(300):
            text = Text(f"{CORPUS[number % 3]} {number}")
            self.alive += 1
            self.most_alive = max(self.most_alive, self.alive)
            weakref.finalize(text, self._gone)
            yield text

    def _gone(self) -> None:
        self.alive -= 1


@pytest.mark.parametrize(("kind", "passes"), [("byte-bpe", 1), ("bpe", 2), ("words", 1), ("characters", 1)])
def test_texts_are_streamed(tmp_path, kind, passes):
    stream = Stream()
    streamed = train_tokenizer(stream, kind)
    assert (stream.passes, stream.most_alive < 10) == (passes, True)
    for name, texts in (("list", list(Stream())), ("iterator", iter(Stream()))):
        train_tokenizer(texts, kind).save_pretrained(tmp_path / name)
    streamed.save_pretrained(tmp_path / "stream")
    for file in (tmp_path / "stream").iterdir():
        assert file.read_bytes() == (tmp_path / "list" / file.name).read_bytes()
        assert file.read_bytes() == (tmp_path / "iterator" / file.name).read_bytes()


def test_two_processes_leave_the_same_files(tmp_path):
    code = ("import sys; from ms_gpt.data import make_sample; from ms_gpt.tokenizer import *;"
            "texts = make_sample(0)['train']['text'][:300] + ['中文电影 😀']*9;"
            "[train_tokenizer(texts, kind, min_frequency=2).save_pretrained(f'{sys.argv[1]}/{kind}')"
            " for kind in TOKENIZER_KINDS]")
    for seed in ("1", "2"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / seed)], check=True, cwd=ROOT,
                       env={**os.environ, "PYTHONHASHSEED": seed})
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.*"))
    assert len(files) == 2 * 5 + 2 * 3
    assert all((tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes() for file in files)


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_every_kind_is_ready_for_language_modelling(tmp_path, kind):
    tokenizer = train_tokenizer(CORPUS, kind, vocab_size=400)
    tokenizer.save_pretrained(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.encode_batch(CORPUS) == tokenizer.encode_batch(CORPUS)
    ends = {"byte-bpe": END_OF_TEXT, "bpe": END_OF_TEXT, "words": "<eos>", "characters": None}
    assert loaded.eos_token == ends[kind]
    assert isinstance(loaded, {"words": WordTokenizer, "characters": CharacterTokenizer}.get(kind, Tokenizer))


def test_word_modes_keep_case_or_lower_it():
    kept = train_tokenizer(["The film , the end"], "words")
    lowered = train_tokenizer(["The film , the end"], "words", word_mode="basic_english")
    assert kept.decode(kept.encode("The end the end")) == "The end the end"
    assert {"The", "the"} <= set(kept._tokens)
    assert "The" not in lowered._tokens
    assert lowered.encode("THE Film") == lowered.encode("the film")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Tokenizer.train(CORPUS, 200, kind="byte-bpe"), f"vocab_size=200 leaves .* {MIN_BYTE_VOCAB_SIZE}"),
        (lambda: Tokenizer.train(CORPUS, min_frequency=0, kind="byte-bpe"), "min_frequency=0 is not a count"),
        (lambda: Tokenizer.train(CORPUS, kind="byte"), "kind='byte' is not known: use 'bpe' or 'byte-bpe'"),
        (lambda: Tokenizer.train(CORPUS, cleaning="original", kind="byte-bpe"), "cleaning='original' is GPT-1's"),
        (lambda: Tokenizer.train([], kind="byte-bpe"), "the training texts hold no words"),
        (lambda: Tokenizer.train(iter(["", " \n"]), kind="byte-bpe"), "the training texts hold no words"),
        (lambda: Tokenizer.train("text", kind="byte-bpe"), "texts is 'text', a str: pass a list of texts"),
        (lambda: Tokenizer.train(["a", None], kind="byte-bpe"), r"texts\[1\] is None, a NoneType"),
        (lambda: Tokenizer.train(iter(["a\ud800"]), kind="byte-bpe"), "half of a surrogate pair"),
        (lambda: train_tokenizer(CORPUS, "character"), "kind='character' is not a kind.*Did you mean 'characters'"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
