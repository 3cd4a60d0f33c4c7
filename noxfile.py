"""Test sessions: tests, parity, slow, fuzz, tutorials, lint, docs, MindNLP, and pairs of Python and MindSpore."""

from pathlib import Path
from xml.etree import ElementTree

import nox

nox.options.sessions = ["lint", "tests"]

EVERYWHERE = "not parity and not slow and not mindnlp"
# The lowest release of each minor version that has a wheel for the Python.
PAIRS = [(python, "2.7.2" if (python, mindspore) == ("3.12", "2.7.0") else mindspore)
         for mindspore in ("2.7.0", "2.8.0", "2.9.0", "2.10.0") for python in ("3.10", "3.11", "3.12")]
# What leans on MindSpore most: how code becomes a graph, the cache of graphs, its files, and a user's way from finetune
# to predict; on one Python the kernels' interface too, which takes as long as all else and does not depend on it.
MATRIX_TESTS = [f"tests/test_{name}.py" for name in (
    "model", "compile_cache", "verbs", "generation", "heads", "layers", "losses", "inputs", "info", "checkpoint_ckpt")]
MATRIX_TESTS_OF_ONE_PYTHON = {"3.11": ["tests/test_kernels.py"]}
MATRIX_RESULTS = Path("runs/matrix")


@nox.session
def lint(session):
    session.install("ruff>=0.8", "pydoclint>=0.12")
    session.run("ruff", "check", ".")
    session.run("pydoclint", "--quiet", "ms_gpt")


@nox.session
def docs(session):
    session.install("-r", "requirements.txt", "sphinx>=8", "myst-parser>=4")
    session.run("python", "-m", "sphinx", "-W", "--keep-going", "docs", "docs/_build", *session.posargs)


@nox.session
def tests(session):
    session.install("-r", "requirements.txt")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def parity(session):
    session.install("-r", "requirements.txt", "torch==2.13.0", "transformers>=5")
    session.run("python", "-m", "pytest", "-m", "parity and not slow", *session.posargs)


@nox.session
def slow(session):
    session.install("-r", "requirements.txt", "torch==2.13.0", "transformers>=5")
    session.run("python", "-m", "pytest", "-m", "slow", *session.posargs)


@nox.session
def fuzz(session):
    session.install("-r", "requirements.txt")
    session.run("python", "tests/fuzz_checkpoints.py", *(session.posargs or ["--count", "20000"]))


@nox.session
def tutorials(session):
    """Run the notebooks given (default: all), and put their outputs into both languages."""
    session.install("-r", "requirements.txt", "torch==2.13.0", "transformers>=5")
    notebooks = session.posargs or sorted(map(str, Path("tutorials").glob("*.ipynb")))
    session.run("python", "-m", "pytest", "--nbmake", "--nbmake-timeout=900", "--overwrite", "-n", "0", *notebooks)
    session.run("python", "tutorials/build.py")


@nox.session(python="3.11")
def mindnlp(session):
    """Compare with MindNLP 0.5.1 in the environment that its users make, and with files of 0.1.1."""
    session.install("--no-deps", "-r", "requirements-mindnlp.txt")
    project = nox.project.load_toml("pyproject.toml")["project"]
    ours = ("rich", "matplotlib", "PyYAML", *project["optional-dependencies"]["test"])
    session.install(*(line for line in ours if not line.startswith(("scikit-learn", "ruff"))))
    old = Path(session.create_tmp()) / "mindnlp-0.1"
    session.install("--no-deps", "--target", str(old), "--upgrade", "mindnlp==0.1.1")
    session.run("python", "-m", "pytest", "-m", "mindnlp", "tests/test_mindnlp.py", *session.posargs,
                env={"MINDNLP_01": str(old)})


def with_mindspore(version):
    """What the library and its tests need, with one MindSpore."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    needed = [line for line in project["dependencies"] if not line.startswith("mindspore")]
    return [f"mindspore=={version}", *needed, *project["optional-dependencies"]["test"]]


@nox.session
@nox.parametrize("python,mindspore", PAIRS, ids=["-".join(pair) for pair in PAIRS])
def matrix(session, mindspore):
    """Run what leans on MindSpore most, 2 to 3 minutes; ``-- tests`` runs all that depends on it, 20 minutes.

    Only those two leave a result for ``matrix-table``; other arguments, such as ``-- -k cache``, narrow the selection.
    """
    session.install(*with_mindspore(mindspore))
    is_whole = session.posargs == ["tests"]
    chosen = [] if is_whole else [*MATRIX_TESTS_OF_ONE_PYTHON.get(session.python, []), *MATRIX_TESTS]
    if is_whole or not session.posargs:
        chosen.append(f"--junitxml={MATRIX_RESULTS / f'{session.python}-{mindspore}.xml'}")
    session.run("python", "-m", "pytest", "-m", f"{EVERYWHERE} and not without_mindspore", *chosen, *session.posargs)


@nox.session(name="matrix-table", python=False)
def matrix_table(session):
    """Print the results that the matrix has left, as a table of a README."""
    rows = ["| Python | MindSpore | date | passed | failed | skipped |", "|---|---|---|---|---|---|"]
    for python, mindspore in PAIRS:
        file = MATRIX_RESULTS / f"{python}-{mindspore}.xml"
        if not file.is_file():
            rows.append(f"| {python} | {mindspore} | not run | | | |")
            continue
        suite = ElementTree.parse(file).getroot().find("testsuite")
        total, failures, errors, skipped = (int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped"))
        passed, date = total - failures - errors - skipped, suite.get("timestamp")[:10]
        rows.append(f"| {python} | {mindspore} | {date} | {passed} | {failures + errors} | {skipped} |")
    print("\n".join(rows))  # noqa: T201
