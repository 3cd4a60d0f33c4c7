"""The train step, the trainer and its run folder: repeatability, resumption, graphs, exact scoring."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mindspore.train import Callback

from ms_gpt import GPTConfig, GPTForSequenceClassification, GPTLMHeadModel, Trainer, TrainingArguments, UserError
from ms_gpt.console import Console
from ms_gpt.data.batches import Batches, choose_buckets, pack_blocks
from ms_gpt.training.metrics import METRICS, confusion_matrix, f1_scores

QUIET = Console(quiet=True)


def make_rows(count, seed, longest=40):
    """Rows whose label says whether token 7 occurs."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        ids = rng.integers(2, 12, int(rng.integers(3, longest))).tolist()
        rows.append({"input_ids": ids, "label": int(7 in ids)})
    return rows


def make_model(**changes):
    values = {"vocab_size": 12, "n_positions": 48, "n_embd": 16, "n_layer": 1, "n_head": 2, "model_type": "gpt2",
              "pad_token_id": 0, **changes}
    return GPTForSequenceClassification(GPTConfig(**values))


def arguments(folder, **changes):
    values = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8,
              "learning_rate": 3e-3, "logging_steps": 5, "buckets": 1, "mode": "graph", **changes}
    return TrainingArguments(str(folder), **values)


class KillAt(Callback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_step_end(self, run_context):
        if run_context.original_args().cur_step_num == self.step:
            raise KeyboardInterrupt


def test_one_graph_for_each_bucket_and_phase(tmp_path, compilations):
    args = arguments(tmp_path, buckets=3, eval_strategy="epoch", load_best_model_at_end=True)
    trainer = Trainer(make_model(), args, make_rows(61, 1), make_rows(29, 2), console=QUIET)
    assert len(trainer.buckets) == 3
    used = [{length for length, _ in part.plan(0)} for part in (trainer.train_batches, trainer.eval_batches)]
    trainer.train()
    trainer.evaluate()
    assert compilations.count("TrainStep") == len(used[0]) == 3
    assert compilations.count("Forward") == len(used[1]) == 3
    assert len(compilations) == 6


def test_every_evaluation_example_is_scored_once(tmp_path):
    rows = make_rows(29, 2)
    trainer = Trainer(make_model(), arguments(tmp_path, buckets=3), eval_dataset=rows, console=QUIET)
    figures = trainer.evaluate()
    assert figures["eval_n"] == 29
    singles = []
    for row in rows:
        one = Batches([row["input_ids"]], [row["label"]], 8, trainer.buckets)
        singles.append(trainer.score(one)["loss"])
    assert figures["eval_loss"] == pytest.approx(np.mean(singles), abs=1e-6)


SCRIPT = """
import hashlib, sys
sys.path.insert(0, {tests!r})
from test_training import *
model = make_model(n_layer=2)
args = arguments({folder!r}, max_steps=200, buckets=2, save_strategy="no")
Trainer(model, args, make_rows(61, 1), console=QUIET).train()
print(hashlib.sha256(b"".join(p.asnumpy().tobytes() for p in model.weights().values())).hexdigest())
"""


def test_two_processes_leave_equal_weights_after_200_steps_of_dropout(tmp_path):
    digests = []
    for name in ("first", "second"):
        script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path / name))
        done = subprocess.run([sys.executable, "-c", "exec(open(0).read())"], input=script, capture_output=True,
                              text=True, check=True)
        digests.append(done.stdout.split()[-1])
    assert digests[0] == digests[1]


@pytest.mark.parametrize("killed_at", [pytest.param(5, marks=pytest.mark.slow), 16, 19])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, killed_at):
    """Killed inside an epoch, at its end, and after a save that is not the newest step."""
    def run(folder, callbacks=(), resume=False):
        model = make_model()
        args = arguments(folder, num_train_epochs=3, eval_strategy="epoch", save_strategy="steps", save_steps=4,
                         load_best_model_at_end=True)
        trainer = Trainer(model, args, make_rows(61, 1), make_rows(29, 2), callbacks=callbacks, console=QUIET)
        outcome = trainer.train(resume=resume)
        return outcome, {name: item.asnumpy() for name, item in model.weights().items()}, trainer

    outcome, expected, trainer = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", [KillAt(killed_at)])
    resumed, weights, again = run(tmp_path / "killed", resume=True)
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)
    assert resumed["best"] == outcome["best"]
    assert resumed["best_step"] == outcome["best_step"]
    scored = [[(record["step"], record["eval_loss"]) for record in item.log.read() if "eval_loss" in record]
              for item in (trainer, again)]
    assert scored[0] == scored[1]


