"""Everything that draws a picture; files are PNG, written beside and renamed."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ms_gpt.checkpoint.atomic import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#2563a8", "#d9722b", "#3a8f5c", "#8a8f98"
DPI = 130
# Tokens and labels may be Chinese, Japanese or Korean; matplotlib's own font is not.
CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Zen Hei", "SimHei", "Microsoft YaHei", "PingFang SC")


def loss_plot(records: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Draw a run: training loss above, validation loss and accuracy below, one column for each phase.

    Args:
        records: Rows of ``metrics.jsonl``: ``step`` and any of ``loss``, ``eval_loss``, ``eval_accuracy`` and
            ``phase`` (such as ``"pretrain"``); what is missing, ``None`` or not finite is left out.
        path: The PNG file.
    """
    phases: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        phases.setdefault(record.get("phase") or "training", []).append(record)
    phases = phases or {"training": []}
    rows = 2 if any(_series(part, key)[0] for part in phases.values() for key in ("eval_loss", "eval_accuracy")) else 1
    with _drawing(path, 5.4 * len(phases) + 1.2, 3.0 * rows + 0.4) as figure:
        panels = figure.subplots(rows, len(phases), squeeze=False, sharex="col")
        for column, (phase, part) in enumerate(phases.items()):
            panels[0][column].set_title(phase, loc="left", fontweight="bold")
            _draw_training(panels[0][column], part)
            if rows == 2:
                _draw_validation(panels[1][column], part)
            for axes in panels[:, column]:
                axes.grid(axis="y", color=GREY, alpha=0.2)
            panels[-1][column].xaxis.get_major_locator().set_params(integer=True)
            panels[-1][column].set_xlabel("step")


def confusion_plot(matrix: Sequence[Sequence[int]], names: Sequence[str], path: str | Path) -> None:
    """Draw a confusion matrix: counts, shaded by their share of the true class.

    Args:
        matrix: Counts; row i, column j counts the examples of class i that were predicted as class j.
        names: The classes' names.
        path: The PNG file.
    """
    shares = [[count / max(sum(row), 1) for count in row] for row in matrix]
    size = max(3.6, 0.7 * len(names) + 1.8)
    with _drawing(path, size + 0.8, size) as figure:
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
        for i, row in enumerate(matrix):
            for j, count in enumerate(row):
                color = "white" if shares[i][j] > 0.55 else "black"
                text = f"{int(count):,}\n{shares[i][j]:.1%}"
                axes.text(j, i, text, ha="center", va="center", color=color, fontsize=9)
        _label_axes(axes, names, names, rotation=0 if max(map(len, names)) <= 12 and len(names) <= 4 else 45)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")


def attention_plot(weights: Any, tokens: Sequence[str], path: str | Path) -> None:
    """Draw the attention weights of one layer, one square for each head.

    Args:
        weights: Array of shape (H, T, T), or (T, T) for one head; row t is what position t attends to.
        tokens: The T tokens' texts.
        path: The PNG file.
    """
    import numpy as np

    heads = np.asarray(weights, dtype=float)
    heads = heads[None] if heads.ndim == 2 else heads
    columns = math.ceil(math.sqrt(len(heads)))
    rows = math.ceil(len(heads) / columns)
    side = min(max(2.4, 0.22 * len(tokens) + 1.2), 7.0)
    with _drawing(path, side * columns + 0.9, side * rows) as figure:
        panels = figure.subplots(rows, columns, squeeze=False)
        for axes in panels.flat[len(heads):]:
            axes.set_axis_off()
        for index, (axes, head) in enumerate(zip(panels.flat, heads, strict=False)):
            image = axes.imshow(head, cmap="viridis", vmin=0.0, vmax=1.0)
            axes.set_title(f"head {index}", fontsize=9)
            _label_axes(axes, tokens, tokens, rotation=90, fontsize=min(8.0, 45.0 * side / len(tokens)))
        figure.colorbar(image, ax=panels, shrink=0.6, label="attention weight")


