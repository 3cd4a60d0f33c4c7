"""The README says what is so: its commands are understood, its Python runs, its tree is the tree."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ms_gpt import cli
from ms_gpt.cli.options import build_parser, parse_options

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted({line.split("#")[0].strip() for line in re.findall(r"python -m ms_gpt ([^`\n]+)", TEXT)})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command):
    verb, *words = shlex.split(command)
    module = importlib.import_module(f"ms_gpt.cli.{verb}")
    parse_options(module.OPTIONS, words, build_parser(module.OPTIONS, verb, ""), verb)


def test_every_verb_is_shown():
    assert {command.split()[0] for command in COMMANDS} == set(cli.VERBS)


def test_every_room_of_the_tree_exists_and_none_is_missing():
    block = re.search(r"```\nms_gpt/\n(.*?)```", TEXT, re.DOTALL).group(1)
    words = [word for line in block.splitlines() for word in line.split()[:2]]
    named = {word.rstrip("/,") for word in words if re.search(r"\.py|/$", word)}
    there = {path.name for path in (ROOT / "ms_gpt").iterdir()
             if not path.name.startswith(("__", ".")) and (path.suffix == ".py" or path.is_dir())}
    assert named == there - {"_lazy.py", "errors.py"}


def run_block(which: int, folder: Path) -> str:
    """Run a Python block of the README in a folder; return what it printed."""
    code = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[which]
    script = folder / "example.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], cwd=folder, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python_runs(tmp_path):
    assert "eval_accuracy" in run_block(0, tmp_path)


def test_python_that_generates_runs(tmp_path):
    from ms_gpt import GPTConfig, GPTLMHeadModel
    from ms_gpt.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["Once upon a time there was a cat.\n"] * 9, vocab_size=300)
    model = GPTLMHeadModel(GPTConfig(len(tokenizer), 64, n_layer=1, n_head=2, n_embd=8, model_type="gpt2"))
    model.save_pretrained(tmp_path / "folder", tokenizer=tokenizer)
    printed = run_block(1, tmp_path)
    assert printed.startswith("['Once upon a time")
    assert "'The" in printed
