"""Half precision, of which the CPU can show the graphs' dtypes and simulate the overflows; nothing runs in it here."""

import functools
import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from mindspore.train.mind_ir_pb2 import ModelProto, TensorProto
from model_helpers import random_ids, tiny_config

from ms_gpt import GPTForSequenceClassification, GPTLMHeadModel, Trainer, TrainingArguments, UserError, runtime
from ms_gpt.console import Console
from ms_gpt.generation.session import Session
from ms_gpt.training import trainer as trainer_module
from ms_gpt.training.loss_scale import LossScaler
from ms_gpt.training.optimizer import AdamW
from ms_gpt.training.schedule import LearningRate
from ms_gpt.training.step import Forward, Loss, SampledTargetLoss, TargetLoss, TrainStep

HALF = ("float16", "bfloat16")
PRODUCTS = {"MatMul", "BatchMatMul", "MatMulExt", "Dense"}
# What must not be rounded to half: softmax, LayerNorm, GELU, loss, gradient norm, AdamW.
EXACT = {"Softmax", "SoftmaxBackward", "LogSoftmax", "LogSoftmaxGrad", "ReduceMean", "Rsqrt", "RsqrtGrad", "Sigmoid",
         "SigmoidGrad", "ReduceSum", "SumExt", "Square", "Sqrt", "IsFinite", "AdamWeightDecay", "UnsortedSegmentSum",
         "Log", "Expm1", "Pow"}


class Node:
    """A node of an exported graph: what it computes, from which dtypes, where in the model."""

    def __init__(self, proto, values):
        self.kind = proto.op_type.split(":")[2] if proto.op_type.startswith("REF::") else proto.op_type
        self.inputs = [values.get(name) for name in proto.input]
        self.floats = {item for item in self.inputs if isinstance(item, str) and "float" in item}
        self.place = proto.domain


def nodes_of(cell, inputs, folder):
    """Export a Cell, and read its graph."""
    ms.export(cell, *inputs, file_name=str(folder / "graph"), file_format="MINDIR")
    graph = ModelProto()
    graph.ParseFromString((folder / "graph.mindir").read_bytes())
    graph = graph.graph
    names = {number: name.lower() for name, number in TensorProto.DataType.items()}
    values = {item.name: names[item.data_type] for item in graph.parameter}
    values.update({item.name: names[item.tensor[0].data_type] for item in graph.input})
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("shape", "value") and attribute.tensors:
                values[node.output[0]] = names[attribute.tensors[0].data_type]
            elif node.op_type == "Constant":
                values[node.output[0]] = attribute.i or attribute.f or None
    # "float" is what MindIR calls float32.
    values = {key: "float32" if value == "float" else value for key, value in values.items()}
    return [Node(node, values) for node in graph.node if node.op_type != "Constant"]


def tiny(head, dtype, **changes):
    config = tiny_config("gpt2", n_positions=16, vocab_size=40, n_embd=48, pad_token_id=0, **changes)
    model = head(config)
    model.set_compute_dtype(dtype)
    return model


def train_step(model, loss, **settings):
    weights = model.weights()
    optimizer = AdamW(list(weights.values()), list(weights))
    return TrainStep(loss, optimizer, LearningRate(1e-2, 100, kind="constant"), **settings).set_train()


def check_dtypes(nodes, dtype, products):
    """Every product in half precision, everything that must be exact in float32."""
    kinds = Counter(node.kind for node in nodes)
    assert {kind: kinds[kind] for kind in PRODUCTS if kinds[kind]} == products
    for node in nodes:
        if node.kind in PRODUCTS:
            assert node.floats == {dtype}, (node.kind, node.place, node.inputs)
        if node.kind in EXACT:
            assert node.floats <= {"float32"}, (node.kind, node.place, node.inputs)


@pytest.fixture
def ids():
    return Tensor(random_ids(tiny_config(vocab_size=40), 2, 8))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", ["all", "sampled", "classifier"])
