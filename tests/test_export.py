"""MINDIR files: the same logits as the model, in a process without this library, and never half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from mindspore.train import serialization
from mindspore.train.mind_ir_pb2 import ModelProto, TensorProto
from model_helpers import MODES, close, random_ids, random_model, run, set_mode, tiny_config

from ms_gpt import GPTDoubleHeadsModel, GPTForSequenceClassification, GPTLMHeadModel, GPTModel, UserError, export
from ms_gpt.checkpoint import atomic
from ms_gpt.cli import main
from ms_gpt.export import TOLERANCE, ExportReport, export_mindir, mindir_path
from ms_gpt.mingpt import GPT

BATCH, LENGTH = 3, 6
# The file has plain operations, the model in memory the kernels of the CPU.
KERNEL_TOLERANCE = 1e-5
HEADS = {"lm": GPTLMHeadModel, "classifier": GPTForSequenceClassification}


@pytest.fixture(autouse=True)
def _graph_mode():
    set_mode("graph")
    yield
    set_mode("graph")


@pytest.fixture
def model():
    return random_model(GPTLMHeadModel, tiny_config("gpt2", n_layer=1))


@pytest.fixture
def split(monkeypatch):
    """Let MindSpore treat every model as one of more than 1 GB."""
    monkeypatch.setattr(serialization, "TOTAL_SAVE", 0)


def loaded(path):
    cell = nn.GraphCell(ms.load(str(path)))
    return lambda input_ids, mask: cell(Tensor(input_ids), Tensor(mask)).asnumpy()


def listing(folder):
    """Every file under a folder with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_a_bare_process(code, folder):
    """Run code where this library cannot be imported; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code += "\nimport sys\nassert not any(name.startswith('ms_gpt') for name in sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder,
                          env={**environment, "GLOG_v": "3"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("family", "head", "changes", "pruned"), [
    pytest.param("openai-gpt", "lm", {}, {}, marks=pytest.mark.slow),
    ("openai-gpt", "lm", {"tie_word_embeddings": False}, {1: [0, 2]}),
    ("openai-gpt", "classifier", {"pad_token_id": 1}, {0: [1]}),
    ("gpt2", "lm", {"output_attentions": True, "output_hidden_states": True}, {0: [1]}),
    pytest.param("gpt2", "lm", {"tie_word_embeddings": False}, {}, marks=pytest.mark.slow),
    pytest.param("gpt2", "classifier", {"num_labels": 1}, {}, marks=pytest.mark.slow),
])
def test_padding_on_either_side_equals_no_padding(tmp_path, family, head, changes, pruned):
    config = tiny_config(family, **changes)
    model = random_model(HEADS[head], config)
    model.prune_heads(pruned)
    report = export_mindir(model, tmp_path / "model", BATCH, LENGTH)
    assert report.largest_difference < TOLERANCE
    file = loaded(report.path)
    n_real = LENGTH - 2
    ids = random_ids(config, BATCH, n_real)
    expected = run(model, input_ids=ids)[0]
    for real in (np.s_[:, :n_real], np.s_[:, LENGTH - n_real:]):
        padded, mask = random_ids(config, BATCH, LENGTH, seed=1), np.zeros((BATCH, LENGTH), np.int32)
        padded[real], mask[real] = ids, 1
        logits = file(padded, mask)
        close(logits[real] if head == "lm" else logits, expected)
    assert logits.shape == tuple(report.outputs[0]["shape"])


@pytest.mark.parametrize("mode", MODES)
def test_logits_are_the_models_in_both_modes(tmp_path, model, mode):
    set_mode(mode)
    report = export_mindir(model, tmp_path / "model.mindir")
    assert report.largest_difference < TOLERANCE
    assert (report.batch_size, report.length) == (1, model.config.n_positions)
    ids = random_ids(model.config, 1, report.length)
    logits = loaded(report.path)(ids, np.ones_like(ids))
    np.testing.assert_allclose(logits, run(model, input_ids=ids)[0], atol=KERNEL_TOLERANCE, rtol=0)


@pytest.mark.parametrize("head", HEADS)
def test_the_graph_has_two_named_inputs_and_nothing_of_training(tmp_path, head):
    report = export_mindir(random_model(HEADS[head], tiny_config()), tmp_path / "model", BATCH, LENGTH)
    data = report.path.read_bytes()
    proto = ModelProto()
    proto.ParseFromString(data)
    found = [(item.name.rsplit(":", 1)[-1], list(item.tensor[0].dims), item.tensor[0].data_type)
             for item in proto.graph.input]
    assert found == [(name, [BATCH, LENGTH], TensorProto.INT32) for name in ("input_ids", "attention_mask")]
    shape = [BATCH, LENGTH, 13] if head == "lm" else [BATCH, 3]
    assert [list(item.tensor[0].dims) for item in proto.graph.output] == [shape]
    assert not any("dropout" in parameter.name for parameter in proto.graph.parameter)
    assert "Custom" not in {primitive.op_type for primitive in proto.primitives}
    assert str(tmp_path).encode() not in data
    int32 = [{"name": name, "shape": [BATCH, LENGTH], "dtype": "int32"} for name in ("input_ids", "attention_mask")]
    assert report.inputs == int32
    assert report.outputs == [{"name": "logits", "shape": shape, "dtype": "float32"}]


def test_a_model_in_training_is_exported_without_dropout_and_goes_on_training(tmp_path, model):
    model.set_train(True)
    names = [parameter.name for parameter in model.get_parameters()]
    state = model.transformer.dropout_state.asnumpy().copy()
    report = export_mindir(model, tmp_path / "model")
    assert all(cell.training for _, cell in model.cells_and_names())
    assert [parameter.name for parameter in model.get_parameters()] == names
    np.testing.assert_array_equal(model.transformer.dropout_state.asnumpy(), state)
    ids = random_ids(model.config, 1, report.length)
    model.set_train(False)
    close(loaded(report.path)(ids, np.ones_like(ids)), run(model, input_ids=ids)[0])


@pytest.mark.parametrize("is_split", [False, True])
def test_the_file_runs_where_there_is_only_mindspore(tmp_path, request, is_split):
    if is_split:
        request.getfixturevalue("split")
    model = random_model(GPTForSequenceClassification, tiny_config())
    # MindSpore refuses to write to such a path, and loads from it.
    report = export_mindir(model, tmp_path / "my models, ü" / "der, die+das", 2, LENGTH)
    assert (len(report.files) > 1) == is_split
    code = report.code() + "print(logits.tolist())"
    out = in_a_bare_process(code, tmp_path)
    expected = run(model, input_ids=np.zeros((2, LENGTH), np.int32))[0]
    np.testing.assert_allclose(json.loads(out), expected, atol=KERNEL_TOLERANCE, rtol=0)


@pytest.mark.slow
def test_large_models_keep_their_weights_beside_the_graph(tmp_path, model, split):
    places = []
    for length in (LENGTH, 2, 1):
        report = export_mindir(model, tmp_path / "m.mindir", 1, length)
        assert report.largest_difference < TOLERANCE
        assert sorted(listing(tmp_path)) == sorted(path.relative_to(tmp_path).as_posix() for path in report.files)
        assert report.files[-1] == report.path == tmp_path / "m.mindir"
        places.append(report.files[0].parent.name)
    assert places == ["m_variables", "m-2_variables", "m_variables"]
    ids = random_ids(model.config, 1, 1)
    close(loaded(report.path)(ids, np.ones_like(ids)), run(model, input_ids=ids)[0])


@pytest.mark.slow
def test_only_the_replaced_graphs_weights_are_removed(tmp_path, exports, model):
    shutil.copytree(exports[True], tmp_path, dirs_exist_ok=True)
    for name in ("other_variables", "m-7_variables"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data_0").write_bytes(b"not ours")
    assert export_mindir(model, tmp_path / "m", 1, LENGTH).files == [tmp_path / "m.mindir"]
    assert sorted(listing(tmp_path)) == ["m-7_variables/data_0", "m.mindir", "other_variables/data_0"]


def test_a_copy_of_a_graph_is_replaced_without_its_originals_weights(tmp_path, exports, model):
    shutil.copytree(exports[True], tmp_path, dirs_exist_ok=True)
    shutil.copy(tmp_path / "m.mindir", tmp_path / "copy.mindir")
    export_mindir(model, tmp_path / "copy", 1, LENGTH)
    loaded(tmp_path / "m.mindir")


def test_a_file_that_is_no_graph_is_replaced(tmp_path, model):
    (tmp_path / "m_variables").mkdir()
    (tmp_path / "m_variables" / "data_0").write_bytes(b"not ours")
    (tmp_path / "m.mindir").write_bytes(b"no graph")
    export_mindir(model, tmp_path / "m", 1, LENGTH)
    assert sorted(listing(tmp_path)) == ["m.mindir", "m_variables/data_0"]
    loaded(tmp_path / "m.mindir")


def test_anyone_may_read_what_anyone_may_read(tmp_path, model, split):
    usual = tmp_path / "usual"
    usual.mkdir()
    (usual / "file").touch()
    report = export_mindir(model, tmp_path / "m", 1, LENGTH)
    assert {path.stat().st_mode for path in report.files} == {(usual / "file").stat().st_mode}
    assert report.files[0].parent.stat().st_mode == usual.stat().st_mode


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Folders with one export each, by whether its weights are beside the graph; to be copied."""
    folders = {}
    for is_split in (False, True):
        folders[is_split] = tmp_path_factory.mktemp("exports")
        with pytest.MonkeyPatch.context() as patch:
            if is_split:
                patch.setattr(serialization, "TOTAL_SAVE", 0)
            export_mindir(random_model(GPTLMHeadModel, tiny_config("gpt2", n_layer=1)), folders[is_split] / "m")
    return folders


