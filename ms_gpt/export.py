"""Export to MINDIR: a graph of one shape with its weights, which runs where there is nothing but MindSpore."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ms_gpt.checkpoint.atomic import explain_os_errors, make_folder, replace_file
from ms_gpt.errors import UserError
from ms_gpt.heads import GPTForSequenceClassification, GPTLMHeadModel
from ms_gpt.pretrained import GPTPreTrainedModel

SUFFIX = ".mindir"
TOLERANCE = 1e-6
# The characters that mindspore.export takes in a path.
_PLAIN = r"[0-9A-Za-z@_.:/\\-]"


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Args:
        path: The file to give to ``mindspore.load``.
        files: All files written, ``path`` last; the others hold the weights of a model of more than 1 GB.
        batch_size: B, rows of the inputs.
        length: T, tokens in a row.
        inputs: ``name``, ``shape`` and ``dtype`` of each input, in their order.
        outputs: The same of the output.
        largest_difference: Largest absolute difference between the logits of the file, loaded back, and those of the
            model, on random ids with padding on the left and on the right.
    """

    path: Path
    files: list[Path]
    batch_size: int
    length: int
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    largest_difference: float

    @property
    def warning(self) -> str | None:
        """What to say when the file does not compute what the model computes; else ``None``."""
        # Written so that NaN warns too.
        if self.largest_difference < TOLERANCE:
            return None
        return (f"the logits of {self.path} differ from the model's by up to {self.largest_difference:.1e}, "
                f"and should by less than {TOLERANCE:.0e}: check them before use")

    def code(self) -> str:
        """Return the lines of Python that run the file; they need ``mindspore`` and ``numpy`` only."""
        shape, outputs = self.inputs[0]["shape"], self.outputs[0]["shape"]
        return f"""import mindspore as ms
import numpy as np

ms.set_context(mode=ms.GRAPH_MODE)
model = ms.nn.GraphCell(ms.load({str(self.path)!r}))
input_ids = np.zeros({shape}, np.int32)  # token ids, with padding on either side
attention_mask = np.ones({shape}, np.int32)  # 1 for real tokens, 0 for padding
logits = model(ms.Tensor(input_ids), ms.Tensor(attention_mask)).asnumpy()  # {outputs}
"""


class _Exported(nn.Cell):
    """The Cell that is written: two inputs, one output, positions counted from the mask."""

    def __init__(self, model: GPTPreTrainedModel) -> None:
        # A prefix would rename the model's parameters for good.
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits for int32 Tensors (B, T)."""
        # Counted in float32, since Ascend has no integer reductions; exact to 2**24.
        is_real = (attention_mask != 0).astype(ms.float32)
        position_ids = ops.maximum(ops.cumsum(is_real, -1) - 1.0, 0.0).astype(ms.int32)
        return self.model(input_ids, attention_mask, None, position_ids)[0]


def export_mindir(model: GPTPreTrainedModel, path: str | Path, batch_size: int = 1,
                  length: int | None = None) -> ExportReport:
    """Write a language model or a classifier to a MINDIR file, load it back and compare it with the model.

    The file takes ``input_ids`` and ``attention_mask`` (1 for real tokens, 0 for padding), both int32 (B, T), and
    returns the logits: (B, T, V), or (B, num_labels) of a classifier. Position ids are counted from the mask, so
    padding on either side changes nothing. A model of more than 1 GB is written as the file and a folder
    ``NAME_variables`` beside it, which have to stay together.

    Args:
        model: A ``GPTLMHeadModel`` or a ``GPTForSequenceClassification``; it is exported in evaluation mode.
        path: The file; ``.mindir`` is added to a name without a suffix. A file that is there is replaced whole, when
            the new one has been loaded back.
        batch_size: B, at least 1; the file takes no other.
        length: T, from 1 to ``n_positions``; the file takes no other. Default: ``n_positions``.

    Returns:
        What was written, and the largest difference from the model.

    Raises:
        UserError: The model is of another kind, an argument is out of range, or the file cannot be written.
    """
    target = mindir_path(path)
    _check_model(model)
    limit = model.config.n_positions
    length = _whole_number("length", limit if length is None else length, limit, f"n_positions={limit}")
    batch_size = _whole_number("batch_size", batch_size)
    too_large = f"batch_size={batch_size} by length={length} is more than this machine can hold: take fewer rows"
    if batch_size * length >= 2**31:
        raise UserError(too_large)
    was_training, wanted_kernels = model.training, model.wants_kernels
    model.set_train(False)
    # A kernel of this machine's would run on no other.
    model.want_kernels(False)
    try:
        with explain_os_errors(target), _workspace(target) as folder:
            graph = _write(_Exported(model), folder, _free_prefix(target), (batch_size, length))
            logits, difference = _compare(graph, model, (batch_size, length))
            files = _move(graph, target)
    except MemoryError:
        raise UserError(too_large) from None
    finally:
        model.set_train(was_training)
        model.want_kernels(wanted_kernels)
    inputs = [_described(name, (batch_size, length), ms.int32) for name in ("input_ids", "attention_mask")]
    outputs = [_described("logits", logits.shape, logits.dtype)]
    return ExportReport(target, files, batch_size, length, inputs, outputs, difference)


def mindir_path(path: str | Path) -> Path:
    """Return the file that an export to ``path`` writes.

    Args:
        path: What the user gave.

    Returns:
        The path, ``.mindir`` added where it has no suffix.

    Raises:
        UserError: It has another suffix, or is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the file to write, such as {path / 'model.mindir'}")
    if path.suffix in ("", SUFFIX):
        target = path.with_name(path.name.removesuffix(SUFFIX) + SUFFIX)
        if target.is_dir():
            raise UserError(f"{target} is a folder: choose another name for the file")
        return target
    raise UserError(f"{path} ends in {path.suffix!r}, and MindSpore loads {SUFFIX} files only: "
                    f"write {path.name}{SUFFIX} or {path.stem}{SUFFIX}")


