"""The cache of compiled graphs: no graph is ever taken for another one, and whatever ails the cache does no harm."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from compile_cache_child import VARIANTS, batch, language_model, noting_take, train_step
from mindspore import Tensor, nn

from ms_gpt import GPTLMHeadModel, compile_cache, layers, losses
from ms_gpt.graph_key import UnknownPartError, graph_key, signature
from ms_gpt.runtime import uninterrupted
from ms_gpt.training.step import TargetLoss

ROOT = Path(__file__).resolve().parent.parent
NAMES = [*VARIANTS, "generate"]


def run_child(folder, names):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MS_GPT_COMPILE_CACHE": str(folder), "GLOG_v": "3"}
    program = Path(__file__).with_name("compile_cache_child.py")
    run = subprocess.run([sys.executable, program, *names], capture_output=True, text=True, env=environment, check=True,
                         cwd=folder.parent)
    assert "cannot be kept" not in run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def first_start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "graphs"
    return folder, run_child(folder, NAMES)


def test_the_first_start_compiles(first_start):
    folder, found = first_start
    assert not any(itertools.chain.from_iterable(item["loaded"] for item in found.values()))
    assert len(list(folder.iterdir())) == sum(len(item["loaded"]) for item in found.values())
    assert not list(folder.parent.glob("rank_0"))


def test_a_second_start_in_another_order_loads_every_graph_and_computes_the_same(first_start):
    folder, found = first_start
    again = run_child(folder, NAMES[::-1])
    assert all(itertools.chain.from_iterable(item["loaded"] for item in again.values()))
    assert {name: item["numbers"] for name, item in again.items()} == {
        name: item["numbers"] for name, item in found.items()}


@pytest.mark.usefixtures("graph_mode")
def test_an_interruption_waits_for_the_compiler(monkeypatch):
    """Interrupted itself, it prints fifty lines and leaves a file."""
    compiled = []
    whole = nn.Cell.compile

    def interrupted(self, *inputs):
        os.kill(os.getpid(), signal.SIGINT)
        whole(self, *inputs)
        compiled.append(type(self).__name__)

    model = language_model()
    ids = Tensor(np.array([[1, 2]], np.int32))
    monkeypatch.setattr(nn.Cell, "compile", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            model(ids)
        # The next one compiles the same inputs again.
        model.forget_graphs()
    monkeypatch.undo()
    assert compiled == ["GPTLMHeadModel"] * 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert model(ids)[0].shape[:2] == (1, 2)


def test_an_interruption_is_kept_once():
    reached = []

    def interrupted(error=None):
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            reached.append("first")
            if error is not None:
                raise error
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
            reached.append("second")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert reached == ["first"]
    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted(ValueError())
    assert isinstance(caught.value.__context__, ValueError)
    # Only the main thread may set handlers: in another one that would raise.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: contextlib.ExitStack().enter_context(uninterrupted())).result()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_numbers_would_show_a_wrong_graph(first_start):
    _, found = first_start
    losses = [tuple(found[name]["numbers"][:3]) for name in VARIANTS]
    assert len(set(losses)) == len(VARIANTS)


def test_a_start_with_some_graphs_compiles_the_others_only(first_start, tmp_path):
    folder, found = first_start
    (tmp_path / "graphs").mkdir()
    (name,) = found["dropout"]["files"]
    shutil.copy(folder / name, tmp_path / "graphs")
    again = run_child(tmp_path / "graphs", ["rate", "dropout", "base"])
    assert {name: item["loaded"] for name, item in again.items()} == {
        "rate": [False], "dropout": [True], "base": [False]}
    assert all(again[name]["numbers"] == found[name]["numbers"] for name in again)


def key_of(*changes, train=True, length=8, rate=1e-2, norm=1.0, **config):
    step = train_step(language_model(**config), rate, norm).set_train(train)
    return graph_key(step, signature(batch(length)))


def test_equal_graphs_have_one_key(graph_mode):
    assert key_of() == key_of()


@pytest.mark.parametrize("change", [
    {"dropout": 0.2}, {"layers": 2}, {"rate": 2e-2}, {"length": 12}, {"norm": 0.5}, {"train": False},
    {"tie_word_embeddings": False}, {"activation_function": "relu"}, {"layer_norm_epsilon": 1e-6},
    {"scale_attn_weights": False}, {"model_type": "openai-gpt"}, {"window_size": 4, "model_type": "ms_gpt"},
], ids=lambda change: "-".join(change))
def test_a_change_makes_another_key(change, graph_mode):
    assert key_of() != key_of(**change)


def test_the_value_of_a_constant_tensor_counts(graph_mode):
    model = language_model()
    keys = set()
    for value in (1.0, 2.0):
        model.transformer.constant = Tensor(np.array([value], np.float32))
        keys.add(graph_key(model, ()))
    assert len(keys) == 2


def test_the_value_of_a_weight_does_not_count(graph_mode):
    model = language_model()
    before = graph_key(model, ())
    weight = model.transformer.h[0].ln_1.gamma
    weight.set_data(weight + 1)
    assert graph_key(model, ()) == before


def test_pruned_heads_and_the_dtype_of_an_input_count(graph_mode):
    model = language_model()
    before = graph_key(model, signature([Tensor(np.zeros((1, 4), np.int32))]))
    assert before != graph_key(model, signature([Tensor(np.zeros((1, 4), np.int64))]))
    model.prune_heads({0: [1]})
    assert before != graph_key(model, signature([Tensor(np.zeros((1, 4), np.int32))]))


@pytest.mark.parametrize("name", ["MS_GPT_KERNELS", "MS_DEV_SIDE_EFFECT_LOAD_ELIM"])
def test_the_environment_counts(name, graph_mode, monkeypatch):
    before = key_of()
    monkeypatch.setenv(name, "off")
    assert key_of() != before


def test_a_replaced_constant_or_function_of_the_library_counts(graph_mode, monkeypatch):
    keys = {key_of()}
    with monkeypatch.context() as patch:
        patch.setattr(losses, "_FEW_CLASSES", 5)
        keys.add(key_of())
    with monkeypatch.context() as patch:
        patch.setattr(layers, "tanh", layers.mix)
        keys.add(key_of())
    with monkeypatch.context() as patch:
        patch.setattr(layers.Conv1D, "construct", layers.LayerNorm.construct)
        keys.add(key_of())
    assert len(keys) == 4


def test_a_changed_source_file_counts(graph_mode, monkeypatch):
    before = key_of()
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: original(self) + b"#" * (self.name == "optimizer.py"))
    assert key_of() != before


class Subclass(GPTLMHeadModel):
    """A model whose code the library cannot see."""


def test_code_from_elsewhere_has_no_key(graph_mode, monkeypatch):
    with pytest.raises(UnknownPartError, match="test_compile_cache"):
        graph_key(Subclass(language_model().config), ())
    monkeypatch.setattr(layers.Conv1D, "construct", lambda self, x: x)
    with pytest.raises(UnknownPartError, match="test_compile_cache"):
        key_of()


@pytest.fixture
def cache(tmp_path, monkeypatch, graph_mode):
    """A folder of the cache, for this process."""
    monkeypatch.setenv("MS_GPT_COMPILE_CACHE", str(tmp_path / "graphs"))
    return tmp_path / "graphs"


@pytest.fixture
def takes(monkeypatch):
    """Whether each graph that was compiled with the cache switched on was loaded."""
    loaded = []
    monkeypatch.setattr(compile_cache._Stage, "take", noting_take(loaded))
    return loaded


def loss(model=None, length=8):
    return float(TargetLoss(model or language_model()).set_train(False)(*batch(length)).asnumpy())


def test_a_damaged_graph_is_compiled_again(cache, takes):
    first = loss()
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:1000], b"\0" + whole[1:]):
        path.write_bytes(damaged)
        assert loss() == first
    assert loss() == first
    assert takes == [False] * 5 + [True]


def test_another_graph_under_a_graphs_name_is_not_taken(cache, takes):
    losses = [loss(), loss(length=12)]
    older, newer = sorted(cache.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    older.write_bytes(newer.read_bytes())
    assert [loss(), loss(length=12)] == losses
    assert takes == [False, False, False, True]


def test_a_failure_to_compile_is_no_harm_to_what_follows(cache, takes):
    first = loss()
    with pytest.raises(Exception, match="n_positions"):
        loss(length=40)
    # Which number comes next is learnt from a graph that is compiled.
    assert [loss(), loss()] == [first, first]
    assert takes == [False, False, True]


def test_code_of_the_users_is_compiled_every_time(cache, takes):
    model = Subclass(language_model().config)
    assert np.isfinite(loss(model))
    assert not takes
    assert not cache.exists()


def test_a_folder_that_cannot_be_written_gets_one_line_of_notice(cache, caplog):
    cache.write_text("a file where the folder should be")
    assert loss() == loss()
    (record,) = caplog.records
    assert record.getMessage().startswith(f"compiled graphs cannot be kept in {cache} (")
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize("word", ["off", "OFF", "0"])
def test_it_can_be_switched_off(word, tmp_path, monkeypatch, graph_mode):
    monkeypatch.setenv("MS_GPT_CACHE", str(tmp_path))
    monkeypatch.setenv("MS_GPT_COMPILE_CACHE", word)
    assert compile_cache._folder() is None
    monkeypatch.delenv("MS_GPT_COMPILE_CACHE")
    assert compile_cache._folder() == tmp_path / "graphs"
    monkeypatch.delenv("MS_GPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compile_cache._folder() == tmp_path / "ms_gpt" / "graphs"


def test_it_keeps_out_of_the_way_of_a_cache_of_the_users(cache, takes, monkeypatch):
    monkeypatch.setenv("MS_COMPILER_CACHE_PATH", "elsewhere")
    loss()
    assert not takes
    assert not cache.exists()


def test_the_oldest_graphs_go_when_there_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_cache, "_MOST_BYTES", 25)
    for age, name in enumerate(["new", "middle", "old"]):
        path = tmp_path / f"{name}.graph"
        path.write_bytes(b"0" * 10)
        os.utime(path, (1000 - age, 1000 - age))
    compile_cache._shrink(tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {"new", "middle"}
