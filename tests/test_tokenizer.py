"""The tokenizer: files in and out, the two cleanings, training, padding, and what it says about bad input."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_gpt.errors import UserError
from ms_gpt.tokenizer import GPT1_SPECIAL_TOKENS, Tokenizer
from ms_gpt.tokenizer.cleaning import clean_original, standardize
from ms_gpt.tokenizer.training import MIN_VOCAB_SIZE
from ms_gpt.tokenizer.words import split_word

CORPUS = [
    "The film wasn't good, but the acting was wonderful!",
    "A wonderful film. I'd watch the film again, and again...",
    "Dull, dull, dull: the worst acting of the year?\nNot for me.",
    "Café scenes, naïve heroes; the acting is the film.",
] * 5
NASTY = ["", "   ", "\n\t\n", "naïve “quotes” — x…", "😀👍🏽 \u200b", "中文电影", "\x00a\x07\x7f"]
NASTY += ["<unk> <pad>x<eos>", "\ufeffa\u2028b\xa0c"]


@pytest.fixture(scope="module", params=["hf", "original"])
def trained(request) -> Tokenizer:
    return Tokenizer.train(CORPUS, vocab_size=400, cleaning=request.param)


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    tokenizer = Tokenizer.train(CORPUS, vocab_size=300)
    tokenizer.add_special_tokens(GPT1_SPECIAL_TOKENS)
    return tokenizer


@pytest.fixture
def folder(tmp_path, small):
    small.save_pretrained(tmp_path)
    return tmp_path


def test_original_cleaning_gives_the_reference_ids(data_dir):
    layout = data_dir / "checkpoints" / "gpt1_openai_layout"
    tokenizer = Tokenizer.from_pretrained(data_dir / "tokenizers" / "gpt1")
    lines = (layout / "text.txt").read_text(encoding="utf-8").splitlines()
    assert tokenizer.cleaning == "original"
    assert tokenizer.encode_batch(lines) == json.loads((layout / "indexed_text.json").read_text())


def test_openai_and_hugging_face_names_give_the_same_ids(data_dir, tmp_path):
    source = data_dir / "tokenizers" / "gpt1"
    (tmp_path / "vocab.json").write_bytes((source / "encoder_bpe_40000.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((source / "vocab_40000.bpe").read_bytes())
    from_names = Tokenizer.from_pretrained(tmp_path)
    from_files = Tokenizer.from_files(source / "encoder_bpe_40000.json", source / "vocab_40000.bpe")
    from_openai = Tokenizer.from_pretrained(source, cleaning="hf")
    assert from_names.cleaning == from_files.cleaning == "hf"
    assert len(from_names) == 40478
    assert from_names.encode_batch(NASTY) == from_files.encode_batch(NASTY) == from_openai.encode_batch(NASTY)


def test_gpt2_files_decode_to_the_text_itself(data_dir):
    tokenizer = Tokenizer.from_pretrained(data_dir / "tokenizers" / "gpt2")
    texts = [text for text in NASTY if "<" not in text] + ["Hello  World\n"]
    assert len(tokenizer) == 50257
    assert tokenizer.batch_decode(tokenizer.encode_batch(texts)) == texts
    assert tokenizer.encode("Hello<|endoftext|>")[-1] == tokenizer.eos_token_id == 50256


@pytest.mark.parametrize(
    ("word", "tokens"),
    [
        ("hasn't", "has n't"),
        ("I'll've", "I 'll 've"),
        ("Don't", "Do n't"),
        ("dont", "do nt"),
        ("can't.", "ca n't ."),
        ("ill", "ill"),
        ("Mr.", "Mr."),
        ("movie.", "movie ."),
        ("U.S.", "U.S."),
        ("USA.", "USA ."),
        ("end.The", "end . The"),
        ("'tis", "' tis"),
        ("'cause", "'cause"),
        ("dogs'", "dogs '"),
        ("Smith's.", "Smith 's ."),
        ("$5m", "$ 5 m"),
        ("10am", "10 am"),
        ("9/10%", "9/10 %"),
        ("wait...what", "wait ... what"),
        ("imdb.com", "imdb.com"),
        ("a:b", "a : b"),
        (":D", ":D"),
        ("@#", "@ #"),
        ("<br>", "< br >"),
        ("cannot", "can not"),
        ("''", "''"),
    ],
)
def test_words_are_split_as_spacy_does(word, tokens):
    assert split_word(word) == tokens.split()


@given(st.text(alphabet=st.characters(exclude_categories=["Z", "C"]), max_size=40))
@settings(max_examples=200, deadline=None)
def test_splitting_a_word_loses_nothing(word):
    tokens = split_word(word)
    assert "".join(tokens) == word
    assert all(tokens)


def test_a_long_run_of_signs_is_not_peeled_sign_by_sign():
    assert clean_original("'" * 3) == "' ''"
    assert clean_original("'" * 3000) == "'" * 3000


def test_standardize_follows_openai():
    assert standardize("“It’s”—good…\n\n  (really!!)\tno_way") == '" It\'s " - good... \n ( really !! ) no _ way'


def test_a_line_end_is_a_token_of_its_own(data_dir):
    tokenizer = Tokenizer.from_pretrained(data_dir / "tokenizers" / "gpt1")
    tokens = [tokenizer.id_to_token(token_id) for token_id in tokenizer.encode("go.\n \nAway")]
    assert tokens == ["go</w>", ".</w>", "\n</w>", "away</w>"]


def test_cleanings_differ_where_they_should(data_dir):
    hf = Tokenizer.from_pretrained(data_dir / "tokenizers" / "gpt1", cleaning="hf")
    original = Tokenizer.from_pretrained(data_dir / "tokenizers" / "gpt1", cleaning="original")
    assert hf.decode(hf.encode("Café wasn't “bad”"), skip_special_tokens=False) == "cafe wasn ' t <unk>bad <unk>"
    assert original.decode(original.encode("Café wasn't “bad”")) == "café was n't \" bad \""


def test_training_repeats(data_dir):
    with lzma.open(data_dir / "imdb" / "train.jsonl.xz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(60), strict=False)]
    first, second = (Tokenizer.train(iter(texts), vocab_size=2000) for _ in range(2))
    assert first._vocab == second._vocab
    assert first._merges == second._merges
    assert len(first) == 2000


def test_a_trained_vocabulary_has_the_form_of_gpt1(trained):
    tokens = [trained.id_to_token(token_id) for token_id in range(len(trained))]
    characters = [token for token in tokens if len(token) == 1]
    size = len(characters)
    assert tokens[: 2 * size + 1] == ["<unk>", *characters, *(character + "</w>" for character in characters)]
    assert tokens[2 * size + 1 :] == ["".join(pair) for pair in trained._merges]
    assert "film</w>" in tokens
    assert not any(character.isupper() for character in characters)


def test_any_ascii_is_known_after_training_on_anything():
    tokenizer = Tokenizer.train(["one short text"], vocab_size=MIN_VOCAB_SIZE)
    assert tokenizer.unk_token_id not in tokenizer.encode("Zebra 7? {#} x~")


def test_vocab_size_is_never_exceeded_by_a_large_alphabet():
    texts = ["".join(chr(0x4E00 + i) for i in range(500))] * 3
    assert len(Tokenizer.train(texts, vocab_size=400)) <= 400


def test_known_text_survives_encoding(trained):
    assert trained.decode(trained.encode("the  WONDERFUL film\t.")) == "the wonderful film ."


@pytest.mark.parametrize("kept", ["all", "tokenizer.json", "pair"])
def test_save_and_load_round_trip(trained, tmp_path, kept):
    trained = Tokenizer(trained._vocab, trained._merges, trained.cleaning, model_max_length=64, padding_side="left")
    trained.add_special_tokens(GPT1_SPECIAL_TOKENS)
    trained.save_pretrained(tmp_path)
    for name in {"all": [], "tokenizer.json": ["vocab.json", "merges.txt"], "pair": ["tokenizer.json"]}[kept]:
        (tmp_path / name).unlink()
    loaded = Tokenizer.from_pretrained(tmp_path)
    texts = [*CORPUS, *NASTY]
    assert loaded.encode_batch(texts) == trained.encode_batch(texts)
    assert loaded.special_tokens == trained.special_tokens
    assert (loaded.cleaning, loaded.model_max_length, loaded.padding_side) == (trained.cleaning, 64, "left")
    assert len(loaded) == loaded.vocab_size == len(trained)
    assert not list(tmp_path.glob("*.tmp*"))


def test_saving_twice_gives_the_same_bytes(small, tmp_path):
    small.save_pretrained(tmp_path / "a")
    Tokenizer.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_special_tokens_are_added_once_and_recognised(trained):
    tokenizer = Tokenizer(trained._vocab, trained._merges, trained.cleaning)
    base = len(tokenizer)
    assert tokenizer.pad_token_id is None
    assert tokenizer.add_special_tokens(GPT1_SPECIAL_TOKENS) == 5
    assert tokenizer.add_special_tokens(GPT1_SPECIAL_TOKENS) == 0
    ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id]
    assert [*ids, tokenizer.cls_token_id] == list(range(base, base + 5))
    encoded = tokenizer.encode("<bos>the film<extract>")
    assert (encoded[0], encoded[-1]) == (tokenizer.bos_token_id, tokenizer.cls_token_id)
    assert tokenizer.decode(encoded) == "the film"
    tokenizer.pad_token = "<eos>"
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_the_longest_special_token_wins(trained):
    tokenizer = Tokenizer(trained._vocab, trained._merges, trained.cleaning)
    tokenizer.add_special_tokens({"pad_token": "<a>", "cls_token": "<a>b"})
    assert tokenizer.encode("<a>b<a>") == [tokenizer.cls_token_id, tokenizer.pad_token_id]


def test_encode_adds_nothing_and_batches_agree(small):
    assert small.encode_batch(NASTY) == [small.encode(text) for text in NASTY]
    assert small.encode("") == []
    assert small.decode(np.array(small.encode("the film"))) == "the film"
    assert small.batch_decode(np.array([small.encode("the film")])) == ["the film"]


def test_padding_and_truncation(small):
    rows = small.encode_batch(["the film", "the film again"])
    short, long = len(rows[0]), len(rows[1])
    pad = small.pad_token_id
    batch = small(["the film", "the film again"], padding=True, return_tensors="np")
    assert batch["input_ids"].dtype == np.int32
    assert batch["input_ids"].tolist() == [rows[0] + [pad] * (long - short), rows[1]]
    assert batch["attention_mask"].tolist() == [[1] * short + [0] * (long - short), [1] * long]
    cut = small(["the film again"], truncation=True, max_length=2)
    assert cut["input_ids"] == [rows[1][:2]]
    assert small("the film again", truncation=True, max_length=2, truncation_side="left")["input_ids"] == rows[1][-2:]
    full = small("the film", padding="max_length", max_length=long + 3)
    assert full["attention_mask"] == [1] * short + [0] * (long + 3 - short)
    assert small([])["input_ids"] == []


def test_padding_on_the_left(folder):
    tokenizer = Tokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    batch = tokenizer(["the", "the film"], padding=True)
    assert batch["input_ids"][0][-1] == tokenizer.encode("the")[-1]
    assert batch["attention_mask"][0] == sorted(batch["attention_mask"][0])


def test_mindspore_tensors(small):
    mindspore = pytest.importorskip("mindspore")
    batch = small(["the film", "film"], padding=True, return_tensors="ms")
    assert batch["input_ids"].dtype == mindspore.int32
    assert small.decode(batch["input_ids"][0]) == "the film"


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, ms_gpt.tokenizer as t; t.GPT1_SPECIAL_TOKENS; "
        "sys.exit(bool({'tokenizers', 'numpy', 'mindspore', 'ftfy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"tokenizer.json": None, "merges.txt": None}, r"merges\.txt is missing: vocab\.json is of no use without it"),
        ({"tokenizer.json": None, "vocab.json": None}, r"vocab\.json is missing"),
        ({"tokenizer.json": "{"}, r"tokenizer\.json is not JSON: .* at line 1 column 2"),
        ({"tokenizer.json": "[]"}, r"tokenizer\.json holds a JSON list: expected an object"),
        ({"tokenizer.json": "{}"}, r"tokenizer\.json holds no BPE model"),
        ({"tokenizer.json": None, "vocab.json": "nonsense"}, r"vocab\.json is not JSON"),
        ({"tokenizer.json": None, "vocab.json": "{}"}, r"vocab\.json holds no tokens"),
        ({"tokenizer.json": None, "vocab.json": '{"a": "x"}'}, r"vocab\.json gives 'a' the id 'x'"),
        ({"tokenizer.json": None, "vocab.json": '{"a": 1, "b": 1}'}, r"the id 1 to both 'a' and 'b'"),
        ({"tokenizer.json": None, "vocab.json": b"\xff\xfe{"}, r"vocab\.json is not UTF-8 text"),
        ({"tokenizer.json": None, "merges.txt": "#version: 0.2\n\nf zz\n"}, r"merges\.txt line 3 is 'f zz' but 'zz'"),
        ({"tokenizer.json": None, "merges.txt": "t h e\n"}, r"merges\.txt line 1 is 't h e': a merge is two tokens"),
        (
            {"tokenizer.json": None, "merges.txt": "", "vocab.json": '{"a": 0}', "tokenizer_config.json": None},
            r"vocabulary of 1 tokens lacks '<unk>'",
        ),
        ({"tokenizer_config.json": '{"cleaning": "orginal"}'}, r"'orginal' is not known.*Did you mean 'original'"),
        ({"tokenizer_config.json": '{"added_tokens_decoder": {"999": {"content": "<x>"}}}'}, r"'<x>' the id 999, but"),
        ({"tokenizer_config.json": '{"added_tokens_decoder": {"9": 3}}'}, r"lists the added token 3 with the id '9'"),
    ],
)
def test_a_damaged_folder_is_named_in_one_line(folder, damage, message):
    for name, content in damage.items():
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        Tokenizer.from_pretrained(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value) or "cleaning" in str(error.value) or "vocabulary of" in str(error.value)


def test_other_pipelines_are_refused(folder):
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    data["pre_tokenizer"] = {"type": "Whitespace"}
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UserError, match="cleans and splits with BertNormalizer and Whitespace"):
        Tokenizer.from_pretrained(folder)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="openai-gpt is not there: give a folder with tokenizer.json"):
        Tokenizer.from_pretrained(tmp_path / "openai-gpt")
    with pytest.raises(UserError, match="holds no tokenizer: expected tokenizer.json, or vocab.json and merges.txt"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"v\.json is missing"):
        Tokenizer.from_files(tmp_path / "v.json", tmp_path / "m.txt")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.encode_batch("text"), "texts is 'text', a str: pass a list of texts"),
        (lambda t: t.encode_batch(["a", None]), r"texts\[1\] is None, a NoneType"),
        (lambda t: t.encode("\ud800"), "half of a surrogate pair"),
        (lambda t: t(["a"], padding="longst"), "padding='longst' is not known.*Did you mean 'longest'"),
        (lambda t: t(["a"], truncation=True, max_length=0), "max_length=0 is not a length"),
        (lambda t: t(["a"], truncation=True, truncation_side="up"), "truncation_side='up' is not known"),
        (lambda t: t(["a"], return_tensors="pt"), "return_tensors='pt' is not known"),
        (lambda t: t(["a", "a b"], return_tensors="np"), "rows of 1 to 2 tokens make no tensor: pass padding=True"),
        (lambda t: t.add_special_tokens({"pad_tok": "<p>"}), "role 'pad_tok' .*Did you mean 'pad_token'"),
        (lambda t: t.add_special_tokens({"pad_token": ""}), "pad_token='' is not a token"),
        (lambda t: Tokenizer(t._vocab, t._merges)(["a"], padding=True), "padding needs a pad token and none is set"),
        (lambda t: Tokenizer.train(CORPUS, vocab_size=10), f"vocab_size=10 leaves .* at least {MIN_VOCAB_SIZE}"),
        (lambda t: Tokenizer.train(CORPUS, min_frequency=0), "min_frequency=0 is not a count"),
        (lambda t: Tokenizer.train(["", " "]), "the training texts hold no words"),
        (lambda t: Tokenizer.train(CORPUS, cleaning="spacy"), "cleaning='spacy' is not known"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(small, call, message):
    with pytest.raises(UserError, match=message) as error:
        call(small)
    assert "\n" not in str(error.value)
