"""The built-in sample: balanced, disjoint, repeatable, and not to be solved by counting words."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from ms_gpt.data.sample import KIND_WEIGHTS, LABEL_NAMES, NEGATIVE, POLARITY, POSITIVE, make_reviews, make_sample

SIZES = {"train": 3000, "validation": 500, "test": 500}
DENIALS = {"not", "never", "cannot", "nobody", "hardly", "no"}


@pytest.fixture(scope="module")
def reviews():
    return make_reviews(0, SIZES)


@pytest.fixture(scope="module")
def sample():
    return make_sample(0)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_parts_have_their_sizes_and_balanced_labels(sample):
    assert {name: len(part) for name, part in sample.items()} == SIZES
    for part in sample.values():
        assert part.label_names == LABEL_NAMES == ["negative", "positive"]
        assert Counter(part["label"]) == {0: len(part) // 2, 1: len(part) // 2}


def test_reviews_have_12_to_40_words_and_no_open_slots(sample):
    for part in sample.values():
        for text in part["text"]:
            assert 12 <= len(text.split()) <= 40, text
            assert not re.search(r"[{}]|  |None", text), text
            assert re.fullmatch(r"[A-Z].*\.", text), text
            assert not re.search(r"[.] [a-z]", text), text


def test_no_text_occurs_twice(sample):
    texts = [text for part in sample.values() for text in part["text"]]
    assert len(set(texts)) == len(texts)


def test_templates_and_pairs_of_opinion_words_are_disjoint(reviews):
    for read in (lambda review: review.template, lambda review: review.pair):
        train, validation, test = ({read(review) for review in part} for part in reviews.values())
        assert not train & validation
        assert not train & test
        assert not validation & test


def test_each_review_holds_the_two_opinion_words_of_its_pair(reviews):
    for part in reviews.values():
        for review in part:
            assert {word for word in words(review.text) if word in POLARITY} == review.pair


def test_every_word_of_the_held_out_parts_occurs_in_training(reviews):
    known = {word for review in reviews["train"] for word in words(review.text)}
    for name in ("validation", "test"):
        assert {word for review in reviews[name] for word in words(review.text)} <= known


def test_every_kind_of_template_occurs_in_every_part(reviews):
    for part in reviews.values():
        assert {review.template.kind for review in part} == set(KIND_WEIGHTS)


@pytest.mark.parametrize(
    ("pattern", "deciding"),
    [
        ("{A}, but {B}.", r", but (.*?)\."),
        ("{A}. Still, {B}.", r"Still, (.*?)\."),
        ("although {A}, {B}.", r"Although .*?, (.*?)\."),
        ("{B}, although {A}.", r"([^.]*?), although "),
        ("I had expected something {a}, but {B}.", r", but (.*?)\."),
        ("{A}. What matters more is that {B}.", r"more is that (.*?)\."),
        ("what counts is that {B}, even though {A}.", r"counts is that (.*?), even though"),
    ],
)
def test_the_marked_clause_decides_the_label(reviews, pattern, deciding):
    found = [review for part in reviews.values() for review in part if review.template.pattern == pattern]
    assert len(found) > 40
    assert {review.label for review in found} == {0, 1}
    for review in found:
        # "In no scene was" carries a comma nowhere, so commas only stand between clauses.
        clause = words(re.search(deciding, review.text).group(1))
        (opinion,) = [word for word in clause if word in POLARITY]
        assert review.label == POLARITY[opinion] ^ bool(DENIALS & set(clause)), review.text


def test_comparisons_are_decided_by_more_and_less(reviews):
    found = [review for review in reviews["train"] if review.template.kind == "comparison"]
    for review in found:
        degree, first = re.search(r"(more|less) (\w+) than", review.text).groups()
        assert review.label == (first in POSITIVE if degree == "more" else first in NEGATIVE), review.text


def test_one_seed_gives_one_sample_whatever_the_hash_seed():
    code = (
        "import hashlib; from ms_gpt.data.sample import make_sample; s = make_sample(3, 200, 50, 50); "
        "import sys; sys.stdout.write(hashlib.sha256(repr([list(p) for p in s.values()]).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
    assert make_sample(3, 50, 10, 10)["train"]["text"] != make_sample(4, 50, 10, 10)["train"]["text"]


@pytest.mark.parametrize(("ngrams", "ceiling"), [((1, 1), 0.80), ((1, 2), 0.90)])
def test_counting_words_does_not_solve_it(sample, ngrams, ceiling):
    text = pytest.importorskip("sklearn.feature_extraction.text")
    from sklearn.linear_model import LogisticRegression

    vectorizer = text.TfidfVectorizer(ngram_range=ngrams)
    train = vectorizer.fit_transform(sample["train"]["text"])
    test = vectorizer.transform(sample["test"]["text"])
    accuracies = [
        LogisticRegression(C=strength, max_iter=2000)
        .fit(train, sample["train"]["label"])
        .score(test, sample["test"]["label"])
        for strength in (0.1, 1, 10, 100)
    ]
    # The best setting is picked on the test part, in favour of the baseline.
    assert max(accuracies) <= ceiling
