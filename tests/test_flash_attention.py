"""Ascend's fused attention, of which the CPU can show the graphs: nothing runs it here."""

import mindspore as ms
import numpy as np
import pytest
from exported_graphs import check_dtypes, nodes_of, random_batch, tiny, train_step
from mindspore import Tensor, ops
from model_helpers import random_ids, tiny_config

from ms_gpt import GPTLMHeadModel, Trainer, TrainingArguments, UserError, runtime
from ms_gpt.console import Console
from ms_gpt.generation.session import Session
from ms_gpt.training.loss_scale import LossScaler
from ms_gpt.training.step import Forward, Loss, TargetLoss


@pytest.fixture
def ids():
    return random_batch()


def on_ascend(monkeypatch, model):
    with monkeypatch.context() as patch:
        patch.setattr(ms, "get_context", lambda name: "Ascend")
        model.set_flash_attention(True)
    return model


@pytest.mark.parametrize("has_mask", [True, False])
def test_flash_attention_is_called_as_documented(has_mask, ids, tmp_path, monkeypatch, graph_mode):
    """Layout BSH, three heads, the scale, the whole mask in mode 1, no dropout; forward and backward."""
    model = on_ascend(monkeypatch, tiny(GPTLMHeadModel, "float16", attn_pdrop=0.0))
    loss = Loss(model, ["input_ids", "labels"] + ["attention_mask"] * has_mask)
    nodes = nodes_of(train_step(model, loss, scaler=LossScaler()), (ids, ids) + (ids,) * has_mask, tmp_path)
    check_dtypes(nodes, "float16", {"MatMul": 27})
    calls = [node.inputs for node in nodes if node.kind == "FlashAttentionScore"]
    largest = 2**31 - 1
    documented = [*["float16"] * 3, None, None, None, "bool", None, None, None, 3, 1.0, 0.25, largest, largest, None,
                  None, 1]
    assert calls == [documented] * 2
    assert sum(node.kind == "FlashAttentionScoreGrad" for node in nodes) == 2
    assert not any(node.kind == "Softmax" for node in nodes)


def test_flash_attention_hides_what_the_plain_path_hides(monkeypatch, graph_mode):
    """The kernel's formula by plain ops in its place: equal logits where tokens are real, and no row without a key."""
    seen = []

    def formula(query, key, value, head_num, attn_mask, keep_prob, scalar_value, input_layout, sparse_mode):
        assert (keep_prob, input_layout, sparse_mode) == (1.0, "BSH", 1)
        query, key, value, hidden = (item.asnumpy() for item in (query, key, value, attn_mask))
        seen.append(hidden)
        batch, length, width = query.shape
        query, key, value = (item.reshape(batch, length, head_num, -1).transpose(0, 2, 1, 3)
                             for item in (query, key, value))
        scores = np.where(hidden, -np.inf, scalar_value * query @ key.transpose(0, 1, 3, 2))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return Tensor((weights @ value).transpose(0, 2, 1, 3).reshape(batch, length, width))

    runtime.setup("cpu", "pynative")
    model = tiny(GPTLMHeadModel, "float32", window_size=3, model_type="ms_gpt").set_train(False)
    model.use_kernels(False)
    monkeypatch.setattr(ops, "flash_attention_score", formula)
    mask = np.ones((3, 8), np.int32)
    mask[0, :3], mask[1, 5:], mask[2] = 0, 0, 0
    input_ids = Tensor(random_ids(model.config, 3, 8))
    for given in (Tensor(mask), None):
        plain = model(input_ids, given)[0].asnumpy()
        for block in model.transformer.h:
            block.attn.flash_attention = True
        fused = model(input_ids, given)[0].asnumpy()
        for block in model.transformer.h:
            block.attn.flash_attention = False
        real = mask != 0 if given is not None else np.ones_like(mask, bool)
        np.testing.assert_allclose(fused[real], plain[real], atol=1e-5)
        assert np.isfinite(fused).all()
    assert {item.shape for item in seen} == {(3, 1, 8, 8), (8, 8)}
    assert not any(item.all(-1).any() for item in seen)


@pytest.mark.parametrize(("changes", "dtype", "message"), [
    ({}, "float32", "choose the dtype float16 or bfloat16"),
    ({"output_attentions": True}, "float16", "set output_attentions to false"),
    ({"n_embd": 36}, "float16", "these have 12"),
])
def test_flash_attention_where_it_cannot_be_is_refused(changes, dtype, message, monkeypatch):
    model = GPTLMHeadModel(tiny_config("gpt2", **{"n_embd": 48, **changes}))
    model.set_compute_dtype(dtype)
    with pytest.raises(UserError, match=message):
        on_ascend(monkeypatch, model)


def test_flash_attention_is_for_ascend_only(tmp_path):
    with pytest.raises(UserError, match="flash attention is a kernel of Ascend"):
        tiny(GPTLMHeadModel, "float16").set_flash_attention(True)
    with pytest.raises(UserError, match="flash attention is a kernel of Ascend"):
        Trainer(tiny(GPTLMHeadModel, "float32"), TrainingArguments(str(tmp_path), flash_attention=True, device="cpu"))


@pytest.mark.parametrize("attn_pdrop", [0.0, 0.1])
def test_trainer_turns_flash_attention_on_and_says_where_it_is_not_used(attn_pdrop, tmp_path, monkeypatch):
    console, notes, model = Console(quiet=True), [], tiny(GPTLMHeadModel, "float16", attn_pdrop=attn_pdrop)
    monkeypatch.setattr(console, "note", notes.append)
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "setup", lambda *options: runtime.Runtime("ascend", "graph", "float16", 0))
        patch.setattr(ms, "get_context", lambda name: "Ascend")
        Trainer(model, TrainingArguments(str(tmp_path), flash_attention=True, dtype="float16"), console=console)
    assert all(block.attn.flash_attention for block in model.transformer.h)
    assert len(notes) == (attn_pdrop > 0)


def test_flash_attention_leaves_dropout_cache_and_head_mask_to_the_plain_path(ids, tmp_path, monkeypatch, graph_mode):
    model = on_ascend(monkeypatch, tiny(GPTLMHeadModel, "float16", attn_pdrop=0.1))
    head_mask = Tensor(np.ones(3, np.float32))
    session = Session(model, 2, 16)
    column, mask, place = (Tensor(np.ones(shape, np.int32)) for shape in ((2, 1), (2, 16), (1,)))
    for cell, inputs, is_training in ((TargetLoss(model), (ids, ids), True),
                                      (Forward(model, ["input_ids", "head_mask"]), (ids, head_mask), False),
                                      (session._decode, (column, mask, column, place), False)):
        nodes = nodes_of(cell.set_train(is_training), inputs, tmp_path)
        assert not any("Flash" in node.kind for node in nodes)
        assert sum(node.kind == "Softmax" for node in nodes) == 2
    nodes = nodes_of(TargetLoss(model).set_train(False), (ids, ids), tmp_path)
    assert sum(node.kind == "FlashAttentionScore" for node in nodes) == 2
