"""A fuzzer: small checkpoints of every format, damaged at random, have to be read or refused in one line."""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Run as a program, it finds the package that it stands beside.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz_seeds import Parts, Seed, empty_folder, make_seeds  # noqa: E402
from hostile_helpers import EXTRA_BYTES, KNOWN, memory_limit, peak_bytes  # noqa: E402

from ms_gpt import checkpoint  # noqa: E402
from ms_gpt.errors import UserError  # noqa: E402

CPU_SECONDS = 2.0
# What breaks readers where it stands for a number, in binary and in text.
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
TEXTS = (*(str(number).encode() for number in NUMBERS), b"-1", b"1e999", b"NaN", b"null", b"true", b"[]", b"{}", b"1.5",
         b'""', b'"\\ud800\\n\\u001b[2J"', b'"../x"', b"9" * 5000, b"[" * 3000, b"[[" * 40 + b"]]" * 40, b'{"a":1}')


@dataclass(frozen=True)
class Finding:
    """A damaged checkpoint that was neither read nor refused as it should be.

    Args:
        seed: The run's seed.
        number: The number of the checkpoint in the run.
        format: The seed's name.
        what: What went wrong.
    """

    seed: int
    number: int
    format: str
    what: str

    def __str__(self) -> str:
        """Say how to see it again."""
        return f"--seed {self.seed} --only {self.number} ({self.format}): {self.what}"


@dataclass
class Summary:
    """What a run found.

    Args:
        read: How many of the damaged checkpoints could be read.
        refused: How many were refused, by format.
        findings: Those that were neither.
    """

    read: collections.Counter[str] = field(default_factory=collections.Counter)
    refused: collections.Counter[str] = field(default_factory=collections.Counter)
    findings: list[Finding] = field(default_factory=list)

    def __str__(self) -> str:
        """One line."""
        refused, read, found = self.refused.total(), self.read.total(), len(self.findings)
        return f"{refused + read + found} mutants, {refused} refused, {read} read, {found} findings"