def _check_model(model: Any) -> None:
    kinds = (GPTLMHeadModel, GPTForSequenceClassification)
    if not isinstance(model, kinds) or "attention_mask" not in inspect.signature(model.construct).parameters:
        raise UserError(f"a {type(model).__name__} cannot be exported: only language models (GPTLMHeadModel) and "
                        "classifiers (GPTForSequenceClassification) can")
    if model.compute_dtype != ms.float32 and ms.get_context("device_target") == "CPU":
        raise UserError(f"a model that computes in {str(model.compute_dtype).lower()} cannot be checked on the CPU: "
                        "call model.set_compute_dtype('float32') first")


def _whole_number(name: str, value: Any, limit: float = float("inf"), limit_name: str = "") -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= limit:
        return value
    allowed = f"from 1 to {limit_name}" if limit_name else "of at least 1"
    raise UserError(f"{name}={value!r} is not a whole number {allowed}")


def _described(name: str, shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "dtype": str(dtype).lower()}


@contextlib.contextmanager
def _workspace(target: Path) -> Iterator[Path]:
    """Give an empty folder on the target's disk, removed at the end."""
    make_folder(target.parent)
    folder = target.absolute().with_name(f".{target.stem}.{secrets.token_hex(4)}.tmp")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_prefix(target: Path) -> str:
    """Return a name whose folder of variables does not exist yet, so that the old graph keeps its own."""
    stem = _plain_stem(target)
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not os.path.lexists(target.with_name(f"{name}_variables")))


def _plain_stem(target: Path) -> str:
    return re.sub(r"[^0-9A-Za-z@_.-]", "_", target.stem)


def _write(cell: nn.Cell, folder: Path, prefix: str, shape: tuple[int, int]) -> Path:
    """Export into a folder; return the graph's file, beside which the folder of variables may stand."""
    inputs = [Tensor(np.ones(shape, np.int32)) for _ in range(2)]
    # mindspore.export leaves this changed when it fails.
    syntax_level = ms.get_context("jit_syntax_level")
    try:
        with _plain_path(folder) as plain:
            ms.export(cell, *inputs, file_name=f"{plain}/{prefix}{SUFFIX}", file_format="MINDIR",
                      custom_func=_refuse_custom_kernels)
    finally:
        ms.set_context(jit_syntax_level=syntax_level)
    graph = folder / f"{prefix}{SUFFIX}"
    if not graph.exists():
        # More than 1 GB: the graph stands alone, and names the files of its weights in NAME_variables.
        (folder / f"{prefix}_graph{SUFFIX}").rename(graph)
    # MindSpore leaves files that only their owner can read.
    usual = folder.stat().st_mode & 0o777
    for path in folder.rglob("*"):
        path.chmod(usual if path.is_dir() else usual & 0o666)
    return graph


