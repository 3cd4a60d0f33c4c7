"""The script that checks a device, on the CPU: its comparisons, what it makes of failures, and a run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

DEVICE = Path(__file__).parent / "device"
sys.path.insert(0, str(DEVICE))
import check  # noqa: E402

ROW = {"against": None, "tolerance": 1e-4, "devices": ["cpu"], "is_timed": False}
FAKE_ROWS = """
import os, sys, numpy as np
name, device, size, role, folder = sys.argv[1:]
if name == "crashes":
    print("about to crash", flush=True)
    os.kill(os.getpid(), 11)
if name == "raises":
    raise ValueError("the gradient is 3,\\nand should be 4")
if name == "hangs":
    import time
    time.sleep(60)
np.savez(folder + "/arrays.npz", loss=np.array([1.0, 2.0 + (role == "device") * (name == "differs")]))
open(folder + "/note.txt", "w").write("0.1\\nfine\\n")
"""


def compare(folder, ours, theirs):
    for name, arrays in (("ours", ours), ("theirs", theirs)):
        np.savez(folder / name, **arrays)
    return check.difference(folder / "ours.npz", folder / "theirs.npz")


def test_differences_are_shares_of_the_largest_number(tmp_path):
    theirs = {"a": np.array([1.0, -4.0]), "b": np.array([1e-9]), "ids": np.array([1, 2, 3, 4])}
    assert compare(tmp_path, theirs, theirs) == (0.0, "")
    assert compare(tmp_path, {**theirs, "a": np.array([1.5, -4.0])}, theirs) == (0.125, "a")
    # Almost nothing is measured by a thousandth of the largest of all.
    gap, place = compare(tmp_path, {**theirs, "b": np.array([2e-9])}, theirs)
    assert (round(gap * 1e9), place) == (250, "b")
    assert compare(tmp_path, {**theirs, "ids": np.array([1, 2, 3, 5])}, theirs) == (0.25, "ids")


@pytest.mark.parametrize("ours", [{"a": np.array([np.nan])}, {"a": np.zeros(2)}, {"b": np.zeros(1)}])
def test_what_cannot_be_compared_is_infinitely_far(tmp_path, ours):
    assert compare(tmp_path, ours, {"a": np.ones(1)})[0] == np.inf


def test_a_row_that_fails_costs_no_other(tmp_path, monkeypatch, capsys):
    (tmp_path / "rows.py").write_text(FAKE_ROWS)
    monkeypatch.setattr(check, "HERE", tmp_path)
    names = ("crashes", "raises", "hangs", "differs", "holds", "elsewhere")
    table = {name: {**ROW, "title": f"it {name}"} for name in names}
    table["differs"]["against"] = table["holds"]["against"] = "cpu"
    table["elsewhere"]["devices"] = ["ascend"]
    monkeypatch.setattr(check, "_TABLE", table)
    code = check.main(["--device", "cpu", "--quick", "--json", "--timeout", "3", "--output-dir", str(tmp_path / "out")])
    report = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in report["rows"]}
    assert code == 1
    assert {name: row["result"] for name, row in rows.items()} == {
        **dict.fromkeys(names, "FAIL"), "holds": "pass", "elsewhere": "not here"}
    assert rows["crashes"]["note"].startswith("ended by SIGSEGV; about to crash (")
    assert rows["raises"]["note"].startswith("ValueError: the gradient is 3, (")
    assert rows["hangs"]["note"].startswith("no result after 3 seconds (")
    assert rows["differs"]["note"].startswith("loss differs by 5.0e-01, more than 1e-04")
    assert Path(rows["raises"]["note"].split("(")[-1].rstrip(")")).exists()
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| it holds | pass | 0.0e+00 (1e-04) |" in text
    assert text.endswith(" minutes\n")


def test_mistakes_on_the_command_line(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert check.main(["--only", "gtp2"]) == 2
    assert "there is no row gtp2" in capsys.readouterr().err
    assert check.main(["--output-dir", str(tmp_path)]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def run_script(folder, *flags):
    command = [sys.executable, str(DEVICE / "check.py"), "--device", "cpu", "--quick", "--output-dir", str(folder)]
    return subprocess.run([*command, *flags], capture_output=True, text=True, check=False)


def test_rows_on_the_cpu(tmp_path):
    done = run_script(tmp_path / "out", "--json", "--only", "gpt2", "flash")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [row["result"] for row in report["rows"]] == ["pass", "not here"]
    assert report["facts"]["checked"] == "cpu"
    # The plain operations and the fused kernels round differently.
    assert 0 < report["rows"][0]["difference"] < 1e-4


@pytest.mark.slow
def test_all_rows_on_the_cpu(tmp_path):
    done = run_script(tmp_path / "out")
    assert done.returncode == 0, done.stdout
    assert "| FAIL |" not in done.stdout
