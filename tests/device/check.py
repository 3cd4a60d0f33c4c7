"""Check ms_gpt on this machine's Ascend NPU or GPU, against its CPU, and print a report to paste.

    python tests/device/check.py

takes Ascend, else a GPU, else the CPU (there against its own plain operations, without the fused kernels). Every row
runs in a process of its own, so that one that crashes or hangs costs no other. Exit code 0: every row holds.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# What stands in a child's log around the line that says what went wrong.
_NOISE = re.compile(r"^\s*(-+|\[(WARNING|INFO)\].*|- (C\+\+ Call|The Traceback|Ascend|Framework).*|\(.*\)|"
                    r"mindspore/ccsrc.*)?\s*$")
_PROBE = """
import json, sys, mindspore as ms
from ms_gpt import runtime
runtime.setup(sys.argv[1])
assert float((ms.Tensor([1.0, 2.0]) * 3).sum().asnumpy()) == 9
name = ""
if sys.argv[1] != "cpu":
    try:
        name = ms.hal.get_device_name(0)
    except Exception:
        pass
print(json.dumps({"name": name, "mindspore": ms.__version__}))
"""


def environment() -> dict[str, str]:
    """Return a child's environment: this checkout first, no cache of graphs."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "MS_GPT_COMPILE_CACHE": "off", "PYTHONUNBUFFERED": "1"}


def run_child(command: list[str], log: Path, limit: float, extra: dict[str, str] | None = None) -> str | None:
    """Run a command with its output in a file.

    Args:
        command: The program and its arguments.
        log: Where its output goes.
        limit: Seconds after which it is stopped.
        extra: Environment variables.

    Returns:
        ``None`` if it succeeded, else one line that says what went wrong.
    """
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                 env={**environment(), **(extra or {})}, start_new_session=True)
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return f"no result after {limit:.0f} seconds"
    if code == 0:
        return None
    text = log.read_text(encoding="utf-8", errors="replace")
    return failure(text) if code > 0 else f"ended by {signal.Signals(-code).name}; {failure(text)}"


def failure(text: str) -> str:
    """Return the line of a log that says what went wrong: of its last exception, else its last."""
    raised = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*", text, re.MULTILINE)
    lines = raised or [line for line in text.splitlines() if not _NOISE.match(line)]
    return re.sub(r"\s+", " ", lines[-1]).strip()[:200] if lines else "it said nothing"


def usable_device(wanted: str, folder: Path) -> tuple[str, dict[str, Any], list[str]]:
    """Find the device to check.

    Args:
        wanted: A device, or ``"auto"``.
        folder: For logs.

    Returns:
        The device, what it says of itself, and why the ones before it cannot be used.

    Raises:
        SystemExit: There is none.
    """
    reasons = []
    for device in ("ascend", "gpu", "cpu") if wanted == "auto" else (wanted,):
        log = folder / f"probe-{device}.log"
        error = run_child([sys.executable, "-c", _PROBE, device], log, 600)
        if error is None:
            return device, json.loads(log.read_text(encoding="utf-8", errors="replace").splitlines()[-1]), reasons
        reasons.append(f"{device}: {error}")
    raise SystemExit("\n".join(reasons))


def difference(found: Path, expected: Path) -> tuple[float, str]:
    """Compare two files of arrays.

    Args:
        found: Written by the device.
        expected: Written by the reference.

    Returns:
        The largest difference, as a share of the largest number of the expected array, and where it is. An array that
        is almost 0 everywhere is measured by the largest of all.
    """
    ours, theirs = (dict(np.load(path)) for path in (found, expected))
    if set(ours) != set(theirs):
        return float("inf"), "other arrays"
    largest = max((float(np.abs(item).max()) for item in theirs.values() if item.dtype.kind == "f"), default=1.0)
    worst, place = 0.0, ""
    for name, item in theirs.items():
        if ours[name].shape != item.shape:
            return float("inf"), f"the shape of {name}"
        if item.dtype.kind in "iu":
            gap = float((ours[name] != item).mean())
        else:
            scale = max(float(np.abs(item).max()), 1e-3 * largest, 1e-30)
            gap = float(np.abs(ours[name].astype(np.float64) - item).max()) / scale
        # Written so that NaN is the worst.
        if not gap <= worst:
            worst, place = (gap if gap == gap else float("inf")), name
    return worst, place


