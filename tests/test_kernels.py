"""The fused kernels against the plain operations that they stand in for."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Parameter, Tensor, nn, ops

from ms_gpt import GPTConfig, GPTLMHeadModel, GPTModel, UserError, kernels, runtime
from ms_gpt.export import export_mindir
from ms_gpt.layers import Activation, Conv1D, Dropout, LayerNorm, attention_bias
from ms_gpt.losses import cross_entropy
from ms_gpt.model import Attention, Block
from ms_gpt.training.optimizer import AdamW
from ms_gpt.training.schedule import LearningRate
from ms_gpt.training.step import Forward, TargetLoss, TrainStep

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="there is no compiler, so there are no kernels")


@pytest.fixture(autouse=True, scope="module")
def _graphs():
    runtime.setup("cpu", "graph")


few = settings(max_examples=4, deadline=None, derandomize=True)
sizes = st.sampled_from([1, 2, 3, 7, 16, 17, 33, 65])


class Weighted(nn.Cell):
    """Sums what a cell returns, each number with a weight of its own, so that every gradient differs."""

    def __init__(self, function, weights, names):
        super().__init__(auto_prefix=False)
        self.function, self.weights, self.names = function, weights, names

    def construct(self, *inputs):
        outputs = self.function(*inputs)
        total = Tensor(0.0, ms.float32)
        for i in range(len(outputs)):
            total = total + (outputs[i] * self.weights[i]).sum()
        return total, outputs


class Gradient(nn.Cell):
    """A graph of its own: called from Python, ``ops.grad`` may take up the graph of an earlier function."""

    def __init__(self, loss, positions, parameters):
        super().__init__(auto_prefix=False)
        self.gradient = ops.grad(loss, positions, parameters, has_aux=True)

    def construct(self, *inputs):
        return self.gradient(*inputs)[0]


def check(cell, *inputs, differentiated=1, floor=0.1):
    """Compare a cell's outputs and gradients, its parameters' too, with the kernels and without."""
    found = []
    for are_used in (False, True):
        for _, part in cell.cells_and_names():
            if hasattr(part, "set_kernels"):
                part.set_kernels(are_used)
            part.compile_cache.clear()
        outputs = [item.asnumpy() for item in cell(*inputs)]
        generator = np.random.default_rng(1)
        weights = [Tensor(generator.standard_normal(item.shape).astype(np.float32)) for item in outputs]
        loss = Weighted(cell, weights, ())
        gradients = Gradient(loss, tuple(range(differentiated)), cell.trainable_params() or None)(*inputs)
        flat = []
        for item in gradients if isinstance(gradients, tuple) else (gradients,):
            flat.extend(item if isinstance(item, tuple) else (item,))
        found.append(outputs + [item.asnumpy() for item in flat])
    for number, (plain, fused) in enumerate(zip(*found, strict=True)):
        assert np.isfinite(fused).all()
        assert np.abs(plain - fused).max(initial=0) <= 1e-5 * max(np.abs(plain).max(initial=0), floor), number


class Several(nn.Cell):
    def __init__(self, cell, method=None):
        super().__init__()
        self.cell, self.method = cell, method

    def construct(self, *inputs):
        if self.method == "after_sum":
            return self.cell.after_sum(*inputs)
        return (self.cell(*inputs),)


def normal(*shape, seed=0, scale=1.0):
    return Tensor((np.random.default_rng([seed, *shape]).standard_normal(shape) * scale).astype(np.float32))


@given(sizes, sizes, sizes)
@few
def test_linear(rows, inputs, outputs):
    cell = Conv1D(outputs, inputs)
    cell.weight.set_data(normal(inputs, outputs))
    cell.bias.set_data(normal(outputs))
    check(Several(cell), normal(rows, inputs, seed=1))


@given(sizes, st.sampled_from([0.1, 1.0, 10.0]))
@few
def test_gelu(size, scale):
    check(Several(Activation("gelu")), normal(3, size, scale=scale))


@given(sizes, st.sampled_from([2, 3, 17, 64, 100]))
@few
def test_layer_norm(rows, size):
    # Two numbers that lie close together have gradients that cancel: the floor is the size of what is summed.
    cell = LayerNorm(size, 1e-5)
    cell.gamma.set_data(normal(size))
    cell.beta.set_data(normal(size, seed=1))
    check(Several(cell), normal(rows, size, seed=2), floor=1.0)
    check(Several(cell, "after_sum"), normal(2, rows, size, seed=3), normal(2, rows, size, seed=4), differentiated=2,
          floor=1.0)


@given(sizes, sizes, st.sampled_from([0.0, 0.1, 0.5]))
@few
def test_dropout(rows, columns, p):
    cell = Dropout(p)
    cell.set_site("here")
    cell.set_train(True)
    check(Several(cell), normal(rows, columns), Tensor(12345, ms.int32))


class Attending(nn.Cell):
    def __init__(self, heads, width, p):
        super().__init__()
        config = GPTConfig(5, 256, n_layer=1, n_head=heads, n_embd=width, attn_pdrop=p, resid_pdrop=0.0)
        self.attention = Attention(config)
        self.attention.attn_dropout.set_site("weights")
        for name, parameter in self.attention.parameters_and_names():
            parameter.set_data(normal(*parameter.shape, seed=len(name), scale=0.3))

    def construct(self, x, bias, key, real):
        # What padding sees where nothing is left to see is nobody's business.
        return (self.attention(x, bias, None, key)[0] * real,)


@pytest.mark.parametrize(("batch", "length", "shape", "p", "window", "is_padded"), [
    (1, 1, (1, 3), 0.0, None, False), (3, 2, (2, 32), 0.2, None, False), (1, 17, (3, 15), 0.2, 5, True),
    (3, 64, (1, 3), 0.0, 1, False), (1, 65, (2, 32), 0.2, None, True), (2, 130, (3, 15), 0.0, 5, True)])
def test_attention(batch, length, shape, p, window, is_padded):
    cell = Attending(*shape, p)
    cell.set_train(True)
    mask = np.ones((batch, length), np.int32)
    if is_padded:
        mask[-1, length - length // 3 :] = 0
    bias = attention_bias(length, Tensor(mask), window)
    real = Tensor(mask[:, :, None].astype(np.float32))
    check(cell, normal(batch, length, shape[1]), bias, Tensor(99, ms.int32), real)


class Scoring(nn.Cell):
    def __init__(self):
        super().__init__()
        self.kernel = None

    def set_kernels(self, are_used):
        self.kernel = kernels.kernel("cross_entropy") if are_used else None

    def construct(self, logits, labels):
        return (cross_entropy(logits, labels, kernel=self.kernel),)


class Step(nn.Cell):
    """A block that reads one token more in each row, and its cache."""

    def __init__(self, block, batch, length):
        super().__init__()
        self.block = block
        shape = (batch, block.attn.n_head, length, block.attn.head_size)
        self.keys = Parameter(Tensor(np.zeros(shape, np.float32)), name="keys")
        self.values = Parameter(Tensor(np.zeros(shape, np.float32)), name="values")

    def construct(self, x, bias, place, is_real):
        return self.block(x, bias, None, None, (self.keys, self.values, place, is_real))[0]


@given(st.integers(1, 9), st.sampled_from(["openai-gpt", "gpt2"]), st.sampled_from([(1, 1), (3, 5), (2, 17), (4, 16)]),
       st.integers(0, 6))
@few
def test_a_step_of_a_block(batch, model_type, shape, place):
    heads, head_size = shape
    length, width = 7, heads * head_size
    block = Block(GPTConfig(model_type=model_type, n_embd=width, n_head=heads, n_positions=length)).set_train(False)
    for seed, parameter in enumerate(block.get_parameters()):
        parameter.set_data(normal(*parameter.shape, seed=seed, scale=0.3))
    mask = np.ones((batch, length), np.int32)
    mask[batch // 2, 0] = 0
    where = Tensor([place], ms.int32)
    inputs = (normal(batch, 1, width), attention_bias(length, Tensor(mask), None, where), where,
              Tensor(mask[:, [place]].reshape(batch, 1, 1, 1) != 0))
    held = np.array(normal(batch, heads, length, head_size).asnumpy())
    held[:, :, place:] = 0
    found = []
    for are_used in (False, True):
        for part in (block, *(cell for _, cell in block.cells_and_names())):
            if hasattr(part, "set_kernels"):
                part.set_kernels(are_used)
        step = Step(block, batch, length).set_train(False)
        step.keys.set_data(Tensor(held))
        step.values.set_data(Tensor(held[::-1].copy()))
        found.append([item.asnumpy() for item in (step(*inputs), step.keys, step.values)])
    assert block.step_kernel is not None
    for plain, fused in zip(*found, strict=True):
        assert np.abs(plain - fused).max() <= 1e-5 * max(np.abs(plain).max(), 1.0)


@pytest.mark.parametrize("size", [1, 5, 50257])
def test_argmax_is_the_first_of_the_largest(size):
    logits = np.random.default_rng(size).integers(-9, 9, (3, size)).astype(np.float32)
    found = Several(kernels.kernel("argmax"))(Tensor(logits))[0]
    assert found.dtype == ms.int32
    np.testing.assert_array_equal(found.asnumpy(), logits.argmax(-1))


def test_threads_that_share_the_work_wait_for_each_other():
    """Beside other tests a kernel has one thread; here the one with barriers has three."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", __file__,
                           "-k", "a_step_of_a_block"], capture_output=True, text=True, check=False,
                          env={**variables, "OMP_NUM_THREADS": "3"})
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@given(st.sampled_from([1, 2, 9]), st.sampled_from([33, 100, 2049]), st.sampled_from([1.0, 30.0]))
@few
def test_cross_entropy(rows, classes, scale):
    labels = np.arange(rows, dtype=np.int32) * 7 % classes
    labels[rows // 2 :: 3] = -100
    check(Scoring(), normal(rows, classes, scale=scale), Tensor(labels))


def test_a_row_without_labels_costs_nothing():
    cell = Scoring()
    cell.set_kernels(True)
    assert float(cell(normal(2, 40), Tensor([-100, -100], ms.int32))[0].asnumpy()) == 0.0


class Projecting(nn.Cell):
    def __init__(self):
        super().__init__()
        self.product = ops.MatMul(transpose_b=True)
        self.kernel = None

    def set_kernels(self, are_used):
        self.kernel = kernels.kernel("project") if are_used else None

    def construct(self, x, table):
        return (self.product(x, table) if self.kernel is None else self.kernel(x, table),)


@given(sizes, sizes, sizes)
@few
def test_logits_over_a_vocabulary(rows, size, width):
    check(Projecting(), normal(rows, width), normal(size, width, seed=1), differentiated=2)


@pytest.mark.parametrize("kind", ["gelu", "layer_norm", "attention", "cross_entropy"])
def test_finite_differences_agree(kind):
    """The gradients against the function's own slope, in a direction drawn at random."""
    cell, inputs = {
        "gelu": lambda: (Several(Activation("gelu")), (normal(4, 9),)),
        "layer_norm": lambda: (Several(LayerNorm(9, 1e-5)), (normal(4, 9),)),
        "attention": lambda: (Attending(2, 8, 0.2), (normal(2, 5, 8), attention_bias(5, None), Tensor(3, ms.int32),
                                                normal(2, 5, 1))),
        "cross_entropy": lambda: (Scoring(), (normal(4, 40), Tensor([1, 5, -100, 39], ms.int32))),
    }[kind]()
    cell.set_train(True)
    for _, part in cell.cells_and_names():
        if hasattr(part, "set_kernels"):
            part.set_kernels(True)
    outputs = cell(*inputs)
    loss = Weighted(cell, [normal(*item.shape, seed=8) for item in outputs], ())
    gradient = Gradient(loss, 0, None)(*inputs).asnumpy().astype(np.float64)
    direction = normal(*inputs[0].shape, seed=9).asnumpy()
    step = 1e-2
    up, down = (float(loss(Tensor(inputs[0].asnumpy() + sign * step * direction), *inputs[1:])[0].asnumpy())
                for sign in (1, -1))
    slope = (up - down) / (2 * step)
    assert abs(slope - (gradient * direction).sum()) <= 2e-3 * max(1.0, abs(slope))


@pytest.mark.parametrize("model_type", ["openai-gpt", "gpt2", "ms_gpt"])
def test_training_runs_the_same_course(model_type, graph_mode):
    """Fifty steps with dropout, clipping and decay: the losses with the kernels and without."""
    losses = []
    for is_on in (False, True):
        config = GPTConfig(40, 24, n_layer=2, n_head=2, n_embd=32, model_type=model_type, seed=3,
                           window_size=5 if model_type == "ms_gpt" else None)
        model = GPTLMHeadModel(config)
        model.use_kernels(is_on)
        names, parameters = zip(*model.weights().items(), strict=True)
        step = TrainStep(TargetLoss(model), AdamW(parameters, names), LearningRate(3e-3, 50, 5), 0.5)
        assert step.is_fused == is_on
        step.set_train(True)
        generator = np.random.default_rng(0)
        ids = [generator.integers(0, 40, (3, 25)).astype(np.int32) for _ in range(50)]
        losses.append([[float(item.asnumpy()) for item in step(Tensor(row[:, :-1].copy()), Tensor(row[:, 1:].copy()))]
                       for row in ids])
    plain, fused = np.array(losses)
    np.testing.assert_allclose(fused[:, 0], plain[:, 0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(fused[:, 1], plain[:, 1], rtol=1e-3)
    assert abs(plain[0, 0] - plain[-1, 0]) > 0.01


def test_a_run_repeats_bit_by_bit(graph_mode):
    def run():
        model = GPTLMHeadModel(GPTConfig(40, 24, n_layer=2, n_head=2, n_embd=32, model_type="gpt2"))
        names, parameters = zip(*model.weights().items(), strict=True)
        step = TrainStep(TargetLoss(model), AdamW(parameters, names), LearningRate(3e-3, 50))
        step.set_train(True)
        ids = np.random.default_rng(0).integers(0, 40, (4, 25)).astype(np.int32)
        for _ in range(5):
            step(Tensor(ids[:, :-1].copy()), Tensor(ids[:, 1:].copy()))
        return [item.asnumpy() for item in parameters]

    for first, second in zip(run(), run(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_they_follow_mode_and_dtype_unless_they_are_not_wanted():
    model = GPTLMHeadModel(GPTConfig(11, 8, n_layer=1, n_head=1, n_embd=8))
    ids = Tensor(np.ones((1, 4), np.int32))
    graph = model(ids)[0].asnumpy()
    assert model.uses_kernels
    runtime.setup("cpu", "pynative")
    np.testing.assert_allclose(model(ids)[0].asnumpy(), graph, rtol=0, atol=1e-5)
    assert not model.uses_kernels
    assert not model.transformer.uses_kernels
    with pytest.raises(UserError, match="no CPU kernels"):
        model.use_kernels(True)
    runtime.setup("cpu", "graph")
    model(ids)
    assert model.uses_kernels
    model.set_compute_dtype("float16")
    assert not model.uses_kernels
    with pytest.raises(UserError, match="float32"):
        model.use_kernels(True)
    model.set_compute_dtype("float32")
    assert model.uses_kernels
    model.use_kernels(False)
    model(ids)
    assert not model.uses_kernels


def test_what_a_kernel_would_misread_is_refused():
    model = GPTModel(GPTConfig(11, 8, n_layer=1, n_head=1, n_embd=8))
    ids = Tensor(np.ones((4, 6), np.int32))
    # From another Cell's graph the model's own check of its inputs is not reached.
    with pytest.raises(ValueError, match="does not fit"):
        Forward(model, ["input_ids", "attention_mask"])(ids, Tensor(np.ones((2, 6), np.int32)))
    embeds = np.random.default_rng(0).standard_normal((1, 4, 8))
    found = [model(inputs_embeds=Tensor(embeds.astype(dtype)))[0].asnumpy() for dtype in (np.float64, np.float32)]
    np.testing.assert_allclose(*found, rtol=0, atol=1e-6)
    with pytest.raises(TypeError, match="float32"):
        kernels.kernel("gelu")(Tensor(embeds))
    scoring = Scoring()
    scoring.set_kernels(True)
    assert np.isnan(scoring(normal(2, 40), Tensor([1, 40], ms.int32))[0].asnumpy())


def probe(tmp_path, code="", **environment):
    """Ask a fresh process for the kernels; return what it says on stdout and on stderr."""
    script = f"{code}\nfrom ms_gpt.kernels import library, status\nprint(library() is not None)\nprint(status())\n"
    variables = {**os.environ, "MS_GPT_CACHE": str(tmp_path / "cache"), **environment}
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "ms_gpt" in line]
    return done.stdout.splitlines(), lines


def test_without_a_compiler_one_line_says_so(tmp_path):
    (is_there, status), notices = probe(tmp_path, CXX="", PATH=str(tmp_path))
    assert (is_there, len(notices)) == ("False", 1)
    assert "install g++" in notices[0]
    assert status.startswith("off")


@pytest.mark.parametrize(("script", "reason"), [
    ("echo 'x.cpp:1: error: it is broken' >&2; exit 1", "it is broken"), ("exit 0", "does not load")])
def test_a_broken_compiler_is_done_without(tmp_path, script, reason):
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    (is_there, _), notices = probe(tmp_path, CXX=str(compiler))
    assert (is_there, len(notices)) == ("False", 1)
    assert reason in notices[0]


def test_switched_off_they_are_not_built(tmp_path):
    (is_there, status), notices = probe(tmp_path, MS_GPT_KERNELS="off")
    assert (is_there, notices) == ("False", [])
    assert "MS_GPT_KERNELS=off" in status
    assert not (tmp_path / "cache").exists()


def test_processes_that_build_at_once_and_a_cache_of_another_processor(tmp_path):
    """Two at once leave one library; a spoilt one, and one under another processor's name, are not taken."""
    folder = tmp_path / "cache" / "kernels"
    with ThreadPoolExecutor(2) as pool:
        for (is_there, _), notices in pool.map(lambda _: probe(tmp_path), range(2)):
            assert (is_there, notices) == ("True", [])
    (built,) = folder.glob("*.so")
    built.write_bytes(b"not a library")
    (is_there, _), _ = probe(tmp_path)
    assert is_there == "True"
    assert built.stat().st_size > 1000
    code = "from ms_gpt.kernels import build\nbuild._processor = lambda: 'another'"
    (is_there, _), _ = probe(tmp_path, code)
    assert is_there == "True"
    assert len(list(folder.glob("*.so"))) == 2


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    (is_there, _), notices = probe(tmp_path)
    assert (is_there, notices) == ("True", [])


def test_exported_graphs_have_none(tmp_path, graph_mode):
    model = GPTLMHeadModel(GPTConfig(11, 8, n_layer=1, n_head=1, n_embd=8, model_type="gpt2"))
    assert model.uses_kernels
    report = export_mindir(model, tmp_path / "model")
    assert b"Custom" not in report.path.read_bytes()
    assert model.uses_kernels
    assert report.largest_difference <= 1e-5
