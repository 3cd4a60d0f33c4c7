"""docs/migrating-from-mindnlp.md: the names in its table are there, and the lesson's script runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ms_gpt
from ms_gpt import GPTConfig, GPTLMHeadModel, Tokenizer

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "migrating-from-mindnlp.md").read_text(encoding="utf-8")
ROWS = [line.strip("|").split("|") for line in TEXT.split("## The lesson")[0].splitlines() if line.startswith("| `")]


def words(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.mark.parametrize("name", sorted({name for row in ROWS for name in re.findall(r"ms_gpt\.([\w.]+)", row[1])}))
def test_our_names_are_there(name):
    found = ms_gpt
    for part in name.split("."):
        found = getattr(found, part)


@pytest.mark.parametrize("row", [row for row in ROWS if row[1].strip().startswith("the same names in")],
                         ids=lambda row: words(row[0])[0])
def test_the_same_names_are_there(row):
    for name in words(row[0]):
        if not name.startswith("mindnlp."):
            assert hasattr(ms_gpt, name), name


def test_the_lesson_s_script_runs(tmp_path):
    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL).group(1)
    texts = ms_gpt.load_dataset("sample")["train"]["text"][:200]
    tokenizer = Tokenizer.train(texts, vocab_size=200, model_max_length=32)
    model = GPTLMHeadModel(GPTConfig(len(tokenizer), 32, n_layer=1, n_head=2, n_embd=16))
    model.save_pretrained(tmp_path / "gpt1", tokenizer=tokenizer)
    for before, after in (('"path/to/gpt1", "imdb"', '"gpt1", "sample"'), ("num_train_epochs=1", "max_steps=4")):
        assert before in code
        code = code.replace(before, after)
    (tmp_path / "lesson.py").write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, "lesson.py"], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "eval_accuracy" in done.stdout
    assert (tmp_path / "runs" / "imdb-lesson" / "best" / "model.safetensors").exists()
