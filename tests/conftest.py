"""Fixtures that all tests share."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest

# Graphs of tests are compiled, not taken from the user's cache.
os.environ["MS_GPT_COMPILE_CACHE"] = "off"
# Workers share the cores; threads that wait for each other would take most of them. Read when MindSpore is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Files whose tests never come to MindSpore, so that they say nothing about its version: the matrix leaves them out.
WITHOUT_MINDSPORE = {
    "test_arithmetic", "test_checkpoint", "test_checkpoint_archive", "test_checkpoint_configurations",
    "test_checkpoint_convert",
    "test_checkpoint_files", "test_checkpoint_hostile", "test_checkpoint_hostile_tar", "test_checkpoint_npz",
    "test_checkpoint_tensorflow", "test_console", "test_corpus", "test_data", "test_data_download",
    "test_data_mindnlp", "test_hub", "test_sample", "test_tokenizer_cleaning", "test_tokenizer_training",
    "test_tokenizer_verb", "test_tokenizer_words", "test_transforms",
}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in WITHOUT_MINDSPORE:
            item.add_marker("without_mindspore")


def pytest_collection_finish():
    """Keep what has been imported out of the garbage collections, one of which every compilation makes."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_mindspore(request, monkeypatch):
    """Let imports of MindSpore fail where the list above says that there are none."""
    if request.node.get_closest_marker("without_mindspore"):
        monkeypatch.setitem(sys.modules, "mindspore", None)


@pytest.fixture
def graph_mode():
    """Graphs, whatever a test before this one has set."""
    from ms_gpt import runtime

    runtime.setup("cpu", "graph")
    yield
    runtime.setup("cpu", "graph")


@pytest.fixture
def compilations(monkeypatch):
    """Every graph that is compiled while the test runs, by its Cell's name."""
    from mindspore.common.api import _CellGraphExecutor

    compiled = []
    original = _CellGraphExecutor.compile

    def counting(self, cell, *args, **kwargs):
        phase, is_new = original(self, cell, *args, **kwargs)
        if is_new:
            compiled.append(type(cell).__name__)
        return phase, is_new

    monkeypatch.setattr(_CellGraphExecutor, "compile", counting)
    return compiled


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("MS_GPT_TEST_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}: set MS_GPT_TEST_DATA")
    return path
