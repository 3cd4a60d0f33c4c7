"""Zero-shot scores equal those of transformers on torch: tiny seeded models, the real tokenizers, real sentences."""

from __future__ import annotations

import numpy as np
import pytest

from ms_gpt.data import load_dataset
from ms_gpt.tokenizer import Tokenizer
from ms_gpt.training.zero_shot import TASKS, ContinuationScorer

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from parity_helpers import twins  # noqa: E402

SENTENCES, LONGEST = 50, 40
# With these seeds the model, which knows nothing, calls some sentences positive and some negative.
MODELS = {"OpenAIGPT": (4, "gpt1", "encoder_bpe_40000.json", "vocab_40000.bpe"),
          "GPT2": (0, "gpt2", "encoder.json", "vocab.bpe")}


@pytest.fixture(scope="module")
def sentences(data_dir) -> list[str]:
    return load_dataset(data_dir / "sst2")["validation"]["text"][::17][:SENTENCES]


@pytest.fixture(scope="module", params=MODELS)
def both(request, data_dir, tmp_path_factory):
    """Their model and tokenizer, then ours."""
    seed, name, vocab, merges = MODELS[request.param]
    vocab, merges = (data_dir / "tokenizers" / name / file for file in (vocab, merges))
    kind = {"OpenAIGPT": transformers.OpenAIGPTTokenizer, "GPT2": transformers.GPT2Tokenizer}[request.param]
    tokenizer = Tokenizer.from_files(vocab, merges)
    theirs, ours = twins(f"{request.param}LMHeadModel", tmp_path_factory.mktemp("model"), seed, n_positions=LONGEST,
                         vocab_size=len(tokenizer))
    return theirs, kind(vocab=str(vocab), merges=str(merges)), ours, tokenizer


def their_score(model, tokenizer, text: str, ending: str) -> float:
    """The log-probability of an ending, token by token, in the model's whole output."""
    last = tokenizer(ending, add_special_tokens=False)["input_ids"]
    first = tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"][-(LONGEST + 1 - len(last)):]
    with torch.no_grad():
        log_probs = model(torch.tensor([first + last[:-1]])).logits[0].double().log_softmax(-1)
    return sum(log_probs[len(first) - 1 + i, token].item() for i, token in enumerate(last))


def test_continuations_and_labels_equal_transformers(both, sentences):
    theirs, their_tokenizer, ours, tokenizer = both
    endings = list(TASKS["sst2"].verbalizers.values())
    scorer = ContinuationScorer(ours, tokenizer, endings, batch_size=16)
    found = scorer.score(sentences)
    expected = np.array([[their_score(theirs, their_tokenizer, text, ending) for ending in endings]
                         for text in sentences])
    assert len(sentences) == SENTENCES
    assert scorer.truncated > 0, "no sentence was long enough to lose its beginning"
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    labels = expected.argmax(-1)
    assert 0 < labels.sum() < len(labels), "one label for all would hide a mistake"
    assert (found.argmax(-1) == labels).all()


def test_endings_of_several_tokens_equal_transformers(both, sentences):
    """Endings of unlike length and start, which share no row; to 1e-5 a token."""
    theirs, their_tokenizer, ours, tokenizer = both
    endings = [" an unwatchable, mawkish mess", " superb"]
    texts = [text for text in sentences if len(tokenizer.encode(text)) < 25][:8]
    found = ContinuationScorer(ours, tokenizer, endings, batch_size=16).score(texts)
    for column, ending in enumerate(endings):
        expected = [their_score(theirs, their_tokenizer, text, ending) for text in texts]
        np.testing.assert_allclose(found[:, column], expected, atol=1e-5 * len(tokenizer.encode(ending)), rtol=0)
