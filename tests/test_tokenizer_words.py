"""Characters and words as tokens: round trips, unknowns, WikiText's vocabulary, files, and bad input."""

from __future__ import annotations

import json
import lzma

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_gpt.errors import UserError
from ms_gpt.tokenizer import GPT1_SPECIAL_TOKENS, CharacterTokenizer, Tokenizer, WordTokenizer
from ms_gpt.tokenizer.vocabulary import VocabularyTokenizer

END = "<|endoftext|>"
TEXT = "Say \"it's good\", said Ann; good (very good)!\nAnn: a\u0301 <br />中文, 電影 😀👍🏽.\r\n"
NASTY = ["", "   ", "\n\t\n", "naïve “quotes” — x…", "😀👍🏽 \u200b", "中文电影", "\x00a\x07\x7f"]
NASTY += ["Ann <unk>Ann<eos>\n"]
ANY_CHARACTER = st.characters(exclude_categories=["Cs"])
ANY_TEXT = st.text(ANY_CHARACTER | st.sampled_from("ab.'\n\n \t\r\x0b\x1c\x1f\x85\xa0\u2028\u3000\u200b"), max_size=60)
PLAIN_TEXT = ANY_TEXT.filter(lambda text: not any(token in text for token in (END, "<unk>", "<eos>")))


def build(kind: str) -> VocabularyTokenizer:
    if kind == "characters":
        return CharacterTokenizer.train([TEXT], special_tokens={"eos_token": END, "unk_token": "<unk>"})
    return WordTokenizer.train([TEXT], mode=kind)


@pytest.fixture(params=["characters", "basic_english", "whitespace"])
def tokenizer(request) -> VocabularyTokenizer:
    return build(request.param)


@given(ANY_TEXT.filter(bool))
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_from_its_characters(text):
    tokenizer = CharacterTokenizer.train([text])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids == [sorted(set(text)).index(character) for character in text]
    assert len(tokenizer) == len(set(text))


