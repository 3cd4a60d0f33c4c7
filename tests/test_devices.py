"""Which devices count as usable, with MindSpore's own answers stood in for."""

import pytest
from mindspore.device_context import gpu

from ms_gpt import UserError, runtime


def failing():
    raise RuntimeError("CUDA driver version is insufficient for CUDA runtime version")


@pytest.mark.parametrize(("count", "usable"), [(lambda: 2, True), (lambda: 0, False), (failing, False)])
def test_cuda_libraries_without_a_gpu_are_no_gpu(count, usable, monkeypatch):
    """MindSpore calls a GPU available as soon as the CUDA libraries load."""
    monkeypatch.setattr(gpu, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "device_count", count)
    assert runtime.is_available("gpu") is usable
    monkeypatch.setattr(gpu, "is_available", lambda: False)
    assert not runtime.is_available("gpu")


def test_bfloat16_on_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(runtime, "is_available", lambda device: True)
    with pytest.raises(UserError, match="dtype='bfloat16' needs Ascend: .* Use --dtype float16"):
        runtime.setup("gpu", dtype="bfloat16")
