"""The side of a child process: it waits asleep on its pipe, and does one thing when told to.

A line of JSON says what to do, ``{"do": "load", ...}``, and a line of JSON answers. Only the standard library is
imported here: a child may run in an environment that holds another library and little else.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PRODUCT_SIZE = 1536
TOP = 15


class Worker:
    """What a child does; each library has a subclass.

    Attributes:
        step: Starts one step, set by ``load``. Its result is given to ``wait``.
    """

    step: Callable[[], Any]

    def load(self, case: dict[str, Any], folder: str) -> dict[str, Any]:
        """Build the model of a case and all that its steps need.

        Args:
            case: Fields of ``cases.Case``.
            folder: What ``cases.write_inputs`` wrote.

        Returns:
            The versions of the libraries, by name.
        """
        raise NotImplementedError

    def check(self) -> dict[str, Any]:
        """Return what all sides must agree on: ``loss``, dropout off, or ``ids``."""
        raise NotImplementedError

    def wait(self, result: Any) -> None:
        """Return when a step's result is there; at once, where a step is not over before it is."""

    def product(self) -> Callable[[], Any]:
        """Return a function that multiplies two square float32 matrices of width ``PRODUCT_SIZE``, and waits."""
        raise NotImplementedError

    def profile_steps(self, folder: Path, steps: int) -> list[tuple[str, int, float]]:
        """Run steps and return for each type of op its name, its number of calls and its milliseconds in all."""
        return []

    def start(self) -> dict[str, float]:
        """Run the first step, which compiles where the library compiles; returns its ``seconds``."""
        return self.run(1)

    def run(self, steps: int) -> dict[str, float]:
        """Time some steps.

        Args:
            steps: How many, one after the other.

        Returns:
            ``seconds`` for all of them.
        """
        start = time.perf_counter()
        for _ in range(steps):
            result = self.step()
        self.wait(result)
        return {"seconds": time.perf_counter() - start}

    def memory(self) -> dict[str, float]:
        """Return the most memory that this process has held so far, in MiB."""
        return {"mib": peak_memory()}

    def peak(self) -> dict[str, float]:
        """Measure how many GFLOP/s the library's matrix product reaches, the best of several."""
        product = self.product()
        product()
        best = float("inf")
        for _ in range(8):
            start = time.perf_counter()
            product()
            best = min(best, time.perf_counter() - start)
        return {"gflops": 2 * PRODUCT_SIZE**3 / best / 1e9}

    def profile(self, folder: str, steps: int) -> dict[str, Any]:
        """Return where the time of a step goes, by type of op.

        Args:
            folder: An empty one for the profiler's files.
            steps: How many steps to run.

        Returns:
            ``ops``: the longest, as ``{"op", "calls", "ms", "share"}`` for one step.
        """
        rows = sorted(self.profile_steps(Path(folder), steps), key=lambda row: -row[2])
        total = sum(row[2] for row in rows) or 1.0
        return {"ops": [{"op": name, "calls": round(calls / steps), "ms": spent / steps, "share": spent / total}
                        for name, calls, spent in rows[:TOP]]}


def peak_memory() -> float:
    """Return the most memory that this process has held so far, in MiB; 0 where the system does not say."""
    # The resource module's figure is at least what the parent held when it started this process.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    with contextlib.suppress(ImportError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return 0.0


def serve(make: Callable[[], Worker]) -> None:
    """Answer requests until the pipe is closed.

    Args:
        make: Imports the library and returns the worker.
    """
    # Libraries print what they like; the answers have a pipe of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = make()
    _answer(answers, {"import_mib": peak_memory()})
    for line in sys.stdin:
        request = json.loads(line)
        _answer(answers, getattr(worker, request.pop("do"))(**request))


def _answer(pipe: Any, answer: dict[str, Any]) -> None:
    pipe.write(json.dumps(answer) + "\n")
    pipe.flush()
