"""``--data mindnlp:NAME``: a data set through MindNLP's loader.

MindNLP replaces PyTorch in the process that imports it, changes transformers and needs MindSpore 2.7.0: it is run in a
process of its own, and may live in an environment of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from ms_gpt.errors import UserError

PREFIX = "mindnlp:"
PYTHON = "MS_GPT_MINDNLP_PYTHON"
# It lies with the programs that run other libraries, and is run by its path: nothing here imports it.
_READER = Path(__file__).parents[1] / "bench" / "peers" / "mindnlp_reader.py"


def read(name: str) -> dict[str, dict[str, list]]:
    """Read a data set with MindNLP.

    Args:
        name: What its ``load_dataset`` takes: ``"imdb"``, another name on the hub, or a folder with files of data.

    Returns:
        Every part's columns, under MindNLP's names.

    Raises:
        UserError: MindNLP is not installed, or cannot load the data set.
    """
    parts: dict[str, dict[str, list]] = {}
    with tempfile.TemporaryDirectory(prefix="ms_gpt-") as folder:
        rows = Path(folder) / "rows.jsonl"
        try:
            # UTF-8: names and texts are not to depend on the locale.
            done = subprocess.run([python(), str(_READER), name, str(rows)], capture_output=True, text=True,
                                  errors="replace", check=False, env={**os.environ, "PYTHONUTF8": "1"})
        except OSError as error:
            raise UserError(f"{PYTHON}={os.environ.get(PYTHON)} cannot be run: {error.strerror}") from None
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise UserError(f"MindNLP cannot load {name!r}: {reason}")
        with rows.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                columns = parts.setdefault(row.pop("part"), {})
                for column, value in row.items():
                    columns.setdefault(column, []).append(value)
    if not parts:
        raise UserError(f"MindNLP finds no rows in {name!r}")
    return parts


def python() -> str:
    """Find the Python that has MindNLP.

    Returns:
        ``$MS_GPT_MINDNLP_PYTHON``, else this one.

    Raises:
        UserError: The variable is not set, and MindNLP is not installed here.
    """
    named = os.environ.get(PYTHON)
    if named:
        return named
    try:
        metadata.version("mindnlp")
    except metadata.PackageNotFoundError:
        raise UserError(
            "MindNLP is not installed here: run 'python -m venv mindnlp-env && mindnlp-env/bin/python -m pip install "
            f"--no-deps -r requirements-mindnlp.txt && export {PYTHON}=$PWD/mindnlp-env/bin/python', or leave "
            f"{PREFIX!r} out of the name") from None
    return sys.executable
