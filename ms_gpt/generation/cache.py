"""Keys and values of the tokens so far, in memory of one shape that graphs write to in place."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from ms_gpt.layers import positions
from ms_gpt.pretrained import GPTPreTrainedModel


class KVCache(nn.Cell):
    """The keys and values of every layer of a model.

    Args:
        model: Says layers, heads (pruned ones are not kept) and dtype.
        batch_size: B, the number of rows.
        length: S, the number of columns; each holds one token of every row.

    Outputs:
        ``past_key_values``: a tuple of L pairs of Parameters (B, H, S, K). Columns that were not written are 0.
    """

    def __init__(self, model: GPTPreTrainedModel, batch_size: int, length: int) -> None:
        super().__init__(auto_prefix=False)
        backbone = model.backbone
        self.length = length
        self.n_layer = len(backbone.h)
        # Columns are written by IndexAdd, which takes float16 and float32.
        dtype = ms.float16 if backbone.compute_dtype == ms.float16 else ms.float32
        shapes = [(batch_size, block.attn.n_head, length, block.attn.head_size) for block in backbone.h]
        self.keys, self.values = (
            ParameterTuple([Parameter(Tensor(np.zeros(shape, np.float32)).astype(dtype),
                                      name=f"past_{kind}_{layer}", requires_grad=False)
                            for layer, shape in enumerate(shapes)])
            for kind in ("key", "value"))

    def construct(self) -> tuple:
        """Return the pairs of Parameters."""
        pairs = ()
        for i in range(self.n_layer):
            pairs = pairs + ((self.keys[i], self.values[i]),)
        return pairs

    def keep(self, count: Tensor) -> None:
        """Empty all columns but the first.

        Args:
            count: int32 Tensor (1,), how many columns stay.
        """
        column = positions(self.length)
        kept = (column < count).reshape((1, 1, -1, 1))
        # Chosen, not multiplied by 0: what a model that has gone astray leaves may be NaN.
        for parameter in self.keys + self.values:
            ops.assign(parameter, ops.where(kept, parameter, ops.zeros_like(parameter)))

    def reorder(self, source: Tensor) -> None:
        """Replace every row by another one, as a beam search does.

        Args:
            source: int32 Tensor (B,), the row that each row becomes.
        """
        for parameter in self.keys + self.values:
            ops.assign(parameter, ops.gather(parameter, source, 0))
