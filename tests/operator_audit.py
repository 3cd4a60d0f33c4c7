"""Which operations the graphs of this library hold, and what each asks of Ascend, a GPU or a CPU.

Graphs are built with Ascend as the target and exported, which needs no such device. As a program this prints
docs/operators.md.
"""

import contextlib
import functools
import re
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from exported_graphs import PRODUCTS, nodes_of, random_batch, train_step
from mindspore import Tensor
from mindspore._c_expression import ms_ctx_param
from mindspore.context import _Context
from model_helpers import tiny_config

from ms_gpt import GPTDoubleHeadsModel, GPTForSequenceClassification, GPTLMHeadModel, runtime
from ms_gpt.export import _Exported
from ms_gpt.generation.session import Session
from ms_gpt.training.loss_scale import LossScaler
from ms_gpt.training.step import Forward, Loss, SampledTargetLoss, TargetLoss
from ms_gpt.training.zero_shot import ContinuationLogProbs

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operators.md"
DEVICES = ("Ascend", "GPU", "CPU")
MODELS = {"GPT-1": {"family": "openai-gpt"}, "GPT-2": {"family": "gpt2"},
          "banded GPT-3": {"family": "ms_gpt", "window_size": 3, "n_layer": 2}}
PHASES = ("train", "evaluate", "prefill", "decode")


@contextlib.contextmanager
def target(device):
    """Let MindSpore's Python code and this library build graphs for a device that need not be there."""
    original = _Context.get_param
    _Context.get_param = lambda self, name: device if name == ms_ctx_param.device_target else original(self, name)
    try:
        yield
    finally:
        _Context.get_param = original


def model_of(head, name="GPT-2", dtype="float32", **changes):
    """Build a tiny model."""
    sizes = {"n_positions": 16, "vocab_size": 40, "n_embd": 48, "n_layer": 1, "pad_token_id": 0}
    model = head(tiny_config(**{**sizes, **MODELS[name], **changes}))
    model.set_compute_dtype(dtype)
    return model


def _ones(*shape):
    return Tensor(np.ones(shape, np.int32))


def _language_model(phase, name, dtype, **changes):
    model, ids = model_of(GPTLMHeadModel, name, dtype, **changes), random_batch()
    if phase == "train":
        return train_step(model, TargetLoss(model), "cosine", scaler=_scaler(dtype)), (ids, ids)
    model.set_train(False)
    if phase == "evaluate":
        return Forward(model, ["input_ids", "attention_mask", "labels"]), (ids, ids, ids)
    session = Session(model, 2, 16)
    if phase == "prefill":
        return session._prefill, (ids, _ones(2, 16), _ones(2, 8), _ones(8), _ones(2))
    return session._decode, (_ones(2, 1), _ones(2, 16), _ones(2, 1), _ones(1))


def _classifier(phase, name, dtype, labels=None, **changes):
    # The auxiliary loss makes the same nodes in every model.
    model = model_of(GPTForSequenceClassification, name, dtype, lm_coef=0.5 * (name == "GPT-1"), **changes)
    ids = random_batch()
    columns = ["input_ids", "attention_mask", "position_ids", "labels"]
    batch = (ids, ids, ids, ids[:, 0] % 3 if labels is None else labels)
    if phase == "train":
        return train_step(model, Loss(model, columns), "linear", scaler=_scaler(dtype)), batch
    return Forward(model.set_train(False), columns), batch


def _scaler(dtype):
    return None if dtype == "float32" else LossScaler()


def _sampled():
    model, ids = model_of(GPTLMHeadModel, tie_word_embeddings=False, activation_function="relu"), random_batch()
    return train_step(model, SampledTargetLoss(model, 10), max_grad_norm=0.0), (ids, ids)


def _double_heads():
    model, ids = model_of(GPTDoubleHeadsModel, activation_function="silu"), Tensor(np.ones((2, 2, 8), np.int32))
    loss = Loss(model, ["input_ids", "mc_token_ids", "labels", "mc_labels"])
    return train_step(model, loss), (ids, _ones(2, 2), ids, _ones(2))


def _beams():
    return Session(model_of(GPTLMHeadModel).set_train(False), 2, 16)._reorder, (_ones(2),)


def _no_cache():
    session = Session(model_of(GPTLMHeadModel, activation_function="tanh").set_train(False), 2, 16, use_cache=False)
    return session._forward, (*[random_batch()] * 3, _ones(2))


