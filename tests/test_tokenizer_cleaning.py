"""Where the two cleanings of GPT-1's tokenizer differ: the kinds that are listed, and no others."""

from __future__ import annotations

import re

import pytest
from tokenizer_helpers import real_lines

from ms_gpt.tokenizer import Tokenizer
from ms_gpt.tokenizer.words import _EXCEPTIONS

_JOINED = "|".join(sorted(word for word, parts in _EXCEPTIONS.items() if word.isalpha() and len(parts) > 1))
_ABBREVIATIONS = "|".join(sorted(word[:-1] for word in _EXCEPTIONS if word[:-1].isalpha() and word[-1] == "."))
# What a word must hold to belong to a kind.
KINDS = {
    "beyond ASCII": r"[^\x00-\x7f]",
    "apostrophe": r"['`]",
    "joined contraction": rf"(?i)\b({_JOINED})\b",
    "abbreviation or stop before a word": rf"\b(?i:{_ABBREVIATIONS}|[a-z])\.|(?<!\w)\.\w",
    "signs in a row": r"[^\w\s]{2}|__",
    "sign within a word": r"\w[^\w\s]\w",
    "number with a unit": r"\d[A-Za-z]",
    "smiley": r"^[:;]\w",
}


@pytest.fixture(scope="module")
def both(data_dir) -> list[Tokenizer]:
    folder = data_dir / "tokenizers" / "gpt1"
    return [Tokenizer.from_pretrained(folder, cleaning=cleaning) for cleaning in ("hf", "original")]


def words_of(tokenizer: Tokenizer, text: str) -> str:
    tokens = map(tokenizer.id_to_token, tokenizer.encode(text))
    return "".join("<unk> " if token == "<unk>" else token.replace("</w>", " ") for token in tokens)[:-1]


@pytest.mark.parametrize(
    ("text", "hf", "original"),
    [
        ("naïve", "naive", "naïve"),
        ("“so”…", "<unk> so <unk> <unk>", '" so " ...'),
        ("didn't o'clock", "didn ' t o ' clock", "did n't o'clock"),
        ("cannot", "cannot", "can not"),
        ("Mr. U.S. .45", "mr . u . s . . 45", "mr. u.s. .45"),
        ("wait... --", "wait . . . - -", "wait ... --"),
        ("2:37 @.@", "2 : 37 @ . @", "2:37 @.@"),
        ("35mm", "35mm", "35 mm"),
        (":D", ": d", ":d"),
        ("cafÃ© &eacute;", "cafa© & eacute ;", "café é"),
        ("a\nb", "a b", "a \n b"),
    ],
)
def test_the_listed_differences_are_so(both, text, hf, original):
    assert [words_of(tokenizer, text) for tokenizer in both] == [hf, original]


def test_real_words_differ_in_the_listed_ways_only(data_dir, both):
    lines = real_lines(data_dir)
    words = sorted({word for line in lines for word in line.split()})
    hf, original = (tokenizer.encode_batch(words) for tokenizer in both)
    differing = {word for word, *ids in zip(words, hf, original, strict=True) if ids[0] != ids[1]}
    found = {word: {kind for kind, pattern in KINDS.items() if re.search(pattern, word)} for word in differing}
    assert [word for word, kinds in found.items() if not kinds] == []
    assert set.union(*found.values()) == set(KINDS)
    assert (len(lines), len(words)) == (10_000, 104_744)
    assert 10_000 < len(differing) < 12_000
    alike = [line for line in lines if differing.isdisjoint(line.split())]
    assert len(alike) > 2000
    assert both[0].encode_batch(alike) == both[1].encode_batch(alike)
