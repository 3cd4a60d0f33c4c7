"""A checkpoint of 2 GB is converted in little memory, and not much slower than it is copied."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
from checkpoint_helpers import ROOT

from ms_gpt import checkpoint
from ms_gpt.checkpoint.layouts import expected_shapes
from ms_gpt.checkpoint.tensors import LazyTensors, TensorInfo
from ms_gpt.config import GPTConfig

pytestmark = pytest.mark.slow

MEMORY_MB = 600
PAIRS = 5
# Prints the process's peak memory in KB. getrusage would count what the parent held when it forked.
MEASURE = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
# The measure of speed: the same bytes through Python's own copy.
COPY = "import shutil, sys; shutil.copyfile(sys.argv[1], sys.argv[2])"
CONVERT = "import sys; from ms_gpt.checkpoint import convert; convert(sys.argv[1], sys.argv[2]); " \
          "assert 'mindspore' not in sys.modules; " + MEASURE


def run(program: str, *arguments: object) -> tuple[float, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], env=environment, check=True,
                          capture_output=True, text=True)
    return time.monotonic() - start, done.stdout


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """GPT-2 large with fewer layers: its token table alone takes 257 MB."""
    folder = tmp_path_factory.mktemp("large")
    config = GPTConfig.preset("gpt2-large", n_layer=23)
    architecture = "GPT2LMHeadModel"
    infos = {checkpoint.hf_name(name, "gpt2"): TensorInfo(shape, "float32")
             for name, shape in expected_shapes(config, architecture).items()}
    row = np.random.default_rng(0).standard_normal(max(info.size for info in infos.values()), np.float32)
    tensors = LazyTensors(infos, lambda name: row[:infos[name].size].reshape(infos[name].shape))
    checkpoint.write_folder(folder / "hf", config, tensors, architecture)
    assert (folder / "hf" / "model.safetensors").stat().st_size > 2 * 10**9
    checkpoint.convert(folder / "hf", folder / "pytorch_model.bin")
    yield folder
    for file in folder.rglob("*"):
        if file.is_file():
            file.unlink()


@pytest.mark.parametrize(("source", "target"), [("pytorch_model.bin", "new/model.safetensors"),
                                                ("hf/model.safetensors", "new/pytorch_model.bin")])
def test_memory_and_speed(large, source, target, record_property):
    baseline = int(run(MEASURE)[1])
    (large / "new").mkdir(exist_ok=True)
    ratios = []
    for _ in range(PAIRS):
        # Each finds the memory that the other has left.
        (large / target).unlink(missing_ok=True)
        os.sync()
        copying, _ = run(COPY, large / source, large / "copy")
        (large / "copy").unlink()
        os.sync()
        converting, peak = run(CONVERT, large / source, large / target)
        ratios.append(copying / converting)
        extra = (int(peak.split()[-1]) - baseline) / 1024
        assert extra <= MEMORY_MB
    record_property("speed against copying", statistics.median(ratios))
    record_property("MB above a bare interpreter", extra)
    print(f"\n{source} -> {target}: {extra:.0f} MB above a bare interpreter; "  # noqa: T201 - the figure to report
          f"speed against copying {statistics.median(ratios):.2f}")
    first, second = checkpoint.read_content(large / source).tensors, checkpoint.read_content(large / target).tensors
    assert set(first) == set(second)
    for name in first:
        for one, other in zip(first.blocks(name), second.blocks(name), strict=True):
            assert np.array_equal(one, other), name
