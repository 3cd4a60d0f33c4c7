"""From any source to any target: which tensor becomes which, and the files written from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ms_gpt.checkpoint.atomic import replace_files
from ms_gpt.checkpoint.ckpt import write_ckpt
from ms_gpt.checkpoint.errors import CheckpointError, one_line
from ms_gpt.checkpoint.folder import GENERATION_FILE, config_bytes, write_folder
from ms_gpt.checkpoint.keymap import LoadReport, hf_name, match
from ms_gpt.checkpoint.layouts import expected_shapes
from ms_gpt.checkpoint.safetensors import write_safetensors
from ms_gpt.checkpoint.sources import Checkpoint, config_path_of, open_checkpoint
from ms_gpt.checkpoint.tensors import LazyTensors, dtype_name, stored_dtype
from ms_gpt.errors import suggest

TARGET_FORMATS = ("folder", "safetensors", "ckpt")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                   "vocab.json", "merges.txt", "encoder_bpe_40000.json", "vocab_40000.bpe")
# Suffixes of weights we do not write: a folder of such a name is never what was meant.
_FOREIGN_SUFFIXES = (".bin", ".pt", ".pth", ".npz", ".npy", ".onnx", ".h5", ".gguf", ".mindir")


@dataclass(frozen=True)
class Row:
    """One tensor's way through a conversion.

    Args:
        source: Its name in the source.
        target: Its name in the target.
        shape: Its shape.
        dtype: Its dtype in the target.
    """

    source: str
    target: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did, or would do.

    Args:
        source_format: ``"safetensors"``, ``"safetensors-shards"`` or ``"ckpt"``.
        target_format: ``"folder"``, ``"safetensors"`` or ``"ckpt"``.
        model_type: The family, such as ``"gpt2"``.
        architecture: transformers' class name of the model.
        rows: The tensors that are carried over.
        missing: Names of tensors the model needs and the source lacks.
        unexpected: Names of tensors the model has no place for; they are left out.
        mismatched: Name, expected shape and found shape.
    """

    source_format: str
    target_format: str
    model_type: str
    architecture: str
    rows: list[Row]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]


def convert(source: str | Path, target: str | Path, to: str | None = None, dtype: str | None = None,
            dry_run: bool = False, n_head: int | None = None) -> ConversionReport:
    """Convert a GPT-1 or GPT-2 checkpoint.

    Args:
        source: Model folder, ``.safetensors`` file or ``.ckpt`` file.
        target: Folder or file to write. Beside a file ``NAME.ckpt`` goes ``NAME_config.json``.
        to: ``"folder"``, ``"safetensors"`` or ``"ckpt"``; by the suffix of ``target`` if not given.
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``; the source's if not given.
        dry_run: Only report; write nothing.
        n_head: Number of attention heads, for sources that come without a configuration.

    Returns:
        What went where.

    Raises:
        CheckpointError: The source cannot be read, or lacks tensors (not raised on a dry run).
        UserError: An argument is wrong, or the target cannot be written.
    """
    target = Path(target)
    target_format = _target_format(target, to)
    dtype = None if dtype is None else dtype_name(dtype)
    checkpoint = open_checkpoint(source, n_head)
    config = checkpoint.config
    mapping, found = match(expected_shapes(config, checkpoint.architecture), checkpoint.tensors, config)
    tensors = checkpoint.tensors.renamed(mapping)
    report = _report(checkpoint, target_format, mapping, found, dtype)
    if dry_run:
        return report
    if found.missing or found.mismatched:
        raise CheckpointError(f"{source} is not a whole {checkpoint.architecture}: {found.summary()}")
    _write(Path(source), target, target_format, checkpoint, tensors, dtype)
    return report


def _target_format(target: Path, to: str | None) -> str:
    if to is not None:
        if to not in TARGET_FORMATS:
            raise CheckpointError(f"to={to!r} is not one of {', '.join(TARGET_FORMATS)}.{suggest(to, TARGET_FORMATS)}")
        return to
    if target.suffix in _FOREIGN_SUFFIXES:
        raise CheckpointError(f"{target} cannot be written: give a folder, a .safetensors file or a .ckpt file")
    return {".safetensors": "safetensors", ".ckpt": "ckpt"}.get(target.suffix, "folder")


def _report(checkpoint: Checkpoint, target_format: str, mapping: dict[str, str], found: LoadReport,
            dtype: str | None) -> ConversionReport:
    model_type = checkpoint.config.model_type
    rows = []
    for ours, source in mapping.items():
        info = checkpoint.tensors.infos[source]
        target = ours if target_format == "ckpt" else hf_name(ours, model_type)
        rows.append(Row(source, target, info.shape, stored_dtype(info, dtype)))
    return ConversionReport(checkpoint.format, target_format, model_type, checkpoint.architecture, rows,
                            found.missing, found.unexpected, found.mismatched)


def _write(source: Path, target: Path, target_format: str, checkpoint: Checkpoint, tensors: LazyTensors,
           dtype: str | None) -> None:
    config, architecture = checkpoint.config, checkpoint.architecture
    if target_format == "folder":
        write_folder(target, config, tensors, architecture, _companions(source), dtype)
        return
    if target_format == "ckpt":
        write_ckpt(target, tensors, dtype)
    else:
        on_disk = tensors.renamed({hf_name(name, config.model_type): name for name in tensors})
        write_safetensors(target, on_disk, dtype)
    content = config_bytes(config, architecture, tensors, dtype)
    beside = config_path_of(target)
    replace_files(beside.parent, {beside.name: lambda path: path.write_bytes(content)})


def _companions(source: Path) -> dict[str, bytes]:
    """Read the tokenizer and generation settings that stand in a source folder."""
    if not source.is_dir():
        return {}
    try:
        return {name: (source / name).read_bytes() for name in (*TOKENIZER_FILES, GENERATION_FILE)
                if (source / name).is_file()}
    except OSError as error:
        raise CheckpointError(f"{source} cannot be read: {one_line(error)}") from None
