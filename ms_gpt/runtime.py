"""The one place that sets device, mode, seed and threads, and says what it chose."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import random
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms_gpt.errors import UserError, suggest

DEVICES = ("auto", "cpu", "gpu", "ascend")
MODES = ("graph", "pynative")
DTYPES = ("float32", "float16", "bfloat16")
_TARGETS = {"cpu": "CPU", "gpu": "GPU", "ascend": "Ascend"}


_is_keeping = False


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Keep a first Ctrl-C, or stop signal, until the block ends; a second one is not kept.

    MindSpore's compiler answers an interruption with fifty lines on stderr and a file in the current folder.
    """
    global _is_keeping
    if _is_keeping or threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    handlers = {kind: handler for kind, handler in handlers.items() if callable(handler)}
    kept: list[tuple] = []

    def keep(kind: int, frame: Any) -> None:
        if kept:
            kept.clear()
            handlers[kind](kind, frame)
        else:
            kept.append((kind, frame))

    _is_keeping = True
    for kind in handlers:
        signal.signal(kind, keep)
    try:
        yield
    finally:
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
        _is_keeping = False
        for kind, frame in kept:
            handlers[kind](kind, frame)


@dataclass(frozen=True)
class Runtime:
    """What a process runs on.

    Args:
        device: ``"cpu"``, ``"gpu"`` or ``"ascend"``.
        mode: ``"graph"`` or ``"pynative"``.
        dtype: Of the matrix products: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        seed: Seed of everything random.
    """

    device: str
    mode: str
    dtype: str
    seed: int


def setup(device: str = "auto", mode: str = "graph", dtype: str = "float32", seed: int = 0) -> Runtime:
    """Choose the device and the execution mode for this process.

    Args:
        device: ``"auto"`` takes Ascend, then GPU, then CPU, whichever answers first.
        mode: ``"graph"`` compiles each model into one static graph; ``"pynative"`` runs op by op, for debugging.
        dtype: Of the matrix products; float16 needs Ascend or a GPU, bfloat16 needs Ascend.
        seed: Seed for Python, NumPy and MindSpore.

    Returns:
        What was chosen.

    Raises:
        UserError: An unknown word, a device that this machine does not have, or half precision on the CPU.
    """
    for name, value, choices in (("device", device, DEVICES), ("mode", mode, MODES), ("dtype", dtype, DTYPES)):
        if value not in choices:
            raise UserError(f"{name}={value!r} is not one of {', '.join(choices)}.{suggest(value, choices)}")
    import mindspore as ms

    if device == "auto":
        device = next((name for name in ("ascend", "gpu") if is_available(name)), "cpu")
    elif not is_available(device):
        raise UserError(f"device={device!r} is not usable on this machine: no driver or library for it was found. "
                        f"Use --device cpu, or install what MindSpore needs for {_TARGETS[device]}")
    if device == "cpu" and dtype != "float32":
        raise UserError(f"dtype={dtype!r} needs Ascend or a GPU: MindSpore's CPU kernels cannot train in half "
                        "precision. Use --dtype float32")
    if device == "gpu" and dtype == "bfloat16":
        raise UserError("dtype='bfloat16' needs Ascend: MindSpore's GPU kernels multiply no bfloat16 matrices. "
                        "Use --dtype float16")
    ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
    _set_device(device)
    if device == "cpu":
        # One kernel at a time, each on all cores, beats MindSpore's default of several at once.
        # A second call in one process is an error, and changes nothing.
        with contextlib.suppress(RuntimeError):
            ms.runtime.dispatch_threads_num(1)
    set_seed(seed)
    return Runtime(device, mode, dtype, seed)


def _set_device(device: str) -> None:
    import mindspore as ms

    try:
        ms.set_device(_TARGETS[device])
    except RuntimeError as error:
        # Once something has been computed the device is fixed; that is no harm if it is the one asked for.
        if ms.get_context("device_target") != _TARGETS[device]:
            raise UserError(f"device={device!r} cannot be set any more: this process already computes on "
                            f"{ms.get_context('device_target')}. Restart it, and set the device first") from error


def is_available(device: str) -> bool:
    """Tell whether MindSpore can run on a device here.

    Args:
        device: ``"cpu"``, ``"gpu"`` or ``"ascend"``.

    Returns:
        Whether its driver and libraries load.
    """
    if device == "cpu":
        return True
    with _quiet_mindspore():
        module = importlib.import_module(f"mindspore.device_context.{device}")
        if not module.is_available():
            return False
        # That of a GPU says only that the CUDA libraries load, which they do where there is no GPU too.
        with contextlib.suppress(RuntimeError):
            return device != "gpu" or module.device_count() > 0
        return False


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and MindSpore.

    Args:
        seed: A whole number, at least 0.

    Raises:
        UserError: The seed is negative.
    """
    if seed < 0 or seed >= 2**31:
        raise UserError(f"seed={seed} is outside [0, {2**31})")
    import mindspore as ms
    import numpy as np

    random.seed(seed)
    np.random.seed(seed)
    ms.set_seed(seed)


def cache_dir() -> Path:
    """Return the folder for what can be made or fetched again.

    Returns:
        ``$MS_GPT_CACHE``, else ``ms_gpt`` in ``$XDG_CACHE_HOME``, else ``~/.cache/ms_gpt``.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MS_GPT_CACHE") or Path(caches) / "ms_gpt").expanduser()


def is_switched_off(variable: str) -> bool:
    """Tell whether an environment variable turns something off: ``off``, ``0``, ``no``, ``false`` or ``none``.

    Args:
        variable: Its name.

    Returns:
        Whether it does.
    """
    return os.environ.get(variable, "").lower() in ("off", "0", "no", "false", "none")


def cpu_count() -> int:
    """Return the number of CPU cores this process may use."""
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _quiet_mindspore() -> Iterator[None]:
    """Silence MindSpore's warnings about plug-ins that are merely absent."""
    from mindspore import log

    logger = log._get_logger()
    logger.addFilter(_nothing)
    try:
        yield
    finally:
        logger.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False