def stop_export(monkeypatch, error):
    def half(net, *inputs, file_name, **kwargs):
        with open(file_name, "wb") as file:
            file.write(b"half")
        ms.set_context(jit_syntax_level=ms.STRICT)
        raise error

    monkeypatch.setattr(ms, "export", half)


def stop_load(monkeypatch, error):
    def load(name):
        raise error

    monkeypatch.setattr(ms, "load", load)


def stop_graph(monkeypatch, error):
    """Fail when the variables are in place already and the graph is to follow."""
    replace = os.replace

    def stubborn(source, target):
        if str(target).endswith(".mindir"):
            raise error
        replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", stubborn)


def stop_after(monkeypatch, error):
    """Fail when the graph has just been renamed: then the new one is to be whole."""
    replace = os.replace

    def late(source, target):
        replace(source, target)
        if str(target).endswith(".mindir"):
            raise error

    monkeypatch.setattr(atomic.os, "replace", late)


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize(("stop", "error", "seen"), [
    (stop_export, RuntimeError("no"), RuntimeError),
    (stop_export, OSError(28, "No space left on device"), UserError),
    (stop_load, KeyboardInterrupt(), KeyboardInterrupt),
    (stop_graph, OSError(5, "Input/output error"), UserError),
    (stop_graph, KeyboardInterrupt(), KeyboardInterrupt),
])
def test_a_failed_export_leaves_the_old_file(tmp_path, exports, model, request, monkeypatch, is_split, stop, error,
                                              seen):
    if is_split:
        request.getfixturevalue("split")
    shutil.copytree(exports[is_split], tmp_path, dirs_exist_ok=True)
    before, syntax_level = listing(tmp_path), ms.get_context("jit_syntax_level")
    assert len(before) == 1 + is_split
    model.set_train(True)
    with monkeypatch.context() as patch:
        stop(patch, error)
        with pytest.raises(seen):
            export_mindir(model, tmp_path / "m", 1, LENGTH)
    assert listing(tmp_path) == before
    assert ms.get_context("jit_syntax_level") == syntax_level
    assert model.training