def check_row(name: str, device: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run one row and its reference, and compare them.

    Args:
        name: Key in ``rows.ROWS``.
        device: Where.
        options: Of the command line.
        folder: The report's.

    Returns:
        ``name``, ``title``, ``result`` (``pass``, ``FAIL`` or ``not here``), ``difference``, ``seconds``, ``note``.
    """
    row = row_table()[name]
    line = {"name": name, "title": row["title"], "difference": None, "tolerance": None, "seconds": None}
    if device not in row["devices"]:
        return {**line, "result": "not here", "note": f"for {' and '.join(row['devices'])}"}
    sides = {"device": (device, {})}
    if row["against"] == "itself":
        sides["reference"] = (device, {})
    elif row["against"]:
        sides["reference"] = ("cpu", {"MS_GPT_KERNELS": "off"})
    started = time.perf_counter()

    def run(role: str) -> str | None:
        place = folder / f"{name}-{role}"
        place.mkdir()
        where, extra = sides[role]
        # What is compared with another process of its own kind runs with the same settings.
        kind = "device" if row["against"] == "itself" else role
        command = [sys.executable, str(HERE / "rows.py"), name, where, "quick" if options.quick else "full", kind,
                   str(place)]
        return run_child(command, folder / f"{name}-{role}.log", options.timeout, extra)

    with ThreadPoolExecutor(len(sides)) as pool:
        errors = {role: error for role, error in zip(sides, pool.map(run, sides), strict=True) if error is not None}
    line["seconds"] = round(time.perf_counter() - started, 1)
    if errors:
        role = next(iter(errors))
        return {**line, "result": "FAIL", "note": f"{errors[role]} ({folder / f'{name}-{role}.log'})"}
    line["note"] = (folder / f"{name}-device" / "note.txt").read_text(encoding="utf-8").splitlines()[1]
    holds = True
    if len(sides) == 2:
        worst, place = difference(*(folder / f"{name}-{role}" / "arrays.npz" for role in ("device", "reference")))
        line |= {"difference": worst, "tolerance": row["tolerance"]}
        holds = worst <= row["tolerance"]
        if not holds:
            line["note"] = f"{place} differs by {worst:.1e}, more than {row['tolerance']:.0e}; {line['note']}"
    return {**line, "result": "pass" if holds else "FAIL"}


def row_table() -> dict[str, dict[str, Any]]:
    """Return the rows' plain settings."""
    if not _TABLE:
        # Asked of a process of its own, since importing them imports MindSpore.
        program = ("import json, sys; sys.path.insert(0, sys.argv[1]); from rows import ROWS; print(json.dumps({name: "
                   "{'title': row.title, 'against': row.against, 'tolerance': row.tolerance, 'devices': row.devices, "
                   "'is_timed': row.is_timed} for name, row in ROWS.items()}))")
        done = subprocess.run([sys.executable, "-c", program, str(HERE)], capture_output=True, text=True, check=False,
                              env=environment())
        if done.returncode:
            raise SystemExit(f"ms_gpt cannot be imported: {failure(done.stderr)}")
        _TABLE.update(json.loads(done.stdout.splitlines()[-1]))
    return _TABLE


_TABLE: dict[str, dict[str, Any]] = {}


def facts(device: str, probed: dict[str, Any], reasons: list[str]) -> dict[str, str]:
    """Return what the report says of the machine: versions, device and driver."""
    def version(package: str) -> str:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
        return "unknown"

    def first_line(*command: str) -> str:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            if done.returncode == 0:
                return next((line.strip() for line in done.stdout.splitlines() if line.strip(" +-=|")), "")
        return ""

    commit = first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty")
    source = (ROOT / "ms_gpt" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r"__version__ = [\"']([^\"']+)", source)
    told = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "ms_gpt": f"{found.group(1) if found else 'unknown'} {commit}".strip(),
        "MindSpore": probed["mindspore"], "NumPy": version("numpy"), "Python": platform.python_version(),
        "system": platform.platform(), "CPU": f"{cpu_name()}, {os.cpu_count()} threads", "checked": device,
    }
    if device == "gpu":
        told["GPU"] = first_line("nvidia-smi", "--query-gpu=name,memory.total,driver_version",
                                 "--format=csv,noheader") or probed["name"] or "unknown"
        told["CUDA_HOME"] = os.environ.get("CUDA_HOME", "not set")
    elif device == "ascend":
        told["NPU"] = probed["name"] or "unknown"
        told["driver"] = first_line("npu-smi", "info", "-v") or first_line("npu-smi", "info") or "unknown"
        told["CANN"] = os.environ.get("ASCEND_TOOLKIT_HOME") or os.environ.get("ASCEND_HOME_PATH") or "unknown"
    if reasons:
        told["not usable"] = "; ".join(reasons)
    return told


