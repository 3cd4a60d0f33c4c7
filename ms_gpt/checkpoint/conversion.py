"""From any source to any target: which tensor becomes which, and the files written from it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ms_gpt.checkpoint import ckpt, foreign, npz, openai, safetensors, torch_file
from ms_gpt.checkpoint.atomic import explain_os_errors, replace_files
from ms_gpt.checkpoint.errors import CheckpointError, one_line
from ms_gpt.checkpoint.files import (
    CONFIG_FILE,
    GENERATION_FILE,
    OPENAI_TOKENIZER,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    config_beside,
    config_path_of,
    has_tokenizer,
    is_weights,
)
from ms_gpt.checkpoint.folder import config_bytes, files_beside
from ms_gpt.checkpoint.foreign import Origin
from ms_gpt.checkpoint.hub import resolve
from ms_gpt.checkpoint.keymap import LM_HEAD, PREFIX, TOKENS, hf_name, match
from ms_gpt.checkpoint.layouts import architecture_name, expected_shapes
from ms_gpt.checkpoint.sources import Checkpoint, open_checkpoint
from ms_gpt.checkpoint.tensors import LazyTensors, dtype_name, stored_dtype
from ms_gpt.config import GPTConfig
from ms_gpt.errors import suggest

TARGET_FORMATS = ("folder", "safetensors", "ckpt", "torch", "npz", *foreign.WRITTEN)
_FORMAT_BY_SUFFIX = {".safetensors": "safetensors", ".ckpt": "ckpt", ".npz": "npz", ".bin": "torch", ".pt": "torch",
                     ".pth": "torch"}
# Suffixes of weights we do not write: a folder of such a name is never what was meant.
_FOREIGN_SUFFIXES = (".npy", ".onnx", ".h5", ".gguf", ".mindir", ".index", ".gz", ".tar", ".zip", ".msgpack", ".pkl",
                     ".pickle", ".json")
_MAX_COMPANION = 64 * 2**20
# A mask of so many positions takes 256 MB in each layer.
_MAX_MASK = 8192
_ERF = ("gelu", "gelu_exact")
_TANH = ("gelu_new", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class Row:
    """One tensor's way through a conversion.

    Args:
        source: Its name in the source; several, joined by " + ", where it is put together; empty where it is made anew.
        target: Its name in the target.
        shape: Its shape in the target.
        dtype: Its dtype in the target.
        transposed: Whether rows and columns changed places on the way.
    """

    source: str
    target: str
    shape: tuple[int, ...]
    dtype: str
    transposed: bool


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did, or would do.

    Args:
        source_format: What was recognised: ``"safetensors"``, ``"torch"``, ``"torch-shards"``, ``"npz"``, ``"ckpt"``,
            ``"mingpt"``, ``"mingpt-old"``, ``"nanogpt"``, ``"openai-gpt1"`` or ``"openai-gpt2"``.
        target_format: One of ``TARGET_FORMATS``.
        model_type: The family, such as ``"gpt2"``.
        architecture: transformers' class name of the model.
        rows: The tensors that are written.
        missing: Names of tensors the model needs and the source lacks.
        unexpected: Names of tensors the model has no place for; they are left out.
        mismatched: Name, expected shape and found shape.
        notes: What was assumed, and what the target cannot say.
        config: The model's configuration.
        files_beside: Names of the files that are written beside the weights.
        replaced: Files that are there already, and are replaced or, with ``dry_run``, would be.
        removed: Parts of another tokenizer that are there already, and are removed or would be.
    """

    source_format: str
    target_format: str
    model_type: str
    architecture: str
    rows: list[Row]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    notes: tuple[str, ...]
    config: GPTConfig
    files_beside: list[str]
    replaced: list[Path]
    removed: list[Path]


