"""``ms-gpt bench``: how fast this library is on this machine, and how fast PyTorch is beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ms_gpt.cli.options import Options, option
from ms_gpt.console import Console
from ms_gpt.errors import UserError
from ms_gpt.runtime import cpu_count

HELP = "measure the speed on this machine, beside PyTorch where it is installed"
EXAMPLES = """examples:
  ms-gpt bench                                     # the rows of the README's table; takes a quarter of an hour
  ms-gpt bench --size tiny                         # every case, within a minute or two
  ms-gpt bench --case lm --size small --kernels both
  ms-gpt bench --case classifier --profile
  ms-gpt bench --case gradient --size small --peer mindnlp --peer-python mindnlp-env/bin/python
"""
TORCH_HINT = "PyTorch is not installed, so nothing is compared: pip install torch==2.13.0 transformers"

MINDNLP_CASES = ("gradient", "forward")


@dataclass(kw_only=True)
class BenchOptions(Options):
    """What is measured, and beside what.

    Args:
        case: What to time.
        size: Size of the model.
        batch: Rows in a batch.
        length: Tokens in a row, or in a prompt.
        pairs: How often each side is timed, in turns.
        threads: Cores and threads that each side gets.
        kernels: Use the fused CPU kernels, do without, or time both ways.
        peer: What stands beside: PyTorch if it is installed (auto), nothing, or mindnlp, on forward and gradient only.
        peer_python: Python of the environment that has mindnlp.
        profile: Show the ops that take most of the time.
        output_dir: Folder for results.json and speed.png.
    """

    TITLE = "what is measured"

    case: list[Literal["classifier", "lm", "gradient", "forward", "prefill", "decode"]] = option(
        [], shown_default="the README's rows; with --size, all")
    size: Literal["tiny", "small", "medium", "base"] = option("base", shown_default="base")
    batch: int | None = option(None, shown_default="by case and size")
    length: int | None = option(None, shown_default="by case and size")
    pairs: int = 15
    threads: int | None = option(None, shown_default="all cores")
    kernels: Literal["on", "off", "both"] = "on"
    peer: Literal["auto", "none", "mindnlp"] = "auto"
    peer_python: Path | None = option(None, shown_default="none")
    profile: bool = False
    output_dir: Path = Path("runs/bench")


OPTIONS = BenchOptions


def run(options: BenchOptions) -> dict[str, Any]:
    """Measure, draw and write.

    Args:
        options: What the user asked for.

    Returns:
        ``cases``: a row for each case (and each choice of kernels), with ``case``, ``ours``, ``theirs`` and ``ratio``.

    Raises:
        UserError: A setting breaks its rule, or a case failed; the others are measured and written first.
    """
    from ms_gpt.bench.comparison import our_sides
    from ms_gpt.checkpoint.atomic import make_folder

    console = Console(options.quiet, options.json)
    cases, threads = _cases(options), _threads(options)
    theirs = _peer(options, console)
    folder = make_folder(options.output_dir)
    sides = our_sides(options.kernels)
    rows, failures = [], []
    for number, case in enumerate(cases, 1):
        title = f"{case.name} {case.size} ({number}/{len(cases)})"
        try:
            rows += _measure(console, title, case, sides, theirs, options, threads)
        except UserError as error:
            failures.append(f"{title}: {error}")
            console.warn(failures[-1])
        _write(folder, rows, threads)
    _show(console, rows, options)
    if failures:
        raise UserError(f"{len(failures)} of {len(cases)} cases failed; the first: {failures[0]}")
    console.note(f"{folder / 'results.json'} and {folder / 'speed.png'} hold this")
    return {"cases": rows}


def _cases(options: BenchOptions) -> list[Any]:
    from ms_gpt.bench.cases import CASES, Case, readme_cases

    if not options.case and "size" not in options.explicit:
        for name in ("batch", "length"):
            if getattr(options, name) is not None:
                raise UserError(f"--{name} needs --case or --size: without, the README's rows are timed, which have "
                                "their own")
        cases = readme_cases()
    else:
        cases = [Case.of(name, options.size, options.batch, options.length) for name in options.case or CASES]
    if options.peer == "mindnlp" and not {case.name for case in cases} <= set(MINDNLP_CASES):
        raise UserError("--peer mindnlp goes with the cases gradient and forward only, since mindnlp cannot train on a "
                        "CPU: add --case gradient --size small")
    return cases


def _threads(options: BenchOptions) -> int:
    if options.pairs < 1:
        raise UserError(f"pairs={options.pairs} is not a whole number of at least 1")
    cores = cpu_count()
    if options.threads is not None and not 1 <= options.threads <= cores:
        raise UserError(f"threads={options.threads} is outside 1 to {cores}, the cores of this machine")
    return options.threads or cores


def _peer(options: BenchOptions, console: Console) -> Any:
    """Return the side to compare with, or ``None``."""
    from ms_gpt.bench.comparison import mindnlp_side, torch_side

    if options.peer == "mindnlp":
        if options.peer_python is None:
            raise UserError("--peer mindnlp needs --peer-python: the Python of an environment that has mindnlp, which "
                            "needs a MindSpore of its own")
        return mindnlp_side(str(options.peer_python))
    if options.peer_python is not None:
        raise UserError(f"--peer-python={options.peer_python} is for --peer mindnlp: leave it out")
    side = torch_side() if options.peer == "auto" else None
    if side is None and options.peer == "auto":
        console.note(TORCH_HINT)
    return side


def _measure(console: Console, title: str, case: Any, sides: Any, theirs: Any, options: BenchOptions,
             threads: int) -> list[dict[str, Any]]:
    from ms_gpt.bench.comparison import compare

    with console.progress(options.pairs, title) as bar:

        def report(what: str, done: int) -> None:
            bar.update(done, doing=what)

        rows = compare(case, sides, theirs, options.pairs, threads, options.profile, report)
    if not rows[0]["is_quiet"]:
        console.warn(f"{title}: other programs took {rows[0]['others']:.1f} cores meanwhile, which slows PyTorch down "
                     "many times, its threads waiting for each other: measure again when the machine is quiet")
    return rows


def _write(folder: Path, rows: list[dict[str, Any]], threads: int) -> None:
    import platform

    from ms_gpt.checkpoint.atomic import write_json
    from ms_gpt.plots import speed_plot

    write_json(folder / "results.json", {"platform": platform.platform(), "threads": threads, "cases": rows})
    if rows:
        speed_plot(rows, folder / "speed.png")


def _show(console: Console, rows: list[dict[str, Any]], options: BenchOptions) -> None:
    if not rows:
        return
    speeds, resources = [], []
    peak = max(side["peak_gflops"] for row in rows for side in _sides(row))
    for row in rows:
        name = f"{row['case']} {row['size']} {row['batch']}x{row['length']}"
        name += f", {row['kernels']}" if options.kernels == "both" else ""
        speeds.append([name, _milliseconds(row["ours"]), _milliseconds(row["theirs"]), _ratio(row),
                       _pair(row, "tokens_per_second", "{:,.0f}")])
        resources.append([name, _pair(row, "gflops", "{:.0f}"),
                          " / ".join(f"{side['gflops'] / peak:.0%}" for side in _sides(row)),
                          _pair(row, "memory_mib", "{:,.0f}"), f"{row['compile_seconds']:.1f} s"])
    heading = "case, kernels" if options.kernels == "both" else "case"
    console.table([heading, "ours, ms", "theirs, ms", "ratio (quartiles)", "tokens/s"], speeds)
    console.table([heading, "GFLOP/s", f"of {peak:.0f} GFLOP/s", "memory, MiB", "first step"], resources)
    console.note("ours / theirs; GFLOP/s count matrix products only, the limit is the fastest large one measured here")
    for row in rows:
        # Their side stands in both of the rows of ours with kernels and without.
        shown = [row["our_side"]] if options.kernels == "both" and row["kernels"] == "on" else _sides(row)
        for side in shown:
            if side.get("profile"):
                whose = f"ours, kernels {row['kernels']}" if side is row["our_side"] else "theirs"
                console.table(["op", "calls", "ms", "share"],
                              [[op["op"], op["calls"], op["ms"], f"{op['share']:.1%}"] for op in side["profile"]],
                              f"{row['case']} {row['size']}, {whose}: one step by type of op")


def _sides(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [side for side in (row["our_side"], row["their_side"]) if side]


def _pair(row: dict[str, Any], key: str, form: str) -> str:
    return " / ".join(form.format(side[key]) for side in _sides(row))


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def _ratio(row: dict[str, Any]) -> str:
    if row["ratio"] is None:
        return "-"
    first, third = row["ratio_quartiles"]
    doubt = "" if row["is_quiet"] else " busy"
    return f"{row['ratio']:.2f} ({first:.2f} - {third:.2f}){doubt}"