def cpu_name() -> str:
    """Return the processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def markdown(report: dict[str, Any]) -> str:
    """Return the report as text."""
    lines = [f"# ms_gpt on {report['facts']['checked']}", ""]
    lines += [f"- {key}: {value}" for key, value in report["facts"].items()]
    lines += ["", "| row | result | largest difference (allowed) | seconds | |", "|---|---|---|---|---|"]
    for row in report["rows"]:
        gap = "" if row["difference"] is None else f"{row['difference']:.1e} ({row['tolerance']:.0e})"
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        note = row["note"].replace("|", "\\|")
        lines.append(f"| {row['title']} | {row['result']} | {gap} | {seconds} | {note} |")
    counts = {word: sum(row["result"] == word for row in report["rows"]) for word in ("pass", "FAIL", "not here")}
    spent = sum(row["seconds"] or 0 for row in report["rows"])
    lines += ["", f"{', '.join(f'{count} {word}' for word, count in counts.items())}; {spent / 60:.1f} minutes"]
    return "\n".join(lines) + "\n"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog="exit code 0: every row holds")
    parser.add_argument("--device", choices=("auto", "ascend", "gpu", "cpu"), default="auto", help="default: auto")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="run these rows only (see --list)")
    parser.add_argument("--list", action="store_true", help="print the rows' names")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time, apart from those that are timed "
                        "(default: 1)")
    parser.add_argument("--timeout", type=float, default=1800, metavar="SECONDS", help="for each row (default: 1800)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/device-check"),
                        help="for logs, report.md and report.json; replaced (default: runs/device-check)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the rows, print the report, and return the exit code."""
    options = parse(arguments)
    table = row_table()
    if options.list:
        sys.stdout.write("".join(f"{name:16} {row['title']}\n" for name, row in table.items()))
        return 0
    unknown = sorted(set(options.only or ()) - set(table))
    if unknown:
        sys.stderr.write(f"--only: there is no row {', '.join(unknown)}; --list shows them\n")
        return 2
    names = [name for name in table if not options.only or name in options.only]
    folder = options.output_dir.absolute()
    marker = folder / "report.json"
    if folder.exists() and any(folder.iterdir()) and not marker.exists():
        sys.stderr.write(f"{folder} holds something else: name another --output-dir\n")
        return 2
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    marker.write_text("{}", encoding="utf-8")
    device, probed, reasons = usable_device(options.device, folder)
    report: dict[str, Any] = {"facts": facts(device, probed, reasons), "rows": []}

    def show(line: dict[str, Any]) -> dict[str, Any]:
        sys.stderr.write(f"{line['result']:8} {line['title']}: {line['note']}\n")
        sys.stderr.flush()
        return line

    with ThreadPoolExecutor(max(options.jobs, 1)) as pool:
        together = [name for name in names if not table[name]["is_timed"]]
        done = dict(zip(together, pool.map(lambda name: show(check_row(name, device, options, folder)), together),
                        strict=True))
    for name in names:
        if name not in done:
            done[name] = show(check_row(name, device, options, folder))
    report["rows"] = [done[name] for name in names]
    text = markdown(report)
    marker.write_text(json.dumps(report, indent=1), encoding="utf-8")
    (folder / "report.md").write_text(text, encoding="utf-8")
    sys.stdout.write(json.dumps(report) + "\n" if options.json else text)
    return int(any(row["result"] == "FAIL" for row in report["rows"]))


if __name__ == "__main__":
    sys.exit(main())
