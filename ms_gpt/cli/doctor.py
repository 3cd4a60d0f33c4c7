"""What is known not to work together, and for each case the one command that mends it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ms_gpt.cli.machine import Ascend

NEEDED = ("mindspore", "numpy", "tokenizers", "safetensors", "rich", "matplotlib", "PyYAML", "ftfy")
OPTIONAL = ("datasets", "mindnlp", "torch", "transformers")
PINNED = "2.10.0"
NUMPY = "numpy>=1.25,<2"
# CANN versions that each MindSpore accepts: AscendEnvChecker in its run_check/_check_version.py.
CANN = {
    "2.7.0": ("7.7", "7.8", "8.2"),
    "2.7.2": ("8.5",),
    "2.8.0": ("8.2", "8.3", "8.5"),
    "2.9.0": ("8.2", "8.3", "8.5", "9.0"),
    "2.10.0": ("8.2", "8.3", "8.5", "9.0", "9.1"),
}
FIRST_FOR_3_12 = (2, 7, 2)  # the first MindSpore with a wheel for Python 3.12
CUDA_PACKAGES = ("nvidia-cuda-runtime-cu11", "nvidia-cuda-nvrtc-cu11", "nvidia-cublas-cu11", "nvidia-cudnn-cu11==8.*",
                 "nvidia-cufft-cu11", "nvidia-curand-cu11", "nvidia-cusolver-cu11", "nvidia-cusparse-cu11")

Problem = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the rules look at.

    Args:
        python: Major and minor version of Python.
        packages: Package name to version; ``None``, or absent, where it is not installed.
        compiler: The C++ compiler, or ``None``.
        compiler_failure: Why it does not compile the kernels, or ``None``.
        cache: The folder for what is kept between runs.
        cache_failure: Why nothing can be written there, or ``None``.
        mindspore_failure: What MindSpore said when it was tried, or ``None`` if it works.
        ascend: The NPU and its software; ``None`` without an NPU.
        supported_cann: The CANN versions that the installed MindSpore accepts; none where it does not say.
        missing_cuda: The libraries that MindSpore misses for the NVIDIA GPU; ``None`` without one, or if it is usable.
        cuda_packages: Where pip has put such libraries, as for ``LD_LIBRARY_PATH``; ``None`` if nowhere.
    """

    python: tuple[int, ...]
    packages: dict[str, str | None]
    compiler: str | None = None
    compiler_failure: str | None = None
    cache: Path = field(default_factory=Path)
    cache_failure: str | None = None
    mindspore_failure: str | None = None
    ascend: Ascend | None = None
    supported_cann: tuple[str, ...] = ()
    missing_cuda: tuple[str, ...] | None = None
    cuda_packages: str | None = None

    def release(self, package: str) -> tuple[int, ...]:
        """Return the first two numbers of a package's version; an empty tuple where it is not installed."""
        return tuple(int(number) for number in re.findall(r"\d+", self.packages.get(package) or "")[:2])


def diagnose(machine: Machine) -> list[dict[str, str]]:
    """Compare a machine with what is known to fail.

    Args:
        machine: What it has.

    Returns:
        One ``{"problem", "fix"}`` for each, the gravest first; a fix is one command.
    """
    fatal = [*_packages(machine)]
    if machine.mindspore_failure and machine.packages.get("mindspore") and not fatal:
        # Nothing known explains it: a broken download, or a file that something else has overwritten.
        version = machine.packages["mindspore"]
        fatal = [(f"MindSpore {version} does not work: {machine.mindspore_failure}",
                  install("--force-reinstall", f"mindspore=={version}", NUMPY))]
    found = [*fatal, *_mindnlp(machine), *_ascend(machine), *_gpu(machine), *_building(machine)]
    return [{"problem": problem, "fix": fix} for problem, fix in found]


def install(*words: str) -> str:
    """Return the command that installs packages into this Python; words that start with ``-`` are pip's flags."""
    return "python -m pip install " + " ".join(word if word.startswith("-") else f'"{word}"' for word in words)