def test_train_step_computes_products_in_half_and_the_rest_in_float32(kind, dtype, ids, tmp_path, graph_mode):
    """Two layers of four Conv1D and two attention products, and the head, each once forward and twice backward."""
    if kind == "classifier":
        model = tiny(GPTForSequenceClassification, dtype, lm_coef=0.5)
        loss, batch = Loss(model, ["input_ids", "attention_mask", "labels"]), (ids, ids, ids[:, 0] % 3)
    else:
        model = tiny(GPTLMHeadModel, dtype, tie_word_embeddings=kind == "all")
        loss, batch = TargetLoss(model) if kind == "all" else SampledTargetLoss(model, 10), (ids, ids)
    step = train_step(model, loss, scaler=LossScaler() if dtype == "float16" else None)
    nodes = nodes_of(step, batch, tmp_path)
    check_dtypes(nodes, dtype, {"MatMul": 3 * (8 + 1 + (kind == "classifier")), "BatchMatMul": 3 * 4})
    kinds = Counter(node.kind for node in nodes)
    assert kinds["Softmax"] == 2
    assert kinds["Rsqrt"] == 5
    assert kinds["AdamWeightDecay"] == len(model.weights())
    assert kinds["IsFinite"] == (dtype == "float16")
    # Nothing in the graph waits for the host: no branch on a value, no printing, no Python.
    assert not {"Switch", "SwitchLayer", "Partial", "Print", "PyFunc", "PyExecute", "Custom"} & set(kinds)


@pytest.mark.parametrize("dtype", HALF)
def test_evaluation_and_generation_compute_products_in_half(dtype, ids, tmp_path, graph_mode):
    model = tiny(GPTLMHeadModel, dtype).set_train(False)
    session = Session(model, 2, 16)
    ones = [Tensor(np.ones(shape, np.int32)) for shape in ((2, 1), (2, 16), (1,), (8,), (2,), (2, 8))]
    column, mask, place, places, last, columns = ones
    for cell, inputs in ((Forward(model, ["input_ids"]), (ids,)),
                         (session._prefill, (ids, mask, columns, places, last)),
                         (session._decode, (column, mask, column, place))):
        nodes = nodes_of(cell.set_train(False), inputs, tmp_path)
        check_dtypes(nodes, dtype, {"MatMul": 9, "BatchMatMul": 4})


class Poisonable(nn.Cell):
    """A small regression whose gradient is infinite for a batch that says so."""

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.weight = Parameter(Tensor(np.linspace(-1, 1, 6).reshape(3, 2).astype(np.float32)), name="a.weight")
        self.bias = Parameter(Tensor(np.zeros(2, np.float32)), name="a.bias")

    def weights(self):
        return {"a.weight": self.weight, "a.bias": self.bias}

    def construct(self, x, poison):
        error = ops.matmul(x, self.weight) + self.bias - 1.0
        # Only the bias's gradient is bad, which must keep the weight's from being used too.
        return ops.square(error).mean() + (self.bias * poison).sum()


def regression(scaler, **settings):
    model = Poisonable()
    step = train_step(model, model, scaler=scaler, **settings)
    rng = np.random.default_rng(0)
    rows = [Tensor(rng.standard_normal((4, 3)).astype(np.float32)) for _ in range(6)]

    def run(*poisons):
        return [tuple(float(item.asnumpy()) for item in step(row, Tensor(float(poison), ms.float32)))
                for row, poison in zip(rows, poisons, strict=False) if poison is not None]

    def state():
        optimizer = step.optimizer
        return [item.asnumpy() for item in (*model.weights().values(), *optimizer.moment1, *optimizer.moment2,
                                            optimizer.step)]

    return run, state


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.1])
def test_a_batch_that_overflows_leaves_no_trace(poison, max_grad_norm, graph_mode):
    scaler = LossScaler()
    run, state = regression(scaler, max_grad_norm=max_grad_norm)
    figures = run(0, 0, poison, 0, poison, 0)
    clean_run, clean_state = regression(LossScaler(), max_grad_norm=max_grad_norm)
    clean = clean_run(0, 0, None, 0, None, 0)
    assert same(state(), clean_state())
    assert [item for item in figures if np.isfinite(item[1])] == clean
    assert [np.isfinite(norm) for _, norm, _ in figures] == [True, True, False, True, False, True]
    assert int(scaler.overflows.asnumpy()) == 2
    assert float(scaler.scale.asnumpy()) == 2.0**14


