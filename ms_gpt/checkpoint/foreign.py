"""Layouts that are not Hugging Face's: tables of names, and the way through them in both directions.

A line of a table says which tensors of the layout make up one of Hugging Face's: one of them as it is, one of them
transposed (``nn.Linear`` keeps its weight (outputs, inputs), Conv1D (inputs, outputs)), or three side by side (old
minGPT has a projection each for queries, keys and values).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ms_gpt.checkpoint.errors import CheckpointError
from ms_gpt.checkpoint.tensors import LazyTensors, TensorInfo, cast

# Where no character is special, the first place that fits is the last that is tried, however long a name.
_LAYER = re.compile(r"(?P<before>.*?)(?P<block>h\.|blocks\.|h)(?P<layer>0|[1-9]\d{0,5})(?P<after>[./].*)", re.DOTALL)


@dataclass(frozen=True)
class Rule:
    """How one tensor under Hugging Face's names is made; ``{n}`` stands for the number of the layer.

    Args:
        target: Hugging Face's name.
        sources: The layout's names, side by side along the last axis (after transposition) where there are several.
        transposed: Whether each is transposed.
        squeezed: Whether a leading axis of 1 is dropped.
    """

    target: str
    sources: tuple[str, ...]
    transposed: bool = False
    squeezed: bool = False


@dataclass(frozen=True)
class Layout:
    """A table of names.

    Args:
        name: Its name for ``--to`` and in reports.
        title: The program it belongs to.
        rules: The table.
        activation: The activation that the program computes.
        mask: Name of the causal mask that each layer carries along; ``None`` if there is none.
    """

    name: str
    title: str
    rules: tuple[Rule, ...]
    activation: str = "gelu_new"
    mask: str | None = None


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from.

    Args:
        names: The names of the tensors it is made of.
        transposed: Whether they were transposed.
    """

    names: tuple[str, ...]
    transposed: bool = False


_VECTORS = ("ln_1.weight", "ln_1.bias", "attn.c_attn.bias", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias",
            "mlp.c_fc.bias", "mlp.c_proj.bias")
_MATRICES = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_OUTSIDE = ("transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight", "transformer.ln_f.bias",
            "lm_head.weight")


def _block(name: str) -> str:
    return f"transformer.h.{{n}}.{name}"


_LINEAR_RULES = (
    *(Rule(name, (name,)) for name in _OUTSIDE),
    *(Rule(_block(name), (_block(name),)) for name in _VECTORS),
    *(Rule(_block(name), (_block(name),), transposed=True) for name in _MATRICES),
)

MINGPT = Layout("mingpt", "minGPT", _LINEAR_RULES, mask=_block("attn.bias"))
NANOGPT = Layout("nanogpt", "nanoGPT", _LINEAR_RULES, activation="gelu_exact")

_OLD_BLOCK = {
    "ln_1": "ln1", "ln_2": "ln2", "attn.c_proj": "attn.proj", "mlp.c_fc": "mlp.0", "mlp.c_proj": "mlp.2",
}
MINGPT_OLD = Layout("mingpt-old", "minGPT of 2020", (
    Rule("transformer.wte.weight", ("tok_emb.weight",)),
    Rule("transformer.wpe.weight", ("pos_emb",), squeezed=True),
    Rule("transformer.ln_f.weight", ("ln_f.weight",)),
    Rule("transformer.ln_f.bias", ("ln_f.bias",)),
    Rule("lm_head.weight", ("head.weight",)),
    *(Rule(_block(f"attn.c_attn.{leaf}"),
           tuple(f"blocks.{{n}}.attn.{part}.{leaf}" for part in ("query", "key", "value")), leaf == "weight")
      for leaf in ("weight", "bias")),
    *(Rule(_block(f"{ours}.{leaf}"), (f"blocks.{{n}}.{theirs}.{leaf}",),
           transposed=leaf == "weight" and not ours.startswith("ln"))
      for ours, theirs in _OLD_BLOCK.items() for leaf in ("weight", "bias")),
), activation="gelu_exact", mask="blocks.{n}.attn.mask")