def _packages(machine: Machine) -> Iterator[Problem]:
    packages, mindspore = machine.packages, machine.release("mindspore")
    if machine.python >= (3, 13) or machine.python < (3, 10):
        used = ".".join(map(str, machine.python[:2]))
        yield (f"Python {used}: MindSpore has no wheel for 3.13 or later, and ms_gpt needs 3.10 or later: use 3.10 to "
               "3.12", "conda create -n ms-gpt python=3.11")
        return
    missing = [name for name in NEEDED if packages.get(name) is None]
    if missing:
        wanted = [{"mindspore": f"mindspore=={PINNED}", "numpy": NUMPY}.get(name, name) for name in missing]
        # Left to itself pip takes NumPy 2 along with MindSpore.
        yield (f"not installed: {', '.join(missing)}", install(*wanted, *([NUMPY] if NUMPY not in wanted else [])))
    if machine.release("numpy") >= (2, 0) and mindspore:
        yield (f"MindSpore {packages['mindspore']} breaks with numpy {packages['numpy']} (Tensor.view fails)",
               install(NUMPY))
    if mindspore and not (2, 7) <= mindspore <= (2, 10):
        yield (f"MindSpore {packages['mindspore']} is outside 2.7 to 2.10, which ms_gpt is tested with",
               install(f"mindspore=={PINNED}", NUMPY))


def _mindnlp(machine: Machine) -> Iterator[Problem]:
    version, remove = machine.packages.get("mindnlp"), "python -m pip uninstall --yes mindnlp"
    if version is None:
        return
    if machine.packages.get("torch"):
        yield (f"mindnlp {version} puts a torch of its own in place of torch {machine.packages['torch']}, and crashes "
               "where both are imported: give it an environment of its own (requirements-mindnlp.txt)", remove)
    elif machine.release("mindspore") > (2, 7):
        yield (f"mindnlp {version} needs MindSpore 2.7.0: give it an environment of its own (requirements-mindnlp.txt)",
               remove)
    elif machine.release("transformers") >= (5, 0):
        yield (f"mindnlp {version} cannot be imported beside transformers {machine.packages['transformers']}",
               install("transformers==4.57.1"))


def _ascend(machine: Machine) -> Iterator[Problem]:
    ascend, supported = machine.ascend, machine.supported_cann
    if ascend is None:
        return
    if not ascend.is_set and ascend.set_env:
        yield ("there is an Ascend NPU, and CANN, which this shell does not know of", f"source {ascend.set_env}")
    elif not ascend.is_set:
        newest = max(supported or CANN[PINNED], key=_numbers)
        yield ("there is an Ascend NPU, but no CANN, through which MindSpore drives it",
               f'conda install "ascend::cann-toolkit={newest}"')
    elif ascend.version and supported and ascend.version not in supported:
        fitting = [version for version, listed in CANN.items() if ascend.version in listed
                   and (machine.python < (3, 12) or _numbers(version) >= FIRST_FOR_3_12)]
        fix = (install(f"mindspore=={max(fitting, key=_numbers)}", NUMPY) if fitting
               else f'conda install "ascend::cann-toolkit={max(supported, key=_numbers)}"')
        yield (f"MindSpore {machine.packages.get('mindspore')} is made for CANN {', '.join(supported)}, and here is "
               f"{ascend.version}", fix)


def _gpu(machine: Machine) -> Iterator[Problem]:
    if not machine.missing_cuda:
        return
    names = ", ".join(machine.missing_cuda)
    problem = f"there is an NVIDIA GPU, but the system does not find {names} (CUDA 11, cuDNN 8) for MindSpore"
    if machine.cuda_packages:
        yield problem, f'export LD_LIBRARY_PATH="{machine.cuda_packages}:$LD_LIBRARY_PATH"'
    else:
        yield problem, install(*CUDA_PACKAGES)


def _building(machine: Machine) -> Iterator[Problem]:
    without = "the fused CPU kernels are left out, training on CPU is slower"
    if machine.compiler_failure:
        fix = "unset CXX" if os.environ.get("CXX") else "sudo apt-get install --reinstall g++"
        yield f"the C++ compiler does not work ({machine.compiler_failure}): {without}", fix
    elif machine.compiler is None:
        yield f"no C++ compiler: {without}", "sudo apt-get install g++"
    if machine.cache_failure:
        elsewhere = Path(tempfile.gettempdir()) / "ms_gpt"
        yield (f"nothing can be kept in the cache folder {machine.cache} ({machine.cache_failure}): kernels and graphs "
               "are compiled at every start", f'export MS_GPT_CACHE="{elsewhere}"')


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
