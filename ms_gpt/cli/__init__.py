"""The command line: ``python -m ms_gpt VERB``, and ``ms-gpt VERB`` once installed.

A verb is a module of this package with ``HELP`` (one line), ``OPTIONS`` (a dataclass whose fields are the flags),
``run(options)`` and, where one line is not enough, ``EXAMPLES`` (with ``ms-gpt`` for the program's name). It imports
what is heavy inside ``run``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ms_gpt.cli.options import Options, build_parser, parse_options
from ms_gpt.console import printable, program_name
from ms_gpt.errors import UserError, suggest

VERBS = (
    "finetune",
    "evaluate",
    "predict",
    "pretrain",
    "generate",
    "chat",
    "tokenizer",
    "convert",
    "export",
    "bench",
    "info",
)

DONE, OUR_FAULT, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: The words after the program's name; the process's own by default.

    Returns:
        The exit code: 0 done, 1 our fault, 2 the user's input, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with contextlib.suppress(ValueError):
        # What a scheduler stops is tidied up like what a user stops. (ValueError: not the main thread.)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(AttributeError):
        # A review may hold characters that the terminal's encoding does not have.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _stop(f"error: {error}", USER_ERROR)
    except KeyboardInterrupt as interrupt:
        return _stop(f"interrupted: {interrupt}" if str(interrupt) else "interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader has left, as head does; Python would complain once more when it flushes stdout at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] == "ms_gpt":
            return _our_fault()
        return _stop(f"error: the package {error.name.split('.')[0]!r} is not installed: run "
                     f"'python -m pip install -r requirements.txt'; '{program_name()} info' says what else is missing",
                     USER_ERROR)
    except Exception as error:
        if isinstance(error, PermissionError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EROFS):
            return _stop(f"error: {error.filename or 'writing'}: {error.strerror}", USER_ERROR)
        return _our_fault()


def _dispatch(words: list[str]) -> int:
    verb = words[0] if words else "--help"
    if verb in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return DONE
    if verb == "--version":
        from ms_gpt import __version__

        sys.stdout.write(f"ms_gpt {__version__}\n")
        return DONE
    if verb not in VERBS:
        kind = "flag that can come before the verb" if verb.startswith("-") else "verb"
        raise UserError(f"{verb!r} is not a {kind}: choose one of {', '.join(VERBS)}.{suggest(verb, VERBS)}")
    module = _module(verb)
    examples = getattr(module, "EXAMPLES", "").replace("ms-gpt", program_name())
    parser = build_parser(module.OPTIONS, f"{program_name()} {verb}", module.HELP, examples)
    try:
        options = parse_options(module.OPTIONS, words[1:], parser, verb)
    except SystemExit:
        return DONE
    _run(module, options)
    return DONE


def _run(module: ModuleType, options: Options) -> None:
    try:
        if not options.json:
            module.run(options)
            return
        with _stdout_to_stderr():
            result = module.run(options)
        sys.stdout.write(json.dumps(to_json(result or {}), allow_nan=False) + "\n")
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(str(interrupt) or _how_to_resume(options)) from None


def _module(verb: str) -> ModuleType:
    return importlib.import_module(f"ms_gpt.cli.{verb}")


def _overview() -> str:
    program = program_name()
    verbs = "\n".join(f"  {verb:<10} {_module(verb).HELP}" for verb in VERBS)
    return f"""usage: {program} VERB [flags]

GPT on MindSpore: train, convert and use GPT models.

verbs:
{verbs}

{program} VERB --help shows the flags of a verb and their defaults.
{program} --version shows the version.
"""


def _our_fault() -> int:
    traceback.print_exc()
    return _stop("this is a fault in ms_gpt and not in your input: please report it with the lines above "
                 f"and what '{program_name()} info' prints", OUR_FAULT)


def _stop(line: str, code: int) -> int:
    sys.stderr.write(printable(" ".join(line.splitlines())) + "\n")
    return code


def _how_to_resume(options: Options) -> str:
    """Say what is left of an interrupted run, or return an empty string when it leaves nothing to resume."""
    folder = getattr(options, "output_dir", None)
    if folder is None or not hasattr(options, "resume") or not (Path(folder) / "last").exists():
        return ""
    return f"{Path(folder) / 'last'} holds the run so far; the same command with --resume goes on from there"


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Keep stdout for the result: what Python, C++ libraries and child processes print goes to stderr."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if os.name == "posix":
            # C's own buffer would otherwise be flushed to the real stdout, after the result.
            ctypes.CDLL(None).fflush(None)
        os.dup2(saved, 1)
        os.close(saved)


def to_json(value: Any) -> Any:
    """Turn a result into what JSON can say: NaN and infinities are ``None``, paths are text, arrays are lists.

    Args:
        value: Mappings, sequences, NumPy arrays and scalars, paths and plain values, nested as they come.

    Returns:
        The same with plain dicts, lists, numbers and text.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value