def test_resuming_with_other_settings_is_refused(tmp_path):
    def train(**changes):
        args = arguments(tmp_path, max_steps=4, save_strategy="steps", save_steps=2, **changes)
        Trainer(make_model(), args, make_rows(20, 1), console=QUIET).train(resume=True)

    train()
    with pytest.raises(UserError, match="learning_rate was 0.003 and is 0.001 now"):
        train(learning_rate=1e-3)


def test_training_learns_and_restores_the_best(tmp_path):
    model = make_model(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, classifier_pdrop=0.0)
    args = arguments(tmp_path, num_train_epochs=12, learning_rate=1e-2, eval_strategy="epoch",
                     load_best_model_at_end=True, metric_for_best_model="accuracy")
    rows = make_rows(200, 1, 12)
    trainer = Trainer(model, args, rows, make_rows(60, 2, 12), console=QUIET)
    outcome = trainer.train()
    assert outcome["best"]["accuracy"] > 0.9
    assert trainer.evaluate()["eval_accuracy"] == outcome["best"]["accuracy"]
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = [record["eval_accuracy"] for record in records if "eval_accuracy" in record]
    assert max(scores) == outcome["best"]["accuracy"]
    assert len(scores) == 12
    assert {"loss", "learning_rate", "grad_norm", "epoch", "step"} <= set(records[0])


def test_early_stopping_ends_the_run(tmp_path):
    args = arguments(tmp_path, num_train_epochs=50, learning_rate=1e-9, eval_strategy="epoch",
                     early_stopping_patience=2, save_strategy="no", metric_for_best_model="accuracy")
    outcome = Trainer(make_model(), args, make_rows(24, 1), make_rows(16, 2), console=QUIET).train()
    assert outcome["steps"] == 3 * 3


def test_language_model_learns_a_cycle(tmp_path):
    config = GPTConfig(vocab_size=8, n_positions=16, n_embd=16, n_layer=1, n_head=2, model_type="gpt2")
    rows = [{"input_ids": [(start + i) % 8 for i in range(16)]} for start in range(8)] * 4
    args = arguments(tmp_path, max_steps=60, learning_rate=1e-2, save_strategy="no")
    trainer = Trainer(GPTLMHeadModel(config), args, rows, rows[:8], console=QUIET)
    before = trainer.evaluate()
    assert before["eval_loss"] == pytest.approx(math.log(8), abs=0.05)
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.3
    assert after["eval_perplexity"] == pytest.approx(math.exp(after["eval_loss"]))
    assert after["eval_n"] == 8 * 15


@pytest.mark.parametrize(("problem_type", "num_labels", "label"), [
    ("regression", 1, lambda i: float(i % 3)),
    ("multi_label_classification", 3, lambda i: [float(i % 2), 1.0, 0.0]),
])
def test_other_problem_types_train(tmp_path, problem_type, num_labels, label):
    """19 examples in batches of 8: the rows that fill the last batch must not count."""
    rows = [{"input_ids": [2 + i % 7] * 5, "label": label(i)} for i in range(19)]
    model = make_model(num_labels=num_labels, problem_type=problem_type)
    trainer = Trainer(model, arguments(tmp_path, save_strategy="no"), rows, rows, console=QUIET)
    outcome = trainer.train()
    assert math.isfinite(outcome["train_loss"])
    assert trainer.evaluate()["eval_n"] == 19


