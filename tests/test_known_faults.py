"""Faults that circulate in GPT code. Each test is named after one, computes what it would give, and expects better.

One known fault, a reward that is the policy's own log-probability, has no test: there is no reward model yet.
"""

from __future__ import annotations

import json
import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from model_helpers import close, positions_of, random_ids, random_model, run, set_mode, tiny_config

from ms_gpt import (
    Block,
    GPTConfig,
    GPTForSequenceClassification,
    GPTLMHeadModel,
    GPTModel,
    Trainer,
    TrainingArguments,
    layers,
    model,
)
from ms_gpt.cli import main
from ms_gpt.console import Console
from ms_gpt.data import Dataset
from ms_gpt.mingpt import TrainerConfig
from ms_gpt.training import finetuning
from ms_gpt.training.optimizer import AdamW
from ms_gpt.training.recipe import recipe
from ms_gpt.training.schedule import LearningRate
from ms_gpt.training.step import Loss, TrainStep


@pytest.fixture(autouse=True)
def _op_by_op():
    set_mode("pynative")
    yield
    set_mode("graph")


def softmax(x: np.ndarray) -> np.ndarray:
    exp = np.exp(x - x.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def token_logits(classifier, ids: np.ndarray, **inputs) -> np.ndarray:
    """The classifier's score at every position, (B, T, C)."""
    hidden = run(classifier.transformer, input_ids=ids, **inputs)[0]
    return hidden @ classifier.score.weight.asnumpy().T


def test_pooling_picks_one_position_for_each_row_and_not_every_rows_for_all():
    classifier = random_model(GPTForSequenceClassification, tiny_config(pad_token_id=0))
    ids = random_ids(classifier.config, 3, 6) % 12 + 1
    ids[0, 4:] = ids[1, 2:] = 0
    lengths = (ids != 0).sum(-1) - 1
    everywhere = token_logits(classifier, ids)
    faulty = everywhere[:, lengths]
    pooled = run(classifier, input_ids=ids)[0]
    assert faulty.shape == (3, 3, 3)
    assert pooled.shape == (3, 3)
    close(pooled, everywhere[np.arange(3), lengths])


def test_counting_pads_does_not_assume_that_they_are_on_the_right():
    classifier = random_model(GPTForSequenceClassification, tiny_config(pad_token_id=0))
    ids = random_ids(classifier.config, 2, 6) % 12 + 1
    ids[:, :3] = 0
    mask = (ids != 0).astype(np.int32)
    faulty = mask.sum(-1) - 1
    everywhere = token_logits(classifier, ids)
    pooled = run(classifier, input_ids=ids)[0]
    close(pooled, everywhere[:, -1])
    assert np.abs(pooled - everywhere[np.arange(2), faulty]).max() > 1e-3
    alone = run(classifier, input_ids=ids[:, 3:])[0]
    close(run(classifier, input_ids=ids, attention_mask=mask, position_ids=positions_of(mask))[0], alone)


def test_a_pad_token_that_is_also_the_end_of_text_is_found_by_the_mask():
    classifier = random_model(GPTForSequenceClassification, tiny_config(pad_token_id=5, eos_token_id=5))
    ids = np.array([[1, 5, 3, 5, 5, 5]], np.int32)
    mask = np.array([[1, 1, 1, 1, 0, 0]], np.int32)
    faulty = (ids != 5).sum(-1) - 1
    everywhere = token_logits(classifier, ids, attention_mask=mask)[0]
    pooled = run(classifier, input_ids=ids, attention_mask=mask)[0][0]
    close(pooled, everywhere[3])
    assert np.abs(pooled - everywhere[faulty[0]]).max() > 1e-3


def test_a_row_of_pads_only_is_read_at_a_position_that_exists():
    classifier = random_model(GPTForSequenceClassification, tiny_config(pad_token_id=0))
    ids = np.array([[0, 0, 0], [1, 2, 0]], np.int32)
    faulty = (ids != 0).sum(-1) - 1
    assert faulty[0] == -1
    np.testing.assert_array_equal(
        classifier.pool_index(Tensor(ids), None, 2, 3).asnumpy(), [0, 1])
    np.testing.assert_array_equal(
        classifier.pool_index(Tensor(ids), Tensor(np.zeros((2, 3), np.int32)), 2, 3).asnumpy(), [0, 0])
    assert np.isfinite(run(classifier, input_ids=ids)[0]).all()


@pytest.mark.parametrize(("num_labels", "labels"), [
    (1, np.array([0.5, -2.0], np.float32)), (3, np.array([2, 0], np.int32)), (3, np.eye(3, dtype=np.float32)[:2])])
def test_an_open_problem_type_is_decided_by_the_labels_and_does_not_crash(num_labels, labels):
    classifier = random_model(GPTForSequenceClassification, tiny_config(num_labels=num_labels, problem_type=None))
    ids = random_ids(classifier.config, 2, 5)
    logits = run(classifier, input_ids=ids)[0]
    if num_labels == 1:
        expected = ((logits[:, 0] - labels) ** 2).mean()
    elif labels.ndim == 1:
        expected = -np.log(softmax(logits)[np.arange(2), labels]).mean()
    else:
        expected = (np.logaddexp(0, logits) - logits * labels).mean()
    close(run(classifier, input_ids=ids, labels=labels)[0], expected)


def test_the_multi_label_loss_can_be_reached():
    config = tiny_config(num_labels=3, problem_type="multi_label_classification")
    classifier, labels = random_model(GPTForSequenceClassification, config), np.array([[1, 0, 1], [0, 0, 1]])
    ids = random_ids(config, 2, 5)
    logits = run(classifier, input_ids=ids)[0]
    # The fault takes the single-label branch for every num_labels above 1.
    faulty = -np.log(softmax(logits)[np.arange(2), labels.argmax(-1)]).mean()
    expected = (np.logaddexp(0, logits) - logits * labels).mean()
    for given in (labels.astype(np.float32), labels.astype(np.int32)):
        loss = run(classifier, input_ids=ids, labels=given)[0]
        close(loss, expected)
        assert abs(loss - faulty) > 1e-3


def test_each_projection_is_built_once(monkeypatch):
    built = []
    monkeypatch.setattr(model, "Conv1D", lambda nf, nx: built.append((nx, nf)) or layers.Conv1D(nf, nx))
    Block(tiny_config())
    assert sorted(built) == sorted([(12, 36), (12, 12), (12, 48), (48, 12)])


def test_initial_weights_cover_conv1d():
    config = tiny_config(n_embd=48, initializer_range=0.5)
    cells = [cell for _, cell in GPTModel(config).cells_and_names() if isinstance(cell, layers.Conv1D)]
    assert len(cells) == 4 * config.n_layer
    for cell in cells:
        # Left out, they would keep the layer's own start, whatever initializer_range says.
        assert cell.weight.asnumpy().std() == pytest.approx(0.5, rel=0.1)
        assert not cell.bias.asnumpy().any()


@pytest.mark.parametrize("config", [GPTConfig(n_embd=12, n_head=3, n_layer=1, vocab_size=13),
                                    tiny_config("gpt2", activation_function="gelu_new")])
def test_gelu_is_the_tanh_form_where_the_checkpoint_means_it(config):
    x = np.linspace(-4, 4, 81)
    tanh_form = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    faulty = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    out = model.MLP(8, config).act(Tensor(x, ms.float32)).asnumpy()
    close(out, tanh_form, atol=2e-6)
    assert np.abs(out - faulty).max() > 2e-4


def test_the_mask_makes_no_nan_in_half_precision():
    scores = np.random.default_rng(0).standard_normal((5, 5)).astype(np.float16)
    visible = np.tril(np.ones((5, 5), np.float16))
    with np.errstate(all="ignore"):
        faulty = scores * visible + np.float16(-1e9) * (1 - visible)
    assert np.isnan(faulty).any()
    bias = layers.attention_bias(5, Tensor(np.array([[1, 1, 1, 0, 0]], np.int32))).asnumpy()
    weights = softmax(scores.astype(np.float32) + bias)
    assert np.isfinite(weights).all()
    assert not weights[0, 0][visible == 0].any()

    config = tiny_config()
    half, full = (random_model(GPTModel, config.replace(output_attentions=True)) for _ in range(2))
    half.set_compute_dtype("float16")
    ids, mask = random_ids(config, 2, 6), np.array([[1] * 4 + [0] * 2, [0] * 6], np.int32)
    hidden, attentions = run(half, input_ids=ids, attention_mask=mask)
    assert np.isfinite(hidden).all()
    for item in attentions:
        assert item.dtype == ms.float32
        assert np.isfinite(item.asnumpy()).all()
    close(hidden[0, :4], run(full, input_ids=ids, attention_mask=mask)[0][0, :4], atol=0.05)


@pytest.fixture
def attention():
    """An attention layer, its input, and its queries, keys and values as (B, H, T, K)."""
    config = tiny_config("gpt2", n_head=3, n_embd=12)
    model = random_model(GPTModel, config)
    # Its kernel has no weights to show.
    model.use_kernels(False)
    layer = model.h[0].attn
    x = np.random.default_rng(1).standard_normal((2, 5, 12)).astype(np.float32)
    packed = x @ layer.c_attn.weight.asnumpy() + layer.c_attn.bias.asnumpy()
    heads = [part.reshape(2, 5, 3, 4).transpose(0, 2, 1, 3) for part in np.split(packed, 3, -1)]
    return layer, x, heads


def test_scores_are_scaled_by_the_width_of_a_head_and_not_of_the_embedding(attention):
    layer, x, (query, key, _) = attention
    bias = layers.attention_bias(5, None)
    weights = layer(Tensor(x), bias)[1].asnumpy()
    scores = query @ key.transpose(0, 1, 3, 2)
    close(weights, softmax(scores / math.sqrt(4) + bias.asnumpy()))
    faulty = softmax(scores / math.sqrt(12) + bias.asnumpy())
    assert np.abs(weights - faulty).max() > 1e-2


def test_heads_share_no_projection(attention):
    layer, x, (query, key, value) = attention
    assert layer.c_attn.weight.shape == (12, 3 * 12)
    # Shared by heads, a projection would be (K, K), and equal slices of the input would give equal queries.
    same = np.tile(x[..., :4], 3)
    packed = layer.c_attn(Tensor(same)).asnumpy()
    for part in np.split(packed, 3, -1):
        first, second, third = np.split(part, 3, -1)
        assert np.abs(first - second).max() > 1e-2
        assert np.abs(second - third).max() > 1e-2
    weight = layer.c_attn.weight.asnumpy().copy()
    weight[:, 4:8] += 1.0
    bias = layers.attention_bias(5, None)
    before = layer(Tensor(x), bias)[1].asnumpy()
    layer.c_attn.weight.set_data(Tensor(weight))
    changed = np.abs(layer(Tensor(x), bias)[1].asnumpy() - before).max((0, 2, 3)) > 1e-4
    np.testing.assert_array_equal(changed, [False, True, False])


def test_dropout_is_inside_the_residual_branch_and_not_after_the_norm():
    config = tiny_config("openai-gpt", n_embd=48, resid_pdrop=0.5, attn_pdrop=0.0)
    block = Block(config).set_train()
    for name, parameter in block.parameters_and_names():
        if name.endswith("c_proj.bias"):
            parameter.set_data(Tensor(np.ones(parameter.shape, np.float32)))
    x = np.random.default_rng(0).standard_normal((2, 6, 48)).astype(np.float32)
    bias, key = layers.attention_bias(6, None), Tensor(7, ms.int32)
    out = block(Tensor(x), bias, None, key)[0].asnumpy()
    # A norm that comes last leaves mean 0 and variance 1 in every token; dropout behind it leaves zeros.
    close(out.mean(-1), np.zeros((2, 6)))
    close(out.std(-1), np.ones((2, 6)), atol=1e-3)
    faulty = layers.Dropout(0.5).set_train()(Tensor(out), key).asnumpy()
    assert (faulty == 0).any()
    assert (out != 0).all()
    assert np.abs(out - block.set_train(False)(Tensor(x), bias)[0].asnumpy()).max() > 0.1


def test_default_learning_rates_are_adams_and_not_5():
    defaults = [TrainingArguments().learning_rate, TrainerConfig().learning_rate,
                recipe(pretrained=True)["learning_rate"], recipe(pretrained=False)["learning_rate"]]
    assert all(1e-6 < rate < 5e-3 for rate in defaults)
    assert TrainingArguments().learning_rate == recipe(pretrained=True)["learning_rate"] == 6.25e-5


@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_an_update_is_adams_whatever_the_size_of_the_gradients(size):
    class Scaled(nn.Cell):
        def __init__(self, loss):
            super().__init__(auto_prefix=False)
            self.loss = loss

        def construct(self, *batch):
            return size * self.loss(*batch)

    language_model, rate = random_model(GPTLMHeadModel, tiny_config(n_layer=1)), 1e-3
    weights = language_model.weights()
    before = {name: item.asnumpy().copy() for name, item in weights.items()}
    optimizer = AdamW(list(weights.values()), list(weights), weight_decay=0.0)
    loss = Scaled(Loss(language_model, ["input_ids", "labels"]))
    step = TrainStep(loss, optimizer, LearningRate(rate, 1, kind="constant"), max_grad_norm=0.0)
    ids = Tensor(random_ids(language_model.config, 2, 6))
    norm = float(step(ids, ids)[1].asnumpy())
    moved = {name: np.abs(item.asnumpy() - before[name]).max() for name, item in weights.items()}
    # Plain gradient descent at 5.0 would move the weights by 5 times the gradient.
    assert max(moved.values()) < 1.01 * rate < 5.0 * norm / 100
    assert moved["transformer.tokens_embed.embedding_table"] == pytest.approx(rate, rel=0.02)


def test_token_embeddings_exist_and_learn():
    language_model = random_model(GPTLMHeadModel, tiny_config(n_layer=1))
    table = language_model.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    assert table.embedding_table.shape == (13, 12)
    ids = np.array([[1, 2, 3, 4]], np.int32)
    first, second = (run(language_model.transformer, input_ids=row)[0] for row in (ids, ids + 5))
    assert np.abs(first - second).max() > 1e-2
    gradient = ops.grad(Loss(language_model.transformer, ["input_ids"]), None,
                        [table.embedding_table])(Tensor(ids))[0].asnumpy()
    np.testing.assert_array_equal(np.abs(gradient).max(-1) > 0, np.isin(np.arange(13), ids))


def uneven_labels(config: GPTConfig) -> tuple[np.ndarray, np.ndarray]:
    ids = random_ids(config, 4, 8)
    return ids, np.where(np.arange(8) < np.array([[8], [3], [5], [2]]), ids, -100).astype(np.int32)


def nll_of(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The loss of every token that counts."""
    log_probs, rows = np.log(softmax(logits.astype(np.float64))), np.argwhere(labels[:, 1:] >= 0)
    return np.array([-log_probs[row, t, labels[row, t + 1]] for row, t in rows])


def test_the_loss_is_divided_by_tokens_and_not_by_rows():
    language_model = random_model(GPTLMHeadModel, tiny_config(n_layer=1))
    ids, labels = uneven_labels(language_model.config)
    loss, logits = run(language_model, input_ids=ids, labels=labels)
    nll = nll_of(logits, labels)
    assert len(nll) == 7 + 2 + 4 + 1
    close(loss, nll.mean())
    for faulty in (nll.sum() / len(ids), nll.sum() / ids.size):
        assert abs(loss - faulty) > 0.1


def test_the_evaluation_loss_is_divided_by_tokens_and_not_by_batches(tmp_path):
    language_model = random_model(GPTLMHeadModel, tiny_config(n_layer=1))
    sequences = [list(range(1, length)) for length in (9, 4, 6, 3, 9)]
    arguments = TrainingArguments(str(tmp_path), per_device_eval_batch_size=2, buckets=1, device="cpu", mode="pynative")
    rows = [{"input_ids": sequence} for sequence in sequences]
    trainer = Trainer(language_model, arguments, None, rows, console=Console(quiet=True))
    per_row = []
    for sequence in sequences:
        ids = np.array([sequence], np.int32)
        per_row.append(nll_of(run(language_model, input_ids=ids)[0], ids))
    faulty = np.mean([np.concatenate(per_row[start : start + 2]).mean() for start in (0, 2, 4)])
    loss = trainer.evaluate()["eval_loss"]
    close(loss, np.concatenate(per_row).mean())
    assert abs(loss - faulty) > 1e-3


class WatchedDataset(Dataset):
    """Notes every look at its rows."""

    def __init__(self, *args, looks: list[str], name: str):
        super().__init__(*args)
        self.looks, self.name = looks, name

    def _column(self, name):
        self.looks.append(self.name)
        return super()._column(name)

    def __getitem__(self, key):
        self.looks.append(self.name)
        return super().__getitem__(key)


def reviews(count: int, seed: int) -> dict[str, list]:
    """Short texts whose label is the one word that matters."""
    rng = np.random.default_rng(seed)
    words, labels = ["film", "plot", "long", "the", "story", "actor"], rng.integers(0, 2, count)
    texts = [" ".join([*rng.choice(words, 4), ("bad", "good")[label], *rng.choice(words, 3), str(number)])
             for number, label in enumerate(labels)]
    return {"text": texts, "label": [int(label) for label in labels]}


def test_the_best_model_is_chosen_on_validation_data_and_the_test_set_waits(tmp_path, monkeypatch):
    looks: list[str] = []
    parts = [WatchedDataset(reviews(count, seed), ["neg", "pos"], looks=looks, name=name)
             for name, count, seed in (("train", 48, 0), ("validation", 24, 1), ("test", 24, 2))]
    corpus = finetuning.Corpus(*parts, 2, ["neg", "pos"], "single_label_classification")
    monkeypatch.setattr(finetuning, "load_corpus", lambda *args: corpus)
    train = Trainer.train

    def watched_train(self, *args, **kwargs):
        looks.append("training begins")
        result = train(self, *args, **kwargs)
        looks.append("training ends")
        return result

    monkeypatch.setattr(Trainer, "train", watched_train)
    folder = tmp_path / "run"
    sizes = {"n-layer": 1, "n-embd": 8, "n-head": 2, "vocab-size": 200, "max-length": 24, "num-train-epochs": 3,
             "pretrain-epochs": 1, "per-device-train-batch-size": 24, "learning-rate": 0.01, "mode": "pynative"}
    flags = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    assert main(["finetune", "--output-dir", str(folder), "--quiet", *flags]) == 0
    last = len(looks) - looks[::-1].index("training ends")
    assert {"train", "validation"} <= set(looks[:last])
    assert "test" not in looks[:last]
    assert set(looks[last:]) == {"test"}
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluations = [record for record in log if record["phase"] == "finetune" and "eval_accuracy" in record]
    assert len(evaluations) == 3
    assert all(record["eval_n"] == 24 for record in evaluations)
    best = json.loads((folder / "results.json").read_text())["best"]
    assert best["accuracy"] == max(record["eval_accuracy"] for record in evaluations)


def test_training_and_validation_never_overlap_after_a_reshuffle(tmp_path):
    columns = reviews(60, 3)
    # Equal texts are one example, and must not end up on both sides.
    columns = {name: values + values[:10] for name, values in columns.items()}
    path = tmp_path / "reviews.jsonl"
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed in range(3):
        corpus, again = (finetuning.load_corpus(str(path), seed=seed) for _ in range(2))
        tokenizer = finetuning.build_tokenizer(columns["text"], None, 200, 24)
        assert [part["text"] for part in (corpus.train, corpus.validation, corpus.test)] == [
            part["text"] for part in (again.train, again.validation, again.test)]
        held_out = {tuple(ids) for part in (corpus.validation, corpus.test)
                    for ids in tokenizer.encode_batch(part["text"])}
        classifier = GPTForSequenceClassification(tiny_config(vocab_size=len(tokenizer), n_positions=24, num_labels=2))
        arguments = TrainingArguments(str(tmp_path / "run"), seed=seed, device="cpu", mode="pynative")
        trainer = Trainer(classifier, arguments, corpus.train, corpus.validation, tokenizer=tokenizer,
                          console=Console(quiet=True))
        batches, orders = trainer.train_batches, []
        for epoch in range(4):
            order = [int(index) for _, indices in batches.plan(epoch) for index in indices]
            seen = [tuple(token for token in batches.sequence(index, epoch)[1:-1]) for index in order]
            assert sorted(order) == list(range(corpus.train.num_rows))
            assert not set(seen) & held_out
            orders.append(order)
        assert orders[0] != orders[1] != orders[2]
        # The fault: to split anew by another seed in another epoch, and to train on what was held out.
        faulty = set(finetuning.load_corpus(str(path), seed=seed + 10).train["text"])
        assert faulty & set(corpus.validation["text"])


def test_dropout_goes_on_after_an_evaluation(tmp_path):
    classifier = GPTForSequenceClassification(tiny_config(n_layer=1, num_labels=2))
    rows = [{"input_ids": [number % 12 + 1, 3, 5], "label": number % 2} for number in range(8)]
    arguments = TrainingArguments(str(tmp_path), num_train_epochs=3, per_device_train_batch_size=8, device="cpu",
                                  mode="pynative", eval_strategy="epoch", save_strategy="no")
    Trainer(classifier, arguments, rows, rows, console=Console(quiet=True)).train()
    # Every pass with dropout is counted; a model left in evaluation mode counts none.
    assert classifier.transformer.dropout_state.asnumpy()[1] == 3
