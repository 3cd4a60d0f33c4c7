"""``ms-gpt info``: what this machine has, what is known not to work together, and what mends it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ms_gpt import __version__
from ms_gpt.cli.options import Options
from ms_gpt.console import Console
from ms_gpt.kernels.build import compiler_command
from ms_gpt.runtime import cpu_count

HELP = "show versions, devices and known problems of this machine"

NEEDED = ("mindspore", "numpy", "tokenizers", "safetensors", "rich", "matplotlib", "PyYAML", "ftfy")
OPTIONAL = ("datasets", "mindnlp", "torch", "transformers")
PROBE_SECONDS = 120
PINNED = "2.10.0"

# MindSpore is asked in a process of its own: a broken installation may crash it, or hang.
_PROBE_KERNELS = """
import json
from ms_gpt.kernels import status
print(json.dumps(status()))
"""
_PROBE = """
import json, mindspore
from ms_gpt.runtime import is_available
mindspore.Tensor([1.0, 2.0]).view(2, 1)
print(json.dumps({name: is_available(name) for name in ("cpu", "gpu", "ascend")}))
"""


@dataclass(kw_only=True)
class InfoOptions(Options):
    """``info`` takes only what every verb takes."""


OPTIONS = InfoOptions


def run(options: InfoOptions) -> dict[str, Any]:
    """Collect the facts, print them and return them.

    Args:
        options: ``quiet`` and ``json``.

    Returns:
        Versions, devices, machine and a list of problems, each with the command that mends it.
    """
    versions = {name: installed_version(name) for name in (*NEEDED, *OPTIONAL)}
    compiler = find_compiler()
    devices, failure = probe(_PROBE)
    kernels, _ = probe(_PROBE_KERNELS) if failure is None else (None, None)
    devices = devices or {"cpu": False, "gpu": False, "ascend": False}
    problems = known_problems(sys.version_info[:2], versions, compiler)
    if failure and versions["mindspore"]:
        problems.append({"problem": f"MindSpore {versions['mindspore']} does not work: {failure}",
                         "fix": install("--force-reinstall", f"mindspore=={versions['mindspore']}")})
    facts = {
        "ms_gpt": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "devices": devices,
        "cpu_count": cpu_count(),
        "memory_gb": total_memory_gb(),
        "compiler": compiler,
        "kernels": kernels or "unknown",
        "problems": problems,
    }
    _show(Console(quiet=options.quiet, json=options.json), facts)
    return facts


def installed_version(package: str) -> str | None:
    """Return a package's version without importing it, or ``None`` where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def find_compiler() -> str | None:
    """Return the first line of the C++ compiler's ``--version``, or ``None`` where there is no compiler."""
    with contextlib.suppress(OSError, ValueError):
        done = subprocess.run([*(compiler_command() or ()), "--version"], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout:
            return done.stdout.splitlines()[0]
    return None


def total_memory_gb() -> float | None:
    """Return the machine's memory in GB, or ``None`` where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def probe(program: str) -> tuple[Any, str | None]:
    """Ask MindSpore something, in another process.

    Args:
        program: A program that prints an answer in JSON as its last line.

    Returns:
        The answer, or ``None``; and why there is none.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False,
                              env=environment, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return None, f"no answer in {PROBE_SECONDS} seconds"
    if done.returncode == 0 and done.stdout.strip():
        return json.loads(done.stdout.splitlines()[-1]), None
    return None, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def install(*words: str) -> str:
    """Return the command that installs packages into this Python; words that start with ``-`` are pip's flags."""
    return "python -m pip install " + " ".join(word if word.startswith("-") else f'"{word}"' for word in words)


def known_problems(
    python: tuple[int, ...], versions: dict[str, str | None], compiler: str | None
) -> list[dict[str, str]]:
    """Compare versions with the combinations that are known to fail.

    Args:
        python: Major and minor version of Python.
        versions: Package name to version; ``None`` where it is not installed.
        compiler: The C++ compiler, or ``None``.

    Returns:
        One ``{"problem", "fix"}`` for each, the gravest first.
    """
    found = []
    mindspore, numpy = _release(versions["mindspore"]), _release(versions["numpy"])
    if python >= (3, 13):
        found.append(("MindSpore has no wheel for Python 3.13 or later: use 3.10 to 3.12",
                      "conda create -n ms-gpt python=3.11"))
    missing = [name for name in NEEDED if versions[name] is None]
    if missing:
        wanted = [{"mindspore": f"mindspore=={PINNED}", "numpy": "numpy>=1.25,<2"}.get(name, name) for name in missing]
        found.append((f"not installed: {', '.join(missing)}", install(*wanted)))
    if numpy >= (2, 0) and mindspore:
        found.append((f"MindSpore {versions['mindspore']} breaks with numpy {versions['numpy']} (Tensor.view fails)",
                      install("numpy>=1.25,<2")))
    if mindspore and not (2, 7) <= mindspore <= (2, 10):
        found.append((f"MindSpore {versions['mindspore']} is outside 2.7 to 2.10, which ms_gpt is tested with",
                      install(f"mindspore=={PINNED}")))
    if versions["mindnlp"] and mindspore > (2, 7):
        found.append((f"mindnlp {versions['mindnlp']} needs MindSpore 2.7.0: give it an environment of its own",
                      "python -m pip uninstall mindnlp"))
    if compiler is None:
        found.append(("no C++ compiler: the fused CPU kernels are left out, training on CPU is slower",
                      "sudo apt-get install g++"))
    return [{"problem": problem, "fix": fix} for problem, fix in found]


def _release(version: str | None) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version or "")[:2])


def _show(console: Console, facts: dict[str, Any]) -> None:
    usable = [name for name, works in facts["devices"].items() if works]
    rows = {"ms_gpt": facts["ms_gpt"], "python": facts["python"], "platform": facts["platform"]}
    rows |= {name: version or "not installed" for name, version in facts["packages"].items()
             if version or name in NEEDED}
    rows |= {
        "devices": ", ".join(usable) or "none: MindSpore does not work here",
        "CPU cores": facts["cpu_count"],
        "memory": f"{facts['memory_gb']} GB" if facts["memory_gb"] else "unknown",
        "compiler": facts["compiler"] or "none",
        "CPU kernels": facts["kernels"],
    }
    console.table(["", "this machine"], list(rows.items()))
    for item in facts["problems"]:
        console.result(f"problem: {item['problem']}\n    fix: {item['fix']}")
    if not facts["problems"]:
        console.result("no known problems")
