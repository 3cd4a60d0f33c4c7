"""Zero-shot classification, and what evaluate says of a language model."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from model_helpers import random_model, run, set_mode

from ms_gpt import GPTConfig, GPTForSequenceClassification, GPTLMHeadModel
from ms_gpt.cli import main
from ms_gpt.data.sample import LABEL_NAMES
from ms_gpt.errors import UserError
from ms_gpt.tokenizer import CharacterTokenizer, Tokenizer, WordTokenizer
from ms_gpt.training.metrics import log_softmax
from ms_gpt.training.perplexity import count_words, score_language_model
from ms_gpt.training.zero_shot import TASKS, ContinuationScorer, find_task

TEXTS = ["the film was long and the rain fell", "a fine film", "it was grim , and it was long", "rain",
         "a film of many people who spoke of rain and of many more people who spoke of the film"]
POSITIONS = 24
ENDINGS = [" very negative", " very positive"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([*TEXTS, "very positive and very negative"], vocab_size=165, min_frequency=1)


def config_for(tokenizer, **changes) -> GPTConfig:
    return GPTConfig(len(tokenizer), POSITIONS, n_embd=12, n_layer=1, n_head=2, **changes)


@pytest.fixture(scope="module")
def model(tokenizer):
    set_mode("graph")
    return random_model(GPTLMHeadModel, config_for(tokenizer), seed=1)


@pytest.fixture(scope="module")
def scorer(model, tokenizer):
    return ContinuationScorer(model, tokenizer, ENDINGS, batch_size=4)


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("language-model")
    model.save_pretrained(folder, tokenizer)
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "labelled.csv"
    labels = ["positive", "positive", "negative", "negative", "positive"]
    path.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in zip(TEXTS, labels, strict=True)))
    return path


def longest_ending(tokenizer) -> int:
    return max(len(tokenizer.encode(ending)) for ending in ENDINGS)


def reference(model, tokenizer, text: str, ending: str) -> float:
    """The log-probability of an ending from the logits of the whole row, one row at a time."""
    last = tokenizer.encode(ending)
    # All endings follow the same context, so the longest says how much of it there is room for.
    first = tokenizer.encode(text)[-(POSITIONS + 1 - longest_ending(tokenizer)):]
    row = np.zeros((1, POSITIONS), np.int32)
    row[0, : len(first) + len(last) - 1] = first + last[:-1]
    log_probs = log_softmax(run(model, input_ids=row)[0][0])
    return sum(log_probs[len(first) - 1 + i, token] for i, token in enumerate(last))


def json_of(capsys, *words):
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys, *words) -> str:
    assert main([str(word) for word in words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 1
    return lines[0]


def test_a_score_is_the_sum_over_the_tokens_of_the_ending(scorer, model, tokenizer):
    expected = [[reference(model, tokenizer, text, ending) for ending in ENDINGS] for text in TEXTS]
    # The CPU's LogSoftmax is off by a few millionths a token, and an ending has up to nine.
    np.testing.assert_allclose(scorer.score(TEXTS), expected, atol=1e-5 * longest_ending(tokenizer), rtol=0)


def test_batches_and_order_do_not_matter(scorer, model, tokenizer):
    alone = ContinuationScorer(model, tokenizer, ENDINGS, batch_size=3).score(TEXTS[::-1])
    np.testing.assert_allclose(alone[::-1], scorer.score(TEXTS), atol=1e-5, rtol=0)


def test_a_long_text_loses_its_beginning_and_never_the_ending(scorer, tokenizer):
    pairs = scorer.encode(TEXTS)
    room = POSITIONS + 1 - longest_ending(tokenizer)
    lengths = [[len(context) + len(ending) - 1 for ending in endings] for context, endings in pairs]
    assert scorer.truncated == sum(len(tokenizer.encode(text)) > room for text in TEXTS) > 0
    assert max(map(max, lengths)) == POSITIONS
    for text, (context, endings) in zip(TEXTS, pairs, strict=True):
        assert endings == [tokenizer.encode(ending) for ending in ENDINGS]
        assert tokenizer.encode(text)[-len(context):] == context


def test_a_line_end_that_the_tokenizer_adds_stands_after_the_ending():
    tokenizer = WordTokenizer.train(["a fine film very positive negative\n"], "whitespace", 20, 1)
    model = random_model(GPTLMHeadModel, config_for(tokenizer))
    (context, endings), = ContinuationScorer(model, tokenizer, ENDINGS).encode(["a fine film\n"])
    assert context == tokenizer.encode("a fine film")
    assert [tokenizer.decode(ending) for ending in endings] == ["very negative", "very positive"]


def test_an_empty_text_is_the_start_of_a_document(model, tokenizer):
    marked = Tokenizer(tokenizer._vocab, tokenizer._merges, special_tokens={"eos_token": "a"})
    assert ContinuationScorer(model, marked, ENDINGS).encode(["  "])[0][0] == [marked.eos_token_id]


def test_endings_that_cannot_be_told_apart_are_refused(model):
    tokenizer = WordTokenizer.train(["a fine film"], "whitespace", 20, 1)
    with pytest.raises(UserError, match="cannot tell"):
        ContinuationScorer(model, tokenizer, ENDINGS).score(TEXTS)


def test_a_model_too_short_for_the_ending_is_refused():
    tokenizer = CharacterTokenizer.train([*TEXTS, *ENDINGS])
    model = random_model(GPTLMHeadModel, config_for(tokenizer).replace(n_positions=9))
    with pytest.raises(UserError, match="no room for text in n_positions=9"):
        ContinuationScorer(model, tokenizer, ENDINGS).score(TEXTS)


def test_the_classes_of_a_task_are_numbered_as_in_its_data():
    for task in TASKS.values():
        assert list(task.verbalizers) == LABEL_NAMES
    with pytest.raises(UserError, match="Did you mean 'sst2'"):
        find_task("sst")


def test_evaluate_zero_shot_counts_what_the_language_model_chooses(folder, labelled, model, tokenizer, capsys):
    figures = json_of(capsys, "evaluate", "--model", folder, "--zero-shot", "sst2", "--data", labelled)
    ratio = np.array([reference(model, tokenizer, text, " very positive")
                      - reference(model, tokenizer, text, " very negative") for text in TEXTS])
    is_positive = np.array([1, 1, 0, 0, 1])
    assert set(figures) == {"accuracy", "f1", "loss", "confusion", "n"}
    assert figures["n"] == len(TEXTS)
    assert figures["accuracy"] == pytest.approx(((ratio > 0) == is_positive).mean())
    assert figures["confusion"][1][1] == ((ratio > 0) & (is_positive == 1)).sum()
    assert figures["loss"] == pytest.approx(np.logaddexp(0, np.where(is_positive, -ratio, ratio)).mean(), abs=1e-4)


def test_evaluate_zero_shot_says_what_it_cannot_do(folder, labelled, tokenizer, tmp_path, capsys):
    classifier = random_model(GPTForSequenceClassification, config_for(tokenizer, num_labels=2))
    classifier.save_pretrained(tmp_path / "classifier", tokenizer)
    assert main(["evaluate", "--model", str(folder), "--zero-shot", "sst2", "--data", str(labelled)]) == 0
    assert "1 of 5 texts lost their beginning" in capsys.readouterr().out
    line = refusal(capsys, "evaluate", "--model", tmp_path / "classifier", "--zero-shot", "sst2", "--data", labelled)
    assert "needs a language model" in line
    assert "Did you mean 'sst2'" in refusal(capsys, "evaluate", "--model", folder, "--zero-shot", "sst-2")
    (tmp_path / "marks.csv").write_text("text,label\na,good\nb,bad\n")
    line = refusal(capsys, "evaluate", "--model", folder, "--zero-shot", "sst2", "--data", tmp_path / "marks.csv")
    assert "'bad'" in line
    assert "negative, positive" in line
    (tmp_path / "marks.csv").write_text("text,label\na,1\nb,2\n")
    line = refusal(capsys, "evaluate", "--model", folder, "--zero-shot", "sst2", "--data", tmp_path / "marks.csv")
    assert "label 2 in row 1" in line


class Blocks:
    """Two batches of blocks, one of them filled up with rows that do not count."""

    def __init__(self, vocab_size: int) -> None:
        rng = np.random.default_rng(0)
        self.ids = rng.integers(0, vocab_size, (2, 3, 7)).astype(np.int32)
        self.targets = rng.integers(0, vocab_size, (2, 3, 7)).astype(np.int32)
        self.targets[1, 1:] = self.targets[0, 0, 5:] = -100
        self.words = self.characters = None

    def epoch(self):
        return zip(self.ids, self.targets, strict=True)


def test_the_loss_of_a_language_model_is_the_mean_over_the_tokens_that_count(model):
    blocks = Blocks(model.config.vocab_size)
    blocks.words, blocks.characters = 10, 50
    figures = score_language_model(model, blocks)
    log_probs = np.concatenate([log_softmax(run(model, input_ids=ids)[0]) for ids in blocks.ids])
    targets = np.concatenate(list(blocks.targets))
    chosen = np.take_along_axis(log_probs, np.maximum(targets, 0)[..., None], -1)[..., 0]
    nats = -chosen[targets != -100].sum()
    assert figures["n"] == 2 * 3 * 7 - 2 * 7 - 2
    assert figures["loss"] == pytest.approx(nats / figures["n"], abs=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(nats / figures["n"]), rel=1e-4)
    assert figures["perplexity_per_word"] == pytest.approx(math.exp(nats / 10), rel=1e-3)
    assert 2 ** (50 * figures["bits_per_character"]) == pytest.approx(math.exp(nats), rel=1e-3)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(tokenizer):
    model = GPTLMHeadModel(config_for(tokenizer, initializer_range=0.0))
    figures = score_language_model(model, Blocks(len(tokenizer)))
    assert set(figures) == {"loss", "perplexity", "n"}
    assert figures["perplexity"] == pytest.approx(len(tokenizer), rel=1e-5)


def test_every_word_and_every_line_end_is_a_word():
    assert count_words(["a fine  film\n\n it rains", "so"]) == 8


def test_the_words_of_wikitext_are_counted_as_its_authors_do(data_dir):
    assert count_words([(data_dir / "wikitext2" / "test.txt").read_text(encoding="utf-8")]) == 245_569


def test_evaluate_scores_every_token_of_a_text_once(folder, model, tokenizer, tmp_path, capsys):
    """In blocks as long as the model reads, each token predicted from those before it in its block."""
    text = " ".join(TEXTS) + "\n"
    path = tmp_path / "text.txt"
    path.write_text(text)
    figures = json_of(capsys, "evaluate", "--model", folder, "--data", path, "--cache-dir", tmp_path / "ids")
    ids = tokenizer.encode(text)
    before = [0, *ids[:-1]]  # This tokenizer has no end token and no line ends.
    nats = 0.0
    for start in range(0, len(ids), POSITIONS):
        row = np.zeros((1, POSITIONS), np.int32)
        block = before[start : start + POSITIONS]
        row[0, : len(block)] = block
        log_probs = log_softmax(run(model, input_ids=row)[0][0])
        nats -= sum(log_probs[i, token] for i, token in enumerate(ids[start : start + POSITIONS]))
    assert len(ids) % POSITIONS
    assert figures["n"] == len(ids)
    assert figures["loss"] == pytest.approx(nats / len(ids), abs=1e-5)
    assert figures["perplexity_per_word"] == pytest.approx(math.exp(nats / (len(text.split()) + 1)), rel=1e-3)
    assert figures["bits_per_character"] == pytest.approx(nats / len(text) / math.log(2), abs=1e-5)
    assert set(figures) == {"loss", "perplexity", "perplexity_per_word", "bits_per_character", "n"}


def test_evaluate_takes_a_short_text_and_the_part_that_is_asked_for(folder, tokenizer, tmp_path, capsys):
    for part, text in (("train", "rain"), ("valid", "a fine film"), ("test", "it was long")):
        (tmp_path / f"{part}.txt").write_text(text)
    words = ["evaluate", "--model", folder, "--data", tmp_path, "--cache-dir", tmp_path / ".ids"]
    assert json_of(capsys, *words)["n"] == len(tokenizer.encode("it was long"))
    assert json_of(capsys, *words, "--part", "validation")["n"] == len(tokenizer.encode("a fine film"))
    assert "has no part 'tset': choose one of" in refusal(capsys, *words, "--part", "tset")


def test_evaluate_says_what_it_cannot_score(folder, tmp_path, capsys):
    path = tmp_path / "text.txt"
    words = ["evaluate", "--model", folder, "--data", path, "--cache-dir", tmp_path / "ids"]
    assert "text.txt" in refusal(capsys, *words)
    path.write_text(" \n")
    assert "empty" in refusal(capsys, *words)
    path.write_text("a fine film")
    assert "n_positions=24" in refusal(capsys, *words, "--block-size", "25")
    assert "leave --label-column out" in refusal(capsys, *words, "--label-column", "label")
    assert "--batch-size=0" in refusal(capsys, *words, "--batch-size", "0")
