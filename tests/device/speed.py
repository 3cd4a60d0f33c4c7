"""How fast a model trains and writes on a device, and how much memory it takes."""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time

import mindspore as ms
from basics import Outcome, Setting, random_ids, require
from mindspore import Tensor

from ms_gpt import GPTLMHeadModel, runtime
from ms_gpt.training.loss_scale import LossScaler
from ms_gpt.training.optimizer import AdamW
from ms_gpt.training.schedule import LearningRate
from ms_gpt.training.step import TargetLoss, TrainStep


def peak_memory(device: str) -> str:
    """Return the most memory that was in use."""
    if device == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024
        return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6:,.0f} MB resident"
    try:
        return f"{ms.runtime.max_memory_allocated() / 1e6:,.0f} MB on the device"
    except (AttributeError, RuntimeError):
        return "memory unknown"


def _big_model(setting: Setting) -> tuple[GPTLMHeadModel, int, int]:
    """Return a model for timing, rows and tokens in a row: GPT-2's smallest size, except where that would take long."""
    config, batch, length = setting.config(), 4, setting.length
    if not setting.quick and setting.device != "cpu":
        config, batch, length = setting.config(vocab_size=50257, n_embd=768, n_layer=12, n_head=12,
                                               n_positions=1024), 8, 512
    return GPTLMHeadModel(config), batch, length


def _train_speed(setting: Setting, dtype: str) -> Outcome:
    runtime.setup(setting.device, dtype=dtype)
    model, batch, length = _big_model(setting)
    model.set_compute_dtype(dtype)
    model.match_kernels()
    weights = model.weights()
    step = TrainStep(TargetLoss(model), AdamW(list(weights.values()), list(weights)),
                     LearningRate(1e-4, 100, kind="constant"),
                     scaler=LossScaler() if dtype == "float16" else None).set_train()
    ids = Tensor(random_ids(model.config, batch, length))
    started = time.perf_counter()
    first = float(step(ids, ids)[0].asnumpy())
    compiled, times = time.perf_counter() - started, []
    for _ in range(3 if setting.quick else 20):
        started = time.perf_counter()
        loss = float(step(ids, ids)[0].asnumpy())
        times.append(time.perf_counter() - started)
    require(math.isfinite(loss), f"the loss became {loss}")
    seconds = statistics.median(times)
    return Outcome(note=f"{model.num_parameters() / 1e6:.1f} M parameters, {batch} x {length}: "
                        f"{batch * length / seconds:,.0f} tokens/s, {1e3 * seconds:.1f} ms a step, "
                        f"first step {compiled:.0f} s, {peak_memory(setting.device)}, loss {first:.3f} -> {loss:.3f}")


def float32(setting: Setting) -> Outcome:
    return _train_speed(setting, "float32")


def float16(setting: Setting) -> Outcome:
    return _train_speed(setting, "float16")


def bfloat16(setting: Setting) -> Outcome:
    return _train_speed(setting, "bfloat16")


def generation(setting: Setting) -> Outcome:
    runtime.setup(setting.device)
    model, _, _ = _big_model(setting)
    rows, new = random_ids(model.config, 1, 16).tolist(), 8 if setting.quick else 100
    settings = {"max_new_tokens": new, "eos_token_id": -1}
    model.generate(rows, **settings)
    started = time.perf_counter()
    model.generate(rows, **settings)
    seconds = time.perf_counter() - started
    return Outcome(note=f"{model.num_parameters() / 1e6:.1f} M parameters, 1 row: {new / seconds:.0f} tokens/s, "
                        f"{peak_memory(setting.device)}")
