"""The command line: flags, YAML, exit codes and what goes to which stream."""

from __future__ import annotations

import errno
import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import yaml

from ms_gpt import cli
from ms_gpt.cli.options import Options, RuntimeOptions, option, read_config
from ms_gpt.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"mindspore", "numpy", "matplotlib", "tokenizers", "safetensors", "torch", "transformers"}


@dataclass(kw_only=True)
class FakeOptions(RuntimeOptions):
    """Options of every kind.

    Args:
        texts: What to read; 50% of it
            may be noise.
        data: Where it lies.
        learning_rate: Peak step size.
        epochs: Passes over the data.
        shuffle: Change the order.
        sizes: Some sizes.
    """

    texts: list[str] = option([], positional=True)
    data: Path
    learning_rate: float = 3e-4
    epochs: int | None = option(None, shown_default="chosen by the recipe")
    shuffle: bool = True
    sizes: list[int] = option([64, 128])
    pooling: Literal["last", "mean"] = option("last", help="How to pool.")
    output_dir: Path = Path("run")
    resume: bool = False


@pytest.fixture
def verb(monkeypatch):
    """A verb called fake that keeps its options; set ``act`` to make it do something."""
    fake = SimpleNamespace(HELP="do nothing", OPTIONS=FakeOptions, EXAMPLES="examples:\n  ms-gpt fake --data x",
                           seen=None, act=lambda options: None)

    def run(options):
        fake.seen = options
        return fake.act(options)

    fake.run = run
    monkeypatch.setitem(sys.modules, "ms_gpt.cli.fake", fake)
    monkeypatch.setattr(cli, "VERBS", ("fake", "info"))
    return fake


def in_child(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)


