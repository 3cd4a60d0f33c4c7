"""Exported graphs, read node by node: which dtypes each computes in, where in the model."""

from collections import Counter

import mindspore as ms
from mindspore import Tensor
from mindspore.train.mind_ir_pb2 import ModelProto, TensorProto
from model_helpers import random_ids, tiny_config

from ms_gpt.training.optimizer import AdamW
from ms_gpt.training.schedule import LearningRate
from ms_gpt.training.step import TrainStep

PRODUCTS = {"MatMul", "BatchMatMul", "MatMulExt", "Dense"}
# What must not be rounded to half: softmax, LayerNorm, GELU, loss, gradient norm, AdamW.
EXACT = {"Softmax", "SoftmaxBackward", "LogSoftmax", "LogSoftmaxGrad", "ReduceMean", "Rsqrt", "RsqrtGrad", "Sigmoid",
         "SigmoidGrad", "ReduceSum", "SumExt", "Square", "Sqrt", "IsFinite", "AdamWeightDecay", "UnsortedSegmentSum",
         "Log", "Expm1", "Pow"}


class Node:
    """A node of an exported graph: what it computes, from which dtypes, where in the model.

    ``tensors`` holds (dtype, shape) of all that goes in and comes out, tuples taken apart; ``forward`` is the kind of
    node that a gradient belongs to; ``device`` where a primitive was told to run, mostly ``None``.
    """

    def __init__(self, proto, values, tensors, devices):
        self.kind = _kind(proto)
        self.inputs = [values.get(name) for name in proto.input]
        self.tensors = [tensor for name in (*proto.input, *proto.output) for tensor in tensors.get(name, ())]
        self.floats = {item for item in self.inputs if isinstance(item, str) and "float" in item}
        self.place = proto.domain
        self.forward = next((item.s.decode().rsplit("_", 1)[0] for item in proto.primal_attr
                             if item.name == "forward_node_name"), None)
        self.device = devices.get(proto.op_type.removeprefix("REF::"))


def _kind(proto):
    return proto.op_type.split(":")[2] if proto.op_type.startswith("REF::") else proto.op_type


def _tensors(attribute):
    """Yield the tensors of an attribute, from tuples within tuples too."""
    yield from attribute.tensors
    for value in attribute.values:
        yield from _tensors(value)


def nodes_of(cell, inputs, folder):
    """Export a Cell, and read its graph."""
    ms.export(cell, *inputs, file_name=str(folder / "graph"), file_format="MINDIR")
    model = ModelProto()
    model.ParseFromString((folder / "graph.mindir").read_bytes())
    graph = model.graph
    devices = {primitive.name: attribute.s.decode() for primitive in model.primitives
               for attribute in primitive.attribute if attribute.name == "primitive_target"}
    # "float" is what MindIR calls float32.
    names = {number: "float32" if name == "FLOAT" else name.lower() for name, number in TensorProto.DataType.items()}
    values, tensors = {}, {}
    for name, item in [(item.name, [item]) for item in graph.parameter] + [(i.name, i.tensor) for i in graph.input]:
        values[name] = names[item[0].data_type]
        tensors[name] = [(names[tensor.data_type], tuple(tensor.dims)) for tensor in item]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("shape", "value"):
                tensors[node.output[0]] = [(names[tensor.data_type], tuple(tensor.dims))
                                           for tensor in _tensors(attribute)]
            if attribute.name in ("shape", "value") and attribute.tensors:
                values[node.output[0]] = names[attribute.tensors[0].data_type]
            elif node.op_type == "Constant":
                values[node.output[0]] = attribute.i or attribute.f or None
    return [Node(node, values, tensors, devices) for node in graph.node if node.op_type != "Constant"]


def tiny(head, dtype, **changes):
    config = tiny_config("gpt2", n_positions=16, vocab_size=40, n_embd=48, pad_token_id=0, **changes)
    model = head(config)
    model.set_compute_dtype(dtype)
    return model


def train_step(model, loss, kind="constant", **settings):
    weights = model.weights()
    optimizer = AdamW(list(weights.values()), list(weights))
    return TrainStep(loss, optimizer, LearningRate(1e-2, 100, kind=kind), **settings).set_train()


def check_dtypes(nodes, dtype, products):
    """Every product in half precision, everything that must be exact in float32."""
    kinds = Counter(node.kind for node in nodes)
    assert {kind: kinds[kind] for kind in PRODUCTS if kinds[kind]} == products
    for node in nodes:
        if node.kind in PRODUCTS:
            assert node.floats == {dtype}, (node.kind, node.place, node.inputs)
        if node.kind in EXACT:
            assert node.floats <= {"float32"}, (node.kind, node.place, node.inputs)


def random_batch():
    """Token ids (2, 8) for ``tiny``."""
    return Tensor(random_ids(tiny_config(vocab_size=40), 2, 8))