def speed_plot(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw how fast ours is beside theirs: one bar a row, theirs being the line at 1; without theirs, tokens/s.

    Args:
        rows: As ``bench`` returns them: ``case``, ``size``, ``batch``, ``length``, ``kernels``, ``is_quiet``, ``ratio``
            and ``ratio_quartiles`` (or ``None``), and ``our_side`` with ``tokens_per_second``.
        path: The PNG file.
    """
    rows = list(rows)[::-1]
    is_compared = all(row["ratio"] for row in rows)
    names = [f"{row['case']} {row['size']}\n{row['batch']} x {row['length']}, kernels {row['kernels']}" for row in rows]
    values = [1 / row["ratio"] if is_compared else row["our_side"]["tokens_per_second"] for row in rows]
    with _drawing(path, 7.5, 0.55 * len(rows) + 1.3) as figure:
        axes = figure.subplots()
        colors = [BLUE if row["kernels"] == "on" else ORANGE for row in rows]
        axes.barh(range(len(rows)), values, color=colors, height=0.6)
        ends = list(values)
        if is_compared:
            spread = [sorted(1 / ratio for ratio in row["ratio_quartiles"]) for row in rows]
            ends = [max(value, high) for value, (_, high) in zip(values, spread, strict=True)]
            axes.hlines(range(len(rows)), *zip(*spread, strict=True), color="black", linewidth=0.8)
            axes.axvline(1.0, color=GREY, linewidth=1.0, linestyle="--")
        for place, (row, value, end) in enumerate(zip(rows, values, ends, strict=True)):
            text = f" {value:.2f}" if is_compared else f" {value:,.0f}"
            axes.text(end, place, text if row["is_quiet"] else f"{text} (busy)", va="center", fontsize=9)
        axes.set_yticks(range(len(rows)), names, fontsize=8)
        axes.set_xlabel("speed, theirs = 1 (lines: quartiles)" if is_compared else "tokens/s")
        axes.margins(x=0.12)


def _draw_training(axes: Axes, part: list[Mapping[str, Any]]) -> None:
    steps, losses = _series(part, "loss")
    axes.set_ylabel("training loss")
    if not steps:
        return
    marker = "o" if len(steps) == 1 else None
    axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.9, label="as logged")
    axes.plot(steps, _smooth(losses), color=BLUE, linewidth=1.8, marker=marker, label="smoothed")
    axes.legend(frameon=False, fontsize=8, loc="upper right")


def _draw_validation(axes: Axes, part: list[Mapping[str, Any]]) -> None:
    steps, losses = _series(part, "eval_loss")
    axes.plot(steps, losses, color=ORANGE, marker="o", markersize=4)
    axes.set_ylabel("validation loss", color=ORANGE)
    axes.tick_params(axis="y", labelcolor=ORANGE)
    steps, accuracies = _series(part, "eval_accuracy")
    if not steps:
        return
    right = axes.twinx()
    right.plot(steps, accuracies, color=GREEN, marker="s", markersize=4)
    right.set_ylabel("validation accuracy", color=GREEN)
    right.tick_params(axis="y", labelcolor=GREEN, length=0)
    right.spines[:].set_visible(False)
    best = max(range(len(steps)), key=accuracies.__getitem__)
    right.annotate(f"{accuracies[best]:.3f}", (steps[best], accuracies[best]), xytext=(0, 7),
                   textcoords="offset points", ha="center", fontsize=8, color=GREEN)
    right.margins(y=0.2)


def _series(part: Iterable[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    points = [(record["step"], record[key]) for record in part
              if record.get(key) is not None and math.isfinite(record[key])]
    return [step for step, _ in points], [value for _, value in points]


def _smooth(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and its neighbours, over about a thirtieth of the run, without delay."""
    reach = max(len(values) // 60, 1)
    sums = [0.0, *itertools.accumulate(values)]
    windows = [(max(index - reach, 0), min(index + reach + 1, len(values))) for index in range(len(values))]
    return [(sums[end] - sums[begin]) / (end - begin) for begin, end in windows]


def _label_axes(axes: Axes, across: Sequence[str], down: Sequence[str], rotation: int, fontsize: float = 9.0) -> None:
    # parse_math off: a token with $ signs is no formula.
    style = {"fontsize": fontsize, "parse_math": False}
    alignment = {"ha": "right", "rotation_mode": "anchor"} if rotation == 45 else {}
    axes.set_xticks(range(len(across)), across, rotation=rotation, **alignment, **style)
    axes.set_yticks(range(len(down)), down, **style)
    axes.tick_params(length=0)


@contextlib.contextmanager
def _drawing(path: str | Path, width: float, height: float) -> Iterator[Figure]:
    """Give an empty figure and write it to ``path`` when the block is done."""
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    installed = {font.name for font in font_manager.fontManager.ttflist}
    style = {
        "font.family": ["DejaVu Sans", *(name for name in CJK_FONTS if name in installed)],
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": GREY,
    }
    # A Figure of its own, without pyplot, leaves a notebook's figures and settings alone.
    with matplotlib.rc_context(style), replace_file(path) as temporary, warnings.catch_warnings():
        # A character that no installed font has is drawn as a box; that says enough.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        yield figure
        figure.savefig(temporary, format="png")