def test_stopped_after_the_rename_the_new_file_is_whole(tmp_path, exports, model, split, monkeypatch):
    shutil.copytree(exports[True], tmp_path, dirs_exist_ok=True)
    other = random_model(GPTLMHeadModel, model.config, seed=1)
    with monkeypatch.context() as patch:
        stop_after(patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            export_mindir(other, tmp_path / "m", 1, LENGTH)
    assert sorted(listing(tmp_path)) == ["m-2_variables/data_0", "m.mindir"]
    ids = random_ids(model.config, 1, LENGTH)
    close(loaded(tmp_path / "m.mindir")(ids, np.ones_like(ids)), run(other, input_ids=ids)[0])


def test_a_custom_kernel_is_never_exported():
    proto = ModelProto()
    proto.primitives.add().op_type = "MatMul"
    export._refuse_custom_kernels(proto)
    proto.primitives.add().op_type = "Custom"
    with pytest.raises(RuntimeError, match="custom kernel"):
        export._refuse_custom_kernels(proto)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"length": 9}, r"length=9 is not a whole number from 1 to n_positions=8"),
    ({"length": 0}, r"length=0 is not a whole number from 1"),
    ({"length": 2.0}, r"length=2\.0 is not"),
    ({"batch_size": 0}, r"batch_size=0 is not a whole number of at least 1"),
    ({"batch_size": True}, r"batch_size=True is not"),
    ({"batch_size": 2**28}, r"batch_size=268435456 by length=8 is more than this machine can hold"),
])
def test_bad_sizes_are_one_line(tmp_path, model, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        export_mindir(model, tmp_path / "m", **arguments)
    assert "\n" not in str(caught.value)
    assert not listing(tmp_path)


@pytest.mark.parametrize("model_class", [GPTModel, GPTDoubleHeadsModel, GPT])
def test_only_language_models_and_classifiers_are_exported(tmp_path, model_class):
    with pytest.raises(UserError, match=f"a {model_class.__name__} cannot be exported: only language models") as caught:
        export_mindir(model_class(tiny_config()), tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_half_precision_is_refused_where_it_cannot_be_checked(tmp_path, model):
    model.set_compute_dtype("float16")
    with pytest.raises(UserError, match="float16 cannot be checked on the CPU"):
        export_mindir(model, tmp_path / "m")


def test_paths(tmp_path, model):
    assert mindir_path("a/b") == mindir_path("a/b.mindir") == export.Path("a/b.mindir")
    with pytest.raises(UserError, match=r"gpt2-1\.5 ends in '\.5', .* write gpt2-1\.5\.mindir or gpt2-1\.mindir"):
        mindir_path("gpt2-1.5")
    with pytest.raises(UserError, match="is a folder: name the file"):
        mindir_path(tmp_path)
    (tmp_path / "d.mindir").mkdir()
    with pytest.raises(UserError, match="is a folder: choose"):
        mindir_path(tmp_path / "d")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file where a folder is needed"):
        export_mindir(model, tmp_path / "file" / "m", 1, LENGTH)
    assert list(listing(tmp_path)) == ["file"]


@pytest.mark.parametrize("difference", [1e-6, 0.5, float("inf"), float("nan")])
def test_a_file_that_differs_is_reported(difference):
    report = ExportReport(export.Path("m.mindir"), [], 1, 1, [], [], difference)
    assert report.warning.startswith("the logits of m.mindir differ from the model's by up to ")


def test_the_difference_is_measured(tmp_path, model):
    report = export_mindir(model, tmp_path / "m", 2, LENGTH)
    other = random_model(GPTLMHeadModel, model.config, seed=1)
    assert export._compare(report.path, other, (2, LENGTH))[1] > 0.1
    weight = other.transformer.h[0].mlp.c_fc.bias
    weight.set_data(Tensor(np.full(weight.shape, np.nan, np.float32)))
    assert np.isnan(export._compare(report.path, other, (2, LENGTH))[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    random_model(GPTForSequenceClassification, tiny_config("gpt2", n_layer=1)).save_pretrained(folder)
    return folder


def test_cli_json(folder, tmp_path, capsys):
    assert main(["export", str(folder), str(tmp_path / "c"), "--batch-size", "2", "--length", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.pop("largest_difference") < TOLERANCE
    path = str(tmp_path / "c.mindir")
    assert result == {
        "path": path, "files": [path], "batch_size": 2, "length": 5,
        "inputs": [{"name": name, "shape": [2, 5], "dtype": "int32"} for name in ("input_ids", "attention_mask")],
        "outputs": [{"name": "logits", "shape": [2, 3], "dtype": "float32"}],
    }


def test_cli_shows_what_was_written_and_code_that_runs(folder, tmp_path, capsys, split):
    assert main(["export", str(folder), str(tmp_path / "c")]) == 0
    out, err = capsys.readouterr()
    for text in ("GPTForSequenceClassification, gpt2", "1 x 8", "int32", "1 x 3", "float32", " MB",
                 "c_variables in one folder"):
        assert text in out
    assert "warning" not in err
    in_a_bare_process(out[out.index("import mindspore"):], tmp_path)


def test_cli_warns_of_a_difference(folder, tmp_path, capsys, monkeypatch):
    compare = export._compare
    monkeypatch.setattr(export, "_compare", lambda *arguments: (compare(*arguments)[0], 0.25))
    assert main(["export", str(folder), str(tmp_path / "c"), "--quiet"]) == 0
    assert "differ from the model's by up to 2.5e-01" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "message"), [
    (["{folder}"], "export needs TARGET"),
    (["{folder}", "c.onnx"], "c.onnx ends in '.onnx'"),
    (["{folder}", "{out}", "--length", "9"], "length=9 is not a whole number from 1 to n_positions=8"),
    (["{folder}", "{out}", "--batch-size", "0"], "batch_size=0"),
    (["{folder}", "{out}", "--batch-size", "two"], "--batch-size='two' is not a whole number"),
    (["{out}", "{out}"], "{out}"),
])
def test_cli_mistakes_are_one_line(folder, tmp_path, capsys, words, message):
    names = {"folder": folder, "out": tmp_path / "none"}
    assert main(["export", *(word.format(**names) for word in words)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message.format(**names) in lines[0]
    assert not listing(tmp_path)
