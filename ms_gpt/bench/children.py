"""Child processes that are told by a line of JSON what to do, and answer with another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ms_gpt
from ms_gpt.errors import UserError

OUR_MODULE = "ms_gpt.bench.worker"
_LAST_WORDS = 300


class Child:
    """A process that serves one library; use it in a ``with`` block.

    Args:
        name: What it is called in messages, such as ``"ours"``.
        module: Its module, which calls ``serving.serve``.
        scratch: A folder for its errors, and for a link to this package.
        threads: Cores and threads that it gets.
        environment: Variables of its own.
        python: The Python that runs it.

    Raises:
        UserError: The process dies; the message has its last line.
    """

    def __init__(self, name: str, module: str, scratch: Path, threads: int,
                 environment: Mapping[str, str] | None = None, python: str = sys.executable) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, cwd=scratch,
            env=_environment(scratch, threads, environment or {}, python))
        self.cores = _keep_to_cores(self._process.pid, threads)

    def __enter__(self) -> Child:
        self.import_mib = self._answer()["import_mib"]
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._errors.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have something done and wait for the answer.

        Args:
            do: A method of ``serving.Worker``.
            **arguments: Its arguments.

        Returns:
            What it returned.

        Raises:
            UserError: The process died.
        """
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        return self._answer()

    def others_seconds(self) -> float:
        """Return a clock of the processor time that others take on its cores; 0 where the system has none."""
        try:
            own = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
            lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        except OSError:
            return 0.0
        names = {f"cpu{core}" for core in self.cores}
        # User, nice, system, then interrupts and what the host gave to other machines; in between idle and waiting.
        busy = sum(int(line[index]) for line in lines if line and line[0] in names for index in (1, 2, 3, 6, 7, 8))
        return (busy - int(own[11]) - int(own[12])) / os.sysconf("SC_CLK_TCK")

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._death()
        return json.loads(line)

    def _death(self) -> UserError:
        code = self._process.wait()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
        return UserError(f"the process of {self.name} {how}: {words[-1].strip()[-_LAST_WORDS:]}")


def _environment(scratch: Path, threads: int, own: Mapping[str, str], python: str) -> dict[str, str]:
    """Return a child's environment.

    How long OpenMP's threads spin before they sleep is left as each library has it: what its users get. The
    parent waits for the spinning to end before it asks another child.
    """
    link = scratch / "package" / "ms_gpt"
    if not link.exists():
        link.parent.mkdir()
        link.symlink_to(Path(ms_gpt.__file__).resolve().parent, target_is_directory=True)
    # This package alone, and not what is installed beside it: the Python may have an environment of its own.
    path = [str(link.parent), *(sys.path if python == sys.executable else ())]
    counts = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    # Set by this package at import, also by a child's own: the others are not to get it from here.
    inherited = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    return {**inherited, **counts, "PYTHONPATH": os.pathsep.join(filter(None, path)), "GLOG_v": "3",
            "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **own}


def _keep_to_cores(pid: int, threads: int) -> list[int]:
    """Give a process no more cores than threads, whatever else decides on its number of threads; return them."""
    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(pid, cores)
    return cores