def convert(source: str | Path, target: str | Path, to: str | None = None, dtype: str | None = None,
            dry_run: bool = False, n_head: int | None = None, activation_function: str | None = None,
            progress: Callable[[int, int], None] | None = None, overwrite: bool = True) -> ConversionReport:
    """Convert a GPT checkpoint; one block of one tensor at a time is in memory.

    Args:
        source: Model folder or file in any known format, or the name of a model on the hub.
        target: Folder or file to write. Beside a file ``NAME.ckpt`` goes ``NAME_config.json``.
        to: One of ``TARGET_FORMATS``; by the suffix of ``target`` if not given.
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``; the source's if not given.
        dry_run: Only report; write nothing.
        n_head: Number of attention heads, for sources that do not tell.
        activation_function: Activation of the MLP, for sources that do not tell.
        progress: Called with the bytes converted so far and the bytes in all.
        overwrite: Replace files that are there already, as ``save_pretrained`` does.

    Returns:
        What went where.

    Raises:
        CheckpointError: The source cannot be read, lacks tensors or would replace a file that ``overwrite`` protects
            (both not raised on a dry run), the target's format cannot hold the model, or other weights there would be
            read with its configuration.
        UserError: An argument is wrong, or the target cannot be written.
    """
    target = Path(target)
    target_format = _target_format(target, to)
    dtype = None if dtype is None else dtype_name(dtype)
    source = resolve(source)
    checkpoint = open_checkpoint(source, n_head, activation_function)
    if target_format in foreign.WRITTEN:
        checkpoint = _as_language_model(checkpoint, target_format)
    config = checkpoint.config
    mapping, found = match(expected_shapes(config, checkpoint.architecture), checkpoint.tensors, config)
    is_whole = not (found.missing or found.mismatched)
    tensors, origins, notes = _for_target(checkpoint, target_format, mapping, is_whole)
    folder, weights = (target, WEIGHTS_FILE) if target_format == "folder" else (target.parent, target.name)
    beside = _beside(source, target, target_format, checkpoint, tensors, dtype)
    in_the_way = partial(_in_the_way, folder, weights, beside)
    replaced, removed = in_the_way()
    rows = [Row(" + ".join(origins[name].names), name, info.shape, stored_dtype(info, dtype), origins[name].transposed)
            for name, info in tensors.infos.items()]
    report = ConversionReport(checkpoint.format, target_format, config.model_type, checkpoint.architecture, rows,
                              found.missing, found.unexpected, found.mismatched, notes, config, list(beside), replaced,
                              removed)
    if dry_run:
        return report
    if not is_whole:
        raise CheckpointError(f"{source} is not a whole {checkpoint.architecture}: {found.summary()}")

    def protect() -> None:
        kept = [] if overwrite else [path for paths in in_the_way() for path in paths]
        if kept:
            raise CheckpointError(f"{kept[0]} is there already: give another target, or --overwrite")

    protect()
    write = _writer(target_format, config, tensors)
    tensors = _watched(tensors, progress)
    # Once more before the renames: another program may have written there meanwhile.
    replace_files(folder, {weights: lambda path: write(path, tensors, dtype=dtype),
                           **{name: partial(Path.write_bytes, data=content) for name, content in beside.items()}},
                  protect)
    for path in removed:
        with explain_os_errors(path, "removed"):
            path.unlink()
    return report


def _target_format(target: Path, to: str | None) -> str:
    if to is not None:
        if to not in TARGET_FORMATS:
            raise CheckpointError(f"to={to!r} is not one of {', '.join(TARGET_FORMATS)}.{suggest(to, TARGET_FORMATS)}")
        return to
    if target.suffix in _FOREIGN_SUFFIXES:
        raise CheckpointError(f"{target} cannot be written: give a folder, or a file that ends in "
                              f"{', '.join(_FORMAT_BY_SUFFIX)}")
    return _FORMAT_BY_SUFFIX.get(target.suffix, "folder")


