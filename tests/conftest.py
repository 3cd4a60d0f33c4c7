"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Workers share the cores; threads that wait for each other would take most of them. Read when MindSpore is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("MS_GPT_TEST_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}: set MS_GPT_TEST_DATA")
    return path
