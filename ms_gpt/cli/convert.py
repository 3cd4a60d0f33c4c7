"""``ms-gpt convert``: a GPT checkpoint from one format to another."""

from __future__ import annotations

import contextlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ms_gpt.cli.options import Options, option
from ms_gpt.console import Console

if TYPE_CHECKING:
    from ms_gpt.checkpoint import ConversionReport

_LAYER = re.compile(r"(?<=\bh\.)\d+|(?<=\bblocks\.)\d+|(?<=/h)\d+")
_WORTH_A_BAR = 100_000_000

HELP = "convert a GPT checkpoint to another format"

EXAMPLES = """examples:
  ms-gpt convert hf-folder my-model                        a Hugging Face folder to a folder of ours
  ms-gpt convert pytorch_model.bin my-model --n-head 12    a bare file, without a config.json beside it
  ms-gpt convert my-model my-model.ckpt                    to MindSpore's own format
  ms-gpt convert my-model pytorch_model.bin                for torch.load
  ms-gpt convert nanogpt/ckpt.pt my-model --verify         and run both on random ids
  ms-gpt convert my-model model.pt --to mingpt             back to minGPT
  ms-gpt convert openai-community/gpt2 gpt2 --dtype bfloat16
"""


@dataclass(kw_only=True)
class ConvertOptions(Options):
    """What ``convert`` takes.

    Args:
        source: Model to read: a folder or file of any known kind, or a name on the Hugging Face hub.
        target: Folder or file to write.
        to: Format to write.
        dtype: Number format of the written weights.
        n_head: Attention heads, for a file that does not tell.
        activation_function: Activation of the MLP, for a file that does not tell.
        overwrite: Replace files that are there already.
        dry_run: Show what would be written, and write nothing.
        verify: Run source and result on random ids and show the largest difference of their outputs.
    """

    TITLE = "conversion"

    source: str = option(positional=True)
    target: Path = option(positional=True)
    to: Literal["folder", "safetensors", "ckpt", "torch", "npz", "mingpt", "mingpt-old", "nanogpt"] | None = option(
        None, shown_default="by the suffix of TARGET")
    dtype: Literal["float32", "float16", "bfloat16"] | None = option(None, shown_default="that of SOURCE")
    n_head: int | None = option(None, shown_default="what SOURCE says")
    activation_function: str | None = option(None, metavar="NAME", shown_default="what SOURCE says")
    overwrite: bool = False
    dry_run: bool = False
    verify: bool = False


OPTIONS = ConvertOptions


def run(options: ConvertOptions) -> dict[str, Any]:
    """Convert, and say what went where.

    Args:
        options: The flags.

    Returns:
        ``source_format``, ``target_format``, ``tensors``, ``missing``, ``unexpected`` and ``mismatched``; with
        ``verify`` also ``largest_difference`` and ``compared``.
    """
    from ms_gpt.checkpoint import convert

    console = Console(quiet=options.quiet, json=options.json)
    arguments = {"to": options.to, "dtype": options.dtype, "n_head": options.n_head,
                 "activation_function": options.activation_function, "overwrite": options.overwrite}
    if options.verify and not options.dry_run:
        _check_source_stays(options, convert(options.source, options.target, dry_run=True, **arguments))
    with contextlib.ExitStack() as stack:
        bar = None

        def progress(done: int, total: int) -> None:
            nonlocal bar
            if bar is None and total >= _WORTH_A_BAR:
                bar = stack.enter_context(console.progress(total / 1e6, "converting, MB"))
            if bar is not None:
                bar.update(done / 1e6)

        report = convert(options.source, options.target, dry_run=options.dry_run, progress=progress, **arguments)
    _show(console, options, report)
    result = {
        "source_format": report.source_format,
        "target_format": report.target_format,
        "tensors": [asdict(row) for row in report.rows],
        "missing": report.missing,
        "unexpected": report.unexpected,
        "mismatched": [{"name": name, "expected": expected, "found": found}
                       for name, expected, found in report.mismatched],
    }
    if options.verify and not options.dry_run:
        result |= _verify(console, options, report)
    in_the_way = {"replaced": report.replaced, "removed": report.removed}
    if options.dry_run and not options.overwrite and any(in_the_way.values()):
        first = next(path for paths in in_the_way.values() for path in paths)
        console.note(f"{first} is there already: nothing would be written without --overwrite")
        return result
    for what, paths in in_the_way.items():
        if paths:
            console.note(f"{'to be ' if options.dry_run else ''}{what}: {', '.join(map(str, paths))}")
    if options.dry_run:
        return result
    if report.target_format == "folder":
        _show_next(console, options, report)
    elif _has_tokenizer(Path(options.source)):
        console.note(f"the tokenizer stays in {options.source}: a file has no room for it, a folder as target has")
    return result


