"""``ms-gpt convert``: a GPT checkpoint from one format to another."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ms_gpt.cli.options import Options, option
from ms_gpt.console import Console

if TYPE_CHECKING:
    from ms_gpt.checkpoint import ConversionReport

HELP = "convert a GPT-1 or GPT-2 checkpoint to another format"

EXAMPLES = """examples:
  ms-gpt convert hf-folder my-model                    a Hugging Face folder to a folder of ours
  ms-gpt convert my-model my-model.ckpt                to MindSpore's own format
  ms-gpt convert weights.safetensors out --n-head 12   a bare file, without a config.json beside it
"""


@dataclass(kw_only=True)
class ConvertOptions(Options):
    """What ``convert`` takes.

    Args:
        source: Model folder, .safetensors file or .ckpt file to read.
        target: Folder or file to write.
        to: Format to write.
        dtype: Number format of the written weights.
        n_head: Attention heads, for a file without a config.json beside it.
        dry_run: Show what would be written, and write nothing.
    """

    TITLE = "conversion"

    source: Path = option(positional=True)
    target: Path = option(positional=True)
    to: Literal["folder", "safetensors", "ckpt"] | None = option(None, shown_default="by the suffix of TARGET")
    dtype: Literal["float32", "float16", "bfloat16"] | None = option(None, shown_default="that of SOURCE")
    n_head: int | None = option(None, shown_default="from the config.json")
    dry_run: bool = False


OPTIONS = ConvertOptions


def run(options: ConvertOptions) -> dict[str, Any]:
    """Convert, and say what went where.

    Args:
        options: The flags.

    Returns:
        ``source_format``, ``target_format``, ``tensors``, ``missing``, ``unexpected`` and ``mismatched``.
    """
    from ms_gpt.checkpoint import convert

    report = convert(options.source, options.target, to=options.to, dtype=options.dtype, dry_run=options.dry_run,
                     n_head=options.n_head)
    _show(Console(quiet=options.quiet, json=options.json), options, report)
    return {
        "source_format": report.source_format,
        "target_format": report.target_format,
        "tensors": [asdict(row) for row in report.rows],
        "missing": report.missing,
        "unexpected": report.unexpected,
        "mismatched": [{"name": name, "expected": expected, "found": found}
                       for name, expected, found in report.mismatched],
    }


def _show(console: Console, options: ConvertOptions, report: ConversionReport) -> None:
    console.header("convert", {"source": options.source, "recognised": f"{report.architecture}, {report.source_format}",
                               "target": options.target, "format": report.target_format})
    if not options.quiet:
        console.table(["source", "target", "shape", "dtype"],
                      [[row.source, row.target, " x ".join(map(str, row.shape)), row.dtype] for row in report.rows])
    mismatched = [f"{name} {found} instead of {expected}" for name, expected, found in report.mismatched]
    for kind, names in (("missing", report.missing), ("of another shape", mismatched),
                        ("left out, the model has no place for them", report.unexpected)):
        if names:
            console.warn(f"{len(names)} {kind}: {', '.join(names)}")
    count = len(report.rows)
    if options.dry_run:
        console.result(f"dry run: {count} tensors would be written to {options.target}")
        return
    console.result(f"{count} tensors written to {options.target}")
    if report.target_format == "folder":
        verb = "predict" if report.architecture.endswith("ForSequenceClassification") else "finetune"
        console.next_command(verb, "--model", options.target)
