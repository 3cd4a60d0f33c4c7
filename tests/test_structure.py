"""The rooms of the package: imports point one way, and nothing heavy or foreign is imported."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ms_gpt"
# A room may import rooms to its left, and itself.
ORDER = ["errors", "_lazy", "runtime", "kernels", "config", "checkpoint", "graph_key", "compile_cache", "layers",
         "losses", "inputs", "pretrained", "model", "heads", "verify", "export", "tokenizer", "data", "generation",
         "training", "mingpt", "bench", "cli"]
# Methods that hand over to a later room, by an import of their own.
HANDS_OVER = {("heads", "generation")}
# What draws stands beside the order: only callbacks and the command line call it.
DRAWING = {"console", "plots"}
MAY_DRAW = {"cli", "console", "plots", "training/callbacks"}
FOREIGN = {"torch", "transformers", "mindnlp", "tensorflow"}
# Programs that run in processes of their own.
PEERS = PACKAGE / "bench" / "peers"
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """Yield every module name that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
            if node.module == "ms_gpt":
                yield from (f"ms_gpt.{alias.name}" for alias in node.names)


def room_of(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(path):
    relative = path.relative_to(PACKAGE).with_suffix("")
    room = relative.parts[0]
    if room in ("__init__", "__main__"):
        return
    used = {room_of(name) for name in imports(path) if name.startswith("ms_gpt.")} - {"", "__version__"}
    if used & DRAWING and room not in DRAWING:
        assert room in MAY_DRAW or relative.as_posix() in MAY_DRAW, f"{relative} draws"
    unknown = used - set(ORDER) - DRAWING
    assert not unknown, f"{relative} imports rooms that have no place in the order: {unknown}"
    if room not in DRAWING:
        later = {name for name in used - DRAWING if ORDER.index(name) > ORDER.index(room)
                 and (room, name) not in HANDS_OVER}
        assert not later, f"{relative} imports {later}, which stand after {room}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_other_framework_is_imported(path):
    if PEERS in path.parents:
        return
    assert not {name.split(".")[0] for name in imports(path)} & FOREIGN


def test_checkpoint_knows_no_cells():
    for path in (PACKAGE / "checkpoint").glob("*.py"):
        assert not any(name.startswith("mindspore.nn") for name in imports(path)), path.name


def test_importing_the_package_is_cheap():
    code = "import sys, ms_gpt, ms_gpt.data, ms_gpt.training, ms_gpt.checkpoint, ms_gpt.tokenizer; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"mindspore", "numpy", "matplotlib", "tokenizers", "rich"} & set(loaded.split())


@pytest.mark.parametrize(("given", "found"), [
    ({}, ["3", "1000"]), ({"GLOG_v": "0", "GOMP_SPINCOUNT": "7"}, ["0", "7"]),
    ({"OMP_WAIT_POLICY": "active"}, ["3", "None"]),
])
def test_importing_the_package_leaves_what_the_user_has_set(given, found):
    """MindSpore and OpenMP read these when they are loaded, which ms_gpt has to come before."""
    code = "import os, ms_gpt; print(os.environ.get('GLOG_v'), os.environ.get('GOMP_SPINCOUNT'))"
    names = ("GLOG_v", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
                          env=environment)
    assert done.stdout.split() == found


def test_arange_is_left_to_open_shapes():
    """Elsewhere ``layers.positions`` takes its place: it compiles half a second faster."""
    calls = {path.relative_to(PACKAGE).as_posix(): path.read_text().count("ops.arange(")
             for path in PACKAGE.rglob("*.py")}
    assert {name: count for name, count in calls.items() if count} == {"layers.py": 1}


def test_every_public_name_can_be_imported():
    import ms_gpt

    for name in ms_gpt.__all__:
        assert getattr(ms_gpt, name) is not None


def test_hugging_faces_names_are_the_same_classes():
    import ms_gpt

    for head in (ms_gpt.GPTModel, ms_gpt.GPTLMHeadModel, ms_gpt.GPTDoubleHeadsModel,
                 ms_gpt.GPTForSequenceClassification):
        for name in set(head.architecture.values()):
            assert getattr(ms_gpt, name) is head
    assert ms_gpt.OpenAIGPTConfig(n_layer=2).model_type == "openai-gpt"
    config = ms_gpt.GPT2Config(n_layer=2)
    assert (config.model_type, config.vocab_size, config.n_layer) == ("gpt2", 50257, 2)
    assert config == config.replace() == ms_gpt.GPTConfig(n_layer=2, model_type="gpt2")
    assert ms_gpt.GPT2Config(100, n_layer=2).vocab_size == 100
    assert ms_gpt.GPT2Config.preset("gpt1").model_type == "openai-gpt"
