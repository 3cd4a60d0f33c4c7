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


def random_batch():
    """Token ids (2, 8) for ``tiny``."""
    return Tensor(random_ids(tiny_config(vocab_size=40), 2, 8))