def _show(console: Console, options: ConvertOptions, report: ConversionReport) -> None:
    from ms_gpt.checkpoint.files import config_path_of

    config = report.config
    console.header("convert", {
        "source": options.source,
        "recognised": f"{report.architecture}, {report.source_format}",
        "model": f"{config.n_layer} layers x {config.n_embd}, {config.n_head} heads, {config.n_positions} positions, "
                 f"{config.vocab_size} tokens, {config.activation_function}",
        "target": options.target, "format": report.target_format})
    if not options.quiet:
        _show_table(console, report)
    for note in report.notes:
        console.warn(note)
    mismatched = [f"{name} {found} instead of {expected}" for name, expected, found in report.mismatched]
    for kind, names in (("missing", report.missing), ("of another shape", mismatched),
                        ("left out, the model has no place for them", report.unexpected)):
        if names:
            console.warn(f"{len(names)} {kind}: {', '.join(names)}")
    count = len(report.rows)
    if not options.dry_run:
        beside = "" if report.target_format == "folder" else f", the configuration is {config_path_of(options.target)}"
        console.result(f"{count} tensors written to {options.target}{beside}")
    elif report.missing or report.mismatched:
        console.result(f"dry run: nothing would be written, {options.source} is not a whole {report.architecture}")
    else:
        console.result(f"dry run: {count} tensors would be written to {options.target}")


def _show_table(console: Console, report: ConversionReport) -> None:
    """Show a line for each kind of tensor, the layers taken together; --json has every one."""
    kinds: dict[tuple[str, ...], list[int]] = {}
    for row in report.rows:
        layer = _LAYER.search(row.target)
        kind = (_LAYER.sub("{}", row.source), _LAYER.sub("{}", row.target), " x ".join(map(str, row.shape)), row.dtype,
                "yes" if row.transposed else "")
        kinds.setdefault(kind, []).append(int(layer[0]) if layer else -1)
    rows = []
    for (source, target, *rest), layers in kinds.items():
        which = str(layers[0]) if len(layers) == 1 else f"{{{min(layers)}..{max(layers)}}}"
        rows.append([target.replace("{}", which), "" if source == target else source.replace("{}", which) or "(new)",
                     *rest])
    columns = ["target", "source", "shape", "dtype", "transposed"]
    used = [index for index in range(len(columns)) if index == 0 or any(row[index] for row in rows)]
    console.table([columns[index] for index in used], [[row[index] for index in used] for row in rows])


def _check_source_stays(options: ConvertOptions, report: ConversionReport) -> None:
    """Refuse to compare a source that afterwards would be read from the very file that is written."""
    from ms_gpt.checkpoint.files import MODEL_FILES, WEIGHTS_FILE
    from ms_gpt.errors import UserError

    source = Path(options.source)
    written = options.target / WEIGHTS_FILE if report.target_format == "folder" else options.target
    if source.is_dir() and written.parent.is_dir() and source.samefile(written.parent):
        # The first of them that is there is read; where there is none, the only weights of any name.
        there = [name for name in MODEL_FILES if (source / name).exists() or name == written.name]
        is_lost = not there or there[0] == written.name
    else:
        is_lost = source.is_file() and written.is_file() and source.samefile(written)
    if is_lost:
        raise UserError(f"--verify needs {source} as it was, and {written} would take its place: choose another target")


def _verify(console: Console, options: ConvertOptions, report: ConversionReport) -> dict[str, Any]:
    from ms_gpt.verify import compare

    known = {"n_head": report.config.n_head, "activation_function": report.config.activation_function}
    found = compare(options.source, options.target, known)
    console.result(f"verified on random ids: {found.first} and {found.second} differ by at most "
                   f"{found.largest_difference:.1e}, the outputs being as large as {found.largest_output:.1e}")
    if not found.is_close(options.dtype or "float32"):
        console.warn("that is more than rounding explains: do not use the result, and report the fault")
    return {"largest_difference": found.largest_difference, "compared": [found.first, found.second]}


def _has_tokenizer(folder: Path) -> bool:
    from ms_gpt.checkpoint.files import has_tokenizer

    return folder.is_dir() and has_tokenizer({path.name for path in folder.iterdir()})


def _show_next(console: Console, options: ConvertOptions, report: ConversionReport) -> None:
    from ms_gpt.checkpoint.files import has_tokenizer

    if _has_tokenizer(options.target) and not has_tokenizer(report.files_beside):
        console.note(f"the tokenizer in {options.target} was there before: see that it is this model's")
    elif _has_tokenizer(options.target):
        if report.architecture.endswith("ForSequenceClassification"):
            console.next_command("predict", "--model", options.target)
        elif report.architecture.endswith("LMHeadModel"):
            console.next_command("generate", "--model", options.target, "Once upon a time")
        else:
            console.next_command("finetune", "--model", options.target)
    else:
        console.note(f"no tokenizer was found beside {options.source}: copy its files to {options.target} before use")
