"""What the heads compute, against NumPy: pooling, choices, losses and the rows that do not count."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor, ops
from model_helpers import close, random_ids, random_model, run, set_mode, tiny_config

from ms_gpt import GPTDoubleHeadsModel, GPTForSequenceClassification, GPTLMHeadModel, GPTModel, UserError
from ms_gpt.training.step import Loss


@pytest.fixture(autouse=True)
def _op_by_op():
    set_mode("pynative")
    yield
    set_mode("graph")


def test_every_choice_of_the_double_heads_model_stands_alone():
    config = tiny_config("gpt2", n_layer=1)
    model, ids = random_model(GPTDoubleHeadsModel, config), random_ids(config, 6, 7).reshape(2, 3, 7)
    index = np.array([[1, 6, 3], [0, 2, 4]], np.int32)
    lm_logits, mc_logits = run(model, input_ids=ids, mc_token_ids=index)
    answers = np.array([2, 1], np.int32)
    lm_loss, mc_loss = run(model, input_ids=ids, mc_token_ids=index, labels=ids, mc_labels=answers)[:2]
    hidden = run(model.transformer, input_ids=ids.reshape(6, 7))[0].reshape(2, 3, 7, 12)
    weight, bias = (item.asnumpy() for item in model.multiple_choice_head.summary.get_parameters())
    expected = np.take_along_axis(hidden, index[..., None, None], 2)[:, :, 0] @ weight[0] + bias
    close(mc_logits, expected)
    probabilities = np.exp(expected) / np.exp(expected).sum(-1, keepdims=True)
    close(mc_loss, -np.log([probabilities[0, 2], probabilities[1, 1]]).mean())
    log_probs = lm_logits - np.log(np.exp(lm_logits).sum(-1, keepdims=True))
    close(lm_loss, -np.take_along_axis(log_probs[:, :, :-1], ids[:, :, 1:, None], -1).mean())
    changed = ids.copy()
    changed[0, 1] = 0
    other = run(model, input_ids=changed, mc_token_ids=index)[1]
    np.testing.assert_array_equal(np.abs(other - mc_logits) > 1e-6, [[False, True, False], [False] * 3])


@pytest.mark.parametrize("summary_type", ["last", "first", "mean", "cls_index"])
def test_what_the_multiple_choice_head_reads(summary_type):
    config = tiny_config(n_layer=1, summary_type=summary_type, summary_use_proj=True, summary_activation="tanh")
    model, ids = random_model(GPTDoubleHeadsModel, config), random_ids(config, 2, 5).reshape(1, 2, 5)
    hidden = run(model.transformer, input_ids=ids[0])[0]
    read = {"last": hidden[:, -1], "first": hidden[:, 0], "mean": hidden.mean(1), "cls_index": hidden[:, -1]}
    weight, bias = (item.asnumpy() for item in model.multiple_choice_head.summary.get_parameters())
    close(run(model, input_ids=ids)[1][0], np.tanh(read[summary_type] @ weight[0] + bias))


def test_the_auxiliary_loss_is_added_with_its_weight():
    config = tiny_config(n_layer=1)
    ids, labels = random_ids(config, 3, 7), np.array([0, 2, 1], np.int32)
    mask = (np.arange(7) < np.array([[7], [4], [6]])).astype(np.int32)
    losses = [run(random_model(GPTForSequenceClassification, config.replace(lm_coef=coef)), input_ids=ids,
                  attention_mask=mask, labels=labels)[0] for coef in (0.0, 0.5, 1.0)]
    classifier = random_model(GPTForSequenceClassification, config)
    language_model = GPTLMHeadModel(config).set_train(False)
    language_model.transformer = classifier.transformer
    counted = np.where(mask, ids, -100).astype(np.int32)
    expected = run(language_model, input_ids=ids, attention_mask=mask, labels=counted)[0]
    close(losses[2] - losses[0], expected)
    close(losses[1] - losses[0], expected / 2)


def test_a_language_model_loss_skips_ignored_labels():
    config = tiny_config(n_layer=1)
    model, ids = random_model(GPTLMHeadModel, config), random_ids(config, 2, 6)
    labels = ids.copy()
    labels[0, 3:] = labels[1, :2] = -100
    loss, logits = run(model, input_ids=ids, labels=labels)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = [log_probs[row, t, labels[row, t + 1]] for row in range(2) for t in range(5) if labels[row, t + 1] >= 0]
    close(loss, -np.mean(picked))
    nothing = np.full_like(labels, -100)
    assert run(model, input_ids=ids, labels=nothing)[0] == 0


def test_class_weights_weigh_and_must_fit():
    config = tiny_config(n_layer=1)
    model, ids, labels = random_model(GPTForSequenceClassification, config), random_ids(config, 4, 5), np.arange(4) % 3
    logits = run(model, input_ids=ids)[0]
    weights = np.array([0.5, 2.0, 1.0])
    model.set_class_weights(list(weights))
    nll = -np.take_along_axis(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), labels[:, None], 1)[:, 0]
    loss = run(model, input_ids=ids, labels=labels.astype(np.int32))[0]
    close(loss, (nll * weights[labels]).sum() / weights[labels].sum())
    with pytest.raises(UserError, match="class_weights has 2 values for num_labels=3"):
        model.set_class_weights([1.0, 1.0])


@pytest.mark.parametrize(("problem_type", "num_labels"), [("regression", 1), ("multi_label_classification", 3)])
def test_rows_with_a_label_of_nan_do_not_count(problem_type, num_labels):
    set_mode("graph")
    config = tiny_config(n_layer=1, num_labels=num_labels, problem_type=problem_type)
    model, ids = random_model(GPTForSequenceClassification, config), random_ids(config, 4, 5)
    labels = np.random.default_rng(0).integers(0, 2, (4, num_labels)).astype(np.float32)
    filled = labels.copy()
    filled[2:] = np.nan
    expected = run(model, input_ids=ids[:2], labels=labels[:2])[0]
    close(run(model, input_ids=ids, labels=filled)[0], expected)
    gradients = ops.grad(Loss(model, ["input_ids", "labels"]), None, list(model.weights().values()))(
        Tensor(ids), Tensor(filled))
    assert all(np.isfinite(gradient.asnumpy()).all() for gradient in gradients)
    assert run(model, input_ids=ids, labels=np.full_like(labels, np.nan))[0] == 0


def test_a_folder_without_the_head_gets_a_new_one(tmp_path):
    config = tiny_config(n_layer=1)
    base = random_model(GPTModel, config)
    base.save_pretrained(tmp_path)
    classifier = GPTForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    ids = random_ids(config, 2, 4)
    close(run(classifier.transformer, input_ids=ids)[0], run(base, input_ids=ids)[0])
    assert classifier.score.weight.shape == (5, 12)
    assert classifier.score.weight.asnumpy().any()
    again = GPTForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    np.testing.assert_array_equal(again.score.weight.asnumpy(), classifier.score.weight.asnumpy())