@given(st.lists(PLAIN_TEXT, min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_documents_joined_with_an_end_token_come_back(texts):
    tokenizer = CharacterTokenizer.train(["a", *texts], special_tokens={"eos_token": END})
    joined = END.join(texts)
    ids = tokenizer.encode(joined)
    assert ids.count(tokenizer.eos_token_id) == len(texts) - 1
    assert tokenizer.decode(ids, skip_special_tokens=False) == joined
    assert tokenizer.decode(ids) == "".join(texts)


@given(PLAIN_TEXT)
@settings(max_examples=300, deadline=None)
def test_whitespace_words_are_those_of_the_official_reader(text):
    words = [word for line in text.split("\n") for word in [*line.split(), "<eos>"]][:-1]
    tokenizer = WordTokenizer.train(["x", text], mode="whitespace")
    assert [tokenizer.id_to_token(token_id) for token_id in tokenizer.encode(text)] == words
    lines = "\n".join(" ".join(line.split()) for line in text.split("\n"))
    assert tokenizer.decode(tokenizer.encode(text)) == lines
    assert tokenizer.encode(lines) == tokenizer.encode(text)


@given(PLAIN_TEXT)
@settings(max_examples=200, deadline=None)
def test_known_basic_english_survives_its_own_decoding(text):
    tokenizer = WordTokenizer.train(["x", text])
    ids = tokenizer.encode(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_wikitext_vocabulary_and_targets_are_the_official_ones(data_dir):
    with lzma.open(data_dir / "wikitext2" / "train.txt.xz", "rt", encoding="utf-8", newline="") as lines:
        tokenizer = WordTokenizer.train(lines, mode="whitespace")
    assert len(tokenizer) == 33278
    assert (tokenizer.unk_token_id, tokenizer.eos_token_id) == (0, 1)
    test = (data_dir / "wikitext2" / "test.txt").read_bytes().decode("utf-8")
    ids = tokenizer.encode(test)
    assert len(ids) == 245569
    assert ids.count(tokenizer.unk_token_id) == test.split().count("<unk>")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's GOOD.", "it ' s good ."),
        ('"Well," (she said)!', "well , ( she said ) !"),
        ("one;two:three", "one two three"),
        ("a<br />b <BR /> c", "a b c"),
        ("What?! 3.5 x-ray", "what ? ! 3 . 5 x-ray"),
        ("中文，電影\u3000好", "中文，電影 好"),
    ],
)
def test_basic_english_is_split_as_torchtext_does(text, words):
    tokenizer = WordTokenizer.train([text])
    assert [tokenizer.id_to_token(token_id) for token_id in tokenizer.encode(text)] == words.split()
    assert tokenizer.decode(tokenizer.encode(text)) == words


def test_words_are_ordered_by_frequency_and_cut():
    def tokens(**settings) -> list[str]:
        return WordTokenizer.train(["b b b a a c c d"], **settings)._tokens

    assert tokens() == ["<unk>", "b", "a", "c", "d"]
    assert tokens(min_frequency=2) == ["<unk>", "b", "a", "c"]
    assert tokens(vocab_size=3) == ["<unk>", "b", "a"]
    assert tokens(vocab_size=5, mode="whitespace") == ["<unk>", "<eos>", "b", "a", "c"]
    assert tokens(special_tokens={"pad_token": "<pad>", "eos_token": "c"}) == ["<unk>", "<pad>", "c", "b", "a", "d"]


def test_an_unknown_word_is_unk():
    tokenizer = WordTokenizer.train(["a b"], mode="whitespace")
    assert tokenizer.encode("a z\n") == [tokenizer.token_to_id("a"), tokenizer.unk_token_id, tokenizer.eos_token_id]
    assert tokenizer.decode(tokenizer.encode("a z b\n"), skip_special_tokens=False) == "a <unk> b <eos>"
    assert tokenizer.encode("A") == [tokenizer.unk_token_id]


def test_an_unknown_character_is_unk_once_there_is_one():
    tokenizer = CharacterTokenizer.train(["ab"], special_tokens={"eos_token": END})
    with pytest.raises(UserError, match=r"texts\[1\] holds '😀' \(U\+1F600\), which is not among the 3"):
        tokenizer.encode_batch(["ab", f"{END}a😀"])
    tokenizer.unk_token = "<unk>"
    assert tokenizer.encode("a😀b") == [0, tokenizer.unk_token_id, 1] == [0, 3, 1]
    assert tokenizer.decode(tokenizer.encode("a😀b"), skip_special_tokens=False) == "a<unk>b"


@given(st.text("ab<>x\n中", max_size=30), st.booleans())
@settings(max_examples=300, deadline=None)
def test_characters_are_looked_up_as_the_library_does(text, unknown):
    specials = {"eos_token": "<a>", "pad_token": "<a>b", "sep_token": "b", "bos_token": ">x\n"}
    specials |= {"unk_token": "?"} if unknown else {}
    tokenizer = CharacterTokenizer("abx<>" if unknown else "abx<>\n中", specials)
    assert tokenizer.encode(text) == tokenizer._backend.encode(text).ids


def test_a_new_end_token_takes_over_the_line_ends():
    tokenizer = WordTokenizer.train(["a b"], mode="whitespace")
    tokenizer.eos_token = "</s>"
    assert tokenizer.encode("a\n")[-1] == tokenizer.eos_token_id == len(tokenizer) - 1


def test_save_and_load_round_trip(tokenizer, tmp_path):
    tokenizer.model_max_length, tokenizer.padding_side = 64, "left"
    tokenizer.add_special_tokens(GPT1_SPECIAL_TOKENS)
    tokenizer.save_pretrained(tmp_path / "a")
    loaded = Tokenizer.from_pretrained(tmp_path / "a")
    assert type(loaded) is type(tokenizer)
    assert loaded._tokens == tokenizer._tokens
    assert loaded.special_tokens == tokenizer.special_tokens
    assert (loaded.model_max_length, loaded.padding_side) == (64, "left")
    assert loaded.encode_batch([TEXT, *NASTY]) == tokenizer.encode_batch([TEXT, *NASTY])
    loaded.save_pretrained(tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


@given(ANY_TEXT.filter(bool))
@settings(max_examples=40, deadline=None)
def test_any_characters_survive_the_files(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("characters")
    tokenizer = CharacterTokenizer.train([text])
    tokenizer.save_pretrained(folder)
    assert CharacterTokenizer.from_pretrained(folder)._tokens == tokenizer._tokens


def test_tokenizer_json_alone_is_enough(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert loaded.encode_batch([TEXT, *NASTY]) == tokenizer.encode_batch([TEXT, *NASTY])
    assert loaded.unk_token == "<unk>"


def test_transformers_gives_the_same_ids(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [TEXT, *NASTY]:
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    assert (len(theirs), theirs.unk_token) == (len(tokenizer), "<unk>")


def test_padding_and_truncation_are_those_of_the_protocol(tokenizer):
    tokenizer.pad_token = "<pad>"
    short, long = tokenizer.encode_batch(["good", "good Ann good Ann"])
    batch = tokenizer(["good", "good Ann good Ann"], padding=True, return_tensors="np")
    assert batch["input_ids"].tolist() == [short + [tokenizer.pad_token_id] * (len(long) - len(short)), long]
    assert batch["attention_mask"].sum() == len(short) + len(long)
    cut = tokenizer("good Ann good Ann", truncation=True, max_length=2, truncation_side="left")
    assert cut["input_ids"] == long[-2:]
    assert tokenizer.batch_decode(batch["input_ids"]) == ["good", tokenizer.decode(long)]


def test_ids_outside_the_vocabulary_are_left_out(tokenizer):
    good = tokenizer.encode("good")
    assert tokenizer.decode(np.array([-1, *good, 10**6])) == "good"
    assert tokenizer.id_to_token(10**6) is None
    assert tokenizer.id_to_token(-1) is None
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "WordLevel", "vocab": {}, "unk_token": ""}}, "holds no tokens"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 2}, "unk_token": ""}}, "2 tokens without the id 1"),
        ({"model": {"type": "WordLevel", "vocab": {"\ud800": 0}, "unk_token": []}}, "half of a surrogate pair"),
        ({"model": {"type": "Unigram", "vocab": []}}, "holds no WordLevel model: only the characters and words"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "split in a way that is not known here"),
        ({"added_tokens": [3]}, "lists the added token 3"),
        ({"added_tokens": [{"id": 999, "content": "<x>"}]}, "'<x>' the id 999, but after its vocabulary of"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tokenizer, tmp_path, change, message):
    tokenizer.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8")) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        type(tokenizer).from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_of_another_kind_is_refused(tmp_path):
    build("characters").save_pretrained(tmp_path / "c")
    build("whitespace").save_pretrained(tmp_path / "w")
    with pytest.raises(UserError, match=r"holds a CharacterTokenizer: use CharacterTokenizer\.from_pretrained"):
        WordTokenizer.from_pretrained(tmp_path / "c")
    with pytest.raises(UserError, match=r"holds a WordTokenizer: use WordTokenizer\.from_pretrained"):
        CharacterTokenizer.from_pretrained(tmp_path / "w")
    Tokenizer.train(["a b c"], vocab_size=300).save_pretrained(tmp_path / "b")
    with pytest.raises(UserError, match="holds no WordLevel model"):
        WordTokenizer.from_pretrained(tmp_path / "b")
    with pytest.raises(UserError, match="cleaning='hf' is GPT-1's: folder .* holds no byte pair encoding"):
        Tokenizer.from_pretrained(tmp_path / "c", cleaning="hf")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CharacterTokenizer.train([]), "the training texts hold no characters"),
        (lambda: CharacterTokenizer.train("text"), "texts is 'text', a str: pass a list of texts"),
        (lambda: CharacterTokenizer.train(["a", None]), r"texts\[1\] is None, a NoneType"),
        (lambda: CharacterTokenizer.train(["a\ud800"]), "half of a surrogate pair"),
        (lambda: CharacterTokenizer("aba"), "vocab holds 'a' twice, as 0 and 2"),
        (lambda: CharacterTokenizer(["a", 3]), r"vocab\[1\] is 3: a token is a non-empty text"),
        (lambda: CharacterTokenizer("a").encode("\n"), r"holds '\\n' \(U\+000A\), which is not"),
        (lambda: CharacterTokenizer("a")(["a"], padding=True), "padding needs a pad token"),
        (lambda: WordTokenizer.train(["", " \n"]), "no word that occurs 1 times"),
        (lambda: WordTokenizer.train(["a b"], min_frequency=2), "no word that occurs 2 times"),
        (lambda: WordTokenizer.train(["a b"], min_frequency=0), "min_frequency=0 is not a count"),
        (lambda: WordTokenizer.train(["a b"], vocab_size=1), "vocab_size=1 leaves no room .* at least 2"),
        (lambda: WordTokenizer.train(["a b"], mode="whitespaces"), "'whitespaces' is not known.*Did you mean 'whites"),
        (lambda: WordTokenizer.train("text"), "texts is 'text', a str"),
        (lambda: WordTokenizer.train(iter(["a", 3])), r"texts\[1\] is 3, a int"),
        (lambda: WordTokenizer(["a"], "whitespace", {"eos_token": "a b"}), "eos_token='a b' holds white space"),
        (lambda: WordTokenizer(["a"], special_tokens={"pad_tok": "p"}), "role 'pad_tok' .*Did you mean 'pad_token'"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
