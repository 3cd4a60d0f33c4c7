"""What every model shares: initial weights, loading, saving, pruning, growing the vocabulary."""

from __future__ import annotations

import contextlib
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from ms_gpt import checkpoint
from ms_gpt.compile_cache import CachedGraph
from ms_gpt.config import GPTConfig
from ms_gpt.errors import UserError
from ms_gpt.inputs import check_inputs
from ms_gpt.kernels import are_usable, status
from ms_gpt.layers import Conv1D, Dropout

# Heads that a checkpoint may lack: they start from random weights and are learnt by fine-tuning.
_NEW_HEADS = ("score.", "multiple_choice_head.")
_ANY_HEAD = (*_NEW_HEADS, "lm_head.")
_PRUNED_KEY = "ms_gpt_pruned_heads"
_DTYPES = {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}


class GPTPreTrainedModel(CachedGraph):
    """Base of all models.

    Args:
        config: The model's configuration.
    """

    architecture: ClassVar[dict[str, str]] = {}
    _random_init: ClassVar[bool] = True
    # Cells around this one, which generation and predictions keep so as not to compile them again.
    not_compiled = ("graphs",)
    # The axes of input_ids, and what has its shape.
    token_axes: ClassVar[tuple[str, ...]] = ("B", "T")
    inputs_like_ids: ClassVar[tuple[str, ...]] = ("attention_mask", "token_type_ids")

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = ms.float32
        self.wants_kernels, self.uses_kernels = True, False
        self.graphs: dict[Any, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, the inputs checked beforehand: a compiler would report a mistake in forty lines."""
        self.match_kernels()
        check_inputs(self, args, kwargs)
        return super().__call__(*args, **kwargs)

    @property
    def backbone(self) -> GPTPreTrainedModel:
        """The ``GPTModel`` inside (itself, for a model without a head)."""
        return getattr(self, "transformer", self)

    def post_init(self) -> None:
        """Name the dropout sites and draw the initial weights; called at the end of each model's ``__init__``."""
        for name, cell in self.cells_and_names():
            if isinstance(cell, Dropout):
                cell.set_site(name.removeprefix("transformer."))
        if self._random_init:
            self.init_weights()
        self.match_kernels()

    def init_weights(self) -> None:
        """Draw the weights of this model that are not the inner ``GPTModel``'s.

        Weights of Conv1D, Dense and Embedding come from N(0, ``initializer_range``); biases are 0 and LayerNorm gains
        1. In pre-norm models the projections that feed the residual stream are divided by sqrt(2 n_layer). Each tensor
        has its own generator, seeded by ``config.seed`` and its name, so adding a layer leaves the others as they were.

        Source: GPT-1 paper, section 4.1; GPT-2 paper, section 2.3.
        """
        for name, parameter in self.weights().items():
            if not name.startswith("transformer.") and not name.endswith(("gamma", "beta")):
                parameter.set_data(Tensor(self._initial(name, parameter.shape)))

    def _initial(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("bias"):
            return np.zeros(shape, np.float32)
        std = self.config.initializer_range
        if name.endswith("c_proj.weight") and not self.config.post_norm:
            std /= math.sqrt(2 * self.config.n_layer)
        return self._draw(name, shape, std)

    def _draw(self, name: str, shape: tuple[int, ...], std: float) -> np.ndarray:
        generator = np.random.default_rng([self.config.seed, zlib.crc32(name.encode())])
        return generator.standard_normal(shape, np.float32) * np.float32(std)

    def weights(self) -> dict[str, Parameter]:
        """Return the parameters that are saved, by their path in this model."""
        return {name: item for name, item in self.parameters_and_names() if not name.endswith("dropout_state")}

    def num_parameters(self) -> int:
        """Return the number of weights; a tied head counts once."""
        return sum(int(np.prod(item.shape)) for item in self.weights().values())

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding."""
        return self.backbone.tokens_embed

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding.

        Args:
            value: An embedding of width ``n_embd``.
        """
        self.backbone.tokens_embed = value
        self.forget_graphs()

    def set_compute_dtype(self, dtype: str) -> None:
        """Compute the matrix products in another dtype; weights, softmax, LayerNorm, GELU and loss stay in float32.

        Args:
            dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        """
        for _, cell in self.cells_and_names():
            if isinstance(cell, (Conv1D, GPTPreTrainedModel)):
                cell.compute_dtype = _DTYPES[dtype]
            elif isinstance(cell, nn.Dense):
                cell.to_float(_DTYPES[dtype])
        if dtype == "float32":
            self.set_flash_attention(False)
        self.match_kernels()
        self.forget_graphs()

    def set_flash_attention(self, enabled: bool) -> None:
        """Use Ascend's fused attention, ``mindspore.ops.flash_attention_score``, wherever it can be used.

        It never is with a cache, with a head mask, or in training with ``attn_pdrop`` > 0: the kernel's own dropout
        would not repeat. Written after its documentation; untested on hardware.

        Args:
            enabled: Whether to use it, on Ascend and in half precision only.

        Raises:
            UserError: The device is not Ascend, or the model computes in float32, returns attention weights, or has
                heads of another size than the kernel takes.
        """
        if enabled:
            config = self.config
            if ms.get_context("device_target") != "Ascend":
                raise UserError("flash attention is a kernel of Ascend: leave it out on "
                                f"{ms.get_context('device_target')}")
            if self.compute_dtype == ms.float32:
                raise UserError("flash attention computes in half precision: choose the dtype float16 or bfloat16")
            if config.output_attentions:
                raise UserError("flash attention has no weights to return: set output_attentions to false")
            if config.head_size % 16 or config.head_size > 512:
                raise UserError(f"flash attention takes heads of 16, 32 ... 512 numbers, and these have "
                                f"{config.head_size} (n_embd / n_head)")
        for block in self.backbone.h:
            block.attn.flash_attention = enabled
        self.forget_graphs()

    def use_kernels(self, are_used: bool) -> None:
        """Compute with the fused CPU kernels, as new models do where there are any, or with plain operations.

        Args:
            are_used: Whether the kernels are used; see ``ms_gpt.kernels``.

        Raises:
            UserError: There are none in this process, or the model computes in half precision.
        """
        if are_used and not are_usable():
            raise UserError(f"there are no CPU kernels to use: {status()}")
        if are_used and self.compute_dtype != ms.float32:
            raise UserError("the CPU kernels compute in float32: call set_compute_dtype('float32') first")
        self.want_kernels(are_used)

    def want_kernels(self, are_wanted: bool) -> None:
        """Use the kernels whenever they can be used, or never."""
        for _, cell in self.cells_and_names():
            if isinstance(cell, GPTPreTrainedModel):
                cell.wants_kernels = are_wanted
        self.match_kernels()

    def match_kernels(self) -> None:
        """Use the kernels if they are wanted and can be used now: device, mode or dtype may have changed."""
        # Only a GPU adds up the gradients of an embedding in another order at every run.
        sums_exactly = ms.get_context("device_target") == "GPU"
        if self.backbone.sums_exactly != sums_exactly:
            self.backbone.sums_exactly = sums_exactly
            self.forget_graphs()
        are_used = self.wants_kernels and self.compute_dtype == ms.float32 and are_usable()
        if are_used == self.uses_kernels:
            return
        for _, cell in self.cells_and_names():
            if hasattr(cell, "set_kernels"):
                cell.set_kernels(are_used)
            if isinstance(cell, GPTPreTrainedModel):
                cell.uses_kernels = are_used
        self.forget_graphs()

    def reseed(self, seed: int, step: int = 0) -> None:
        """Start the dropout sequence of a seed.

        Args:
            seed: A whole number in [0, 2**31).
            step: Training passes to count as already done.
        """
        self.backbone.dropout_state.set_data(Tensor([seed, step], ms.int32))

    def prune_heads(self, heads_to_prune: Mapping[int, list[int] | set[int]]) -> None:
        """Remove attention heads for good.

        Args:
            heads_to_prune: Layer number to the heads to remove, in the numbering of the unpruned layer. Heads that
                are already gone are passed over.

        Raises:
            UserError: A layer or a head does not exist, or a layer would be left without heads.
        """
        blocks = self.backbone.h
        for layer in heads_to_prune:
            if not 0 <= layer < len(blocks):
                raise UserError(f"layer {layer} does not exist: this model's layers are 0 to {len(blocks) - 1}")
        for layer, heads in heads_to_prune.items():
            blocks[layer].attn.prune_heads(heads)
        self.forget_graphs()

    @property
    def pruned_heads(self) -> dict[int, list[int]]:
        """Layer number to the heads that were removed; layers with all their heads are left out."""
        pruned = {i: sorted(block.attn.pruned_heads) for i, block in enumerate(self.backbone.h)}
        return {layer: heads for layer, heads in pruned.items() if heads}

    def resize_token_embeddings(self, new_size: int) -> nn.Embedding:
        """Grow or shrink the vocabulary; new rows are drawn as at the start, old rows keep their values.

        Args:
            new_size: The new number of tokens, at least 1.

        Returns:
            The token embedding.
        """
        self.config = self.config.replace(vocab_size=new_size)
        for name, parameter in self.weights().items():
            if name.endswith(("tokens_embed.embedding_table", "lm_head.weight")):
                fresh = self._draw(f"{name}/{new_size}", (new_size, parameter.shape[1]), self.config.initializer_range)
                kept = min(new_size, parameter.shape[0])
                fresh[:kept] = parameter.asnumpy()[:kept]
                owner = self.lm_head if name.startswith("lm_head") else self.get_input_embeddings()
                setattr(owner, name.rsplit(".", 1)[-1], Parameter(Tensor(fresh), name=parameter.name))
        self.get_input_embeddings().vocab_size = new_size
        self.backbone.config = self.config
        self.forget_graphs()
        return self.get_input_embeddings()

    def forget_graphs(self) -> None:
        """Drop compiled graphs, those of the cells around this one too, after the structure has changed."""
        for _, cell in self.cells_and_names():
            cell.compile_cache.clear()
        self.graphs.clear()

    def dense_arrays(self) -> dict[str, np.ndarray]:
        """Return the weights as arrays under their names here, pruned heads put back as zeros."""
        arrays = {name: item.asnumpy() for name, item in self.weights().items()}
        prefix = "" if self.backbone is self else "transformer."
        for layer in self.pruned_heads:
            attn = self.backbone.h[layer].attn
            size, width = attn.head_size, self.config.n_embd
            rows = (np.array(attn.heads)[:, None] * size + np.arange(size)).reshape(-1)
            columns = np.concatenate([rows, rows + width, rows + 2 * width])
            name = f"{prefix}h.{layer}.attn."
            for key, index, shape, axis in (
                ("c_attn.weight", columns, (width, 3 * width), 1),
                ("c_attn.bias", columns, (3 * width,), 0),
                ("c_proj.weight", rows, (width, width), 0),
            ):
                dense = np.zeros(shape, np.float32)
                np.moveaxis(dense, axis, 0)[index] = np.moveaxis(arrays[name + key], axis, 0)
                arrays[name + key] = dense
        return arrays

    def save_pretrained(self, folder: str | Path, tokenizer: Any = None) -> None:
        """Write a folder that Hugging Face transformers and this library load.

        A pruned model is written dense, the removed heads as zeros, since that is the same function everywhere.

        Args:
            folder: Made if it does not exist. Files are replaced whole, so an interrupted save loses nothing.
            tokenizer: Anything with ``save_pretrained``, saved beside the weights; or ``None``.

        Raises:
            UserError: The folder cannot be written.
        """
        config = self.config.replace()
        config.extra = {key: value for key, value in config.extra.items() if key != _PRUNED_KEY}
        if self.pruned_heads:
            config.extra[_PRUNED_KEY] = {str(layer): heads for layer, heads in self.pruned_heads.items()}
        checkpoint.write_folder(folder, config, self.dense_arrays(), self.architecture[config.model_type])
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, source: str | Path, **overrides: Any) -> GPTPreTrainedModel:
        """Load a model from whatever holds one.

        Args:
            source: A folder in Hugging Face's layout, any other folder or file that ``convert`` reads, or the name of
                a model on the Hugging Face hub.
            **overrides: Fields of ``GPTConfig`` to change, such as ``num_labels=3`` or ``output_attentions=True``;
                or to say, such as ``n_head=12`` for a bare file of weights.

        Returns:
            The model, in evaluation mode. A classifier or multiple-choice head that the source lacks is drawn anew.

        Raises:
            UserError: The source cannot be read, or its tensors do not fit the configuration; nothing is loaded.
        """
        return cls.from_checkpoint(open_model(source, overrides), str(source), overrides)

    @classmethod
    def from_checkpoint(cls, opened: checkpoint.Checkpoint, name: str,
                        overrides: Mapping[str, Any] | None = None) -> GPTPreTrainedModel:
        """Load a model from an opened checkpoint; as ``from_pretrained``, which gives the rest.

        Args:
            opened: From ``open_model``.
            name: What to call it in an error.
            overrides: Fields of ``GPTConfig`` to change.

        Returns:
            The model, in evaluation mode.

        Raises:
            UserError: The tensors do not fit the configuration.
        """
        config = opened.config.replace(**(overrides or {}))
        # Before the model is built: a false vocabulary size in a configuration could ask for any amount of memory.
        _match(checkpoint.expected_shapes(config, cls.architecture[config.model_type]), opened.tensors, config, name)
        pruned = _pruned_heads(config, name)
        with _no_random_init():
            model = cls(config)
        model.load_arrays(opened.tensors, source=name)
        model.prune_heads(pruned)
        model.set_train(False)
        return model

    def load_arrays(self, tensors: Mapping[str, np.ndarray], source: str = "checkpoint") -> None:
        """Take weights from arrays under Hugging Face names, all or nothing.

        Args:
            tensors: Arrays by name, with or without the ``transformer.`` prefix.
            source: What to call them in an error.

        Raises:
            UserError: A tensor of the transformer is missing, a shape differs, or there are tensors that no GPT has.
        """
        weights = self.weights()
        shapes = {name: tuple(item.shape) for name, item in weights.items()}
        mapping = _match(shapes, tensors, self.config, source)
        for name, parameter in weights.items():
            if name in mapping:
                parameter.set_data(Tensor(np.asarray(tensors[mapping[name]], np.float32)))
            else:
                parameter.set_data(Tensor(self._initial(name, parameter.shape)))


def open_model(source: str | Path, known: Mapping[str, Any]) -> checkpoint.Checkpoint:
    """Open what ``from_pretrained`` takes.

    Args:
        source: A path, or the name of a model on the hub.
        known: Fields of ``GPTConfig`` that the caller says; ``n_head`` and ``activation_function`` are read.

    Returns:
        The checkpoint.

    Raises:
        UserError: The source cannot be read, or does not say all of its configuration.
    """
    return checkpoint.open_checkpoint(checkpoint.resolve(source), known.get("n_head"),
                                      known.get("activation_function"))


def _pruned_heads(config: GPTConfig, source: str) -> dict[int, list[int]]:
    """Read which heads ``save_pretrained`` says were removed."""
    pruned = config.extra.get(_PRUNED_KEY, {})
    if not isinstance(pruned, dict) or not all(
            re.fullmatch(r"\d{1,9}", layer) and isinstance(heads, list) and all(type(head) is int for head in heads)
            for layer, heads in pruned.items()):
        raise checkpoint.CheckpointError(f"{source}: {_PRUNED_KEY} of its configuration is not a table from layers to "
                                         "lists of heads")
    return {int(layer): heads for layer, heads in pruned.items()}


def _match(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, np.ndarray], config: GPTConfig,
           source: str) -> dict[str, str]:
    """Find the tensor of every parameter of a transformer; heads may be lacking, or left over."""
    mapping, report = checkpoint.match(shapes, tensors, config)
    report.missing = [name for name in report.missing if not name.startswith(_NEW_HEADS)]
    if report.unexpected:
        beside = checkpoint.training_state(tensors)
        report.unexpected = [name for name in report.unexpected if not (name.startswith(_ANY_HEAD) or name in beside)]
    if report.missing or report.unexpected or report.mismatched:
        raise checkpoint.CheckpointError(f"{source} does not fit this model: {report.summary()}")
    return mapping


@contextlib.contextmanager
def _no_random_init() -> Iterator[None]:
    """Build models without drawing weights that are about to be overwritten."""
    GPTPreTrainedModel._random_init = False
    try:
        yield
    finally:
        GPTPreTrainedModel._random_init = True
