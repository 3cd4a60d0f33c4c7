"""Ascend without an Ascend: every operation of every graph is one that runs there, and the page on them is true."""

import mindspore as ms
import pytest
from exported_graphs import PRODUCTS, random_batch
from mindspore import dtype, nn, ops
from operator_audit import (
    DEVICES,
    GRAPHS,
    INTERNAL,
    PAGE,
    STRUCTURE,
    Row,
    _documentation,
    complaints,
    export,
    model_of,
    nodes,
    page,
    row_of,
)

from ms_gpt import GPTLMHeadModel
from ms_gpt.kernels import library
from ms_gpt.training.step import Forward


@pytest.mark.parametrize("graph", GRAPHS, ids="-".join)
def test_every_operation_suits_ascend_gpu_and_cpu(graph):
    found = nodes(graph)
    assert complaints(found, graph[2]) == []
    if graph[2] != "float32":
        # The rest of the graph may be half, or else the islands would be no islands.
        assert all(node.floats == {graph[2]} for node in found if node.kind in PRODUCTS)


def test_gradients_are_in_the_table_under_what_they_are_the_gradients_of():
    """The compiler notes for the nodes of a gradient which node of the forward pass they belong to."""
    checked = set()
    for graph in GRAPHS:
        for node in nodes(graph):
            if node.kind in INTERNAL and ("Grad" in node.kind or "Backward" in node.kind):
                checked.add(node.kind)
                assert INTERNAL[node.kind] == f"ops.{node.forward}"
    assert {"BiasAddGrad", "LogSoftmaxGrad", "SoftmaxBackward"} <= checked


@pytest.mark.parametrize("kind", sorted(INTERNAL))
def test_internal_operations_are_undocumented_and_what_they_come_from_is_public(kind):
    assert _documentation(f"ops.{kind}")[1] == ()
    assert _documentation(INTERNAL[kind])[1] == DEVICES
    assert kind not in STRUCTURE


class Inserted(nn.Cell):
    """Takes the place of a dropout, and does something with what goes through."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.print = ops.Print()
        self.add_on_the_cpu = ops.Add().set_device("CPU")

    def construct(self, x, key):
        return self.function(self, x)


def without_ascend(cell, x):
    return x + ops.bessel_j0(x)


def int64_reduction(cell, x):
    return x + ops.ReduceSum()(x.astype(dtype.int64)).astype(dtype.float32)


def int32_reduction(cell, x):
    return x + ops.ReduceMax()(x.astype(dtype.int32)).astype(dtype.float32)


def boolean_index(cell, x):
    return x + x[x > 0].sum()


def host_callback(cell, x):
    cell.print(x)
    return x


def on_the_host(cell, x):
    return cell.add_on_the_cpu(x, x)


def branch_on_a_value(cell, x):
    if x.sum() > 0:
        x = ops.tanh(x)
    return x


def half_softmax(cell, x):
    return ops.Softmax(-1)(x.astype(dtype.float16)).astype(dtype.float32)


def float64(cell, x):
    return (x.astype(dtype.float64) * 2.0).astype(dtype.float32)


@pytest.mark.parametrize(("function", "message"), [
    (without_ascend, "BesselJ0 does not run on Ascend, says the documentation of mindspore.ops.BesselJ0"),
    (int64_reduction, "ReduceSum reduces int64"),
    (int32_reduction, "ReduceMax reduces int32"),
    (boolean_index, "NonZero selects by a mask"),
    (boolean_index, "NonZero has a shape that depends on values"),
    (host_callback, "Print waits for the host"),
    (on_the_host, "Add waits for the host"),
    (branch_on_a_value, "Switch waits for the host"),
    (half_softmax, "Softmax computes in half precision"),
    (float64, "computes in 64 bits"),
], ids=lambda item: getattr(item, "__name__", ""))
def test_audit_sees_an_operation_that_does_not_suit(function, message):
    def make():
        model = model_of(GPTLMHeadModel, dtype="float16").set_train(False)
        model.transformer.drop = Inserted(function)
        return Forward(model, ["input_ids"]), (random_batch(),)

    found = complaints(export(make), "float16")
    assert any(message in line and "drop-Inserted" in line for line in found), found


def test_audit_sees_an_operation_that_is_in_neither_table(monkeypatch):
    graph = ("train", "GPT-2", "float32")
    monkeypatch.delitem(INTERNAL, "SoftmaxBackward")
    assert {line.split(" (")[0] for line in complaints(nodes(graph))} == {
        "SoftmaxBackward is in no documentation and not in the table of internal operations"}
    assert row_of("NoSuchOperation") == Row("NoSuchOperation", (), "unknown")


@pytest.mark.skipif(library() is None, reason="there are no CPU kernels here")
def test_kernels_of_the_cpu_are_in_its_graphs_and_in_no_other_devices():
    graph = ("evaluate", "GPT-2", "float32")
    for device, uses_them in (("CPU", True), ("Ascend", False), ("GPU", False)):
        found = export(GRAPHS[graph], device)
        assert any(node.kind == "Custom" for node in found) == uses_them
        assert any("Custom waits for the host" in line for line in complaints(found)) == uses_them


def devices_of(text):
    rows = [row.split(" | ") for row in text.splitlines() if row.startswith("| ")][1:]
    return {row[0]: row[-2] for row in rows}


def test_page_holds_what_the_graphs_hold():
    written, found = PAGE.read_text(encoding="utf-8"), page()
    if f"by MindSpore {ms.__version__}" in " ".join(written.split()):
        assert written == found
    # Another version may have other operations; those of both run on the same devices.
    both = devices_of(written).keys() & devices_of(found).keys()
    assert len(both) > 40
    assert {kind: devices_of(written)[kind] for kind in both} == {kind: devices_of(found)[kind] for kind in both}
