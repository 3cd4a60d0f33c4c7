"""A model out of whatever holds one: which layout its tensors have, and which configuration belongs to them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ms_gpt.checkpoint import foreign
from ms_gpt.checkpoint.errors import CheckpointError, nearby, one_line
from ms_gpt.checkpoint.files import CONFIG_FILE, WEIGHTS_FILE, Content, listing, read_content, read_json
from ms_gpt.checkpoint.foreign import Layout, Origin
from ms_gpt.checkpoint.keymap import current_name, hf_name, our_name, with_prefix
from ms_gpt.checkpoint.layouts import architecture_name, family_of, head_in, head_of, infer_config, is_tied, wrapper_of
from ms_gpt.checkpoint.tensors import LazyTensors
from ms_gpt.config import GPTConfig
from ms_gpt.errors import UserError

_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")

# OpenAI released one GPT-1, whose files do not say how many heads it has.
_OPENAI_GPT1 = {"n_layer": 12, "n_embd": 768, "n_head": 12}


@dataclass(frozen=True)
class Checkpoint:
    """A model as names and arrays.

    Args:
        format: What was recognised: the kind of file, such as ``"safetensors"``, ``"torch-shards"`` or ``"ckpt"``; or a
            layout of its own, such as ``"mingpt"``, ``"nanogpt"`` or ``"openai-gpt2"``.
        config: The model's configuration, read or inferred.
        architecture: Its class name as ``config.json`` has it.
        tensors: The tensors under Hugging Face's names, prefix and all as the source has them.
        origins: Which of the source's tensors each is made of.
        notes: What was assumed, a sentence each.
        folder: Where the tokenizer's files would be.
    """

    format: str
    config: GPTConfig
    architecture: str
    tensors: LazyTensors
    origins: Mapping[str, Origin] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    folder: Path | None = None


def read_folder(path: str | Path) -> tuple[GPTConfig, LazyTensors]:
    """Read a model folder: ``config.json`` beside weights of any kind.

    Args:
        path: The folder.

    Returns:
        The configuration, and the tensors under Hugging Face's names, loaded on access.

    Raises:
        CheckpointError: Something is missing (the message names what was found) or damaged, or the tensors are of
            another family than ``config.json`` says.
    """
    path = Path(path)
    _check_exists(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file: give the folder of a model, with {CONFIG_FILE} and {WEIGHTS_FILE}")
    if not (path / CONFIG_FILE).is_file():
        raise CheckpointError(f"{path} has no {CONFIG_FILE}; found: {listing(path)}")
    checkpoint = open_checkpoint(path)
    return checkpoint.config, checkpoint.tensors


def open_checkpoint(path: str | Path, n_head: int | None = None,
                    activation_function: str | None = None) -> Checkpoint:
    """Open a model folder or a file of tensors, in any layout of a GPT.

    The configuration is the folder's ``config.json``; beside a file ``NAME.safetensors`` it is
    ``NAME_config.json`` or ``config.json``. Without one it is inferred from names, shapes and what the file says.

    Args:
        path: The folder or file.
        n_head: Number of attention heads, asked for where neither a configuration nor the file tells.
        activation_function: Activation of the MLP, where the layout leaves it open or the file was of another.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: The path is missing, is of no known format, is damaged, or holds no GPT.
        UserError: The configuration is wrong, or ``n_head`` is missing or contradicts it.
    """
    path = Path(path)
    _check_exists(path)
    content = read_content(path)
    shard = _SHARD.search(path.name)
    if shard and int(shard[1]) > 1:
        raise CheckpointError(f"{path} is one of {int(shard[1])} parts of a model: give its folder, or the index file")
    try:
        origins = {name: Origin((name,)) for name in content.tensors}
        tensors, origins = _renamed(content.tensors, origins, current_name)
        wrapper = wrapper_of(tensors)
        tensors, origins = _renamed(tensors, origins, lambda name: name.removeprefix(wrapper))
        _refuse_adapters(tensors)
        layout = _recognise(content, tensors)
        if layout is not None:
            tensors, origins = _to_hf(layout, tensors, origins)
        family = family_of(tensors)
        known, notes = _known(content, layout, tensors, activation_function)
        if content.config_file is None:
            config = infer_config(tensors, n_head, known)
        else:
            config, notes = _read_config(content.config_file, family), ()
        architecture = _architecture(config, tensors)
        _check_config(config, content, known, family, n_head)
        tensors, origins = _renamed(tensors, origins, lambda name: hf_name(our_name(name) or name, config.model_type))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if activation_function is not None:
        config = config.replace(activation_function=activation_function)
    return Checkpoint(content.format if layout is None else layout.name, config, architecture, tensors, origins, notes,
                      content.folder)


def _renamed(tensors: LazyTensors, origins: Mapping[str, Origin],
             new_name: Callable[[str], str]) -> tuple[LazyTensors, dict[str, Origin]]:
    """Rename all tensors; no two may come to have one name."""
    names = {new_name(name): name for name in tensors}
    if len(names) < len(tensors):
        twice = next(name for name in tensors if names[new_name(name)] != name)
        raise CheckpointError(f"it holds {new_name(twice)} twice, as {twice} and as {names[new_name(twice)]}")
    return tensors.renamed(names), {new: origins[old] for new, old in names.items()}


def _refuse_adapters(tensors: LazyTensors) -> None:
    """Refuse low-rank updates beside the weights: without them the model would be another function."""
    adapter = next((name for name in tensors if "lora_" in name), None)
    if adapter is not None:
        raise CheckpointError(f"it holds an adapter ({adapter}): merge it into the weights first (PEFT: "
                              "merge_and_unload)")


def _recognise(content: Content, tensors: LazyTensors) -> Layout | None:
    """Tell the layout by names and shapes; ``None`` for Hugging Face's own."""
    if "model/we" in tensors:
        return foreign.OPENAI_GPT1
    if "model/wte" in tensors or "model/h0/attn/c_attn/w" in tensors:
        return foreign.OPENAI_GPT2
    if "tok_emb.weight" in tensors or "blocks.0.attn.query.weight" in tensors:
        return foreign.MINGPT_OLD
    if not foreign.has_linear_weights(tensors.infos):
        return None
    has_masks = any(name.endswith("h.0.attn.bias") for name in tensors)
    is_nanogpt = isinstance(content.settings.get("model_args"), dict) or (is_tied(tensors) and not has_masks)
    return foreign.NANOGPT if is_nanogpt else foreign.MINGPT