@pytest.mark.parametrize(("rows", "message"), [
    ([], "the data set is empty"),
    ([{"input_ids": [2, 3], "label": 1}] * 4, "at least two classes"),
    ([{"input_ids": [2, 3], "label": i} for i in range(3)], "label 2 in row 2 is outside"),
    ([{"input_ids": [2, 99], "label": i} for i in range(2)], "token id 99 .* outside the model's vocabulary of 12"),
    ([{"text": "a", "label": 0}], "give the trainer a tokenizer"),
    ([{"words": "a", "label": 0}], "'text' or 'input_ids' is needed"),
])
def test_data_that_does_not_fit_is_one_line(tmp_path, rows, message):
    with pytest.raises(UserError, match=message) as caught:
        Trainer(make_model(), arguments(tmp_path), rows, console=QUIET)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("values", "message"), [
    ({"learning_rte": 1}, "'learning_rte' is not a training argument. Did you mean 'learning_rate'"),
    ({"learning_rate": 0}, "learning_rate=0 is not greater than 0"),
    ({"lr_scheduler_type": "cosin"}, "Did you mean 'cosine'"),
    ({"eval_strategy": "steps"}, "needs eval_steps"),
    ({"per_device_train_batch_size": 0}, "at least 1"),
])
def test_wrong_arguments_are_one_line(values, message):
    with pytest.raises(UserError, match=message):
        TrainingArguments("out", **values)


def test_former_names_of_arguments_work():
    assert TrainingArguments("out", evaluation_strategy="epoch").eval_strategy == "epoch"


def test_max_length_above_n_positions_is_refused(tmp_path):
    with pytest.raises(UserError, match="max_length=49 is outside 1 to n_positions=48"):
        Trainer(make_model(), arguments(tmp_path, max_length=49), make_rows(8, 1), console=QUIET)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    args = arguments(tmp_path, max_steps=30, learning_rate=1e30, max_grad_norm=0.0, logging_steps=1)
    with pytest.raises(UserError, match="lower the learning rate"):
        Trainer(make_model(), args, make_rows(24, 1), console=QUIET).train()


def test_batches_hold_every_example_once_in_each_epoch():
    rows = make_rows(61, 3)
    sequences = [row["input_ids"] for row in rows]
    buckets = choose_buckets([len(s) for s in sequences], 48)
    batches = Batches(sequences, [row["label"] for row in rows], 8, buckets, shuffle=True, seed=5)
    orders = []
    for epoch in range(3):
        plan = batches.plan(epoch)
        assert len(plan) == batches.steps_per_epoch
        seen = np.concatenate([indices for _, indices in plan])
        assert sorted(seen) == list(range(61))
        orders.append(seen.tolist())
        for length, indices in plan:
            assert max(len(sequences[i]) for i in indices) <= length
    assert orders[0] != orders[1]
    assert orders == [np.concatenate([i for _, i in batches.plan(e)]).tolist() for e in range(3)]


def test_filler_rows_do_not_count():
    batches = Batches([[2, 3, 4], [5, 6]], [1, 0], 4, [8])
    input_ids, mask, labels = next(batches.epoch())
    assert labels.tolist() == [1, 0, -100, -100]
    assert mask.sum(1).tolist() == [3, 2, 0, 0]
    assert input_ids.shape == (4, 8)


def test_word_dropout_spares_the_ends_and_repeats():
    batches = Batches([list(range(2, 42))], [0], 1, [40], word_dropout=0.5, unk_id=1, seed=3)
    first, second = batches.sequence(0, 0), batches.sequence(0, 1)
    assert first[0] == 2
    assert first[-1] == 41
    assert 5 < (first == 1).sum() < 35
    assert (first != second).any()
    assert (first == batches.sequence(0, 0)).all()


def test_blocks_hold_every_token_once():
    blocks = pack_blocks([[1, 2, 3], [4], [5, 6]], 4, separator=9)
    assert blocks == [[1, 2, 3, 9], [4, 9, 5, 6]]
    assert sum(pack_blocks([[1] * 5, [2] * 7], 4), []) == [1] * 5 + [2] * 7


def test_metrics_equal_scikit_learn():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 3)), rng.integers(0, 3, 50)
    figures = METRICS["single_label_classification"](logits, labels)
    assert figures["f1"] == pytest.approx(sklearn_metrics.f1_score(labels, logits.argmax(1), average="macro"))
    assert figures["accuracy"] == sklearn_metrics.accuracy_score(labels, logits.argmax(1))
    assert figures["confusion"] == sklearn_metrics.confusion_matrix(labels, logits.argmax(1)).tolist()
    binary = METRICS["single_label_classification"](logits[:, :2], labels % 2)
    assert binary["f1"] == pytest.approx(sklearn_metrics.f1_score(labels % 2, logits[:, :2].argmax(1)))
    assert f1_scores(confusion_matrix(np.array([0, 0]), np.array([0, 0]), 3)).tolist() == [1.0, 0.0, 0.0]
