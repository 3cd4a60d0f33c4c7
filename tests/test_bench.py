"""The bench: what it counts, how its processes are told, and that no figure stands where the sides differ."""

import json
import sys

import pytest

from ms_gpt.bench.cases import CASES, Case, flops, readme_cases
from ms_gpt.bench.children import Child, _environment
from ms_gpt.bench.comparison import Side, compare, our_sides
from ms_gpt.cli import main
from ms_gpt.errors import UserError
from ms_gpt.plots import speed_plot


def stubs(*kernels):
    return [Side(f"stub {choice}", "bench_stub", choice) for choice in kernels]


def run(capsys, *words):
    code = main(["bench", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def fails(capsys, *words):
    code, _, err = run(capsys, *words)
    assert code == 2, err
    return err.splitlines()[-1]


def test_products_are_counted():
    """Each product (rows, inner, columns) of the tiny language model's forward pass, by hand."""
    rows, width = 2 * 16, 32
    block = [(rows, width, 3 * width), (rows, width, width), (rows, width, 4 * width), (rows, 4 * width, width)]
    pairs = 2 * 16 * 17 // 2  # of a query and a key that it may see, in both rows of the batch
    products = 2 * [*block, (pairs, width, 1), (pairs, width, 1)] + [(rows, width, 65)]
    forward = sum(2 * a * b * c for a, b, c in products)
    assert flops(Case.of("lm", "tiny")) == 3 * forward
    assert flops(Case.of("forward", "tiny")) == forward


def test_decoding_is_as_much_work_as_reading_the_same_tokens():
    """Of 128 new tokens the last is not read again; logits are needed for the new ones only."""
    decode = Case.of("decode", "tiny", batch=1, length=8)
    read = flops(Case.of("forward", "tiny", batch=1, length=8 + 127))
    assert flops(decode) == read - 2 * 32 * 65 * 7


def test_every_case_can_be_had_in_every_size():
    for name in CASES:
        assert [Case.of(name, size).size for size in ("tiny", "small", "medium", "base")]
    assert {case.name for case in readme_cases()} < set(CASES)
    assert Case.of("forward", "base") in readme_cases()


def test_sides_take_turns_and_their_ratio_is_that_of_the_medians(monkeypatch):
    seen = []
    monkeypatch.setattr(Child, "others_seconds", lambda self: 0.0)
    row, slow = compare(Case.of("lm", "tiny", batch=1), stubs("on", "off"), None, 3, 1, profile=True,
                        report=lambda what, done: seen.append((what, done)))
    assert seen[-3:] == [("timing", 1), ("timing", 2), ("timing", 3)]
    assert row["ratio"] is row["theirs"] is row["their_side"] is None
    assert row["ours"] < slow["ours"]
    assert row["compile_seconds"] == 0.5
    assert [item["op"] for item in row["our_side"]["profile"]] == ["MatMul", "Add"]
    assert row["our_side"]["profile"][1] == {"op": "Add", "calls": 2, "ms": 1.0, "share": 0.25}
    fast, = compare(Case.of("lm", "tiny", batch=1), stubs("on"), stubs("off")[0], 3, 1)
    assert fast["ratio"] == fast["ours"] / fast["theirs"] < 1
    assert fast["ratio_quartiles"][0] <= fast["ratio_quartiles"][1]


def test_rounds_that_others_disturb_are_made_again_and_a_busy_machine_is_named(monkeypatch):
    calls = []

    def others(self):
        """From the third run on, nobody but the child takes time; or else everybody does, all the time."""
        calls.append(self)
        return 10.0 * (len(calls) if always else min(len(calls), 4))

    monkeypatch.setattr(Child, "others_seconds", others)
    case = Case.of("lm", "tiny", batch=1)
    always = False
    row, = compare(case, stubs("on"), None, 2, 1)
    assert (row["is_quiet"], len(row["our_side"]["seconds"]), len(calls)) == (True, 2, 2 * 4)
    always = True
    row, = compare(case, stubs("on"), None, 2, 1)
    assert (row["is_quiet"], len(row["our_side"]["seconds"])) == (False, 2 * 3)
    assert row["others"] > 1


@pytest.mark.parametrize(("name", "message"), [("lm", "the loss of stub on is 1.000000 and that of stub off is 1.001"),
                                               ("decode", "do not generate the same tokens")])
def test_sides_that_differ_get_no_figures(name, message):
    with pytest.raises(UserError, match=message):
        compare(Case.of(name, "tiny"), stubs("on", "off"), None, 1, 1)


def test_a_process_that_dies_is_named_with_its_last_words(tmp_path):
    with pytest.raises(UserError, match="the process of stub on ended with code 1: out of paper"):
        compare(Case.of("lm", "tiny", length=7), stubs("on"), None, 1, 1)
    with pytest.raises(UserError, match="theirs ended with code 1: .*No module named"), \
            Child("theirs", "no_such_module", tmp_path, 1):
        pass


def test_a_failed_case_does_not_lose_the_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ms_gpt.bench.comparison.our_sides", lambda kernels: stubs("on", "off"))
    words = ["--case", "lm", "decode", "--size", "tiny", "--batch", 1, "--pairs", 1, "--peer", "none"]
    line = fails(capsys, *words, "--output-dir", tmp_path / "run")
    assert "1 of 2 cases failed" in line
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [(row["case"], row["kernels"]) for row in written["cases"]] == [("lm", "on"), ("lm", "off")]


def test_without_pytorch_ours_is_timed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ms_gpt.bench.comparison.torch_side", lambda: None)
    code, out, err = run(capsys, "--case", "lm", "--size", "tiny", "--pairs", 2, "--threads", 1, "--profile", "--json",
                         "--output-dir", tmp_path)
    assert code == 0, err
    assert "pip install torch==2.13.0 transformers" in err
    row, = json.loads(out)["cases"]
    assert row["case"] == "lm"
    assert row["theirs"] is row["ratio"] is None
    assert row["ours"] > 0
    assert row["our_side"]["memory_mib"] > row["our_side"]["import_mib"] > 0
    assert {"MatMul", "Custom"} & {item["op"] for item in row["our_side"]["profile"]}
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_bad_flags_are_one_line(capsys, tmp_path):
    assert "--batch needs --case or --size" in fails(capsys, "--batch", 4)
    assert "threads=99999 is outside 1 to" in fails(capsys, "--case", "lm", "--threads", 99999)
    assert "pairs=0" in fails(capsys, "--pairs", 0)
    assert "length=5000 is outside 2 to 1024" in fails(capsys, "--case", "lm", "--length", 5000)
    assert "batch=0" in fails(capsys, "--case", "lm", "--batch", 0)
    assert "Did you mean 'forward'" in fails(capsys, "--case", "foward")
    assert "gradient and forward only" in fails(capsys, "--peer", "mindnlp", "--case", "lm")
    assert "needs --peer-python" in fails(capsys, "--peer", "mindnlp", "--case", "gradient")
    assert "nothing is not a program" in fails(capsys, "--peer", "mindnlp", "--case", "gradient", "--peer-python",
                                               tmp_path / "nothing")
    assert "is for --peer mindnlp" in fails(capsys, "--case", "lm", "--peer-python", "python3")


def test_both_choices_of_kernels_are_told_to_our_processes():
    assert [side.kernels for side in our_sides("both")] == ["on", "off"]
    assert [side.kernels for side in our_sides("off")] == ["off"]


def test_the_plot_shows_ratios_or_tokens(tmp_path):
    row = {"case": "lm", "size": "tiny", "batch": 1, "length": 2, "kernels": "on", "ratio": 0.5, "is_quiet": True,
           "ratio_quartiles": [0.4, 0.6], "our_side": {"tokens_per_second": 1234.0}}
    for name, rows in (("both", [row, {**row, "kernels": "off"}]), ("ours", [row, {**row, "ratio": None}])):
        speed_plot(rows, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parity
def test_pytorch_agrees_and_is_timed(tmp_path, capsys):
    """The losses and the tokens of both sides are equal, or there would be no row."""
    code, out, err = run(capsys, "--case", "classifier", "lm", "forward", "decode", "--size", "tiny", "--pairs", 1,
                         "--json", "--output-dir", tmp_path)
    assert code == 0, err
    rows = json.loads(out)["cases"]
    assert [row["case"] for row in rows] == ["classifier", "lm", "forward", "decode"]
    assert all(row["ratio"] > 0 and "torch" in row["their_side"]["versions"] for row in rows)


def test_other_libraries_do_not_get_what_this_one_sets_for_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    assert "GOMP_SPINCOUNT" not in _environment(tmp_path, 2, {}, sys.executable)