def _as_language_model(checkpoint: Checkpoint, target_format: str) -> Checkpoint:
    """Check that minGPT or nanoGPT computes what the model does; a bare transformer counts as a language model."""
    config, title = checkpoint.config, foreign.WRITTEN[target_format].title
    if not checkpoint.architecture.endswith(("LMHeadModel", "Model")) or "DoubleHeads" in checkpoint.architecture:
        raise CheckpointError(f"{title} holds language models only, and this is a {checkpoint.architecture}")
    wrong = [f"{key}={value!r}" for key, value, needed in (
        ("model_type", config.model_type, "gpt2"), ("n_inner", config.inner_size, 4 * config.n_embd),
        ("scale_attn_weights", config.scale_attn_weights, True),
        ("scale_attn_by_inverse_layer_idx", config.scale_attn_by_inverse_layer_idx, False),
        ("layer_norm_epsilon", config.layer_norm_epsilon, 1e-5)) if value != needed]
    if config.activation_function not in (*_ERF, *_TANH):
        wrong.append(f"activation_function={config.activation_function!r}")
    if target_format == "nanogpt" and not config.tie_word_embeddings:
        wrong.append("tie_word_embeddings=False")
    if foreign.WRITTEN[target_format].mask and config.n_positions > _MAX_MASK:
        raise CheckpointError(f"{title} keeps n_positions x n_positions numbers in each layer: "
                              f"n_positions={config.n_positions} is more than {_MAX_MASK}")
    if wrong:
        raise CheckpointError(f"{title} cannot express {', '.join(wrong)}: its model would be another function")
    return replace(checkpoint, architecture=architecture_name(config.model_type, "LMHeadModel"))


def _for_target(checkpoint: Checkpoint, target_format: str, mapping: Mapping[str, str],
                is_whole: bool) -> tuple[LazyTensors, dict[str, Origin], tuple[str, ...]]:
    """Name and shape the tensors as the target has them; and say where each comes from, and what is lost."""
    config, notes = checkpoint.config, checkpoint.notes
    in_memory = target_format == "ckpt"
    names = {ours if in_memory else hf_name(ours, config.model_type): source for ours, source in mapping.items()}
    layout = foreign.WRITTEN.get(target_format) if is_whole else None
    if layout is not None:
        names.setdefault(LM_HEAD, mapping[PREFIX + TOKENS])
    hf = checkpoint.tensors.renamed(names)
    origins = {name: checkpoint.origins[source] for name, source in names.items()}
    if layout is None:
        return hf, origins, notes
    tensors, made_of = foreign.from_hf(layout, hf, config.n_positions, _has_no_biases(config, hf, layout))
    joined = {name: Origin(tuple(one for part in origin.names for one in origins[part].names),
                           origin.transposed != any(origins[part].transposed for part in origin.names))
              for name, origin in made_of.items()}
    is_erf = config.activation_function in _ERF
    if is_erf != (layout.activation in _ERF):
        notes += (f"{layout.title} computes the {'tanh' if is_erf else 'erf'} form of GELU and this model the "
                  f"{'erf' if is_erf else 'tanh'} form: there its logits will differ in about the third decimal",)
    return tensors, joined, notes


def _has_no_biases(config: GPTConfig, tensors: LazyTensors, layout: foreign.Layout) -> bool:
    """Say whether the model came from nanoGPT without biases, and still has none."""
    if layout is not foreign.NANOGPT or config.extra.get("bias") is not False:
        return False
    return all(not tensors[name].any() for name in tensors if name.endswith(".bias"))


