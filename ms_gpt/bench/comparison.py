"""Ours and theirs side by side: the same work in turns, each in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms_gpt.bench.cases import Case, flops, write_inputs
from ms_gpt.bench.children import OUR_MODULE, Child
from ms_gpt.errors import UserError

# A run is made of so many steps that the faster side takes this long.
SHORTEST_RUN = 0.05
WARM_UP_RUNS = 2
# OpenMP's threads spin for milliseconds after their work (Intel's for up to 200) before they sleep.
PAUSE = 0.05
# Cores that other programs may take while a side is timed, and what the system's clocks of it may be wrong by. The
# threads of a parallel region wait for each other: one that has no core for a moment makes PyTorch many times slower.
MOST_OTHERS = 0.1
CLOCK_ERROR = 0.02
LARGEST_DIFFERENCE = 1e-4
KERNELS_VARIABLE = "MS_GPT_KERNELS"


@dataclass(frozen=True)
class Side:
    """A library that takes part.

    Args:
        name: What it is called in messages.
        module: The module that serves it.
        kernels: ``"on"`` or ``"off"`` for ours, ``None`` for theirs.
        python: The Python that runs it.
    """

    name: str
    module: str
    kernels: str | None = None
    python: str = sys.executable


def our_sides(kernels: str) -> list[Side]:
    """Return our sides: with the fused CPU kernels (``"on"``), without (``"off"``), or two (``"both"``)."""
    chosen = ("on", "off") if kernels == "both" else (kernels,)
    return [Side(f"ours with kernels {choice}", OUR_MODULE, choice) for choice in chosen]


def torch_side() -> Side | None:
    """Return PyTorch's side, or ``None`` where PyTorch or transformers is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        return None
    return Side("PyTorch", "ms_gpt.bench.peers.torch_worker")


def mindnlp_side(python: str) -> Side:
    """Choose MindNLP as the other side.

    Args:
        python: The Python of an environment that has mindnlp: a path, or a name on the PATH.

    Returns:
        The side, which runs in that environment.

    Raises:
        UserError: There is no such program.
    """
    found = shutil.which(python)
    if found is None:
        raise UserError(f"peer_python={python} is not a program: give the Python of an environment that has mindnlp")
    # Links are not followed: an environment's Python is one.
    python = os.path.abspath(found)
    return Side("MindNLP", "ms_gpt.bench.peers.mindnlp_worker", python=python)


def compare(case: Case, ours: Sequence[Side], theirs: Side | None, pairs: int, threads: int, profile: bool = False,
            report: Callable[[str, int], None] = lambda what, done: None) -> list[dict[str, Any]]:
    """Measure one case.

    Args:
        case: The work.
        ours: One or two sides of ours.
        theirs: The other library, or ``None``.
        pairs: How often each side is timed, in turns, at least 1; rounds that other programs disturb do not count.
        threads: Cores and threads of each.
        profile: Also say where the time goes.
        report: Called with what is being done and the number of pairs that are done.

    Returns:
        For each side of ours a row of results, see ``_row``.

    Raises:
        UserError: The sides do not compute the same, or a process died.
    """
    sides = [*ours, *([theirs] if theirs else [])]
    with tempfile.TemporaryDirectory(prefix="ms_gpt-") as folder, contextlib.ExitStack() as stack:
        scratch = Path(folder)
        report("preparing", 0)
        write_inputs(case, scratch / "inputs")
        _check_agreement(case, sides, threads, scratch)
        children = [stack.enter_context(_child(side, threads, scratch)) for side in sides]
        facts = [_prepare(child, case, scratch / "inputs") for child in children]
        seconds, others = _in_turns(children, pairs, report)
        for child, fact, mine in zip(children, facts, seconds, strict=True):
            fact.update(seconds=mine, memory_mib=child.ask("memory")["mib"], peak_gflops=child.ask("peak")["gflops"])
            if profile:
                place = scratch / f"profile-{children.index(child)}"
                place.mkdir()
                steps = math.ceil(SHORTEST_RUN / statistics.median(mine))
                fact["profile"] = child.ask("profile", folder=str(place), steps=steps)["ops"]
    last = facts[-1] if theirs else None
    noise = {"others": others, "is_quiet": others <= MOST_OTHERS}
    return [{**_row(case, side, fact, last), **noise} for side, fact in zip(ours, facts, strict=False)]


def _child(side: Side, threads: int, scratch: Path) -> Child:
    # The first step is to show what compiling takes.
    environment = {"MS_GPT_COMPILE_CACHE": "off"} | ({KERNELS_VARIABLE: side.kernels} if side.kernels else {})
    return Child(side.name, side.module, scratch, threads, environment, side.python)


def _prepare(child: Child, case: Case, folder: Path) -> dict[str, Any]:
    versions = child.ask("load", case=case.to_dict(), folder=str(folder))
    return {"versions": versions, "import_mib": child.import_mib, "first_seconds": child.ask("start")["seconds"]}