_TF_LEAVES = {"weight": "w", "bias": "b"}
_TF_NORM_LEAVES = {"weight": "g", "bias": "b"}
_TF_RULES = (
    *(Rule(f"transformer.ln_f.{leaf}", (f"model/ln_f/{theirs}",)) for leaf, theirs in _TF_NORM_LEAVES.items()),
    *(Rule(_block(f"{path}.{leaf}"), (f"model/h{{n}}/{path.replace('.', '/')}/{theirs}",), squeezed=True)
      for path in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj") for leaf, theirs in _TF_LEAVES.items()),
    *(Rule(_block(f"{path}.{leaf}"), (f"model/h{{n}}/{path}/{theirs}",))
      for path in ("ln_1", "ln_2") for leaf, theirs in _TF_NORM_LEAVES.items()),
)
OPENAI_GPT2 = Layout("openai-gpt2", "OpenAI's GPT-2", (
    Rule("transformer.wte.weight", ("model/wte",)), Rule("transformer.wpe.weight", ("model/wpe",)), *_TF_RULES))
OPENAI_GPT1 = Layout("openai-gpt1", "OpenAI's GPT-1", (
    Rule("transformer.tokens_embed.weight", ("model/we",)),
    Rule("transformer.positions_embed.weight", ("model/pe",)), *_TF_RULES))

WRITTEN = {layout.name: layout for layout in (MINGPT, MINGPT_OLD, NANOGPT)}


def to_hf(layout: Layout, tensors: LazyTensors) -> tuple[LazyTensors, dict[str, Origin]]:
    """Give a layout's tensors Hugging Face's names and shapes, lazily.

    Args:
        layout: The layout.
        tensors: Its tensors.

    Returns:
        The tensors under Hugging Face's names; those the table does not know keep theirs, masks are dropped. And where
        each comes from.

    Raises:
        CheckpointError: A tensor has a shape that its rule cannot take.
    """
    rules = {source: rule for rule in layout.rules for source in rule.sources}
    infos: dict[str, TensorInfo] = {}
    origins: dict[str, Origin] = {}
    squeezed: set[str] = set()
    for name in tensors:
        template, layer = _template(name)
        if template == layout.mask:
            continue
        rule = rules.get(template)
        names = () if rule is None else tuple(source.replace("{n}", layer) for source in rule.sources)
        if rule is None or not all(one in tensors for one in names):
            infos[name], origins[name] = tensors.infos[name], Origin((name,))
        elif name == names[0]:
            target = rule.target.replace("{n}", layer)
            if target in tensors and target not in names:
                raise CheckpointError(f"{name} and {target} are the same parameter: the checkpoint holds it twice")
            infos[target] = _joined_info(rule, [tensors.infos[one] for one in names], names)
            origins[target] = Origin(names, rule.transposed)
            if rule.squeezed:
                squeezed.add(target)

    def read(target: str) -> np.ndarray:
        parts = [tensors.bits(name) for name in origins[target].names]
        if target in squeezed:
            parts = [part.reshape(infos[target].shape) for part in parts]
        if origins[target].transposed:
            parts = [part.T for part in parts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    return LazyTensors(infos, read), origins


def from_hf(layout: Layout, tensors: LazyTensors, n_positions: int,
            without_biases: bool = False) -> tuple[LazyTensors, dict[str, Origin]]:
    """Give tensors under Hugging Face's names those of a layout; the inverse of ``to_hf``.

    Args:
        layout: One of ``WRITTEN``.
        tensors: The tensors of a language model of GPT-2's kind.
        n_positions: Width of the causal masks, for layouts that carry them.
        without_biases: Leave the biases out.

    Returns:
        The tensors under the layout's names, and where each comes from.
    """
    rules = {rule.target: rule for rule in layout.rules}
    reads: dict[str, Callable[[], np.ndarray]] = {}
    infos: dict[str, TensorInfo] = {}
    origins: dict[str, Origin] = {}
    layers: set[str] = set()
    for name, info in tensors.infos.items():
        template, layer = _template(name)
        rule = rules[template]
        if layer:
            layers.add(layer)
        if without_biases and name.endswith(".bias"):
            continue
        for index, source in enumerate(rule.sources):
            target = source.replace("{n}", layer)
            shape = (*info.shape[:-1], info.shape[-1] // len(rule.sources))
            shape = (1, *shape) if rule.squeezed else shape[::-1] if rule.transposed else shape
            infos[target] = TensorInfo(shape, info.dtype)
            origins[target] = Origin((name,), rule.transposed)
            reads[target] = _part_of(tensors, name, index, len(rule.sources), rule.transposed, shape)
    if layout.mask:
        # Of the model's dtype, as model.half() would have left it.
        dtype = next(iter(tensors.infos.values())).dtype
        mask = np.tri(n_positions, dtype=np.float32).reshape(1, 1, n_positions, n_positions)
        mask = cast(layout.mask, mask, "float32", dtype)
        for layer in sorted(layers, key=int):
            name = layout.mask.replace("{n}", layer)
            infos[name], origins[name] = TensorInfo(mask.shape, dtype), Origin(())
            reads[name] = lambda: mask
    return LazyTensors(infos, lambda target: reads[target]()), origins


def with_zero_biases(tensors: LazyTensors) -> LazyTensors:
    """Add biases of zeros wherever a weight of a projection or norm has none (nanoGPT with ``bias=False``)."""
    absent = {}
    for name, info in tensors.infos.items():
        bias = name.removesuffix("weight") + "bias"
        template = _template(bias)[0]
        is_known = template == "transformer.ln_f.bias" or template in {_block(vector) for vector in _VECTORS}
        if name.endswith(".weight") and is_known and bias not in tensors:
            absent[bias] = TensorInfo(info.shape[-1:], info.dtype)

    def read(name: str) -> np.ndarray:
        if name not in absent:
            return tensors.bits(name)
        return np.zeros(absent[name].shape, np.uint16 if absent[name].dtype == "bfloat16" else absent[name].dtype)

    return LazyTensors({**tensors.infos, **absent}, read)


def _part_of(tensors: LazyTensors, name: str, index: int, parts: int, transposed: bool,
             shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        bits = tensors.bits(name)
        width = bits.shape[-1] // parts
        piece = bits[..., index * width:(index + 1) * width]
        return (piece.T if transposed else piece).reshape(shape)

    return read


def _template(name: str) -> tuple[str, str]:
    """Split a name into its form in the tables and the number of its layer (empty outside the blocks)."""
    match = _LAYER.fullmatch(name)
    if not match:
        return name, ""
    return f"{match['before']}{match['block']}{{n}}{match['after']}", match["layer"]


def _joined_info(rule: Rule, infos: list[TensorInfo], names: tuple[str, ...]) -> TensorInfo:
    shapes = [info.shape for info in infos]
    if rule.squeezed:
        shapes = [shape[1:] if len(shape) > 1 and shape[0] == 1 else shape for shape in shapes]
    if rule.transposed:
        if any(len(shape) != 2 for shape in shapes):
            raise CheckpointError(f"{names[0]} has the shape {infos[0].shape}: two dimensions were expected")
        shapes = [shape[::-1] for shape in shapes]
    if any(shape[:-1] != shapes[0][:-1] or not shape for shape in shapes) and len(shapes) > 1:
        raise CheckpointError(f"{' and '.join(names)} have shapes that cannot stand side by side: {shapes}")
    if len({info.dtype for info in infos}) > 1:
        raise CheckpointError(f"{' and '.join(names)} are of different dtypes")
    last = sum(shape[-1] for shape in shapes) if len(shapes) > 1 else None
    return TensorInfo(shapes[0] if last is None else (*shapes[0][:-1], last), infos[0].dtype)


def has_linear_weights(infos: Mapping[str, TensorInfo]) -> bool:
    """Say whether the blocks' weights are those of ``nn.Linear``, (outputs, inputs), by the shape of ``c_attn``."""
    shape = next((info.shape for name, info in infos.items() if name.endswith("h.0.attn.c_attn.weight")), ())
    return len(shape) == 2 and shape[0] == 3 * shape[1]
