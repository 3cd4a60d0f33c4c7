"""Compiling the kernels: once for each source, compiler, processor and MindSpore, into the user's cache folder."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from ms_gpt.runtime import cache_dir, is_switched_off

SOURCES = Path(__file__).parent / "src"
SWITCH = "MS_GPT_KERNELS"
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fwrapv",
          "-shared", "-fPIC")
_SECONDS = 300
_logger = logging.getLogger(__name__)


class _UnusableError(Exception):
    """Says in one line why there are no kernels here."""


# A full disk, a folder that is somebody else's, quotation marks in CXX: no reason not to run.
_FAILURES = (_UnusableError, OSError, ValueError, RuntimeError)


def are_usable() -> bool:
    """Tell whether models use the kernels now: in graphs, on the CPU, if they were not turned off.

    Op by op they are not used, as MindSpore then takes up the gradient of an earlier call with other constants.
    """
    import mindspore as ms

    is_graph = ms.get_context("mode") == ms.GRAPH_MODE
    return is_graph and ms.get_context("device_target") == "CPU" and library() is not None


def library() -> Path | None:
    """Return the compiled kernels, compiling them if need be; ``None`` where they are off or cannot be had."""
    return None if is_switched_off(SWITCH) else _library()


def status() -> str:
    """Return one line that says whether the kernels are used, and why not."""
    if is_switched_off(SWITCH):
        return f"off ({SWITCH}={os.environ[SWITCH]})"
    try:
        return f"on ({_build()})"
    except _FAILURES as reason:
        return f"off ({reason})"


def compiler_command() -> list[str] | None:
    """Return the command of the C++ compiler: ``$CXX``, else what the system has, or ``None``."""
    found = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    return shlex.split(os.environ.get("CXX", "")) or (found and [found])


@functools.cache
def _library() -> Path | None:
    try:
        return _build()
    except _FAILURES as reason:
        _logger.warning("ms_gpt runs without its CPU kernels, slower: %s. %s=off silences this", reason, SWITCH)
        return None


@functools.cache
def _build() -> Path:
    """Return the library, from the cache or fresh.

    Raises:
        _UnusableError: There is no compiler or no oneDNN, or what they make does not load. Others of ``_FAILURES``: for
            what the system refuses.
    """
    compiler = compiler_command()
    if compiler is None:
        raise _UnusableError("no C++ compiler was found; install g++")
    onednn = _onednn()
    sources = sorted(SOURCES.iterdir())
    name = f"ms_gpt_{_key(compiler, onednn, sources)}.so"
    folder = cache_dir().absolute() / "kernels"
    target = folder / name
    if os.path.exists(target) and _loads(target):
        return target
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    # MindSpore is given the path, a colon and the function.
    if not os.access(folder, os.W_OK | os.X_OK) or ":" in str(folder):
        # No other process finds it there, but this one runs as fast.
        target = Path(tempfile.mkdtemp(prefix="ms_gpt-")) / name
        atexit.register(shutil.rmtree, target.parent, ignore_errors=True)
    _compile(compiler, onednn, sources, target)
    if not _loads(target):
        raise _UnusableError(f"{target}, made by {compiler[0]}, does not load")
    return target


def first_error(done: subprocess.CompletedProcess[str]) -> str:
    """Return the line that says why a compiler, whose output was captured, has failed."""
    lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
    return lines[0].strip() if lines else f"exit status {done.returncode}"


def _compile(compiler: list[str], onednn: Path, sources: list[Path], target: Path) -> None:
    """Compile beside the target and rename, so that two processes may do it at once."""
    units = [str(path) for path in sources if path.suffix == ".cpp"]
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(suffix=".so", dir=target.parent)
        os.close(handle)
        command = [*compiler, *_FLAGS, "-o", temporary, *units, str(onednn), f"-Wl,-rpath,{onednn.parent}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if done.returncode:
            raise _UnusableError(f"{compiler[0]} failed: {first_error(done)}")
        os.chmod(temporary, 0o755)
        os.replace(temporary, target)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _UnusableError(f"{compiler[0]} failed: {error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _onednn() -> Path:
    """Return the oneDNN that MindSpore has loaded, whose matrix products the kernels call."""
    import mindspore as ms

    found = sorted((Path(ms.__file__).parent / "lib").glob("libdnnl.so*"))
    if not found:
        raise _UnusableError("this MindSpore comes without oneDNN")
    return found[0]


def _key(compiler: list[str], onednn: Path, sources: list[Path]) -> str:
    """Return a name for all that the library depends on."""
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.name.encode() + path.read_bytes())
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=_SECONDS,
                                 check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _UnusableError(f"{compiler[0]} cannot be run: {error}") from error
    digest.update(repr((compiler, version, _FLAGS, str(onednn), onednn.stat().st_size, _processor())).encode())
    return digest.hexdigest()[:20]


def _processor() -> str:
    """Return what tells one kind of processor from another: -march=native compiles for this one."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU"))}))
    return f"{platform.machine()} {platform.processor()}"


def _loads(path: Path) -> bool:
    try:
        ctypes.CDLL(str(path))
    except OSError:
        return False
    return True
