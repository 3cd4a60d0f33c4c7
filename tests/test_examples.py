"""Programs written for other libraries run with only imports, sizes and the model's name changed; minGPT's surface."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor
from model_helpers import set_mode

from ms_gpt import AutoModel, GPTConfig, GPTForSequenceClassification, GPTLMHeadModel, Tokenizer, UserError
from ms_gpt.mingpt import GPT, Dataset, Trainer, TrainerConfig, sample
from ms_gpt.mingpt import GPTConfig as MinGPTConfig
from ms_gpt.runtime import set_seed
from ms_gpt.tokenizer import GPT1_SPECIAL_TOKENS

EXAMPLES = Path(__file__).resolve().parent / "examples"
ROOT = EXAMPLES.parents[1]


@pytest.fixture(autouse=True)
def _op_by_op():
    set_mode("pynative")
    yield
    set_mode("graph")


def run_example(name: str, folder: Path, sizes: str) -> str:
    """Run a program in a folder of its own, offline, and return what it prints."""
    (folder / "sizes.py").write_text(sizes, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "MS_GPT_CACHE": str(folder / "cache"),
                   "GLOG_v": "3"}
    result = subprocess.run([sys.executable, str(EXAMPLES / name)], cwd=folder, env=environment, text=True,
                            capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


COUNTING = '''
from ms_gpt.mingpt import Dataset
import mindspore

vocab_size, block_size, n_layer, n_head, n_embd = 7, 8, 1, 2, 16
max_epochs, batch_size = {max_epochs}, 8


class MyDataset(Dataset):
    """Counts upwards, modulo 7."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        row = [(index + step) % vocab_size for step in range(block_size + 1)]
        return mindspore.Tensor(row[:-1], mindspore.int64), mindspore.Tensor(row[1:], mindspore.int64)
