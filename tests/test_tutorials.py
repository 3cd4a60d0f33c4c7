"""The tutorials: notebooks are what their sources say, both languages match, outputs are those of one clean run."""

import base64
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("build", ROOT / "tutorials" / "build.py")
build = sys.modules["build"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

SOURCES = build.sources()
EVERY_SOURCE = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
# A path in front of which nothing stands that makes it part of an address or of a relative path.
ABSOLUTE = re.compile(r"(?<![\w.:/~<-])/(?:[\w.-]+/)+|\b[A-Z]:\\\w")
ENDINGS = {"en": ("## Exercise", "<summary>Hint</summary>"), "zh": ("## 练习", "<summary>提示</summary>")}


def cells_of(source, language, kind=None):
    notebook = nbformat.read(build.LANGUAGES[language] / f"{source.stem}.ipynb", as_version=4)
    return [cell for cell in notebook.cells if kind in (None, cell.cell_type)]


def outputs_of(source):
    return [output for cell in cells_of(source, "en", "code") for output in cell.outputs]


def headings(source, language):
    text = "\n".join(cell.source for cell in cells_of(source, language, "markdown"))
    return re.findall(r"^#+ .+", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)


def texts_of(output):
    yield from (output.get(key, "") for key in ("text", "evalue"))
    yield from (value for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


def test_the_tutorials_are_numbered_without_gaps():
    assert [path.name[:3] for path in SOURCES] == [f"{i:02d}_" for i in range(1, len(SOURCES) + 1)]


def test_notebooks_are_what_their_sources_say():
    assert build.check() == []


@EVERY_SOURCE
def test_both_languages_have_the_same_cells(source):
    english, chinese = cells_of(source, "en"), cells_of(source, "zh")
    assert [cell.cell_type for cell in english] == [cell.cell_type for cell in chinese]
    assert cells_of(source, "en", "code") == cells_of(source, "zh", "code")
    levels = {language: [line.split()[0] for line in headings(source, language)] for language in ("en", "zh")}
    assert levels["en"] == levels["zh"]
    for one, other in zip(english, chinese, strict=True):
        if one.cell_type == "markdown":
            assert re.search(r"[\u4e00-\u9fff]", other.source), f"not translated: {other.source[:60]!r}"
            assert not re.search(r"[\u4e00-\u9fff]", one.source), one.source[:60]
            assert one.source.count("```") == other.source.count("```")


@EVERY_SOURCE
def test_a_tutorial_begins_with_the_setup_and_ends_with_an_exercise(source):
    for language, (heading, summary) in ENDINGS.items():
        first, title = cells_of(source, language)[:2]
        assert first.source == build.SETUP
        assert title.source.startswith("# ")
        lines = headings(source, language)
        assert [line for line in lines if line.startswith("# ")] == lines[:1]
        assert lines[-1].startswith(heading)
        assert summary in "".join(cell.source for cell in cells_of(source, language, "markdown")[-2:])


@EVERY_SOURCE
def test_every_cell_has_been_run_in_order(source):
    counts = [cell.execution_count for cell in cells_of(source, "en", "code")]
    assert counts == list(range(1, len(counts) + 1)), "run python tutorials/build.py --execute"


@EVERY_SOURCE
def test_outputs_are_clean(source):
    for output in outputs_of(source):
        assert output.output_type != "error"
        text = "\n".join(texts_of(output))
        assert not re.search(r"\[(ERROR|WARNING|CRITICAL)\]|Traceback|Warning:", text), text
        assert not ABSOLUTE.search(text), ABSOLUTE.search(text).group()
        if output.output_type == "stream":
            assert output.name == "stdout", text
            assert text.count("\n") <= 60, "a reader scrolls past so many lines"


@EVERY_SOURCE
def test_notebooks_are_small_and_show_a_picture(source):
    assert all((folder / f"{source.stem}.ipynb").stat().st_size < 400_000 for folder in build.LANGUAGES.values())
    pictures = [output.data["image/png"] for output in outputs_of(source) if "image/png" in output.get("data", {})]
    assert pictures
    assert max(len(base64.b64decode(picture)) for picture in pictures) < 80_000


TEXT = "# %% [markdown] en\n# # One\n\n# %% [markdown] zh\n# # 一\n#\n# 两行，\n# 相连 here\n# 了。\n\n# %%\nprint(1)\n"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A tree of one tutorial, its notebooks written and its cells marked as run."""
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    monkeypatch.setattr(build, "LANGUAGES", {"en": tmp_path, "zh": tmp_path / "zh"})
    (tmp_path / "sources").mkdir()
    source = tmp_path / "sources" / "01_one.py"
    source.write_text(TEXT, encoding="utf-8")
    build.write(source)
    path = tmp_path / "01_one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for count, cell in enumerate([cell for cell in notebook.cells if cell.cell_type == "code"], 1):
        cell.execution_count = count
        cell.outputs = [nbformat.v4.new_output("stream", text="1"), nbformat.v4.new_output("stream", text="2\n")]
    nbformat.write(notebook, path)
    build.write(source)
    return source


def test_chinese_lines_are_joined_where_chinese_meets(tree):
    assert cells_of(tree, "zh", "markdown")[0].source == "# 一\n\n两行，相连 here\n了。"


def test_both_languages_get_the_outputs_of_the_english_run(tree):
    for language in ("en", "zh"):
        cell = cells_of(tree, language, "code")[1]
        assert [(output.name, output.text) for output in cell.outputs] == [("stdout", "12\n")]


def test_outputs_stay_with_an_unchanged_cell_and_go_with_a_changed_one(tree):
    tree.write_text(TEXT + "\n# %%\nprint(2)\n", encoding="utf-8")
    build.write(tree)
    assert [cell.execution_count for cell in cells_of(tree, "zh", "code")] == [1, 2, None]
    tree.write_text(TEXT.replace("print(1)", "print(0)"), encoding="utf-8")
    build.write(tree)
    assert [cell.execution_count for cell in cells_of(tree, "zh", "code")] == [1, None]


def test_check_names_what_is_out_of_date(tree):
    assert build.check() == []
    tree.write_text(TEXT.replace("# # 一", "# # 二"), encoding="utf-8")
    (tree.parent.parent / "02_left.ipynb").write_text("{}")
    left, old = build.check()
    assert left.endswith("02_left.ipynb has no source")
    assert old.endswith("zh/01_one.ipynb is not what its source says: run python tutorials/build.py")


@pytest.mark.parametrize(("text", "message"), [
    ("# %% [markdown] de\n# x\n", "01_one.py:1: '# %% [markdown] de' is not one of"),
    ("# %% [markdown] en\nx = 1\n", "01_one.py:2: a line of a text cell begins with '# '"),
    ("# %%\n\n# %%\nx = 1\n", "01_one.py:3: the cell that ends here is empty"),
    ("x = 1\n# %%\nx = 1\n", "01_one.py:2: text in front of the first '# %%'"),
    ("# %% [markdown] en\n# x\n# %%\nx = 1\n", "01_one.py: the text cell 'x' stands alone"),
    ("# %% [markdown] zh\n# x\n# %%\nx = 1\n", "01_one.py: the text cell 'x' stands alone"),
    ("# %%\nx = 1\n# %% [markdown] en\n# x\n", "01_one.py: the last text cell has no translation"),
])
def test_a_source_that_breaks_the_format_is_refused_in_one_line(tree, text, message):
    tree.write_text(text, encoding="utf-8")
    with pytest.raises(build.SourceError) as caught:
        build.write(tree)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def run_setup(folder, before=""):
    return subprocess.run([sys.executable, "-c", before + build.SETUP], cwd=folder, capture_output=True, text=True,
                          check=False, env={**os.environ, "PYTHONPATH": ""})


@pytest.mark.parametrize("where", ["tutorials/zh", "beside"])
def test_the_setup_cell_finds_the_repository(tmp_path, where):
    folder = ROOT / where
    if where == "beside":
        folder = tmp_path
        (tmp_path / "clone").symlink_to(ROOT, target_is_directory=True)
    done = run_setup(folder)
    assert re.fullmatch(r"Python 3\.\d+\.\d+, MindSpore 2\.\d+\.\d+, ms_gpt \d+\.\d+\.\d+, on \w+\n", done.stdout)


def test_the_setup_cell_says_where_it_belongs(tmp_path):
    assert "put this notebook into a clone of the repository" in run_setup(tmp_path).stderr


def test_the_setup_cell_installs_what_is_missing_and_nothing_else():
    hide = ("import importlib.util as u, subprocess as s\nreal = u.find_spec\n"
            "u.find_spec = lambda name, *rest: None if name in ('yaml', 'ftfy') else real(name, *rest)\n"
            "s.run = lambda words, check: print(*words[1:])\n")
    first = run_setup(ROOT, hide).stdout.splitlines()[0]
    assert first == "-m pip install --quiet numpy>=1.25,<2 PyYAML>=6 ftfy>=6"