def _zero_shot():
    model = model_of(GPTLMHeadModel, activation_function="gelu_exact").set_train(False)
    return ContinuationLogProbs(model), (random_batch(), _ones(2), _ones(2, 3, 4))


def _graphs():
    """Name every graph by phase, what it is of, and dtype; give a function that makes its Cell and inputs."""
    graphs = {}
    # Half precision changes the same nodes of all three: one dtype each for two of them saves half a minute.
    for name, dtype in (*((name, "float32") for name in MODELS), ("GPT-1", "bfloat16"), ("GPT-2", "float16")):
        for phase in PHASES:
            graphs[phase, name, dtype] = functools.partial(_language_model, phase, name, dtype)
        for phase in PHASES[:2]:
            graphs[phase, f"{name} classifier", dtype] = functools.partial(_classifier, phase, name, dtype)
    for kind, labels in (("regression", np.ones((2, 3))), ("multi_label_classification", np.ones((2, 3)))):
        graphs["train", kind, "float32"] = functools.partial(
            _classifier, "train", "GPT-1", "float32", Tensor(labels.astype(np.float32)), problem_type=kind)
    graphs["train", "sampled softmax", "float32"] = _sampled
    graphs["train", "double heads", "float32"] = _double_heads
    graphs["evaluate", "zero-shot", "float32"] = _zero_shot
    graphs["prefill", "no cache", "float32"] = _no_cache
    graphs["decode", "beam search", "float32"] = _beams
    graphs["evaluate", "MINDIR", "float32"] = lambda: (
        _Exported(model_of(GPTLMHeadModel).set_train(False)), (random_batch(), random_batch()))
    return graphs


GRAPHS = _graphs()


def export(make, device="Ascend"):
    """Export the graph of a Cell, made with a device as the target; give its nodes."""
    runtime.setup("cpu", "graph")
    with tempfile.TemporaryDirectory() as folder, target(device):
        cell, inputs = make()
        return nodes_of(cell, inputs, Path(folder))


@functools.cache
def nodes(graph):
    """Return the nodes of one of ``GRAPHS``."""
    return export(GRAPHS[graph])


# Nodes that order and bundle values; nothing is computed.
STRUCTURE = {"Load", "MakeTuple", "TupleGetItem", "UpdateState"}
# What the compiler makes of public operations, and has no documentation of its own.
INTERNAL = {
    "AddScalar": "ops.add", "BiasAddGrad": "ops.BiasAdd", "ClampScalar": "ops.clamp", "Divs": "ops.div",
    "GatherDGradV2": "ops.GatherD", "LessScalar": "ops.less", "LogSoftmaxGrad": "ops.LogSoftmax", "Muls": "ops.mul",
    "PowTensorScalar": "ops.pow", "ReluGrad": "ops.ReLU", "RsqrtGrad": "ops.Rsqrt", "SigmoidGrad": "ops.Sigmoid",
    "SoftmaxBackward": "ops.Softmax", "SplitWithSize": "ops.split", "SumExt": "ops.sum", "TensorMove": "ops.deepcopy",
    "ZerosLikeExt": "ops.zeros_like",
}
REDUCTIONS = re.compile(r"(Reduce|Sum|Mean|Prod|Cum|Arg|Max$|Min$|UnsortedSegment|Norm|Lp)\w*")
BY_VALUE = {"NonZero", "NonZeroExt", "MaskedSelect", "MaskedSelectGrad", "MaskedScatter", "Unique", "Unique2",
            "UniqueConsecutive", "UniqueDim", "Where", "BooleanMask"}
INDEXING = re.compile(r"(Gather|Index|Scatter|TensorScatter|InplaceIndex|StridedSlice)\w*")
HOST = {"Assert", "Custom", "HistogramSummary", "ImageSummary", "Partial", "Print", "PyExecute", "PyFunc",
        "PyInterpret", "ScalarSummary", "Switch", "SwitchLayer", "TensorDump", "TensorSummary"}
# All that may be done in half precision: products and their biases, factors (of scores, of dropout, of padding in the
# cache), and moving numbers.
HALF = PRODUCTS | STRUCTURE | {"Assign", "BiasAdd", "BiasAddGrad", "Cast", "Concat", "Depend", "IndexAdd", "Mul",
                               "Muls", "Reshape", "Select", "Split", "Transpose"}


@dataclass(frozen=True)
class Row:
    """Where an operation runs, and how that is known."""

    kind: str
    platforms: tuple[str, ...]
    source: str


