"""The README says what is so, in both languages: its commands are understood, its Python runs, its tree is the tree."""

import importlib
import json
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
CHINESE = (ROOT / "README_CN.md").read_text(encoding="utf-8")
COMMANDS = sorted({line.split("#")[0].strip() for line in re.findall(
    r"(?:python -m ms_gpt|^ *ms-gpt|&& ms-gpt) ((?!VERB)[a-z][^`\n&\]]+)", TEXT, re.MULTILINE)})


def fences(text: str) -> list[tuple[str, str]]:
    """Return the fenced blocks as (language, code), with the indentation of a list item taken off."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [(language, re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)) for indent, language, code in found]


def prose(text: str) -> str:
    return re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)


def sections(text: str) -> list[tuple[str, str]]:
    """Return (marks, body) of each section: the level of its heading and what stands below it."""
    parts = re.split(r"^(#+) .*$", prose(text), flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


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


@pytest.mark.parametrize("text", [TEXT, CHINESE], ids=["README.md", "README_CN.md"])
def test_links_lead_somewhere(text):
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    files = [target for target in targets if not re.match(r"https?:|#", target)]
    assert any(target.startswith("docs/images/") for target in files)
    assert [target for target in files if not (ROOT / target.split("#")[0]).exists()] == []


@pytest.mark.parametrize("text", [TEXT, CHINESE], ids=["README.md", "README_CN.md"])
def test_links_within_the_page_name_a_heading(text):
    headings = {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-")
                for line in re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def test_both_languages_have_the_same_headings():
    assert [marks for marks, _ in sections(TEXT)] == [marks for marks, _ in sections(CHINESE)]


def test_both_languages_have_the_same_code():
    def without_comments(text):
        return [(language, re.sub(r" *#.*$", "", code, flags=re.MULTILINE)) if language in ("bash", "python") else
                (language, len(code.splitlines())) for language, code in fences(text)]

    assert without_comments(TEXT) == without_comments(CHINESE)


def test_both_languages_have_the_same_commands_and_figures():
    """Section by section: what stands in backticks, and every number in a table, in the same rows."""
    for (_, ours), (_, theirs) in zip(sections(TEXT), sections(CHINESE), strict=True):
        assert sorted(re.findall(r"`[^`\n]+`", ours)) == sorted(re.findall(r"`[^`\n]+`", theirs))
        rows, other = ([line for line in body.splitlines() if line.startswith("|")] for body in (ours, theirs))
        assert len(rows) == len(other)
        for row, translated in zip(rows, other, strict=True):
            assert sorted(re.findall(r"\d[\d,.]*\b", row)) == sorted(re.findall(r"\d[\d,.]*\b", translated))


def run_block(opening: str, folder: Path) -> str:
    """Run the README's Python block that holds this line in a folder; return what it printed."""
    code = next(code for language, code in fences(TEXT) if language == "python" and opening in code)
    script = folder / "example.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], cwd=folder, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python_that_trains_runs(tmp_path):
    assert "eval_accuracy" in run_block("trainer.train()", tmp_path)


def save_small_model(folder: Path) -> None:
    from ms_gpt import GPTConfig, GPTLMHeadModel
    from ms_gpt.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["Once upon a time there was a cat.\n"] * 9, vocab_size=300)
    model = GPTLMHeadModel(GPTConfig(len(tokenizer), 128, n_layer=1, n_head=2, n_embd=8, model_type="gpt2"))
    model.save_pretrained(folder, tokenizer=tokenizer)


def test_python_that_generates_runs(tmp_path):
    save_small_model(tmp_path / "folder")
    printed = run_block("generate(model", tmp_path)
    assert printed.startswith("['Once upon a time")
    assert "'The" in printed
    assert run_block("stream_generate(model", tmp_path)


def test_python_that_runs_an_exported_model_runs(tmp_path):
    from ms_gpt.cli import main

    save_small_model(tmp_path / "my-model")
    assert main(["export", str(tmp_path / "my-model"), str(tmp_path / "model.mindir"), "--length", "128"]) == 0
    run_block("model.mindir", tmp_path)


@pytest.mark.slow
def test_python_for_openi_runs(tmp_path):
    """With a package that stands in for the platform's, and reviews in the layout of IMDB's archive."""
    from ms_gpt.data import load_dataset

    texts = load_dataset("sample")["train"]
    for part in ("train", "test"):
        for name, label in (("neg", 0), ("pos", 1)):
            folder = tmp_path / "data" / "aclImdb" / part / name
            folder.mkdir(parents=True)
            chosen = [text for text, given in zip(texts["text"], texts["label"], strict=True) if given == label][:20]
            for index, text in enumerate(chosen):
                (folder / f"{index}_1.txt").write_text(f"{part} {text}", encoding="utf-8")
    package = tmp_path / "c2net"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "context.py").write_text(
        "from types import SimpleNamespace\n"
        "def prepare(): return SimpleNamespace(dataset_path='data', output_path='out')\n"
        "def upload_output(): print('uploaded')\n", encoding="utf-8")
    assert run_block("upload_output", tmp_path).strip().endswith("uploaded")
    results = json.loads((tmp_path / "out" / "imdb" / "results.json").read_text(encoding="utf-8"))
    assert results["test"]["n"] == 40


def results_of(words: list[str], folder: Path) -> dict:
    assert cli.main([*words, "--output-dir", str(folder), "--quiet"]) == 0
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize(("command", "shown"), [
    ("finetune", lambda results: f"{results['test']['accuracy']:.3f}".lstrip("0")),
    ("pretrain --recipe adder-2", lambda results: f"{round(results['test']['accuracy'] * results['test']['n']):,} of "
     f"{results['test']['n']:,}"),
])
def test_figures_are_those_that_the_commands_leave(command, shown, tmp_path):
    row = next(line for line in TEXT.splitlines() if line.startswith("|") and f"`python -m ms_gpt {command}`" in line)
    assert f"**{shown(results_of(command.split(), tmp_path / 'run'))}**" in row
