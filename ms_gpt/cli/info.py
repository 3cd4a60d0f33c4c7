"""``ms-gpt info``: what this machine has, what is known not to work together, and what mends it."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from typing import Any

from ms_gpt import __version__
from ms_gpt.cli import machine as here
from ms_gpt.cli.doctor import NEEDED, OPTIONAL, Machine, diagnose
from ms_gpt.cli.options import Options
from ms_gpt.console import Console
from ms_gpt.runtime import cache_dir, cpu_count

HELP = "show versions, devices, known problems of this machine and what mends them"

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
    devices, failure = here.probe(_PROBE)
    kernels, _ = here.probe(_PROBE_KERNELS) if failure is None else (None, None)
    devices = devices or {"cpu": False, "gpu": False, "ascend": False}
    compiler, compiler_failure = here.find_compiler()
    cache = cache_dir()
    machine = Machine(
        python=sys.version_info[:2],
        packages={name: here.installed_version(name) for name in (*NEEDED, *OPTIONAL)},
        compiler=compiler,
        compiler_failure=compiler_failure,
        cache=cache,
        cache_failure=here.cache_failure(cache),
        mindspore_failure=failure,
        ascend=here.find_ascend(),
        supported_cann=here.supported_cann(),
        missing_cuda=None if devices["gpu"] else here.find_nvidia(),
        cuda_packages=here.cuda_packages(),
    )
    facts = {
        "ms_gpt": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": machine.packages,
        "devices": devices,
        "cann": machine.ascend and machine.ascend.version,
        "cpu_count": cpu_count(),
        "memory_gb": here.total_memory_gb(),
        "compiler": compiler,
        "kernels": kernels or "unknown",
        "cache": str(cache),
        "problems": diagnose(machine),
    }
    _show(Console(quiet=options.quiet, json=options.json), facts)
    return facts


def _show(console: Console, facts: dict[str, Any]) -> None:
    usable = [name for name, works in facts["devices"].items() if works]
    rows = {"ms_gpt": facts["ms_gpt"], "python": facts["python"], "platform": facts["platform"]}
    rows |= {name: version or "not installed" for name, version in facts["packages"].items()
             if version or name in NEEDED}
    rows |= {"devices": ", ".join(usable) or "none: MindSpore does not work here"}
    rows |= {"CANN": facts["cann"]} if facts["cann"] else {}
    rows |= {
        "CPU cores": facts["cpu_count"],
        "memory": f"{facts['memory_gb']} GB" if facts["memory_gb"] else "unknown",
        "compiler": facts["compiler"] or "none",
        "CPU kernels": facts["kernels"],
        "cache": facts["cache"],
    }
    if facts["packages"]["rich"]:
        console.table(["", "this machine"], list(rows.items()))
    else:
        for name, value in rows.items():
            console.result(f"{name:<13} {value}")
    for item in facts["problems"]:
        console.result(f"problem: {item['problem']}\n    fix: {item['fix']}")
    if not facts["problems"]:
        console.result("no known problems")