def test_scaling_changes_no_bit_of_an_update(graph_mode, monkeypatch):
    """Without clipping, gradients times a power of two and divided by it are the gradients."""
    monkeypatch.setenv("MS_GPT_KERNELS", "off")
    run, state = regression(LossScaler(2.0**10), max_grad_norm=0.0)
    plain_run, plain_state = regression(None, max_grad_norm=0.0)
    assert run(0, 0, 0) == plain_run(0, 0, 0)
    assert same(state(), plain_state())


def test_scale_doubles_after_good_steps_in_a_row_and_stays_in_its_range(graph_mode):
    scaler = LossScaler(4.0, growth_interval=3)
    history = []
    for is_finite in (1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0):
        scaler(Tensor(bool(is_finite)))
        history.append(float(scaler.scale.asnumpy()))
    assert history == [4, 4, 2, 2, 2, 4, 4, 2, 1, 1, 1, 1]
    assert int(scaler.overflows.asnumpy()) == 6
    largest = LossScaler(LossScaler.largest, growth_interval=1)
    largest(Tensor(True))
    assert float(largest.scale.asnumpy()) == LossScaler.largest


class Notes(Console):
    def __init__(self):
        super().__init__(quiet=True)
        self.notes = []

    def note(self, message):
        self.notes.append(message)


def as_float16(folder, monkeypatch, scale, console=None, **changes):
    """A trainer that believes it runs in float16 and computes in float32."""
    monkeypatch.setattr(trainer_module, "LossScaler", functools.partial(LossScaler, scale, 4))
    config = tiny_config("gpt2", vocab_size=8, n_embd=16, n_head=2, n_layer=1, embd_pdrop=0.0, attn_pdrop=0.0,
                         resid_pdrop=0.0)
    rows = [{"input_ids": [(start + i) % 8 for i in range(8)]} for start in range(8)] * 2
    values = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "lr_scheduler_type": "constant",
              "logging_steps": 4, "max_steps": 40, "device": "cpu", **changes}
    trainer = Trainer(GPTLMHeadModel(config), TrainingArguments(str(folder), **values), rows,
                      console=console or Console(quiet=True))
    trainer.runtime = replace(trainer.runtime, dtype="float16")
    return trainer


def test_training_halves_an_enormous_scale_and_goes_on(tmp_path, monkeypatch):
    console = Notes()
    trainer = as_float16(tmp_path, monkeypatch, 2.0**74, console)
    trainer.train()
    records = trainer.log.read()
    assert all(json.loads(json.dumps(item, allow_nan=False)) for item in records)
    overflows = [item["overflows"] for item in records]
    assert overflows == sorted(overflows)
    assert overflows[-1] > 4
    assert int(trainer.optimizer.step.asnumpy()) == 40 - overflows[-1]
    assert records[-1]["loss"] < 1.0 < 1.9 < records[0]["loss"]
    notes = [note for note in console.notes if "float16 overflowed" in note]
    assert len(notes) == len(set(overflows))
    assert f"{overflows[-1]} batches skipped so far" in notes[-1]


def test_a_resumed_run_keeps_the_state_of_the_scale(tmp_path, monkeypatch):
    def run(folder, **changes):
        trainer = as_float16(folder, monkeypatch, 2.0**70, save_strategy="steps", save_steps=5, **changes)
        trainer.train(resume=True)
        scaling = {name: item.asnumpy().item() for name, item in trainer.scaler.state().items()}
        return scaling, [item.asnumpy() for item in trainer.model.weights().values()]

    scaling, weights = run(tmp_path / "whole")
    assert scaling["loss_scale_overflows"] > 0
    with monkeypatch.context() as patch:
        saves = []
        patch.setattr(Trainer, "save_state", _stop_after(Trainer.save_state, 3, saves))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed")
    again, resumed = run(tmp_path / "killed")
    assert again == scaling
    assert same(weights, resumed)


def _stop_after(save, count, saves):
    def saving(self):
        save(self)
        saves.append(1)
        if len(saves) == count:
            raise KeyboardInterrupt
    return saving