def _check_agreement(case: Case, sides: Sequence[Side], threads: int, scratch: Path) -> None:
    """See that all compute the same, in processes that are not measured: evaluation would add to their memory."""
    checks = []
    for side in sides:
        with _child(side, threads, scratch) as child:
            child.ask("load", case=case.to_dict(), folder=str(scratch / "inputs"))
            checks.append(child.ask("check"))
    for check, side in zip(checks, sides, strict=True):
        if "ids" in check and check["ids"] != checks[0]["ids"]:
            raise UserError(f"{sides[0].name} and {side.name} do not generate the same tokens: their times cannot be "
                            "compared")
        if "loss" in check and not abs(check["loss"] - checks[0]["loss"]) <= LARGEST_DIFFERENCE:
            raise UserError(f"the loss of {sides[0].name} is {checks[0]['loss']:.6f} and that of {side.name} is "
                            f"{check['loss']:.6f}, more than {LARGEST_DIFFERENCE} away: their times cannot be compared")


def _in_turns(children: Sequence[Child], pairs: int,
              report: Callable[[str, int], None]) -> tuple[list[list[float]], float]:
    """Time each child until there are ``pairs`` undisturbed rounds, or three times as many in all.

    Returns:
        For each child its seconds for one step: of the undisturbed rounds, or of all if those are too few; and how
        many cores other programs took in them.
    """
    report("warming up", 0)
    once = min(child.ask("run", steps=1)["seconds"] for child in children)
    steps = math.ceil(SHORTEST_RUN / once)
    for _ in range(WARM_UP_RUNS):
        for child in children:
            child.ask("run", steps=steps)
    rounds: list[list[tuple[float, float]]] = []
    quiet: list[list[tuple[float, float]]] = []
    while len(quiet) < pairs and len(rounds) < 3 * pairs:
        # Whoever is first in one round is last in the next: a machine that grows slower favours nobody.
        order = children if len(rounds) % 2 == 0 else children[::-1]
        runs = {child: _timed(child, steps) for child in order}
        rounds.append([runs[child] for child in children])
        if all(others <= MOST_OTHERS * seconds + CLOCK_ERROR for seconds, others in rounds[-1]):
            quiet.append(rounds[-1])
        report("timing", len(quiet))
    kept = quiet if len(quiet) == pairs else rounds
    total, others = (sum(run[index] for runs in kept for run in runs) for index in (0, 1))
    return [[seconds / steps for seconds, _ in runs] for runs in zip(*kept, strict=True)], max(others, 0.0) / total


def _timed(child: Child, steps: int) -> tuple[float, float]:
    """Return the seconds that steps take, and the processor time that others take meanwhile."""
    time.sleep(PAUSE)
    before = child.others_seconds()
    seconds = child.ask("run", steps=steps)["seconds"]
    return seconds, child.others_seconds() - before


def _row(case: Case, side: Side, ours: dict[str, Any], theirs: dict[str, Any] | None) -> dict[str, Any]:
    """Return one row of results.

    Returns:
        ``case``, ``size``, ``batch``, ``length``, ``kernels``; ``ours`` and ``theirs``, median milliseconds of a step;
        ``ratio``, the one by the other, and ``ratio_quartiles`` of the single pairs; ``compile_seconds``, that of our
        first step; ``gflop``, the products of a step; and, in ``our_side`` and ``their_side``, what ``_figures`` says.
        ``compare`` adds ``others``, the cores that other programs took meanwhile, and ``is_quiet``, whether they are
        few enough for the figures to count.
    """
    work = flops(case)
    row = {"case": case.name, "size": case.size, "batch": case.batch, "length": case.length, "kernels": side.kernels,
           "ours": 1000 * statistics.median(ours["seconds"]), "theirs": None, "ratio": None, "ratio_quartiles": None,
           "compile_seconds": ours["first_seconds"], "gflop": work / 1e9, "our_side": _figures(case, work, ours),
           "their_side": None}
    if theirs:
        ratios = [mine / other for mine, other in zip(ours["seconds"], theirs["seconds"], strict=True)]
        row["theirs"] = 1000 * statistics.median(theirs["seconds"])
        row["ratio"] = row["ours"] / row["theirs"]
        row["ratio_quartiles"] = quartiles(ratios)
        row["their_side"] = _figures(case, work, theirs)
    return row


def _figures(case: Case, work: float, fact: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of one side.

    Returns:
        ``tokens_per_second``; ``gflops`` reached by the products in a step, ``peak_gflops`` by one large product;
        ``memory_mib`` at most, ``import_mib`` of the library alone; ``versions``; ``seconds`` of each run; and
        ``profile``, if it was asked for.
    """
    median = statistics.median(fact["seconds"])
    figures = {key: fact[key] for key in ("peak_gflops", "memory_mib", "import_mib", "versions", "seconds")}
    figures |= {"tokens_per_second": case.tokens / median, "gflops": work / median / 1e9}
    return {**figures, "profile": fact["profile"]} if "profile" in fact else figures


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the first and the third quartile; of a single value, itself twice."""
    if len(values) < 2:
        return [values[0], values[0]]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]