def _documentation(name):
    """Follow a docstring to the one that says on which platforms the operation runs; give its name and them."""
    found = functools.reduce(lambda owner, part: getattr(owner, part, None), name.split("."), ms)
    text = found.__doc__ or ""
    said = re.search(r"Supported Platforms:\s*\n(.*)", text)
    if said:
        return name, tuple(device for device in DEVICES if f"``{device}``" in said[1])
    further = re.search(r"Refer to :(?:func|class):`mindspore\.([\w.]+)`", text)
    return _documentation(further[1]) if further and further[1] != name else (name, ())


def row_of(kind):
    """Look an operation up, by its own documentation or that of the public operation it is made from."""
    if kind in STRUCTURE:
        return Row(kind, DEVICES, "orders or bundles values, computes nothing")
    name, platforms = _documentation(f"ops.{kind}")
    if platforms:
        return Row(kind, platforms, f"documentation of mindspore.{name}")
    if kind in INTERNAL:
        name, platforms = _documentation(INTERNAL[kind])
        return Row(kind, platforms, f"made by the compiler for mindspore.{name}")
    return Row(kind, (), "unknown")


def complaints(nodes, dtype="float32"):
    """Return what in a graph does not suit Ascend, one line each; none for a graph that suits all devices."""
    found = set()
    for node in nodes:
        found |= {f"{node.kind} {fault} ({node.place})" for fault in _faults(node, dtype)}
    return sorted(found)


def _faults(node, dtype):
    row = row_of(node.kind)
    if row.source == "unknown":
        yield "is in no documentation and not in the table of internal operations"
    elif missing := [device for device in DEVICES if device not in row.platforms]:
        yield f"does not run on {', '.join(missing)}, says the {row.source}"
    if node.kind in HOST or node.device is not None:
        yield "waits for the host"
    if any(size < 0 for _, shape in node.tensors for size in shape):
        yield "has a shape that depends on values"
    if node.kind in BY_VALUE or (INDEXING.fullmatch(node.kind) and "bool" in node.inputs[1:]):
        yield "selects by a mask"
    if REDUCTIONS.fullmatch(node.kind) and "int" in str(node.inputs[0]):
        yield f"reduces {node.inputs[0]}"
    dtypes = {item for item, _ in node.tensors}
    if dtypes & {"float16", "bfloat16"} - {dtype}:
        yield f"computes in another half precision than {dtype}"
    if dtypes & {"float16", "bfloat16"} and node.kind not in HALF:
        yield "computes in half precision"
    if dtypes & {"float64", "double", "int64", "uint64"}:
        yield "computes in 64 bits"


def page():
    """Return docs/operators.md for the MindSpore that is installed."""
    phases = defaultdict(set)
    for graph in GRAPHS:
        for node in nodes(graph):
            phases[node.kind].add(graph[0])
    rows = [f"| {' | '.join(['operation', *PHASES, 'runs on', 'known from'])} |", "|---" * (len(PHASES) + 3) + "|"]
    for kind in sorted(phases):
        row = row_of(kind)
        marks = ["x" if phase in phases[kind] else "" for phase in PHASES]
        rows.append(f"| {' | '.join([kind, *marks, ', '.join(row.platforms), row.source])} |")
    return _HEAD.format(version=ms.__version__) + "\n".join(rows) + "\n"


_HEAD = """# Operators

Every operation in the graphs of training, evaluation, reading a prompt (prefill) and writing a token (decode): of
GPT-1, GPT-2 and GPT-3 with banded attention, language models and classifiers, in float32, float16 and bfloat16. The
graphs are compiled with Ascend as the target by MindSpore {version} and exported to MINDIR, which needs no such
device; so this is what MindSpore documents, not what was run on hardware. Optimisations that only a device's own
compiler makes come later, and are not in the list. Nor is what a GPU alone gets: there the gradients of embeddings
are summed in float64 (`model.ExactLookup`), so that a run repeats.

`tests/test_operators.py` holds every one of these graphs to these rules, and this page to the graphs:

- each operation is documented for Ascend, GPU and CPU, or is one that the compiler makes of such an operation;
- no kernel of our own, no callback to the host and no branch on a value;
- shapes are known before the graph runs; nothing is selected by a mask; no integers are reduced; nothing has 64 bits;
- in half precision only matrix products and their biases, factors (of attention scores and dropout) and what moves
  numbers; softmax, LayerNorm, activations, residual sums, loss, the norm of gradients and AdamW compute in float32.

`python tests/operator_audit.py > docs/operators.md` writes this page.

"""


if __name__ == "__main__":
    sys.stdout.write(page())