def test_gradients_that_are_never_finite_stop_the_run(tmp_path, monkeypatch):
    trainer = as_float16(tmp_path, monkeypatch, 4.0)
    table = trainer.model.transformer.tokens_embed.embedding_table
    table.set_data(Tensor(np.full(table.shape, np.nan, np.float32)))
    with pytest.raises(UserError, match="the loss is nan at step 4"):
        trainer.train()


def test_half_precision_on_the_cpu_and_another_dtype_on_resuming_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="dtype='float16' needs Ascend or a GPU"):
        runtime.setup("cpu", dtype="float16")
    as_float16(tmp_path, monkeypatch, 4.0, max_steps=4).train()
    trainer = as_float16(tmp_path, monkeypatch, 4.0, max_steps=4)
    trainer.args.dtype = "float16"
    with pytest.raises(UserError, match="dtype was 'float32' and is 'float16' now"):
        trainer.train(resume=True)


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
    console, model = Notes(), tiny(GPTLMHeadModel, "float16", attn_pdrop=attn_pdrop)
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "setup", lambda *options: runtime.Runtime("ascend", "graph", "float16", 0))
        patch.setattr(ms, "get_context", lambda name: "Ascend")
        Trainer(model, TrainingArguments(str(tmp_path), flash_attention=True, dtype="float16"), console=console)
    assert all(block.attn.flash_attention for block in model.transformer.h)
    assert len(console.notes) == (attn_pdrop > 0)


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


class SinkingModel:
    """A stand-in for ``mindspore.train.Model`` on a device: callbacks see no batch, and an "epoch" has one step."""

    def __init__(self, step):
        self.step = step

    def train(self, epoch, dataset, callbacks, dataset_sink_mode, sink_size):
        assert dataset_sink_mode
        assert sink_size == 1
        stops = []
        arguments = SimpleNamespace(train_dataset_element=())
        context = SimpleNamespace(original_args=lambda: arguments, request_stop=lambda: stops.append(1))
        passes = -(-epoch // dataset.get_dataset_size())
        iterator = dataset.create_tuple_iterator(num_epochs=passes)
        for callback in callbacks:
            callback.on_train_begin(context)
        for batch in [batch for _ in range(passes) for batch in iterator][:epoch]:
            for callback in callbacks:
                callback.on_train_step_begin(context)
            arguments.net_outputs = self.step(*batch)
            for callback in callbacks:
                callback.on_train_step_end(context)
            if stops:
                break
        for callback in callbacks:
            callback.on_train_end(context)


def test_data_sink_takes_the_steps_that_are_taken_without(tmp_path, monkeypatch):
    """To a kill in the middle of an epoch of four steps, and from there to the end."""
    def run(folder, sinks):
        trainer = as_float16(folder, monkeypatch, 4.0, max_steps=10, save_strategy="steps", save_steps=6)
        trainer.args.dataset_sink_mode = sinks
        trainer.train(resume=True)
        return trainer.optimizer.step.asnumpy(), *(item.asnumpy() for item in trainer.model.weights().values())

    expected = run(tmp_path / "plain", False)
    assert expected[0] == 10
    monkeypatch.setattr(trainer_module, "Model", SinkingModel)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save_state", _stop_after(Trainer.save_state, 1, []))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "sink", True)
    assert same(run(tmp_path / "sink", True), expected)


def test_data_sink_where_it_cannot_be_is_refused(tmp_path):
    with pytest.raises(UserError, match="dataset_sink_mode=True needs graphs on Ascend or a GPU"):
        Trainer(tiny(GPTLMHeadModel, "float32"), TrainingArguments(str(tmp_path), dataset_sink_mode=True, device="cpu"))


def test_losses_are_read_only_when_they_are_logged(tmp_path, monkeypatch):
    """Apart from the first step of a shape, whose compilation is timed."""
    trainer = as_float16(tmp_path, monkeypatch, 4.0, max_steps=8)
    reads = []
    original = Tensor.asnumpy

    def counting(self):
        if self.dtype == ms.float32 and self.ndim == 0:
            reads.append(trainer.state.step)
        return original(self)

    monkeypatch.setattr(Tensor, "asnumpy", counting)
    trainer.train()
    assert set(reads) <= {0, 1, 4, 8}
