"""Names: what a parameter is called in memory and what Hugging Face calls it on disk.

In memory the paths are GPT-1's (``tokens_embed``, ``positions_embed``) with MindSpore's leaves (``embedding_table``,
``gamma``, ``beta``). On disk GPT-1 keeps its paths, GPT-2 says ``wte`` and ``wpe``, and every leaf is ``weight`` or
``bias``. A backbone inside a model with a head has the prefix ``transformer.``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ms_gpt.checkpoint.errors import CheckpointError, some
from ms_gpt.checkpoint.tensors import LazyTensors
from ms_gpt.config import GPTConfig

PREFIX = "transformer."
LM_HEAD = "lm_head.weight"
TOKENS = "tokens_embed.embedding_table"
POSITIONS = "positions_embed.embedding_table"

_HEADS = ("lm_head.", "score.", "multiple_choice_head.")
_EMBEDDINGS = {
    "openai-gpt": {TOKENS: "tokens_embed.weight", POSITIONS: "positions_embed.weight"},
    "gpt2": {TOKENS: "wte.weight", POSITIONS: "wpe.weight"},
}
_EMBEDDINGS["ms_gpt"] = _EMBEDDINGS["gpt2"]
# What the tables are called in files of either library, MindNLP's wte.embedding_table among them.
_TO_MEMORY = {f"{path}.{leaf}": name for name, paths in ((TOKENS, ("tokens_embed", "wte")),
                                                         (POSITIONS, ("positions_embed", "wpe")))
              for path in paths for leaf in ("weight", "embedding_table")}
_NORM_LEAVES = {"gamma": "weight", "beta": "bias"}
_NORM_TO_DISK = re.compile(r"(?P<path>(?:.*\.)?ln_[12f])\.(?P<leaf>gamma|beta)")
_NORM_TO_MEMORY = re.compile(r"(?P<path>(?:.*\.)?ln_[12f])\.(?P<leaf>weight|bias)")
_BUFFER = re.compile(r"(?:.*\.)?(?:h\.\d+\.attn\.(?:bias|masked_bias)|position_ids)")
# MindNLP 0.1, and the lesson's code, name Conv1D's parameters like a LayerNorm's; 0.1 calls GPT-1's blocks block_list.
_FORMER_CONV = re.compile(r"(?P<path>(?:.*\.)?c_(?:attn|proj|fc))\.(?P<leaf>gamma|beta)")
_FORMER_BLOCKS = re.compile(r"(?:(?<=\.)|^)block_list\.(?=\d)")


def current_name(name: str) -> str:
    """Translate a name that MindNLP 0.1 gave, such as ``"transformer.block_list.0.attn.c_attn.gamma"``.

    Args:
        name: Name on disk, with whatever stands in front of it.

    Returns:
        What later releases, and transformers, call it; a name of theirs comes back unchanged.
    """
    conv = _FORMER_CONV.fullmatch(name)
    if conv:
        name = f"{conv['path']}.{_NORM_LEAVES[conv['leaf']]}"
    return _FORMER_BLOCKS.sub("h.", name)


def hf_name(name: str, model_type: str) -> str:
    """Translate a parameter's name in memory to its name on disk; a prefix is kept.

    Args:
        name: Name in memory, such as ``"transformer.h.0.ln_1.gamma"``.
        model_type: ``"openai-gpt"``, ``"gpt2"`` or ``"ms_gpt"``.

    Returns:
        Hugging Face's name; a name that is already one comes back unchanged.
    """
    prefix, bare = _split(name)
    norm = _NORM_TO_DISK.fullmatch(bare)
    if norm:
        return f"{prefix}{norm['path']}.{_NORM_LEAVES[norm['leaf']]}"
    return prefix + _EMBEDDINGS[model_type].get(bare, bare)


def our_name(name: str) -> str | None:
    """Translate a tensor's name on disk to the parameter's name in memory; a prefix is kept.

    Args:
        name: Name on disk, such as ``"transformer.h.0.ln_1.weight"``.

    Returns:
        The name in memory, unchanged if it is one already or is unknown; ``None`` for a buffer that older
        transformers saved and nobody needs (``attn.bias``, ``attn.masked_bias``, ``position_ids``).
    """
    if _BUFFER.fullmatch(name):
        return None
    prefix, bare = _split(name)
    norm = _NORM_TO_MEMORY.fullmatch(bare)
    if norm:
        leaf = "gamma" if norm["leaf"] == "weight" else "beta"
        return f"{prefix}{norm['path']}.{leaf}"
    return prefix + _TO_MEMORY.get(bare, bare)


def strip_prefix(name: str) -> str:
    """Return a name without ``transformer.`` in front."""
    return _split(name)[1]


def with_prefix(name: str) -> str:
    """Return a name as a model with a head has it: ``transformer.`` in front of everything but the heads."""
    bare = strip_prefix(name)
    return bare if bare.startswith(_HEADS) else PREFIX + bare


def _split(name: str) -> tuple[str, str]:
    return (PREFIX, name[len(PREFIX):]) if name.startswith(PREFIX) else ("", name)


@dataclass
class LoadReport:
    """What did not fit when tensors were matched to parameters; names are those on disk.

    Args:
        missing: Parameters that no tensor was found for.
        unexpected: Tensors that no parameter takes.
        mismatched: Name, expected shape and found shape of tensors with another shape.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every parameter got its tensor and no tensor was left over."""
        return not (self.missing or self.unexpected or self.mismatched)

    def summary(self) -> str:
        """Return one line that names the first few tensors of each kind, or ``"every tensor fits"``."""
        wrong = [f"{name} {found} instead of {expected}" for name, expected, found in self.mismatched]
        parts = [
            f"{len(names)} {kind} ({some(names)})"
            for kind, names in (("missing", self.missing), ("of another shape", wrong), ("unexpected", self.unexpected))
            if names
        ]
        return "; ".join(parts) or "every tensor fits"


def match(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, np.ndarray],
          config: GPTConfig) -> tuple[dict[str, str], LoadReport]:
    """Find the tensor of every parameter; the prefix may be there or not on either side.

    With ``config.tie_word_embeddings`` an ``lm_head.weight`` on disk is left out, or stands in for a token
    embedding that is not there (transformers saves GPT-1's double-heads model so).

    Args:
        expected: Name in memory and shape of every parameter of the model.
        tensors: Name on disk and array; nothing is loaded unless ``lm_head.weight`` has to be compared.
        config: The model's configuration: ``model_type`` chooses the names.

    Returns:
        Name in memory to name on disk for all tensors that fit, and what does not.

    Raises:
        CheckpointError: A tensor is there with and without prefix, or ``lm_head.weight`` differs from the embedding
            it should be tied to.
    """
    tensors = LazyTensors.wrap(tensors)
    sources = _by_bare_name(tensors)
    if config.tie_word_embeddings and LM_HEAD in sources and LM_HEAD not in expected:
        # A bare backbone and a classifier have no use for the head, so one that differs does them no harm.
        _take_tied_head(sources, tensors, strict=PREFIX + TOKENS in expected and "score.weight" not in expected)
    mapping: dict[str, str] = {}
    report = LoadReport()
    for name, shape in expected.items():
        source = sources.pop(strip_prefix(name), None)
        if source is None:
            report.missing.append(hf_name(name, config.model_type))
        elif tensors.infos[source].shape != tuple(shape):
            report.mismatched.append((source, tuple(shape), tensors.infos[source].shape))
        else:
            mapping[name] = source
    report.unexpected.extend(sources.values())
    return mapping, report


def _by_bare_name(names: Iterable[str]) -> dict[str, str]:
    sources: dict[str, str] = {}
    for name in names:
        ours = our_name(name)
        if ours is None:
            continue
        bare = strip_prefix(ours)
        if bare in sources:
            raise CheckpointError(f"{name} and {sources[bare]} are the same parameter: the checkpoint holds it twice")
        sources[bare] = name
    return sources


def _take_tied_head(sources: dict[str, str], tensors: LazyTensors, strict: bool) -> None:
    """Drop the head that equals the embedding, or make it the embedding if there is none."""
    head = sources[LM_HEAD]
    embedding = sources.setdefault(TOKENS, head)
    if embedding == head or tensors.same(embedding, head):
        del sources[LM_HEAD]
    elif strict:
        raise CheckpointError(f"{head} differs from {embedding} although tie_word_embeddings is true: "
                              "set \"tie_word_embeddings\": false in config.json to keep both")

