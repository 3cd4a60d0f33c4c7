"""Half precision, of which the CPU can show the graphs' dtypes and simulate the overflows; nothing runs in it here."""

import functools
import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from exported_graphs import check_dtypes, nodes_of, random_batch, tiny, train_step
from mindspore import Parameter, Tensor, nn, ops
from model_helpers import tiny_config

from ms_gpt import GPTForSequenceClassification, GPTLMHeadModel, Trainer, TrainingArguments, UserError, runtime
from ms_gpt.console import Console
from ms_gpt.generation.session import Session
from ms_gpt.training import trainer as trainer_module
from ms_gpt.training.loss_scale import LossScaler
from ms_gpt.training.step import Forward, Loss, SampledTargetLoss, TargetLoss

# The graphs of both formats have the same nodes; the slow session looks at the second one too.
HALF = ("float16", pytest.param("bfloat16", marks=pytest.mark.slow))


@pytest.fixture
def ids():
    return random_batch()


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
