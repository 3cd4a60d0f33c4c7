"""Everything that draws on a terminal; text from users is shown as it is, never read as markup."""

from __future__ import annotations

import contextlib
import functools
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import rich.console
    import rich.progress

FIRST_LINE_SECONDS = 2.0
LINE_SECONDS = 30.0


def program_name() -> str:
    """Return what the user types to start this program, for messages that name a command."""
    return "ms-gpt" if Path(sys.argv[0]).stem == "ms-gpt" else "python -m ms_gpt"


def printable(value: Any) -> str:
    """Return a value as text with control characters made visible: raw, they could drive the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in str(value))


class Console:
    """A verb's voice: on stdout, or on stderr when stdout is kept for one JSON object.

    Args:
        quiet: Show results and warnings only.
        json: The verb prints JSON: everything goes to stderr, and results only when not ``quiet``.
    """

    def __init__(self, quiet: bool = False, json: bool = False) -> None:
        self.quiet = quiet
        self.json = json

    @functools.cached_property
    def _rich(self) -> rich.console.Console:
        return _rich_console(sys.stderr if self.json else sys.stdout)

    def header(self, title: str, rows: Mapping[str, Any]) -> None:
        """Open a run with a panel of what it works on: data, model, parameters, device.

        Args:
            title: What runs.
            rows: Label to value.
        """
        if self.quiet:
            return
        from rich.panel import Panel

        grid = _grid()
        for label, value in rows.items():
            grid.add_row(_text(label, "dim"), _text(value))
        self._rich.print(Panel(grid, title=_text(title, "bold"), title_align="left", border_style="cyan", expand=False))

    def note(self, text: str) -> None:
        """Say something about the run in a line of its own."""
        if not self.quiet:
            self._rich.print(_text(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Warn, on stderr, also when ``quiet``."""
        # Written plainly: while a bar is live, rich stands in for sys.stderr and prints the line above the bar.
        sys.stderr.write(f"warning: {printable(text)}\n")

    def result(self, text: str) -> None:
        """Print a line that the user asked for: never wrapped, its tabs kept, also when ``quiet``."""
        if not (self.quiet and self.json):
            (sys.stderr if self.json else sys.stdout).write(f"{printable(text)}\n")

    def write(self, text: str) -> None:
        """Print a piece of a text that the user asked for, without a line end, at once; also when ``quiet``."""
        if not (self.quiet and self.json):
            stream = sys.stderr if self.json else sys.stdout
            stream.write(printable(text))
            stream.flush()

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
        """Print a table of results.

        Args:
            columns: Headings.
            rows: One sequence of cells a row; numbers are aligned right, floats are shown with four digits.
            title: A line above it.
        """
        if self.quiet and self.json:
            return
        from rich import box
        from rich.table import Table

        if title:
            self._rich.print(_text(title, "bold"))
        drawn = Table(box=box.SIMPLE_HEAD, show_edge=False)
        for index, column in enumerate(columns):
            numbers = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
            drawn.add_column(_text(column), justify="right" if numbers else "left", overflow="fold")
        for row in rows:
            drawn.add_row(*(_text(f"{cell:.4f}" if isinstance(cell, float) else cell) for cell in row))
        self._rich.print(drawn)

    def confusion(self, matrix: Sequence[Sequence[int]], names: Sequence[str]) -> None:
        """Print a confusion matrix.

        Args:
            matrix: Counts; row i, column j counts the examples of class i that were predicted as class j.
            names: The classes' names.
        """
        rows = [[name, *map(int, counts), sum(map(int, counts))] for name, counts in zip(names, matrix, strict=True)]
        self.table(["true \\ predicted", *names, "all"], rows)

    @contextlib.contextmanager
    def compiling(self, what: str = "the graph", before: str | None = None) -> Iterator[None]:
        """Announce a compilation and, when it is over, say how long it took.

        Args:
            what: What is compiled, such as ``"the training graph for 128 tokens"``.
            before: The past participle of what follows inside, such as ``"scored"``; the time is of both.
        """
        self.note(f"compiling {what} ...")
        start = time.monotonic()
        yield
        self.note(f"compiled {what}{f' and {before}' if before else ''} in {time.monotonic() - start:.1f} s")

    def progress(self, total: float, description: str, start: int = 0) -> Progress:
        """Open the live progress bar; use it in a ``with`` block.

        Args:
            total: Number of steps.
            description: What is counted, such as ``"training"``.
            start: Steps done before, in a resumed run.

        Returns:
            The bar; plain lines at growing intervals where there is no terminal, nothing when ``quiet``.
        """
        return Progress(self, total, description, start)

    @contextlib.contextmanager
    def download(self, name: str) -> Iterator[Callable[[int, int | None], None]]:
        """Open the bar of a download.

        Args:
            name: What is downloaded.

        Yields:
            A function to call with the bytes received so far and the bytes in all (``None`` where unknown).
        """
        with self.progress(0, f"downloading {name}, MB") as bar:

            def received(done: int, total: int | None) -> None:
                bar.total = (total or 0) / 1e6
                bar.update(done / 1e6)

            yield received

    def next_command(self, *arguments: Any) -> None:
        """Show the command to type next.

        Args:
            *arguments: The verb and its flags; they are quoted for the shell where they need it.
        """
        if not self.quiet:
            command = f"{program_name()} {shlex.join(map(str, arguments))}"
            self._rich.print(_text("next: ", "dim").append_text(_text(command, "bold")), soft_wrap=True)