def _watched(tensors: LazyTensors, progress: Callable[[int, int], None] | None) -> LazyTensors:
    if progress is None:
        return tensors
    done, total = 0, sum(info.nbytes for info in tensors.infos.values())

    def observe(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return tensors.observed(observe)


def _beside(source: Path, target: Path, target_format: str, checkpoint: Checkpoint, tensors: LazyTensors,
            dtype: str | None) -> dict[str, bytes]:
    """Return what is written beside the weights, file name to content."""
    config, architecture = checkpoint.config, checkpoint.architecture
    if target_format == "folder":
        if target.is_file():
            raise CheckpointError(f"{target} is a file: give a folder")
        if (target / openai.SHAPES_FILE).exists():
            raise CheckpointError(f"{target} is read as OpenAI's model, for its {openai.SHAPES_FILE}: choose another "
                                  "folder")
        _check_others(_others(target / CONFIG_FILE, target / WEIGHTS_FILE, source), target / WEIGHTS_FILE, checkpoint)
        return files_beside(config, tensors, architecture, _companions(checkpoint.folder), dtype)
    if target.is_dir():
        raise CheckpointError(f"{target} is a folder: give the name of a file")
    path = config_path_of(target)
    others = _others(path, target, source)
    bare = [file for file, theirs in others.items() if theirs is None]
    if bare:
        raise CheckpointError(f"{bare[0]} has no configuration and would be read with that of {target.name}: choose "
                              "another folder")
    _check_others(others, target, checkpoint)
    return {} if others else {path.name: config_bytes(config, architecture, tensors, dtype)}


def _others(path: Path, weights: Path, source: Path) -> dict[Path, Path | None]:
    """Return the weights that would be read with this configuration too, and the one that each is read with now."""
    files: list[Path] = []
    with contextlib.suppress(OSError):
        files = sorted(file for file in weights.parent.iterdir() if is_weights(file) and file.is_file())
    return {file: config_beside(file) for file in files if file.name != weights.name and _is_read_with(file, path)
            and not (source.exists() and file.samefile(source))}


def _check_others(others: Mapping[Path, Path | None], weights: Path, checkpoint: Checkpoint) -> None:
    for file, theirs in others.items():
        if theirs is not None and not _says(theirs, checkpoint):
            raise CheckpointError(f"{theirs} belongs to {file.name} and says otherwise: choose another name or folder "
                                  f"than {weights}")


def _is_read_with(weights: Path, path: Path) -> bool:
    own = config_path_of(weights)
    return own == path or (path.name == CONFIG_FILE and not own.is_file())


def _says(path: Path, checkpoint: Checkpoint) -> bool:
    stated = GPTConfig.from_json(path)
    written = GPTConfig.from_dict(checkpoint.config.to_dict())
    named = stated.extra.get("architectures") or [checkpoint.architecture]
    return stated.replace(extra={}) == written.replace(extra={}) and named[0] == checkpoint.architecture


def _in_the_way(folder: Path, weights: str, beside: Mapping[str, bytes]) -> tuple[list[Path], list[Path]]:
    """Return the files that are there and are replaced, and those of another tokenizer, which are removed."""
    changed = [name for name, content in beside.items() if _differs(folder / name, content)]
    # They would be read together with the new tokenizer's files, or in place of them.
    stale = [name for name in TOKENIZER_FILES if name not in beside] if has_tokenizer(beside) else []
    replaced = [folder / name for name in (weights, *changed) if os.path.lexists(folder / name)]
    removed = [folder / name for name in stale if (folder / name).is_file() or (folder / name).is_symlink()]
    return replaced, removed


def _differs(path: Path, content: bytes) -> bool:
    return not path.is_file() or path.stat().st_size != len(content) or path.read_bytes() != content


def _writer(target_format: str, config: GPTConfig, tensors: LazyTensors) -> Callable[..., object]:
    writers = {"folder": safetensors.write_to, "ckpt": ckpt.write_to, "safetensors": safetensors.write_to,
               "npz": npz.write_to, "nanogpt": partial(torch_file.write_to, model_args=_model_args(config, tensors))}
    return writers.get(target_format, torch_file.write_to)


def _model_args(config: GPTConfig, tensors: LazyTensors) -> dict[str, object]:
    return {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd,
            "block_size": config.n_positions, "bias": any(name.endswith(".bias") for name in tensors),
            "vocab_size": config.vocab_size, "dropout": float(config.resid_pdrop)}


def _companions(folder: Path | None) -> dict[str, bytes]:
    """Read the tokenizer and generation settings that stand in a source folder."""
    if folder is None:
        return {}
    names = {name: name for name in (*TOKENIZER_FILES, GENERATION_FILE)}
    if all((folder / old).is_file() and not (folder / new).exists() for old, new in OPENAI_TOKENIZER.items()):
        names |= OPENAI_TOKENIZER
    try:
        found = {new: folder / old for old, new in names.items() if (folder / old).is_file()}
        large = next((path for path in found.values() if path.stat().st_size > _MAX_COMPANION), None)
        if large is not None:
            raise CheckpointError(f"{large} is larger than {_MAX_COMPANION} bytes: that is no tokenizer's file")
        return {new: path.read_bytes() for new, path in found.items()}
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {one_line(error)}") from None
