"""What a model is called with, checked before a compiler sees it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import mindspore as ms
from mindspore import nn

from ms_gpt.errors import UserError, suggest

_INTEGERS = (ms.int16, ms.int32, ms.int64)
_FLOATS = (ms.float16, ms.bfloat16, ms.float32, ms.float64)


def check_inputs(model: nn.Cell, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse what the model cannot be called with.

    Args:
        model: A ``GPTPreTrainedModel``; says the axes of its tokens, and which inputs have their shape.
        args: Inputs by place.
        kwargs: Inputs by name.

    Raises:
        UserError: An input has an unknown name, is no Tensor or is of the wrong shape or dtype, tokens are missing or
            given twice, or they are more than ``n_positions``.
    """
    known, is_open = _inputs_of(type(model))
    for name in kwargs:
        if name not in known and not is_open:
            raise UserError(f"{name!r} is no input of {type(model).__name__}.{suggest(name, known)}")
    given = {**dict(zip(known, args, strict=False)), **kwargs}
    for name in ("input_ids", "inputs_embeds", "position_ids", *model.inputs_like_ids):
        if given.get(name) is not None and not hasattr(given[name], "asnumpy"):
            raise UserError(f"{name} is of type {type(given[name]).__name__}: give a Tensor")
    input_ids, inputs_embeds = given.get("input_ids"), given.get("inputs_embeds")
    if (input_ids is None) == (inputs_embeds is None):
        raise UserError("give exactly one of input_ids and inputs_embeds")
    name, tokens = ("inputs_embeds", inputs_embeds) if input_ids is None else ("input_ids", input_ids)
    shape, kinds = (tokens.shape[:-1], _FLOATS) if input_ids is None else (tokens.shape, _INTEGERS)
    if len(shape) != len(model.token_axes) or tokens.dtype not in kinds:
        axes = ", ".join(model.token_axes)
        wanted = f"numbers ({axes}, D)" if input_ids is None else f"whole numbers ({axes})"
        raise UserError(f"{name} is of shape {tokens.shape} and dtype {tokens.dtype}: give {wanted}")
    if shape[-1] > model.config.n_positions:
        raise UserError(f"a sequence of {shape[-1]} tokens is longer than n_positions={model.config.n_positions}")
    # With a cache the mask covers the tokens that are kept too.
    for name in model.inputs_like_ids if given.get("past_key_values") is None else ():
        value = given.get(name)
        # One row of a mask holds for all of them.
        rows = shape[:1] if name == "labels" else (1, shape[0])
        if value is not None and (value.shape[:1] not in [(row,) for row in rows] or value.shape[1:] != shape[1:]):
            raise UserError(f"{name} is of shape {value.shape}, and the tokens of {shape}: give one for each")


@functools.cache
def _inputs_of(model_class: type) -> tuple[list[str], bool]:
    """Return the names of a model's inputs, and whether its ``construct`` takes others too."""
    is_open = False
    for base in model_class.__mro__:
        if "construct" in vars(base):
            parameters = list(inspect.signature(base.construct).parameters.values())[1:]
            if all(item.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for item in parameters):
                return [item.name for item in parameters], is_open
            is_open = True
    return [], True
