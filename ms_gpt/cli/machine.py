"""What this machine has, for ``ms-gpt info``: found without importing MindSpore, which may be what is broken."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from ms_gpt.kernels.build import compiler_command, first_error

PROBE_SECONDS = 120
COMPILER_SECONDS = 60
# What the kernels need of a compiler, in three lines.
_TRIAL = "#include <omp.h>\n#include <vector>\nint trial() { return std::vector<int>(omp_get_max_threads()).size(); }\n"
# What MindSpore's plug-in for CUDA 11.6 is linked with.
CUDA_LIBRARIES = ("libcudart.so.11.0", "libcublas.so.11", "libcudnn.so.8", "libcufft.so.10", "libcurand.so.10",
                  "libcusolver.so.11", "libcusparse.so.11", "libnvrtc.so.11.2")
_CANN_FOLDERS = ("usr/local/Ascend/cann", "usr/local/Ascend/ascend-toolkit")


@dataclass(frozen=True, kw_only=True)
class Ascend:
    """An Ascend NPU and the software that drives it.

    Args:
        is_set: Whether this shell's environment names CANN.
        version: CANN's version, such as ``"8.5"``; ``None`` where it cannot be read.
        set_env: The script that puts an installed CANN into the environment, or ``None``.
    """

    is_set: bool = False
    version: str | None = None
    set_env: str | None = None


def installed_version(package: str) -> str | None:
    """Return a package's version without importing it, or ``None`` where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def find_compiler() -> tuple[str | None, str | None]:
    """Try the C++ compiler on a few lines that need what the kernels need.

    Returns:
        The first line of its ``--version``, or ``None`` where there is none; and why it does not work, or ``None``.
    """
    try:
        command = compiler_command()
    except ValueError as error:
        return None, f"CXX={os.environ.get('CXX')!r}: {error}"
    if command is None:
        return None, None
    version = " ".join(command)
    try:
        done = _run([*command, "--version"], timeout=COMPILER_SECONDS)
        version = (done.stdout.splitlines() or [version])[0]
        with tempfile.TemporaryDirectory(prefix="ms_gpt-") as folder:
            done = _run([*command, "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-x", "c++", "-", "-o",
                         str(Path(folder) / "trial.so")], input=_TRIAL, timeout=COMPILER_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return version, str(error)
    return version, first_error(done) if done.returncode else None


def cache_failure(folder: Path) -> str | None:
    """Say why nothing can be written to a folder, made or yet to be made; ``None`` if it can."""
    there = folder.expanduser().absolute()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"ms_gpt")
    except OSError as error:
        return f"{there}: {error.strerror or error}"
    # MindSpore is given a kernel as its path, a colon and the function.
    return f"{folder}: the path holds a colon" if ":" in str(folder) else None


def find_ascend(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> Ascend | None:
    """Look for an Ascend NPU and for CANN.

    Args:
        root: Where the file system starts.
        environment: The environment variables.

    Returns:
        What is there; ``None`` on a machine without an NPU.
    """
    if not any((root / "dev").glob("davinci*")):
        return None
    scripts = [root / folder / "set_env.sh" for folder in _CANN_FOLDERS]
    for start in filter(None, (environment.get("HOME"), environment.get("CONDA_PREFIX"))):
        scripts += [Path(start) / "Ascend" / Path(folder).name / "set_env.sh" for folder in _CANN_FOLDERS]
    set_env = next((str(script) for script in scripts if script.is_file()), None)
    home = environment.get("ASCEND_HOME_PATH") or environment.get("ASCEND_TOOLKIT_HOME")
    return Ascend(is_set=bool(home), version=_cann_version(Path(home)) if home else None, set_env=set_env)


def supported_cann() -> tuple[str, ...]:
    """Return the CANN versions that the installed MindSpore says it works with; none where it does not say."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        found = util.find_spec("mindspore")
        folder = Path((found.submodule_search_locations or [""])[0]) if found else Path()
        text = (folder / "run_check" / "_check_version.py").read_text(encoding="utf-8")
        listed = re.search(r"class AscendEnvChecker.*?self\.version = \[([^]]*)\]", text, re.DOTALL)
        return tuple(re.findall(r"\d+\.\d+", listed.group(1))) if listed else ()
    return ()


def find_nvidia(
    root: Path = Path("/"), load: Callable[[str], Any] = ctypes.CDLL
) -> tuple[str, ...] | None:
    """Look for an NVIDIA GPU, and for the libraries without which MindSpore does not see it.

    Args:
        root: Where the file system starts.
        load: Loads a library by its name, or raises ``OSError``.

    Returns:
        The missing libraries; ``None`` on a machine without a GPU.
    """
    if not any((root / path).exists() for path in ("dev/nvidia0", "proc/driver/nvidia/version")):
        return None
    missing = []
    for name in CUDA_LIBRARIES:
        try:
            load(name)
        except OSError:
            missing.append(name)
    return tuple(missing)


def cuda_packages() -> str | None:
    """Return the folders of the CUDA 11 libraries that pip has installed, as for ``LD_LIBRARY_PATH``; or ``None``."""
    found = util.find_spec("nvidia")
    folders = [str(path.parent) for start in (found.submodule_search_locations or () if found else ())
               for name in CUDA_LIBRARIES for path in sorted(Path(start).glob(f"*/lib/{name}"))]
    return ":".join(dict.fromkeys(folders)) or None


def total_memory_gb() -> float | None:
    """Return the machine's memory in GB, or ``None`` where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def probe(program: str) -> tuple[Any, str | None]:
    """Ask MindSpore something in another process: a broken installation may crash it, or hang.

    Args:
        program: A program that prints an answer in JSON as its last line.

    Returns:
        The answer, or ``None``; and why there is none.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = _run([sys.executable, "-c", program], env=environment, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return None, f"no answer in {PROBE_SECONDS} seconds"
    if done.returncode == 0 and done.stdout.strip():
        return json.loads(done.stdout.splitlines()[-1]), None
    return None, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def _run(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, **settings)


def _cann_version(home: Path) -> str | None:
    """Read the first two numbers of CANN's version, where MindSpore reads them or where the installer left them."""
    for file in (home / "compiler" / "version.info", *sorted(home.glob("*-linux/ascend_toolkit_install.info"))):
        with contextlib.suppress(OSError):
            found = re.search(r"^version=(\d+\.\d+)", file.read_text(encoding="utf-8", errors="replace"),
                              re.IGNORECASE | re.MULTILINE)
            if found:
                return found.group(1)
    return None
