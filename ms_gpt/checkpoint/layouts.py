"""What a GPT's tensors tell: family, sizes and head, recognised from names and shapes alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ms_gpt.checkpoint.errors import CheckpointError, some
from ms_gpt.checkpoint.keymap import LM_HEAD, POSITIONS, PREFIX, TOKENS, our_name, strip_prefix, with_prefix
from ms_gpt.checkpoint.tensors import LazyTensors, TensorInfo
from ms_gpt.config import PRESETS, GPTConfig

_CLASSES = {"openai-gpt": "OpenAIGPT", "gpt2": "GPT2", "ms_gpt": "GPT"}
_HEAD_SUFFIXES = ("Model", "LMHeadModel", "DoubleHeadsModel", "ForSequenceClassification")
# Of what stands in front of a moment's parameter: a hostile name can be all dots.
_MAX_NAME, _MAX_PREFIXES = 200, 4
_FIRST_BLOCK = re.compile(r"((?:[^/]*?\.)??)(?:transformer\.)?(?:h|blocks)\.0\..+", re.DOTALL)
_BLOCK = re.compile(r"h\.(\d{1,6})\.(.+)")


def architecture_name(model_type: str, head: str) -> str:
    """Return the class name for ``config.json``'s ``architectures``.

    Args:
        model_type: ``"openai-gpt"``, ``"gpt2"`` or ``"ms_gpt"``.
        head: ``"Model"``, ``"LMHeadModel"``, ``"DoubleHeadsModel"`` or ``"ForSequenceClassification"``.

    Returns:
        transformers' class, such as ``"GPT2LMHeadModel"``; ours, such as ``"GPTLMHeadModel"``, for ``"ms_gpt"``.
    """
    return _CLASSES[model_type] + head


def head_of(architecture: str) -> str:
    """Return the part of a class name that says which head it has.

    Args:
        architecture: Such as ``"OpenAIGPTLMHeadModel"``.

    Returns:
        ``"Model"``, ``"LMHeadModel"``, ``"DoubleHeadsModel"`` or ``"ForSequenceClassification"``.

    Raises:
        CheckpointError: The class is not a GPT of ours.
    """
    for family in _CLASSES.values():
        if architecture.startswith(family) and architecture[len(family):] in _HEAD_SUFFIXES:
            return architecture[len(family):]
    known = [family + head for family in ("OpenAIGPT", "GPT2") for head in _HEAD_SUFFIXES]
    raise CheckpointError(f"architectures names {architecture!r}, which is not one of {', '.join(known)}")


def family_of(names: Iterable[str]) -> str:
    """Recognise GPT-1 (norm after each residual sum) or GPT-2 (norm before, and a final one).

    Args:
        names: Names on disk or in memory, with or without prefix.

    Returns:
        ``"openai-gpt"`` or ``"gpt2"``.

    Raises:
        CheckpointError: The names are not a GPT's, or belong to both families.
    """
    bare = {strip_prefix(name) for name in names}
    has_final_norm = any(name.startswith("ln_f.") for name in bare)
    if not any(_BLOCK.fullmatch(name) for name in bare):
        raise CheckpointError(f"no GPT block h.0 among the tensors ({some(sorted(bare)) or 'there are none'}): "
                              "this is not GPT-1 or GPT-2 under Hugging Face's names or ours")
    if has_final_norm and not bare.isdisjoint(("wpe.weight", "wpe.embedding_table")):
        return "gpt2"
    if "positions_embed.weight" in bare and not has_final_norm:
        return "openai-gpt"
    if POSITIONS in bare:
        return "gpt2" if has_final_norm else "openai-gpt"
    found = [name for name in ("wpe.weight", "positions_embed.weight") if name in bare]
    raise CheckpointError(
        f"neither GPT-1 nor GPT-2: {' and '.join(found) or 'no position table (wpe.weight or positions_embed.weight)'} "
        f"{'with' if has_final_norm else 'without'} ln_f; GPT-1 has positions_embed and no ln_f, GPT-2 wpe and ln_f")


def head_in(names: Iterable[str]) -> str:
    """Recognise the head; a bare backbone counts as a language model, whose head is its embedding.

    Args:
        names: Names on disk or in memory.

    Returns:
        ``"LMHeadModel"``, ``"DoubleHeadsModel"`` or ``"ForSequenceClassification"``.
    """
    names = set(names)
    if "score.weight" in names:
        return "ForSequenceClassification"
    return "DoubleHeadsModel" if any(name.startswith("multiple_choice_head.") for name in names) else "LMHeadModel"


def wrapper_of(names: Iterable[str]) -> str:
    """Return what stands in front of every parameter's name, such as ``"_orig_mod."``; empty in most files.

    Args:
        names: Names on disk. Those of an optimizer's moments have prefixes of their own, so the shortest counts.

    Returns:
        The prefix, ``transformer.`` not counted.

    Raises:
        CheckpointError: There are several models, each with a prefix of its own.
    """
    found = {match[1] for name in names if (match := _FIRST_BLOCK.fullmatch(name))}
    shortest = min(found, key=len, default="")
    others = sorted(prefix for prefix in found if not prefix.endswith(shortest))
    if others:
        raise CheckpointError(f"it holds several models ({some([shortest, *others])}): save one of them alone")
    return shortest


def infer_config(tensors: LazyTensors, n_head: int | None, known: Mapping[str, Any] | None = None) -> GPTConfig:
    """Build the configuration of tensors that come without ``config.json``.

    Args:
        tensors: The tensors under names on disk or in memory.
        n_head: Number of attention heads, which no shape tells.
        known: Further fields of ``GPTConfig``, such as the layout's ``activation_function``.

    Returns:
        The configuration; activation and the like are the family's.

    Raises:
        CheckpointError: The tensors are not a GPT's, or their shapes contradict each other.
        UserError: ``n_head`` is missing or does not divide the width.
    """
    model_type, known = family_of(tensors), dict(known or {})
    n_head = known.pop("n_head", n_head)
    infos = {strip_prefix(ours): tensors.infos[name] for name in tensors if (ours := our_name(name)) is not None}
    n_positions, n_embd = _matrix(infos, POSITIONS)
    vocab_size = _matrix(infos, TOKENS if TOKENS in infos else LM_HEAD)[0]
    n_layer = _count_blocks(infos)
    n_inner = _matrix(infos, "h.0.mlp.c_fc.weight")[1]
    values: dict[str, Any] = {
        "model_type": model_type, "vocab_size": vocab_size, "n_positions": n_positions, "n_embd": n_embd,
        "n_layer": n_layer, "n_inner": None if n_inner == 4 * n_embd else n_inner,
        "tie_word_embeddings": is_tied(tensors), **known,
    }
    if n_head is None:
        published = _published_as(values)
        hint = f" (the published {published[0]} has {published[1]})" if published else ""
        raise CheckpointError(f"recognised as {model_type} with {n_layer} layers, {n_embd} wide, but the "
                              f"number of attention heads cannot be known without a config.json: 'convert' it with "
                              f"--n-head{hint}, or pass n_head in Python")
    if "score.weight" in infos:
        values["num_labels"] = _matrix(infos, "score.weight")[0]
    return GPTConfig(**values, n_head=n_head)


def is_tied(tensors: LazyTensors) -> bool:
    """Say whether the language-model head is the token embedding: there is none of its own, or it is the same."""
    names = {strip_prefix(our_name(name) or ""): name for name in tensors}
    return LM_HEAD not in names or TOKENS not in names or tensors.same(names[LM_HEAD], names[TOKENS])


def expected_shapes(config: GPTConfig, architecture: str) -> dict[str, tuple[int, ...]]:
    """List the parameters a model has.

    Args:
        config: The model's configuration.
        architecture: Its class name in ``config.json``.

    Returns:
        Name in memory to shape, in the model's order.

    Raises:
        CheckpointError: The architecture is unknown.
    """
    head = head_of(architecture)
    width, inner = config.n_embd, config.inner_size
    shapes: dict[str, tuple[int, ...]] = {TOKENS: (config.vocab_size, width), POSITIONS: (config.n_positions, width)}
    for layer in range(config.n_layer):
        block = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width), "ln_1": (width,),
                 "mlp.c_fc": (width, inner), "mlp.c_proj": (inner, width), "ln_2": (width,)}
        for part, shape in block.items():
            weight, bias = ("gamma", "beta") if len(shape) == 1 else ("weight", "bias")
            shapes[f"h.{layer}.{part}.{weight}"] = shape
            shapes[f"h.{layer}.{part}.{bias}"] = shape[-1:]
    if not config.post_norm:
        shapes.update({"ln_f.gamma": (width,), "ln_f.beta": (width,)})
    if head != "Model":
        shapes = {PREFIX + name: shape for name, shape in shapes.items()}
    if head in ("LMHeadModel", "DoubleHeadsModel") and not config.tie_word_embeddings:
        shapes[LM_HEAD] = (config.vocab_size, width)
    if head == "DoubleHeadsModel" and config.summary_use_proj:
        # transformers gives this head a single output whatever num_labels says.
        outputs = 1 if config.summary_proj_to_labels else width
        shapes.update({"multiple_choice_head.summary.weight": (outputs, width),
                       "multiple_choice_head.summary.bias": (outputs,)})
    if head == "ForSequenceClassification":
        shapes["score.weight"] = (config.num_labels, width)
    return {with_prefix(name) if head != "Model" else name: shape for name, shape in shapes.items()}


def count_parameters(config: GPTConfig, head: str = "LMHeadModel") -> int:
    """Count the weights of a model without building it; a tied head counts once.

    Args:
        config: The model's configuration.
        head: ``"Model"``, ``"LMHeadModel"``, ``"DoubleHeadsModel"`` or ``"ForSequenceClassification"``.

    Returns:
        The number of weights.
    """
    shapes = expected_shapes(config, architecture_name(config.model_type, head))
    return sum(math.prod(shape) for shape in shapes.values())


def training_state(tensors: Mapping[str, np.ndarray]) -> set[str]:
    """Find what a training run keeps beside the weights and no model needs.

    Args:
        tensors: All tensors of the checkpoint.

    Returns:
        The names of counters (a single number, or none) and of an optimizer's moments, which are called after the
        parameter, as ``moment1.h.0.ln_1.gamma`` is.
    """
    parameters = {_plain(name) for name in tensors}
    found = {name for name, info in LazyTensors.wrap(tensors).infos.items() if info.size <= 1}
    for name in tensors:
        rest = name if len(name) <= _MAX_NAME else ""
        for _ in range(_MAX_PREFIXES):
            rest = rest.partition(".")[2]
            if rest and _plain(rest) in parameters and _plain(rest) != _plain(name):
                found.add(name)
    return found


def _plain(name: str) -> str:
    return strip_prefix(our_name(name) or name)


def _count_blocks(infos: Mapping[str, TensorInfo]) -> int:
    layers = {int(block[1]) for name in infos if (block := _BLOCK.fullmatch(name))}
    absent = next(layer for layer in range(len(layers) + 1) if layer not in layers)
    if absent < len(layers):
        raise CheckpointError(f"block h.{absent} is missing: the blocks go up to h.{max(layers)}")
    return len(layers)


def _matrix(infos: Mapping[str, TensorInfo], name: str) -> tuple[int, int]:
    if name not in infos:
        raise CheckpointError(f"{name} is missing, so the model's size cannot be told: put a config.json beside it")
    shape = infos[name].shape
    if len(shape) != 2:
        raise CheckpointError(f"{name} has the shape {shape}: two dimensions were expected")
    return shape


def _published_as(values: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return the name and the head count of the published model that has just these sizes."""
    for name in PRESETS:
        preset = GPTConfig.preset(name)
        sizes = ("model_type", "vocab_size", "n_positions", "n_embd", "n_layer")
        if all(getattr(preset, key) == values[key] for key in sizes):
            return name, preset.n_head
    return None