def _to_hf(layout: Layout, tensors: LazyTensors,
           origins: Mapping[str, Origin]) -> tuple[LazyTensors, dict[str, Origin]]:
    if layout in (foreign.MINGPT, foreign.NANOGPT):
        tensors, origins = _renamed(tensors, origins, with_prefix)
    tensors, made_of = foreign.to_hf(layout, tensors)
    if layout is foreign.NANOGPT:
        tensors = foreign.with_zero_biases(tensors)
    nothing = Origin(())
    return tensors, {
        name: Origin(tuple(one for part in made_of.get(name, nothing).names for one in origins[part].names),
                     made_of.get(name, nothing).transposed)
        for name in tensors}


def _known(content: Content, layout: Layout | None, tensors: LazyTensors,
           activation_function: str | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the fields of the configuration that layout and file tell, and what was assumed."""
    if layout is foreign.MINGPT_OLD or (layout is foreign.MINGPT and not is_tied(tensors)):
        return {"activation_function": layout.activation}, ()
    if layout is foreign.OPENAI_GPT2:
        n_head = content.settings.get("n_head")
        return {"n_head": n_head} if isinstance(n_head, int) else {}, ()
    if layout is foreign.OPENAI_GPT1:
        positions = tensors.infos.get("transformer.positions_embed.weight")
        is_released = positions is not None and positions.shape[-1:] == (_OPENAI_GPT1["n_embd"],) and \
            f"transformer.h.{_OPENAI_GPT1['n_layer'] - 1}.ln_2.weight" in tensors
        return {"n_head": _OPENAI_GPT1["n_head"]} if is_released else {}, ()
    if layout in (foreign.MINGPT, foreign.NANOGPT):
        is_said = activation_function is not None or content.config_file is not None
        return _known_of_tied(content.settings, is_said)
    return {}, ()


def _known_of_tied(settings: Mapping[str, Any], is_said: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Tell what a nanoGPT file says; without its ``model_args`` it may be any program's that ties the head."""
    arguments = settings.get("model_args")
    if not isinstance(arguments, dict):
        if not is_said:
            raise CheckpointError(
                "recognised as nanoGPT's kind (nn.Linear weights, tied head), but a bare state dict does not tell its "
                "GELU: say --activation-function gelu_exact (nanoGPT since June 2023) or gelu_new (the tanh form)")
        return {}, ()
    known: dict[str, Any] = {}
    if isinstance(arguments.get("n_head"), int):
        known["n_head"] = arguments["n_head"]
    if type(arguments.get("dropout")) in (int, float):
        known |= {key: float(arguments["dropout"]) for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    if arguments.get("bias") is False:
        known["extra"] = {"bias": False}
    if is_said:
        return known, ()
    if "bias" not in arguments:
        # The option came before nanoGPT's change of GELU.
        return {**known, "activation_function": "gelu_new"}, ()
    return {**known, "activation_function": "gelu_exact"}, (
        "activation: the erf form of GELU, as in nanoGPT since June 2023; for a file from before that say "
        "--activation-function gelu_new",)


def _read_config(path: Path, family: str) -> GPTConfig:
    values = read_json(path)
    # Old files do not say; the tensors do.
    values.setdefault("model_type", family)
    try:
        return GPTConfig.from_dict(values)
    except UserError as error:
        raise CheckpointError(f"{path.name}: {error}") from None


def _check_config(config: GPTConfig, content: Content, known: Mapping[str, Any], family: str,
                  n_head: int | None) -> None:
    name = content.config_file.name if content.config_file else "the file"
    if n_head not in (None, config.n_head):
        raise CheckpointError(f"n_head={n_head} contradicts {name}, which says {config.n_head}: leave it out")
    if known.get("n_head", config.n_head) != config.n_head:
        raise CheckpointError(f"{name} says n_head={config.n_head}, and the weights' own file {known['n_head']}: "
                              "they do not belong together")
    if config.post_norm != (family == "openai-gpt"):
        raise CheckpointError(f"{name} says model_type={config.model_type!r}, but the tensors are of {family}: "
                              "they do not belong together")
    # Each layer has a dozen tensors. Lists as long as a false number would not fit in memory.
    if config.n_layer > len(content.tensors):
        raise CheckpointError(f"{name} says n_layer={config.n_layer}, but there are only {len(content.tensors)} "
                              "tensors: they do not belong together")


def _architecture(config: GPTConfig, tensors: LazyTensors) -> str:
    stated = config.extra.get("architectures")
    if isinstance(stated, list) and stated and isinstance(stated[0], str):
        head_of(stated[0])
        return stated[0]
    return architecture_name(config.model_type, head_in(tensors))


def _check_exists(path: Path) -> None:
    try:
        path.stat()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}.{nearby(path)}".removesuffix(".")) from None