@contextlib.contextmanager
def _plain_path(folder: Path) -> Iterator[Path]:
    """Give a path to the folder that mindspore.export takes: it refuses a space or an umlaut anywhere in a path."""
    if re.fullmatch(f"{_PLAIN}+", str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory() as holder:
        link = Path(holder) / "folder"
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _refuse_custom_kernels(graph: Any) -> None:
    """Stop an export that holds a kernel of ours: the file would run on this machine only."""
    if any(primitive.op_type == "Custom" for primitive in graph.primitives):
        raise RuntimeError("the graph to export holds a custom kernel")


def _compare(graph: Path, model: GPTPreTrainedModel, shape: tuple[int, int]) -> tuple[Tensor, float]:
    """Return the logits of the file, loaded back, and how far they are from the model's."""
    batches = [_padded_batch(model.config.vocab_size, shape, side) for side in (1, -1)]
    # One after the other: at 1,024 tokens each graph holds gigabytes while it lives.
    cell = nn.GraphCell(ms.load(str(graph)))
    found = [cell(Tensor(input_ids), Tensor(mask)) for input_ids, mask in batches]
    del cell
    largest = 0.0
    for (input_ids, mask), logits in zip(batches, found, strict=True):
        position_ids = np.maximum(np.cumsum(mask, -1) - 1, 0).astype(np.int32)
        expected = model(Tensor(input_ids), attention_mask=Tensor(mask), position_ids=Tensor(position_ids))[0]
        difference = logits.astype(ms.float32).asnumpy() - expected.astype(ms.float32).asnumpy()
        # The built-in max would drop a NaN.
        largest = float(np.maximum(largest, np.abs(difference).max()))
    return found[0], largest


def _padded_batch(vocab_size: int, shape: tuple[int, int], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random ids and a mask with padding in every row that has room: on the right for 1, on the left for -1."""
    generator = np.random.default_rng(0)
    n_real = generator.integers(1, max(shape[1], 2), (shape[0], 1))
    mask = (np.arange(shape[1]) < n_real)[:, ::side].astype(np.int32)
    return generator.integers(0, vocab_size, shape, np.int32), mask


def _move(graph: Path, target: Path) -> list[Path]:
    """Move an export into its place: the variables first, under a name of their own, then the graph that names them.

    Until the graph is renamed the old one is whole; afterwards the new one is. Variables that the graph which then
    stands there does not name are removed.
    """
    variables = graph.with_name(f"{graph.stem}_variables")
    pairs = [(path, target.parent / variables.name / path.name) for path in sorted(variables.glob("*"))]
    pairs.append((graph, target))
    ours = _variables_of(target) | {target.parent / variables.name}
    try:
        for source, place in pairs:
            with replace_file(place) as temporary:
                source.rename(temporary)
    finally:
        for folder in ours - _variables_of(target):
            shutil.rmtree(folder, ignore_errors=True)
    return [place for _, place in pairs]


def _variables_of(target: Path) -> set[Path]:
    """Return the folders of ours that hold a graph's weights; none for a file with its weights inside."""
    from google.protobuf.message import DecodeError
    from mindspore.train.mind_ir_pb2 import ModelProto

    ours = re.compile(rf"{re.escape(_plain_stem(target))}(-\d+)?_variables")
    beside = {path.name: path for path in target.parent.glob("*_variables") if ours.fullmatch(path.name)}
    model = ModelProto()
    # A file with its weights inside is large, so it is read only where there is a folder that it could name.
    if beside:
        with contextlib.suppress(FileNotFoundError, DecodeError):
            model.ParseFromString(target.read_bytes())
    named = {Path(parameter.external_data.location).parent.name for parameter in model.graph.parameter}
    return {path for name, path in beside.items() if name in named}
