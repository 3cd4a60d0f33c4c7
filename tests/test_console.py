"""What is drawn on a terminal, on a pipe and in pictures."""

from __future__ import annotations

import io
import re

import pytest
import rich.console

from ms_gpt import console as console_module
from ms_gpt.console import Console
from ms_gpt.plots import attention_plot, confusion_plot, loss_plot


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """Some CI services force colours; a width may be exported."""
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when a test says so."""
    now = [1000.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch):
    """Make consoles draw on a terminal of 60 characters; returns what was drawn."""
    drawn = io.StringIO()

    def make(stream):
        return rich.console.Console(file=drawn, force_terminal=True, width=60, markup=False, highlight=False,
                                    emoji=False, legacy_windows=False)

    monkeypatch.setattr(console_module, "_rich_console", make)
    return drawn


def visible(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")


def everything(console):
    console.header("finetune", {"data": "sample"})
    console.note("note")
    with console.compiling("the graph"), console.progress(2, "training") as bar:
        bar.update(2, loss=0.5)
    console.next_command("evaluate")


def test_quiet_leaves_results_and_warnings(capsys):
    console = Console(quiet=True)
    everything(console)
    assert capsys.readouterr() == ("", "")
    console.result("result")
    console.warn("careful")
    assert capsys.readouterr() == ("result\n", "warning: careful\n")


def test_json_moves_everything_to_stderr(capsys):
    console = Console(json=True)
    everything(console)
    console.result("result")
    console.table(["a"], [[1]])
    out, err = capsys.readouterr()
    assert out == ""
    assert all(word in err for word in ("finetune", "note", "compiling", "training", "next:", "result"))
    console = Console(json=True, quiet=True)
    console.result("result")
    console.table(["a"], [[1]])
    assert capsys.readouterr() == ("", "")


def test_text_from_users_is_neither_markup_nor_control(capsys):
    console = Console()
    hostile = "[red]:smile: \x1b[2J\x9b[/red]"
    console.header(hostile, {hostile: hostile})
    console.note(hostile)
    console.warn(hostile)
    console.result(hostile)
    console.table([hostile], [[hostile]], title=hostile)
    console.next_command("predict", hostile)
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "\x9b" not in out + err
    assert (out + err).count(r"[red]:smile: \x1b[2J\x9b[/red]") == 10


def test_results_are_never_wrapped(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    Console().result("word " * 100)
    assert capsys.readouterr().out.count("\n") == 1


def test_header_fits_the_width(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    Console().header("finetune", {"data": "x" * 100, "model": "gpt-mini " * 10})
    out = capsys.readouterr().out
    assert out.count("x") == 100
    assert max(map(len, out.splitlines())) <= 40


def test_compiling_says_how_long(capsys, clock):
    with Console().compiling("the training graph"):
        clock[0] += 12.34
    assert capsys.readouterr().out == "compiling the training graph ...\ncompiled the training graph in 12.3 s\n"
    with Console().compiling(before="scored"):
        clock[0] += 1
    assert capsys.readouterr().out == "compiling the graph ...\ncompiled the graph and scored in 1.0 s\n"


def test_plain_progress_lines(capsys, clock):
    with Console().progress(1000, "training") as bar:
        for step in range(1, 1001):
            clock[0] += 0.5
            bar.update(step, loss=1.0 / step, learning_rate=3e-4, tokens_per_second=12345.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "training 4/1000  loss 0.2500  lr 3.0e-04  12.3k tokens/s  ETA 8:18"
    assert lines[-1].startswith("training 1000/1000  loss 0.0010")
    # 500 seconds: after 2, 4, 8, 16, then every 30, and the end.
    assert 18 <= len(lines) <= 22


def test_eta_is_that_of_the_recent_speed(clock):
    with Console(quiet=True).progress(200, "training") as bar:
        for step in range(1, 101):
            clock[0] += 60.0 if step < 10 else 2.0
            bar.update(step)
        assert bar.seconds_left() == pytest.approx(200.0)


def test_resumed_progress_counts_from_its_start(capsys):
    with Console().progress(100, "training", start=40) as bar:
        assert bar.seconds_left() is None
        bar.update(41)
    assert "41/100" in capsys.readouterr().out


def test_live_bar_fits_the_terminal(terminal, capsys):
    console = Console()
    with console.progress(2000, "training") as bar:
        for step in range(1, 2001):
            bar.update(step, loss=0.5, learning_rate=3e-4, accuracy=0.75, tokens_per_second=1e5)
            if step == 1000:
                console.note("epoch 1 done")
    text = visible(terminal.getvalue())
    assert "━" in text
    assert "2000/2000 loss 0.5000" in text
    assert "ETA 0:00" in text
    assert "epoch 1 done" in [line.strip() for line in text.splitlines()]
    assert max(map(len, text.splitlines())) <= 60
    assert capsys.readouterr().out == ""


def test_live_bar_stops_when_interrupted(terminal):
    def interrupted():
        with Console().progress(10, "training") as bar:
            bar.update(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    # The cursor is hidden while the bar is live.
    assert terminal.getvalue().rfind("\x1b[?25h") > terminal.getvalue().rfind("\x1b[?25l") >= 0


@pytest.mark.parametrize(("total", "count"), [(84_000_000, "42/84"), (None, "42")])
def test_download(capsys, total, count):
    with Console().download("imdb") as received:
        received(1_000_000, total)
        received(42_000_000, total)
    assert capsys.readouterr().out.startswith(f"downloading imdb, MB {count}")


def test_confusion_table(capsys):
    Console().confusion([[5, 1], [2, 8]], ["negative", "positive"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[-2:] == [["negative", "5", "1", "6"], ["positive", "2", "8", "10"]]


def test_next_command_can_be_pasted(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/ms-gpt"])
    Console().next_command("evaluate", "--model", "my run/best")
    assert capsys.readouterr().out == "next: ms-gpt evaluate --model 'my run/best'\n"


RECORDS = [
    {"step": 1, "loss": 9.0, "phase": "pretrain"},
    {"step": 2, "loss": float("nan"), "phase": "pretrain"},
    {"step": 1, "loss": 0.7, "phase": "finetune", "learning_rate": 1e-3},
    {"step": 2, "loss": 0.6, "phase": "finetune"},
    {"step": 2, "eval_loss": 0.5, "eval_accuracy": 0.9, "phase": "finetune"},
]


@pytest.mark.parametrize("draw", [
    lambda path: loss_plot(RECORDS, path),
    lambda path: loss_plot(RECORDS[2:4], path),
    lambda path: loss_plot([], path),
    lambda path: confusion_plot([[5, 1], [0, 0]], ["$a^$", "好"], path),
    lambda path: attention_plot([[[1.0, 0.0], [0.5, 0.5]]] * 3, ["$x", "$y^$"], path),
    lambda path: attention_plot([[1.0]], ["x"], path),
], ids=["two phases", "training only", "empty", "confusion", "heads", "one head"])
def test_plots_write_one_whole_png(draw, tmp_path, recwarn):
    path = tmp_path / "plot.png"
    draw(path)
    assert [item.name for item in tmp_path.iterdir()] == ["plot.png"]
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content.endswith(b"IEND\xaeB\x60\x82")
    assert not [item for item in recwarn.list if issubclass(item.category, UserWarning)]


def test_loss_plot_shows_phases_apart(monkeypatch, tmp_path):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (figures.append(self), path.touch()))
    loss_plot(RECORDS, tmp_path / "plot.png")
    titles = [axes.get_title(loc="left") for axes in figures[0].axes]
    assert [title for title in titles if title] == ["pretrain", "finetune"]
    raw = figures[0].axes[0].lines[0].get_ydata()
    assert list(raw) == [9.0]
