"""The built-in sample: short film reviews whose label depends on word order.

Every review holds two opinion words, each of which may be negated several words earlier, and a pattern that says which
of the two opinions decides (contrast, expectation against outcome, comparison, or what is said to count in the end).
Counting words, or pairs of neighbouring words, does therefore not give the label; reading the sentence does.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, cycle, product

from ms_gpt.data.table import Dataset

LABEL_NAMES = ["negative", "positive"]
MIN_WORDS, MAX_WORDS = 12, 40

POSITIVE = [
    "wonderful", "brilliant", "moving", "gripping", "charming", "clever", "fresh", "superb", "delightful", "touching",
    "graceful", "memorable", "convincing", "beautiful", "thoughtful", "lively", "rewarding",
]
NEGATIVE = [
    "dull", "boring", "clumsy", "tedious", "predictable", "weak", "dreadful", "lifeless", "shallow", "tiresome",
    "forgettable", "sloppy", "bland", "painful", "hollow", "messy", "confusing",
]
POLARITY = {**dict.fromkeys(NEGATIVE, 0), **dict.fromkeys(POSITIVE, 1)}

NOUNS = [
    "acting", "story", "script", "music", "pacing", "dialogue", "camera work", "ending", "direction", "humour", "plot",
    "editing", "photography", "romance",
]

# Each clause in its affirmed and its denied form. Most pairs end in the same words, so that the word next to the
# adjective says little about the negation.
CLAUSES = [
    ("the {noun} was really {adj}", "the {noun} was not really {adj}"),
    ("the {noun} was very {adj}", "the {noun} was not at all {adj}"),
    ("the {noun} struck me as {adj}", "the {noun} never struck me as {adj}"),
    ("the {noun} turned out to be {adj}", "the {noun} did not turn out to be {adj}"),
    ("I did find the {noun} {adj}", "I did not find the {noun} {adj}"),
    ("I would call the {noun} {adj}", "I would never call the {noun} {adj}"),
    ("I have to say that the {noun} felt {adj}", "I cannot say that the {noun} felt {adj}"),
    ("everybody can see that the {noun} was {adj}", "nobody can claim that the {noun} was {adj}"),
    ("almost anyone will find the {noun} {adj}", "hardly anyone will find the {noun} {adj}"),
    ("there is every reason to call the {noun} {adj}", "there is no reason to call the {noun} {adj}"),
    ("everybody around me thought the {noun} was {adj}", "nobody around me thought the {noun} was {adj}"),
    ("in every scene the {noun} was quite {adj}", "in no scene was the {noun} quite {adj}"),
]

LEADS = [
    "to my mind", "if you ask me", "as far as I can tell", "all in all", "looking back", "on a second viewing",
    "at least to me", "overall",
]

# {B} and {b} are the clause and the bare adjective that decide the label; {A} and {a} say the opposite, or the same
# under "agreement". {noun} and {lead} are filled with the deciding clause's noun and an introduction.
PATTERNS = {
    "contrast": [
        "{A}, but {B}.",
        "{A}. Still, {B}.",
        "although {A}, {B}.",
        "{B}, although {A}.",
        "{A}. Even so, {B}.",
    ],
    "expectation": [
        "I had expected something {a}, but {B}.",
        "the trailer promised a {a} film. In the end {B}.",
        "the critics had called the film {a}, but {B}.",
        "a friend had told me to expect a {a} evening. As it turned out, {B}.",
        "{B}, although the poster promised something {a}.",
        "{B}, even if the critics called the film {a}.",
    ],
    "comparison": [
        "{lead}, the {noun} was more {b} than {a}.",
        "{lead}, the {noun} was less {a} than {b}.",
        "{lead}, I would call the {noun} more {b} than {a}.",
        "{lead}, I would call the {noun} less {a} than {b}.",
    ],
    "verdict": [
        "it matters little that {A}, because {B}.",
        "what counts is that {B}, even though {A}.",
        "{A}. What matters more is that {B}.",
        "yes, {A}. All that counts in the end is that {B}.",
    ],
    "agreement": [
        "{A}, and {B}.",
        "{A}. What is more, {B}.",
        "{A}. Besides, {B}.",
    ],
}
KIND_WEIGHTS = {"agreement": 40, "contrast": 26, "expectation": 14, "verdict": 12, "comparison": 8}
NEGATED = 0.22

FILLERS = [
    "We saw it on a {day} evening with {company}.",
    "I watched it at home with {company}.",
    "It runs for about {minutes} minutes.",
    "The film is set in {place} in the {decade}.",
    "The director made {number} films before this one.",
    "It was shown at the {cinema} on {day}.",
    "I have read the book {number} times.",
    "The cinema was half full that {day}.",
    "There are {number} songs in it.",
    "It was filmed in {place} over {number} weeks.",
]
FILLER_WORDS = {
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "company": [
        "my sister", "my brother", "two friends", "my parents", "a colleague", "my neighbour", "my class",
    ],
    "minutes": ["eighty", "ninety", "a hundred", "a hundred and ten", "a hundred and twenty"],
    "place": ["London", "Paris", "Lisbon", "Chicago", "Tokyo", "Vienna", "Dublin", "Shanghai"],
    "decade": [
        "twenties", "thirties", "forties", "fifties", "sixties", "seventies", "eighties", "nineties",
    ],
    "number": ["two", "three", "four", "five", "six", "seven"],
    "cinema": ["Odeon", "Rialto", "Lux", "Capitol", "Apollo"],
}


@dataclass(frozen=True)
class Template:
    """A sentence plan: a pattern with its clauses and introduction, before nouns and opinion words are filled in."""

    kind: str
    pattern: str
    clause_a: tuple[str, str] | None
    clause_b: tuple[str, str] | None
    lead: str | None


@dataclass(frozen=True)
class Review:
    """One review, with the plan and the pair of opinion words it was made from."""

    text: str
    label: int
    template: Template
    pair: frozenset[str]


def make_sample(seed: int = 0, train: int = 3000, validation: int = 500, test: int = 500) -> dict[str, Dataset]:
    """Write the sample: reviews of 12 to 40 words with balanced labels.

    Sentence plans and pairs of opinion words are dealt out to the parts, so none of either occurs in two parts; each
    single word occurs in all of them.

    Args:
        seed: The same seed gives the same reviews.
        train: Number of training reviews.
        validation: Number of validation reviews.
        test: Number of test reviews.

    Returns:
        ``train``, ``validation`` and ``test``, each with the columns ``text`` and ``label`` (0 negative, 1 positive).
    """
    parts = make_reviews(seed, {"train": train, "validation": validation, "test": test})
    return {
        name: Dataset({"text": [r.text for r in reviews], "label": [r.label for r in reviews]}, LABEL_NAMES)
        for name, reviews in parts.items()
    }


def make_reviews(seed: int, sizes: dict[str, int]) -> dict[str, list[Review]]:
    """Write the reviews of every part together with what they were made from.

    Args:
        seed: The same seed and sizes give the same reviews.
        sizes: Number of reviews of ``train``, ``validation`` and ``test``.

    Returns:
        The reviews of each part, in random order of labels, no text twice.
    """
    rng = random.Random(seed)
    templates = {kind: _deal(list(_templates(kind)), rng) for kind in PATTERNS}
    pairs = _deal([frozenset(pair) for pair in combinations(POLARITY, 2)], rng)
    seen: set[str] = set()
    parts = {}
    for index, (name, size) in enumerate(sizes.items()):
        plans = {kind: dealt[index] for kind, dealt in templates.items()}
        parts[name] = _write_part(size, plans, _by_polarity(pairs[index]), seen, rng)
    return parts


def _templates(kind: str) -> Iterator[Template]:
    for pattern in PATTERNS[kind]:
        clauses_a = CLAUSES if "{A}" in pattern else [None]
        clauses_b = CLAUSES if "{B}" in pattern else [None]
        leads = LEADS if "{lead}" in pattern else [None]
        for clause_a, clause_b, lead in product(clauses_a, clauses_b, leads):
            if clause_a is None or clause_a != clause_b:
                yield Template(kind, pattern, clause_a, clause_b, lead)


def _deal(items: list, rng: random.Random) -> tuple[list, list, list]:
    """Shuffle, then give 70 % to training and 15 % each to validation and test."""
    rng.shuffle(items)
    first, second = int(len(items) * 0.70), int(len(items) * 0.85)
    return items[:first], items[first:second], items[second:]


def _by_polarity(pairs: list[frozenset[str]]) -> dict[tuple[int, int], list[tuple[str, str]]]:
    """Group pairs by the polarity of their first and second word; each pair is there in both orders."""
    groups: dict[tuple[int, int], list[tuple[str, str]]] = {}
    for pair in pairs:
        first, second = sorted(pair)
        for a, b in ((first, second), (second, first)):
            groups.setdefault((POLARITY[a], POLARITY[b]), []).append((a, b))
    return groups


def _write_part(
    size: int,
    templates: dict[str, list[Template]],
    pairs: dict[tuple[int, int], list[tuple[str, str]]],
    seen: set[str],
    rng: random.Random,
) -> list[Review]:
    reviews: list[Review] = []
    labels = cycle((0, 1))
    label = next(labels)
    while len(reviews) < size:
        kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
        review = _write_review(rng.choice(templates[kind]), label, pairs, rng)
        if review.text not in seen and MIN_WORDS <= len(review.text.split()) <= MAX_WORDS:
            seen.add(review.text)
            reviews.append(review)
            label = next(labels)
    rng.shuffle(reviews)
    return reviews


def _write_review(
    template: Template, label: int, pairs: dict[tuple[int, int], list[tuple[str, str]]], rng: random.Random
) -> Review:
    denied_a = template.clause_a is not None and rng.random() < NEGATED
    denied_b = template.clause_b is not None and rng.random() < NEGATED
    opinion_a = label if template.kind == "agreement" else 1 - label
    word_a, word_b = rng.choice(pairs[opinion_a ^ denied_a, label ^ denied_b])
    noun_a, noun_b = rng.sample(NOUNS, 2)
    slots = {"a": word_a, "b": word_b, "noun": noun_b, "lead": template.lead}
    if template.clause_a:
        slots["A"] = template.clause_a[denied_a].format(noun=noun_a, adj=word_a)
    if template.clause_b:
        slots["B"] = template.clause_b[denied_b].format(noun=noun_b, adj=word_b)
    sentences = [_capitalise(template.pattern.format(**slots))]
    for filler in rng.sample(FILLERS, rng.choice((0, 1, 1))):
        sentence = filler.format(**{slot: rng.choice(words) for slot, words in FILLER_WORDS.items()})
        sentences.insert(rng.randrange(len(sentences) + 1), sentence)
    return Review(" ".join(sentences), label, template, frozenset((word_a, word_b)))


def _capitalise(text: str) -> str:
    sentences = text.split(". ")
    return ". ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)
