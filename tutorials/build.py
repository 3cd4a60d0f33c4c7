"""Write the tutorials' notebooks, English and Chinese, from one source each, and run them.

    python tutorials/build.py                    write tutorials/*.ipynb and tutorials/zh/*.ipynb
    python tutorials/build.py --execute 01 03    run these (default: all) and put the outputs into both languages
    python tutorials/build.py --check            exit 1 if a notebook is not what its source says

A source, ``sources/NN_name.py``, is Python in percent format: ``# %% [markdown] en`` begins a text cell, and the
``# %% [markdown] zh`` that follows it is its translation; ``# %%`` begins a code cell, which both languages share.
Outputs stay in the notebooks as long as their cell's source does. The environment variable ``MS_GPT_DATA`` names a
folder of data sets (``imdb/``, ``shakespeare/``, ``wikitext2/``); without it the notebooks run on the built-in sample.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
LANGUAGES = {"en": FOLDER, "zh": FOLDER / "zh"}
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"}}
SECONDS = 900

# The first cell of every notebook. MindSpore looks for a cell's code in a file, finds none, and says so in lines of its
# module CORE that mean nothing; its other errors are still shown.
SETUP = '''
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

# This notebook lies in the repository, or beside it.
here = Path.cwd()
found = [folder for folder in (here, *here.parents) if (folder / "ms_gpt" / "__init__.py").is_file()]
found += [init.parent.parent for folder in (here, here.parent) for init in folder.glob("*/ms_gpt/__init__.py")]
if not found:
    raise FileNotFoundError("ms_gpt is not here: put this notebook into a clone of the repository, or beside it")
os.chdir(found[0])
sys.path.insert(0, str(found[0]))

# Install what is missing, and leave what is there (an Ascend image brings its own MindSpore).
needed = ("mindspore", "numpy", "tokenizers", "safetensors", "huggingface_hub", "rich", "matplotlib", "yaml", "ftfy")
if any(importlib.util.find_spec(name) is None for name in needed):
    lines = [line for line in Path("requirements.txt").read_text(encoding="utf-8").splitlines() if line[:1].isalpha()]
    wanted = {re.split("[=<>]", line)[0].replace("PyYAML", "yaml"): line for line in lines}
    missing = [wanted[name] for name in needed if name == "numpy" or importlib.util.find_spec(name) is None]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)

# Only MindSpore's errors are shown, without those about the source files that a notebook's cells do not have.
os.environ.setdefault("GLOG_v", "3")
os.environ.setdefault("MS_SUBMODULE_LOG_v", "{CORE:4}")

import matplotlib
import mindspore

import ms_gpt
from ms_gpt import runtime

matplotlib.rcParams["figure.dpi"] = 70
device = runtime.setup(device="auto", mode="graph", seed=0).device  # Ascend if there is one, else a GPU, else the CPU
print(f"Python {sys.version.split()[0]}, MindSpore {mindspore.__version__}, ms_gpt {ms_gpt.__version__}, on {device}")
'''.strip()


class SourceError(Exception):
    """A source that breaks the format; one line with the file and the line number."""


@dataclass(frozen=True)
class Cell:
    """A cell of a source.

    Args:
        kind: ``"code"``, ``"en"`` or ``"zh"``.
        text: Its content, without comment marks.
    """

    kind: str
    text: str


def read_source(path: Path) -> list[Cell]:
    """Split a source into cells.

    Args:
        path: The source.

    Returns:
        Its cells, English before Chinese.

    Raises:
        SourceError: A marker is unknown, a line of a text cell is no comment, a cell is empty, or a translation is
            missing.
    """
    cells: list[Cell] = []
    kind, lines = None, []

    def finish(number: int) -> None:
        text = "\n".join(lines).strip()
        if kind is None:
            if text:
                raise SourceError(f"{path.name}:{number}: text in front of the first '# %%'")
            return
        if not text:
            raise SourceError(f"{path.name}:{number}: the cell that ends here is empty")
        cells.append(Cell(kind, _joined(text) if kind == "zh" else text))

    all_lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(all_lines, 1):
        if line.startswith("# %%"):
            finish(number)
            kind, lines = _kind(line, f"{path.name}:{number}"), []
        elif kind in LANGUAGES and line.strip():
            if not line.startswith("#"):
                raise SourceError(f"{path.name}:{number}: a line of a text cell begins with '# '")
            lines.append(line[1:].removeprefix(" "))
        else:
            lines.append(line)
    finish(len(all_lines))
    for i, cell in enumerate(cells):
        before = cells[i - 1].kind if i else "code"
        if (cell.kind == "zh") != (before == "en"):
            raise SourceError(f"{path.name}: the text cell {cells[i - (cell.kind != 'zh')].text[:40]!r} stands alone: "
                              "each has to come in English, then Chinese")
    if cells and cells[-1].kind == "en":
        raise SourceError(f"{path.name}: the last text cell has no translation")
    return cells


def _kind(marker: str, place: str) -> str:
    kinds = {"# %%": "code", "# %% [markdown] en": "en", "# %% [markdown] zh": "zh"}
    if marker.rstrip() not in kinds:
        raise SourceError(f"{place}: {marker!r} is not one of {', '.join(map(repr, kinds))}")
    return kinds[marker.rstrip()]


def _joined(text: str) -> str:
    """Join lines that break between two Chinese characters, where Markdown would put a space."""
    wide = r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"
    return re.sub(rf"(?<={wide})\n(?={wide})", "", text)


def notebook(cells: list[Cell], language: str, outputs: dict[str, NotebookNode]) -> NotebookNode:
    """Build one language's notebook.

    Args:
        cells: From ``read_source``.
        language: ``"en"`` or ``"zh"``.
        outputs: Executed code cells by their id; see ``executed_cells``.

    Returns:
        The notebook, valid and in a canonical form.
    """
    nb = nbformat.v4.new_notebook(metadata=METADATA)
    seen: dict[str, int] = {}
    for cell in [Cell("code", SETUP), *cells]:
        if cell.kind not in ("code", language):
            continue
        digest = hashlib.sha256(cell.text.encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        name = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        if cell.kind == "code":
            ran = outputs.get(name)
            nb.cells.append(nbformat.v4.new_code_cell(cell.text, id=name))
            if ran is not None:
                nb.cells[-1].update(outputs=_plain(ran.outputs), execution_count=ran.execution_count)
        else:
            nb.cells.append(nbformat.v4.new_markdown_cell(cell.text, id=name))
    nbformat.validate(nb)
    return nb


def executed_cells(path: Path) -> dict[str, NotebookNode]:
    """Return the code cells of a notebook that have been run, by id; ids are made of the cells' sources."""
    if not path.is_file():
        return {}
    cells = nbformat.read(path, as_version=4).cells
    return {cell.id: cell for cell in cells if cell.cell_type == "code" and cell.execution_count}