def fuzz(count: int, seed: int, report: Callable[[int, Summary], None] | None = None,
         numbers: range | None = None) -> Summary:
    """Open damaged checkpoints.

    Args:
        count: How many.
        seed: Seed of the damages; each is told by ``seed`` and its number alone.
        report: Called after each with its number and what was found so far.
        numbers: The numbers to go through; all below ``count`` if not given.

    Returns:
        What was found.
    """
    summary = Summary()
    with tempfile.TemporaryDirectory(prefix="ms_gpt-fuzz-") as folder:
        seeds = make_seeds(Path(folder) / "seeds")
        for item in seeds:
            item.read(item.write(empty_folder(Path(folder) / "whole"), item.parts))
        others = [part for item in seeds for part in item.parts.values()]
        for number in range(count) if numbers is None else numbers:
            rng = random.Random(f"{seed}/{number}")
            item = seeds[number % len(seeds)]
            parts = damage(rng, item.parts, others)
            path = item.write(empty_folder(Path(folder) / "mutant"), parts)
            outcome = _try(item, path, convert=number // len(seeds) % 4 == 0)
            if outcome in ("read", "refused"):
                getattr(summary, outcome)[item.format] += 1
            else:
                summary.findings.append(Finding(seed, number, item.format, outcome))
            if report:
                report(number, summary)
    return summary


class _TooLongError(BaseException):
    """Raised in the middle of whatever takes too long; no ``except Exception`` catches it."""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _try(item: Seed, path: Path, convert: bool) -> str:
    """Return ``"read"``, ``"refused"``, or what is wrong."""
    start, peak = time.process_time(), peak_bytes()
    try:
        with memory_limit(), _time_limit(CPU_SECONDS):
            item.read(path)
            if convert:
                checkpoint.convert(path, path.parent / "converted", dry_run=True, **KNOWN)
        outcome = "read"
    except UserError as error:
        message = str(error)
        outcome = "refused" if message.isprintable() and 0 < len(message) < 5000 else f"message {message[:300]!r}"
    except _TooLongError:
        return f"more than {time.process_time() - start:.1f} s of CPU:\n{traceback.format_exc()}"
    except Exception as error:  # noqa: BLE001 - finding such is the purpose
        return f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    if peak_bytes() - peak > EXTRA_BYTES:
        return f"{(peak_bytes() - peak) >> 20} MB of memory"
    return outcome


def damage(rng: random.Random, parts: Parts, others: list[bytes]) -> Parts:
    """Return the pieces with a few damages in one of them."""
    name = rng.choice(list(parts))
    data = bytearray(parts[name])
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        rng.choice(_DAMAGES)(rng, data, rng.choice(others))
    return {**parts, name: bytes(data)}


def _place(rng: random.Random, data: bytearray) -> int:
    # Headers stand at the start or the end.
    where = rng.randrange(3)
    span = max(1, min(len(data), 200)) if where else max(1, len(data))
    return rng.randrange(span) if where < 2 else max(0, len(data) - 1 - rng.randrange(span))


def _flip(rng: random.Random, data: bytearray, _: bytes) -> None:
    if data:
        data[_place(rng, data) % len(data)] ^= 1 << rng.randrange(8)


def _run(rng: random.Random, data: bytearray, _: bytes) -> None:
    start, length = _place(rng, data), rng.choice((1, 4, 16, 200))
    value = rng.choice((b"\0", b"\xff", b" ", None))
    data[start:start + length] = rng.randbytes(length) if value is None else value * length


def _cut(rng: random.Random, data: bytearray, _: bytes) -> None:
    del data[_place(rng, data):]


def _remove(rng: random.Random, data: bytearray, _: bytes) -> None:
    start = _place(rng, data)
    del data[start:start + rng.choice((1, 2, 8, 100))]


def _splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    start = _place(rng, data)
    begin, length = rng.randrange(max(1, len(other))), rng.choice((8, 64, 1000))
    piece = other[begin:begin + length]
    data[start:start + rng.choice((0, len(piece)))] = piece


def _double(rng: random.Random, data: bytearray, _: bytes) -> None:
    start = _place(rng, data)
    piece = data[start:start + rng.choice((1, 10, 100, 1000))]
    data[start:start] = piece * rng.choice((1, 2, 50))


def _number(rng: random.Random, data: bytearray, _: bytes) -> None:
    width = rng.choice((1, 2, 4, 8))
    start = _place(rng, data)
    data[start:start + width] = (rng.choice(NUMBERS) % 256**width).to_bytes(width, rng.choice(("little", "big")))


def _text(rng: random.Random, data: bytearray, _: bytes) -> None:
    """Put something hostile where a number or a text stands in a text."""
    places = [match.span() for match in re.finditer(rb'\d+|"[^"]{0,80}"|true|false|null|\[[^]]{0,40}\]', data)]
    if places:
        start, end = rng.choice(places)
        data[start:end] = rng.choice(TEXTS)


_DAMAGES = (_flip, _run, _cut, _remove, _splice, _double, _number, _number, _text, _text)


def _show(number: int, summary: Summary, every: int) -> None:
    if (number + 1) % every == 0:
        sys.stdout.write(f"{summary}\n")
        sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """Run the fuzzer; 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="how many damaged checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damages")
    parser.add_argument("--only", type=int, help="number of the one to try")
    options = parser.parse_args(arguments)
    numbers = None if options.only is None else range(options.only, options.only + 1)
    every = max(1, options.count // 10)
    summary = fuzz(options.count, options.seed, lambda number, found: _show(number, found, every), numbers)
    for name in sorted(summary.read | summary.refused):
        sys.stdout.write(f"{name}: {summary.refused[name]} refused, {summary.read[name]} read\n")
    for finding in summary.findings:
        sys.stdout.write(f"finding: {finding}\n")
    sys.stdout.write(f"{summary}\n")
    return 1 if summary.findings else 0


if __name__ == "__main__":
    sys.exit(main())