class Progress:
    """One live bar with the run's figures beside it, or plain lines where there is no terminal.

    Args:
        console: Where it is drawn.
        total: Number of steps; 0 where it is not known.
        description: What is counted.
        start: Steps done before.
    """

    def __init__(self, console: Console, total: float, description: str, start: float = 0) -> None:
        self.total = total
        self._console = console
        self._description = description
        self._fields: dict[str, Any] = {}
        self._step = start
        # The speed is that of the last updates: the first step holds the compilation.
        self._times: deque[tuple[float, int]] = deque(maxlen=50)
        self._pause = FIRST_LINE_SECONDS
        self._last_line = (time.monotonic(), -1)
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        if not self._console.quiet and self._console._rich.is_terminal:
            self._bar = _rich_bar(self._console._rich)
            self._task = self._bar.add_task(self._description, total=None, count="", status="")
            self._bar.start()
            self._redraw()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()
        elif self._last_line[1] != self._step and self._times:
            self._print_line()

    def update(self, step: float, **fields: Any) -> None:
        """Move the bar.

        Args:
            step: Steps done so far.
            **fields: Figures to show, such as ``loss``, ``learning_rate``, ``accuracy`` and ``tokens_per_second``;
                those not given keep their last value.
        """
        self._step = step
        self._fields.update(fields)
        self._times.append((time.monotonic(), step))
        if self._console.quiet:
            return
        if self._bar:
            self._redraw()
        elif time.monotonic() - self._last_line[0] >= self._pause:
            self._print_line()

    def restart_clock(self) -> None:
        """Estimate the speed anew, after a pause such as a compilation."""
        self._times.clear()

    def status(self, width: int | None = None) -> str:
        """Return the figures and the time left as one line.

        Args:
            width: Characters there is room for; the last figures are left out until the line fits.

        Returns:
            Such as ``"loss 0.6931  lr 3.0e-04  ETA 1:05"``.
        """
        figures = [_figure(name, value) for name, value in self._fields.items() if value is not None]
        left = self.seconds_left()
        end = [f"ETA {_duration(left)}"] if left is not None else []
        while figures and width is not None and len("  ".join(figures + end)) > width:
            figures.pop()
        return "  ".join(figures + end)

    def seconds_left(self) -> float | None:
        """Return the time left at the recent speed, or ``None`` before it is known."""
        if len(self._times) < 2 or not self.total:
            return None
        (begin, first), (end, last) = self._times[0], self._times[-1]
        return (self.total - last) * (end - begin) / (last - first) if last > first else None

    def _count(self) -> str:
        return f"{self._step:.0f}/{self.total:.0f}" if self.total else f"{self._step:.0f}"

    def _redraw(self) -> None:
        count = self._count()
        terminal = self._console._rich
        room = terminal.width - len(self._description) - _bar_width(terminal) - len(count) - 3
        self._bar.update(self._task, completed=self._step, total=self.total or None, count=count,
                         status=self.status(room))

    def _print_line(self) -> None:
        self._console.note(f"{self._description} {self._count()}  {self.status()}".rstrip())
        self._last_line = (time.monotonic(), self._step)
        self._pause = min(2 * self._pause, LINE_SECONDS)


def _figure(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if name in ("lr", "learning_rate"):
        return f"lr {value:.1e}"
    if name == "tokens_per_second":
        return f"{value / 1000:.1f}k tokens/s" if value >= 10_000 else f"{value:.0f} tokens/s"
    if name == "ms_per_batch":
        return f"{value:.0f} ms/batch"
    if name == "perplexity":
        return f"perplexity {value:.4g}"
    label = name.replace("_", " ")
    return f"{label} {value}" if isinstance(value, int) else f"{label} {value:.4f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _rich_console(stream: Any) -> rich.console.Console:
    from rich.console import Console as RichConsole

    class QuietPipe(RichConsole):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return QuietPipe(file=stream, force_jupyter=False, markup=False, emoji=False, highlight=False)


def _bar_width(console: rich.console.Console) -> int:
    return min(console.width // 8, 20)


def _rich_bar(console: rich.console.Console) -> rich.progress.Progress:
    from rich import progress
    from rich.table import Column

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        progress.BarColumn(bar_width=_bar_width(console)),
        progress.TextColumn("{task.fields[count]}", markup=False, table_column=Column(no_wrap=True)),
        progress.TextColumn("{task.fields[status]}", markup=False, table_column=Column(no_wrap=True)),
        console=console,
    )


def _grid() -> Any:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _text(value: Any, style: str = "") -> Any:
    from rich.text import Text

    return Text(printable(value), style=style)