def _plain(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join pieces of one stream, and drop what depends on the program that ran the notebook."""
    plain: list[NotebookNode] = []
    for output in outputs:
        is_more = plain and output.output_type == "stream" == plain[-1].output_type and output.name == plain[-1].name
        if is_more:
            plain[-1].text += output.text
        else:
            plain.append(NotebookNode({key: value for key, value in output.items() if key != "transient"}))
        if "metadata" in plain[-1]:
            plain[-1].metadata = NotebookNode()
    return plain


def expected(source: Path) -> dict[Path, str]:
    """Return the text of both notebooks of a source, with the outputs that stand in the English one."""
    cells = read_source(source)
    name = f"{source.stem}.ipynb"
    outputs = executed_cells(FOLDER / name)
    return {folder / name: nbformat.writes(notebook(cells, language, outputs)) + "\n"
            for language, folder in LANGUAGES.items()}


def sources(numbers: list[str] | None = None) -> list[Path]:
    """Return the sources whose names begin with one of the numbers; all by default.

    Raises:
        SourceError: A number fits no source.
    """
    found = sorted((FOLDER / "sources").glob("[0-9]*.py"))
    for number in numbers or ():
        if not any(path.name.startswith(f"{number}_") for path in found):
            raise SourceError(f"no tutorial begins with {number}: there are {', '.join(p.stem for p in found)}")
    return [path for path in found if not numbers or path.name.split("_")[0] in numbers]


def write(source: Path) -> None:
    """Write both notebooks of a source."""
    for path, text in expected(source).items():
        path.parent.mkdir(exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def execute(source: Path) -> float:
    """Run a tutorial in a kernel of its own, and put its outputs into both notebooks.

    Args:
        source: The tutorial's source.

    Returns:
        The seconds it took.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed; the notebooks stay as they were.
    """
    from nbclient import NotebookClient

    nb = notebook(read_source(source), "en", {})
    start = time.perf_counter()
    NotebookClient(nb, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
    seconds = time.perf_counter() - start
    nbformat.write(nb, FOLDER / f"{source.stem}.ipynb")
    write(source)
    return seconds


def check() -> list[str]:
    """Return one line for each notebook that is not what its source says."""
    texts = {path: text for source in sources() for path, text in expected(source).items()}
    there = {path for folder in LANGUAGES.values() for path in folder.glob("*.ipynb")}
    lines = [f"{path.relative_to(FOLDER.parent)} has no source" for path in sorted(there - set(texts))]
    for path, text in texts.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            name = path.relative_to(FOLDER.parent)
            lines.append(f"{name} is not what its source says: run python tutorials/build.py")
    return lines


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--execute", nargs="*", metavar="NN", help="run these tutorials; all if none is named")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a notebook is out of date")
    options = parser.parse_args()
    try:
        if options.check:
            lines = check()
            sys.stderr.writelines(f"{line}\n" for line in lines)
            return 1 if lines else 0
        chosen = sources(options.execute)
        for source in chosen:
            if options.execute is None:
                write(source)
            else:
                sys.stderr.write(f"{source.stem}: {execute(source):.0f} s\n")
    except SourceError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