def refused(capsys, *words):
    """Run the fake verb, which must refuse, and return its one line."""
    assert cli.main(["fake", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.count("Did you mean") <= 1
    return err


@pytest.mark.parametrize("words", [["--help"], [], *([verb, "--help"] for verb in cli.VERBS)], ids=" ".join)
def test_help_imports_nothing_heavy(words):
    code = ("import sys; from ms_gpt.cli import main; code = main(sys.argv[1:]);"
            "print('modules', *{name.split('.')[0] for name in sys.modules}); sys.exit(code)")
    done = in_child("-c", code, *words)
    assert done.returncode == 0, done.stderr
    help_text, _, modules = done.stdout.partition("\nmodules ")
    assert help_text.startswith("usage: ")
    assert not HEAVY & set(modules.split())


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_shows_every_flag_and_default(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    options = importlib.import_module(f"ms_gpt.cli.{verb}").OPTIONS
    shown = [item for item in fields(options) if item.metadata.get("flag", True)]
    assert out.count("(default: ") + out.count("(required)") == len(shown)
    assert all("--" + item.name.replace("_", "-") in out for item in shown if not item.metadata.get("positional"))


def test_python_m_ms_gpt():
    done = in_child("-m", "ms_gpt", "infos")
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'infos' is not a verb")
    assert "Did you mean 'info'?" in done.stderr


def test_help_page(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["fake", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m ms_gpt fake [flags] [TEXTS ...]\n")
    assert "What to read; 50% of it may be noise. (default: none)" in out
    assert "Where it lies. (required)" in out
    assert "(default: chosen by the recipe)" in out
    assert "Some sizes. (default: 64 128)" in out
    assert "--pooling {last,mean}" in out
    assert "How to pool. (default: last)" in out
    assert "--shuffle, --no-shuffle" in out
    assert out.count("Change the order. (default: on)") == 1
    assert out.index("--learning-rate") < out.index("where and how") < out.index("--device") < out.index("--quiet")
    assert out.endswith("examples:\n  python -m ms_gpt fake --data x\n")


def test_types_from_flags(verb):
    words = ["fake", "a text", "-", "--data", "d", "--learning-rate=1e-3", "--epochs", "2", "--no-shuffle",
             "--sizes", "1", "2", "--pooling", "mean", "--output_dir", "out", "--seed", "7"]
    assert cli.main(words) == 0
    expected = FakeOptions(texts=["a text", "-"], data=Path("d"), learning_rate=1e-3, epochs=2, shuffle=False,
                           sizes=[1, 2], pooling="mean", output_dir=Path("out"), seed=7)
    assert verb.seen == expected
    assert verb.seen.explicit == {"texts", "data", "learning_rate", "epochs", "shuffle", "sizes", "pooling",
                                  "output_dir", "seed"}


def test_flag_beats_config_beats_default(verb, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("data: from-file\nlearning-rate: 1e-5\nepochs: null\nseed: 3\nsizes: [5]\n")
    assert cli.main(["fake", "--config", str(config), "--seed", "4"]) == 0
    seen = verb.seen
    assert (seen.data, seen.learning_rate, seen.seed, seen.sizes) == (Path("from-file"), 1e-5, 4, [5])
    assert (seen.epochs, seen.pooling) == (None, "last")
    assert seen.explicit == {"config", "data", "learning_rate", "seed", "sizes"}


def test_settings_written_by_a_run_read_back_equal(tmp_path):
    options = FakeOptions(data=Path("d"), learning_rate=1e-5, sizes=[3], texts=["no", "12"], pooling="mean")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(options.to_dict()))
    assert FakeOptions(**read_config(path, FakeOptions, "fake")) == options


@pytest.mark.parametrize(("words", "parts"), [
    (["--lerning-rate", "3"], ["--lerning-rate is not a flag of fake", "Did you mean '--learning-rate'?"]),
    (["--learn", "3"], ["--learn is not a flag of fake"]),
    (["--rates", "3"], ["--rates is not a flag of fake. Did you mean '--learning-rate'?"]),
    (["--shuffles"], ["--shuffles is not a flag of fake. Did you mean '--shuffle'?"]),
    (["--s", "3"], ["--s is not a flag of fake."]),
    (["--data", "d", "--epochs", "many"], ["--epochs='many'", "a whole number"]),
    (["--data", "d", "--epochs", "1.5"], ["--epochs='1.5'", "a whole number"]),
    (["--data", "d", "--learning-rate", "nan"], ["--learning-rate='nan'", "a finite number"]),
    (["--data", "d", "--device", "asend"], ["--device='asend' is not one of auto, cpu, gpu, ascend", "'ascend'?"]),
    (["--data", "d", "--sizes", "1", "x"], ["--sizes='x'"]),
    (["--data", ""], ["--data=''", "a path"]),
    (["--data"], ["--data: expected one argument"]),
    (["--seed", "1"], ["fake needs --data: Where it lies"]),
    (["--data", "d", "-z"], ["'-z' is one argument too many"]),
])
def test_bad_flags_are_one_line(verb, capsys, words, parts):
    line = refused(capsys, *words)
    assert all(part in line for part in parts), line
    assert verb.seen is None


@pytest.mark.parametrize(("text", "parts"), [
    ("lerning_rate: 1", ["'lerning_rate' is not a setting of fake", "Did you mean 'learning_rate'?"]),
    ("lerning-rate: 1", ["Did you mean 'learning-rate'?"]),
    ("config: other.yaml", ["'config' is not a setting"]),
    ("explicit: [seed]", ["'explicit' is not a setting"]),
    ("seed: true", ["seed=True", "a whole number"]),
    ("seed: 1.0", ["seed=1.0", "a whole number"]),
    ("seed: null", ["seed=None", "a whole number"]),
    ("shuffle: 1", ["shuffle=1", "true or false"]),
    ("learning_rate: fast", ["learning_rate='fast'", "a finite number"]),
    ("learning_rate: .nan", ["learning_rate='nan'", "a finite number"]),
    ("sizes: 3", ["sizes=3 is not a list"]),
    ("sizes: [3, x]", ["sizes='x'"]),
    ("texts: [1]", ["texts=1", "quotes"]),
    ("pooling: men", ["pooling='men' is not one of last, mean", "'mean'?"]),
    ("training:\n  seed: 1", ["'training' holds a mapping"]),
    ("learning_rate: 1\nlearning-rate: 2", ["set twice"]),
    ("- seed", ["holds a list"]),
    ("seed: [1", ["line 1", "not YAML"]),
])
def test_bad_config_is_one_line(verb, capsys, tmp_path, text, parts):
    config = tmp_path / "c.yaml"
    config.write_text(text)
    line = refused(capsys, "--data", "d", "--config", str(config))
    assert all(part in line for part in [str(config), *parts]), line


def test_missing_config(verb, capsys, tmp_path):
    assert "does not exist" in refused(capsys, "--data", "d", "--config", str(tmp_path / "none.yaml"))
    assert "cannot be read" in refused(capsys, "--data", "d", "--config", str(tmp_path))


def test_user_error_is_one_line_and_no_traceback(verb, capsys):
    def act(options):
        raise UserError("n_embd=100 is not\ndivisible by n_head=12\x1b[2J")

    verb.act = act
    assert refused(capsys, "--data", "d") == "error: n_embd=100 is not divisible by n_head=12\\x1b[2J\n"


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied", "out"),
                                   OSError(errno.ENOSPC, "No space left on device", "out")])
def test_a_disk_that_refuses_is_no_fault_of_ours(verb, capsys, error):
    def act(options):
        raise error

    verb.act = act
    assert refused(capsys, "--data", "d") == f"error: out: {error.strerror}\n"


def test_missing_package_says_how_to_install(verb, capsys):
    verb.act = lambda options: importlib.import_module("no_such_package.part")
    assert "'no_such_package' is not installed: run 'python -m pip install" in refused(capsys, "--data", "d")


@pytest.mark.parametrize("act", [lambda options: 1 / 0, lambda options: importlib.import_module("ms_gpt.nowhere")])
def test_our_fault_keeps_the_traceback(verb, capsys, act):
    verb.act = act
    assert cli.main(["fake", "--data", "d", "--json"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" in err
    assert "please report it" in err.splitlines()[-1]


def test_interrupt_names_what_can_be_resumed(verb, capsys, tmp_path):
    def act(options):
        raise KeyboardInterrupt

    verb.act = act
    words = ["fake", "--data", "d", "--output-dir", str(tmp_path)]
    assert cli.main(words) == 130
    assert capsys.readouterr().err == "interrupted\n"
    (tmp_path / "last").mkdir()
    assert cli.main(words) == 130
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert str(tmp_path / "last") in line
    assert "--resume" in line


def test_json_is_the_only_line_on_stdout(monkeypatch):
    code = """
import ctypes, os, sys, types
from ms_gpt import cli
from ms_gpt.cli.options import Options
from ms_gpt.console import Console

def run(options):
    print("python")
    os.write(1, b"descriptor\\n")
    os.system("echo child")
    ctypes.CDLL(None).puts(b"c library")
    Console(options.quiet, options.json).result("console")
    import numpy as np
    return {"loss": float("nan"), "best": np.float32("inf"), "n": np.int64(3), "rows": np.ones((1, 2)), "é": [None]}

sys.modules["ms_gpt.cli.fake"] = types.SimpleNamespace(HELP="", OPTIONS=Options, run=run)
cli.VERBS = ("fake",)
sys.exit(cli.main(["fake", "--json"]))
"""
    # Unbuffered, C's stdout would have no late flush to catch.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    done = in_child("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout) == {"loss": None, "best": None, "n": 3, "rows": [[1.0, 1.0]], "é": [None]}
    assert all(word in done.stderr for word in ("python", "descriptor", "child", "c library", "console"))


def test_without_json_nothing_is_added_to_stdout(verb, capsys):
    verb.act = lambda options: {"loss": 1.0}
    assert cli.main(["fake", "--data", "d"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(os.name != "posix", reason="pipes break in other ways elsewhere")
@pytest.mark.parametrize("line", ["sys.stdout.write('text\\n' * 100000)",
                                  "[Console().result('text') for i in range(9999)]"])
def test_a_reader_that_leaves_is_no_error(line):
    code = f"""
import sys, types
from ms_gpt import cli
from ms_gpt.cli.options import Options
from ms_gpt.console import Console
sys.modules["ms_gpt.cli.fake"] = types.SimpleNamespace(HELP="", OPTIONS=Options, run=lambda options: {line} and None)
cli.VERBS = ("fake",)
sys.exit(cli.main(["fake"]))
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as child:
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait() == 0


def test_places_on_the_command_line(verb, capsys):
    @dataclass(kw_only=True)
    class Places(Options):
        """Two places.

        Args:
            source: Where from.
            target: Where to.
        """

        source: Path = option(positional=True)
        target: Path = option(Path("out"), positional=True)

    verb.OPTIONS = Places
    assert cli.main(["fake", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m ms_gpt fake [flags] SOURCE [TARGET]\n")
    assert cli.main(["fake", "a"]) == 0
    assert (verb.seen.source, verb.seen.target, verb.seen.explicit) == (Path("a"), Path("out"), {"source"})
    assert "fake needs SOURCE: Where from" in refused(capsys)
    assert "'c' is one argument too many" in refused(capsys, "a", "b", "c")


def test_options_can_be_made_in_python():
    assert Options().explicit == frozenset()
    assert RuntimeOptions(seed=1).seed == 1
