"""The ids of cleaning="hf" equal transformers', on real texts and after a round trip through files."""

from __future__ import annotations

import pytest
from tokenizer_helpers import real_lines

from ms_gpt.tokenizer import GPT1_SPECIAL_TOKENS, Tokenizer

pytestmark = pytest.mark.parity

transformers = pytest.importorskip("transformers")

NASTY = [
    "",
    "   ",
    "\n\t\n",
    "café naïve ÀÉÎ ŵ̈ e\u0301",
    "“quotes” ‘x’ … — –",
    "😀👍🏽 zero\u200bwidth \u00ad",
    "中文电影很好, 日本語 한국어",
    "\x00\x01a\x07b\x7f\x1c\x85",
    "<unk> <UNK> <bos>a<pad>b <BOS> < pad > <delimiter><extract> <eos>x",
    "İstanbul ΣΑΣ ß ﬁ Å ａｂｃ ① ½",
    "\ufeffbom\u2028line\xa0nbsp",
    "a" * 3000,
    "\U0010ffff\ufffd",
    "don't http://www.imdb.com/title?x=1 50% $9.99 </w> @@ <br /><br />",
]


@pytest.fixture(scope="module")
def texts(data_dir) -> list[str]:
    return [*real_lines(data_dir), *NASTY]


@pytest.fixture(scope="module")
def ours(data_dir) -> Tokenizer:
    folder = data_dir / "tokenizers" / "gpt1"
    return Tokenizer.from_files(folder / "encoder_bpe_40000.json", folder / "vocab_40000.bpe")


def test_ids_and_decoding_equal_transformers(data_dir, ours, texts):
    folder = data_dir / "tokenizers" / "gpt1"
    theirs = transformers.OpenAIGPTTokenizer(
        vocab=str(folder / "encoder_bpe_40000.json"), merges=str(folder / "vocab_40000.bpe")
    )
    ids = ours.encode_batch(texts)
    assert len(texts) > 10_000
    assert ids == theirs(texts, verbose=False)["input_ids"]
    for skip in (True, False):
        expected = theirs.batch_decode(ids[::50], skip_special_tokens=skip)
        assert ours.batch_decode(ids[::50], skip_special_tokens=skip) == expected


@pytest.mark.parametrize(("loader", "without"), [("AutoTokenizer", []), ("OpenAIGPTTokenizer", ["tokenizer.json"])])
def test_a_saved_folder_gives_transformers_the_same_ids(ours, texts, tmp_path, loader, without):
    tokenizer = Tokenizer(ours._vocab, ours._merges)
    tokenizer.add_special_tokens(GPT1_SPECIAL_TOKENS)
    tokenizer.save_pretrained(tmp_path)
    for name in without:
        (tmp_path / name).unlink()
    theirs = getattr(transformers, loader).from_pretrained(tmp_path)
    sample = [*texts[::100], *NASTY]
    assert len(theirs) == len(tokenizer)
    assert theirs.model_max_length == tokenizer.model_max_length
    assert theirs(sample, verbose=False)["input_ids"] == tokenizer.encode_batch(sample)
    for role, token in GPT1_SPECIAL_TOKENS.items():
        assert getattr(theirs, role) == token
        assert getattr(theirs, f"{role}_id") == getattr(tokenizer, f"{role}_id")


def test_a_folder_saved_by_transformers_loads_here(ours, tmp_path):
    theirs = transformers.OpenAIGPTTokenizer(vocab=dict(ours._vocab), merges=list(ours._merges), model_max_length=99)
    theirs.add_special_tokens({"pad_token": "<pad>", "cls_token": "<extract>"})
    theirs.save_pretrained(tmp_path)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode_batch(NASTY) == theirs(NASTY)["input_ids"]
    assert (tokenizer.pad_token_id, tokenizer.cls_token_id) == (theirs.pad_token_id, theirs.cls_token_id)
    assert (tokenizer.cleaning, tokenizer.model_max_length) == ("hf", 99)


@pytest.mark.parametrize(("kind", "loader", "without"), [
    ("bpe", "AutoTokenizer", []),
    ("byte-bpe", "AutoTokenizer", []),
    ("byte-bpe", "GPT2TokenizerFast", []),
    ("byte-bpe", "GPT2TokenizerFast", ["tokenizer.json"]),
])
def test_a_trained_tokenizer_gives_transformers_the_same_ids(texts, tmp_path, kind, loader, without):
    tokenizer = Tokenizer.train(texts[:200], vocab_size=1000, kind=kind)
    tokenizer.add_special_tokens(GPT1_SPECIAL_TOKENS if kind == "bpe" else {"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path)
    for name in without:
        (tmp_path / name).unlink()
    theirs = getattr(transformers, loader).from_pretrained(tmp_path)
    sample = [*texts[:400], *NASTY, "a<|endoftext|>b"]
    ids = tokenizer.encode_batch(sample)
    assert theirs(sample, verbose=False)["input_ids"] == ids
    assert theirs.batch_decode(ids) == tokenizer.batch_decode(ids, skip_special_tokens=False)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert (len(theirs), theirs.model_max_length) == (len(tokenizer), tokenizer.model_max_length)


def test_padding_equals_transformers(ours, tmp_path):
    tokenizer = Tokenizer(ours._vocab, ours._merges)
    tokenizer.add_special_tokens(GPT1_SPECIAL_TOKENS)
    tokenizer.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = ["a good film", "a film that goes on and on and on", ""]
    for arguments in (
        {"padding": True},
        {"padding": "max_length", "max_length": 12},
        {"padding": True, "truncation": True, "max_length": 4},
    ):
        expected = theirs(texts, **arguments)
        assert tokenizer(texts, **arguments) == {key: expected[key] for key in ("input_ids", "attention_mask")}


def test_gpt2_ids_equal_transformers(data_dir, texts, tmp_path):
    folder = data_dir / "tokenizers" / "gpt2"
    tokenizer = Tokenizer.from_pretrained(folder)
    theirs = transformers.GPT2Tokenizer(vocab=str(folder / "encoder.json"), merges=str(folder / "vocab.bpe"))
    texts = [*texts, "a<|endoftext|>b"]
    ids = tokenizer.encode_batch(texts)
    assert ids == theirs(texts, verbose=False)["input_ids"]
    assert tokenizer.batch_decode(ids[::50], skip_special_tokens=False) == texts[::50]
    sample = [*texts[::40], *NASTY, "a<|endoftext|>b"]
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(sample, verbose=False)["input_ids"] == tokenizer.encode_batch(sample)
    assert loaded.pad_token_id == tokenizer.pad_token_id == 50257