'''


def test_the_mingpt_example_runs_as_written(tmp_path):
    printed = run_example("mingpt_usage.py", tmp_path, COUNTING.format(max_epochs=8))
    tokens = [int(token) for token in printed[printed.rindex("[") + 1 : printed.rindex("]")].split()]
    assert len(tokens) == 33
    assert tokens[:3] == [1, 2, 3]
    assert all(0 <= token < 7 for token in tokens)
    losses = [float(line.split("test loss")[1]) for line in printed.splitlines() if "test loss" in line]
    assert len(losses) == 8
    assert losses[-1] < losses[0]


def write_reviews(folder: Path, count: int) -> list[str]:
    """An ``aclImdb`` folder of short reviews."""
    rng, texts = np.random.default_rng(0), []
    for part in ("train", "test"):
        for label, word in (("pos", "wonderful"), ("neg", "dreadful")):
            (folder / part / label).mkdir(parents=True)
            for number in range(count):
                words = rng.choice(["the", "film", "plot", "was", "long", "actor", "story"], 8)
                texts.append(f"{' '.join(words)} and it was {word}.<br /><br />{words[0]} {word}")
                (folder / part / label / f"{number}_7.txt").write_text(texts[-1], encoding="utf-8")
    return texts


def test_the_imdb_trainer_example_runs_as_written(tmp_path):
    texts = write_reviews(tmp_path / "cache" / "aclImdb", 20)
    tokenizer = Tokenizer.train(texts, vocab_size=160, model_max_length=24)
    tokenizer.add_special_tokens(GPT1_SPECIAL_TOKENS)
    config = GPTConfig(len(tokenizer), 24, n_embd=16, n_layer=1, n_head=2, pad_token_id=tokenizer.pad_token_id)
    GPTLMHeadModel(config).save_pretrained(tmp_path / "model", tokenizer=tokenizer)
    sizes = f"MODEL, TRAIN_ROWS, TEST_ROWS = {str(tmp_path / 'model')!r}, 24, 12"
    printed = run_example("imdb_trainer.py", tmp_path, sizes)
    results = ast.literal_eval(printed[printed.rindex("{'eval_loss'") :].strip())
    assert results["eval_n"] == 12
    assert 0 <= results["eval_accuracy"] <= 1
    for name in ("results/best/model.safetensors", "results/last", "logs/metrics.jsonl"):
        assert (tmp_path / name).exists(), name
    model = AutoModel.from_pretrained(tmp_path / "sentiment-model")
    assert isinstance(model, GPTForSequenceClassification)
    saved = Tokenizer.from_pretrained(tmp_path / "sentiment-model")
    batch = saved(texts[:2], padding="max_length", truncation=True, return_tensors="ms")
    assert batch["input_ids"].shape == (2, 24)
    assert model(**batch)[0].shape == (2, 2)


class Counting(Dataset):
    """Counts upwards, modulo 7; in half of the targets nothing counts."""

    def __init__(self, count: int, length: int = 8, ignore: int = -1):
        self.count, self.length, self.ignore = count, length, ignore

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        row = (index + np.arange(self.length + 1)) % 7
        return row[:-1], np.where(np.arange(self.length) < 4, self.ignore, row[1:])


def small_gpt(**changes) -> GPT:
    return GPT(MinGPTConfig(7, 8, **{"n_layer": 1, "n_head": 2, "n_embd": 16, **changes}))


def settings(**changes) -> TrainerConfig:
    return TrainerConfig(**{"max_epochs": 2, "batch_size": 4, "device": "cpu", "mode": "pynative", **changes})


def test_a_mingpt_configuration_is_of_the_gpt2_family_and_untied():
    config = MinGPTConfig(7, 8, n_layer=1, n_head=2, n_embd=16, embd_pdrop=0.2)
    assert (config.vocab_size, config.block_size, config.embd_pdrop) == (7, 8, 0.2)
    assert not config.post_norm
    assert not config.tie_word_embeddings


def test_calling_a_mingpt_model():
    model = small_gpt().set_train(False)
    idx = np.array([[1, 2, 3, 4], [0, 6, 5, 4]], np.int32)
    targets = np.array([[2, -1, -100, 5], [6, 5, -1, 3]], np.int32)
    logits, nothing = model(Tensor(idx))
    assert nothing is None
    assert logits.shape == (2, 4, 7)
    loss = model(Tensor(idx), Tensor(targets))[1]
    scores = logits.asnumpy() - np.log(np.exp(logits.asnumpy()).sum(-1, keepdims=True))
    rows, places = np.nonzero(targets >= 0)
    np.testing.assert_allclose(loss.asnumpy(), -scores[rows, places, targets[rows, places]].mean(), rtol=1e-5)


def test_every_example_is_seen_once_an_epoch_in_a_new_order_and_fillers_do_not_count():
    trainer = Trainer(small_gpt(), Counting(6), Counting(5), settings())
    batches = trainer.train_batches
    assert batches.steps_per_epoch == 2
    epochs = [list(batches.epoch(epoch)) for epoch in range(3)]
    starts = [[row[0] for input_ids, targets in epoch for row, target in zip(input_ids, targets, strict=True)
               if (target >= 0).any()] for epoch in epochs]
    assert all(sorted(order) == list(range(6)) for order in starts)
    assert len({tuple(order) for order in starts}) > 1
    assert all(part.shape == (4, 8) for epoch in epochs for batch in epoch for part in batch)
    # The last batch of five examples is one example and three fillers.
    ids, targets = (np.stack(part) for part in zip(*(Counting(5)[index] for index in range(5)), strict=True))
    expected = trainer.model(Tensor(ids.astype(np.int32)), Tensor(targets.astype(np.int32)))[1].asnumpy()
    np.testing.assert_allclose(trainer.score(trainer.test_batches), expected, rtol=1e-5)


def test_training_repeats_and_keeps_the_best(tmp_path):
    losses, weights = [], []
    for name in ("first", "second"):
        model, folder = small_gpt(), tmp_path / name
        trainer = Trainer(model, Counting(8), Counting(7), settings(batch_size=8, learning_rate=0.01, ckpt_path=folder))
        trainer.train()
        assert model.transformer.dropout_state.asnumpy()[1] == 2
        losses.append((trainer.train_loss, trainer.test_loss))
        weights.append({key: item.asnumpy() for key, item in model.weights().items()})
    assert losses[0] == losses[1]
    assert losses[0][1] < np.log(7)
    saved = GPT.from_pretrained(tmp_path / "first")
    for key, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][key])
        np.testing.assert_array_equal(saved.weights()[key].asnumpy(), value)


def test_the_rate_warms_up_and_decays_by_tokens():
    # Four examples of four targets are 16 tokens an update.
    trainer = Trainer(small_gpt(), Counting(8), None, settings(lr_decay=True, warmup_tokens=160, final_tokens=1600,
                                                               learning_rate=1.0))
    schedule = trainer._schedule()
    rates = [float(schedule(Tensor(step)).asnumpy()) for step in (0, 9, 55, 100, 1000)]
    np.testing.assert_allclose(rates, [0.1, 1.0, 0.55, 0.1, 0.1], atol=1e-5)
    constant = Trainer(small_gpt(), Counting(8), None, settings(learning_rate=1.0))._schedule()
    assert [float(constant(Tensor(step)).asnumpy()) for step in (0, 5, 500)] == [1.0] * 3


def test_sampling():
    set_mode("graph")
    model = small_gpt(n_layer=2).set_train(False)
    x = Tensor(np.array([[1, 2, 3], [6, 5, 4]]))
    greedy = sample(model, x, 12)
    assert greedy.dtype == x.dtype
    assert greedy.shape == (2, 15)
    tokens = greedy.asnumpy()
    np.testing.assert_array_equal(tokens[:, :3], x.asnumpy())
    for end in range(8, 15):
        # Only the last eight tokens are looked at, and each position gives the token behind it.
        chosen = model(Tensor(tokens[:, end - 8 : end].astype(np.int32)))[0].asnumpy().argmax(-1)
        np.testing.assert_array_equal(tokens[:, end], chosen[:, -1])
        if end == 8:
            np.testing.assert_array_equal(tokens[:, 3:8], chosen[:, 2:7])
    np.testing.assert_array_equal(sample(model, x, 4, sample=True, top_k=1).asnumpy(), tokens[:, :7])
    np.testing.assert_array_equal(sample(model, x, 4, temperature=1e-6, sample=True).asnumpy(), tokens[:, :7])
    drawn = []
    for seed in (3, 3, 4):
        set_seed(seed)
        drawn.append(sample(model, x, 20, temperature=2.0, sample=True).asnumpy())
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert sample(model, x, 0).shape == (2, 3)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: TrainerConfig(batchsize=2), "'batchsize' is not a field of TrainerConfig. Did you mean 'batch_size'"),
    (lambda: TrainerConfig(max_epochs=0), "max_epochs=0"),
    (lambda: TrainerConfig(learning_rate=0.0), "learning_rate=0.0"),
    (lambda: MinGPTConfig(7, 8, n_heads=2), "'n_heads' is not a field of GPTConfig. Did you mean 'n_head'"),
    (lambda: MinGPTConfig(7, 8, n_head=3, n_embd=16), "n_embd=16 is not divisible by n_head=3"),
    (lambda: Trainer(small_gpt(), Counting(0), None, settings()), "the data set is empty"),
    (lambda: Trainer(small_gpt(), Counting(4, length=9), None, settings()), "longer than block_size=8"),
    (lambda: sample(small_gpt(), Tensor([1, 2]), 3), r"x has the shape \(2,\)"),
    (lambda: sample(small_gpt(), Tensor([[1, 2]]), 3, temperature=0.0), "temperature=0.0"),
    (lambda: sample(small_gpt(), Tensor([[1, 2]]), 3, sample=True, top_k=0), "top_k=0"),
])
def test_mistakes_are_one_line(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_examples_of_unequal_length_are_named():
    class Uneven(Counting):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return (x, y) if index < 3 else (x[:5], y[:5])

    trainer = Trainer(small_gpt(), Uneven(4), None, settings())
    with pytest.raises(UserError, match=r"example 3 has x of shape \(5,\) and y of shape \(5,\)"):
        list(trainer.train_batches.epoch())
