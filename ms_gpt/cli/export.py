"""``ms-gpt export``: a model as a MINDIR file that runs without this library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ms_gpt.cli.options import Options, option
from ms_gpt.console import Console

if TYPE_CHECKING:
    from ms_gpt.export import ExportReport
    from ms_gpt.pretrained import GPTPreTrainedModel

HELP = "write a language model or a classifier as a MINDIR file"
EXAMPLES = """examples:
  ms-gpt export runs/sample/best classifier.mindir --length 128   one text at a time, padded to 128 tokens
  ms-gpt export my-gpt2 gpt2.mindir --batch-size 8                eight rows of as many tokens as the model takes
  ms-gpt export my-gpt2 gpt2.mindir --length 64 --json            one JSON object, for scripts

The file takes input_ids and attention_mask of that one shape, and returns the logits. Padding may stand on either
side. It is loaded back and compared with the model before it replaces a file of that name.
"""


@dataclass(kw_only=True)
class ExportOptions(Options):
    """What ``export`` takes.

    Args:
        source: Model to read: a folder or file of any kind that convert reads, or a name on the Hugging Face hub.
        target: File to write; .mindir is added to a name without a suffix.
        batch_size: Rows of the inputs; the file takes no other number.
        length: Tokens in a row; the file takes no other number.
        n_head: Attention heads, for a source that does not tell.
        activation_function: Activation of the MLP, for a source that does not tell.
        device: Where the file is compared with the model; auto takes Ascend, then GPU, then CPU.
    """

    TITLE = "export"

    source: str = option(positional=True)
    target: Path = option(positional=True)
    batch_size: int = 1
    length: int | None = option(None, shown_default="the model's n_positions")
    n_head: int | None = option(None, shown_default="what SOURCE says")
    activation_function: str | None = option(None, metavar="NAME", shown_default="what SOURCE says")
    device: Literal["auto", "cpu", "gpu", "ascend"] = "auto"


OPTIONS = ExportOptions


def run(options: ExportOptions) -> dict[str, Any]:
    """Export, compare, and show how the file is run.

    Args:
        options: The flags.

    Returns:
        ``path``, ``files``, ``batch_size``, ``length``, ``inputs``, ``outputs`` and ``largest_difference``.
    """
    from ms_gpt import runtime
    from ms_gpt.export import export_mindir, mindir_path
    from ms_gpt.heads import AutoModel

    console = Console(quiet=options.quiet, json=options.json)
    # Before a large model is read.
    target = mindir_path(options.target)
    device = runtime.setup(options.device).device
    known = {key: value for key in ("n_head", "activation_function") if (value := getattr(options, key)) is not None}
    model = AutoModel.from_pretrained(options.source, **known)
    console.header("export", {"source": options.source, "model": f"{type(model).__name__}, {model.config.model_type}",
                              "parameters": f"{model.num_parameters():,}", "target": target, "device": device})
    with console.compiling():
        report = export_mindir(model, target, options.batch_size, options.length)
    _show(console, model, report)
    return {
        "path": report.path,
        "files": report.files,
        "batch_size": report.batch_size,
        "length": report.length,
        "inputs": report.inputs,
        "outputs": report.outputs,
        "largest_difference": report.largest_difference,
    }


def _show(console: Console, model: GPTPreTrainedModel, report: ExportReport) -> None:
    if not console.quiet:
        rows = [[kind, item["name"], " x ".join(map(str, item["shape"])), item["dtype"]]
                for kind, items in (("input", report.inputs), ("output", report.outputs)) for item in items]
        console.table(["", "name", "shape", "dtype"], rows)
    for path in report.files:
        console.result(f"{path}\t{path.stat().st_size / 1e6:,.1f} MB")
    console.result(f"{type(model).__name__} written to {report.path}; loaded back, its logits differ by at most "
                   f"{report.largest_difference:.1e}")
    if len(report.files) > 1:
        console.note(f"keep {report.path.name} and {report.files[0].parent.name} in one folder: the weights are in it")
    if report.warning:
        console.warn(report.warning)
    console.note(f"\nto run it, without this library:\n\n{report.code()}")
