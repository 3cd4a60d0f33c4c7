"""Test sessions: tests, parity, slow, fuzz, lint, docs, and the oldest supported MindSpore."""

import nox

nox.options.sessions = ["lint", "tests"]


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


@nox.session(name="mindspore-2.7.0", python=["3.10", "3.11"])
def mindspore_270(session):
    requirements = nox.project.load_toml("pyproject.toml")["project"]
    needed = [line for line in requirements["dependencies"] if not line.startswith("mindspore")]
    session.install("mindspore==2.7.0", *needed, *requirements["optional-dependencies"]["test"])
    session.run("python", "-m", "pytest", *session.posargs)
