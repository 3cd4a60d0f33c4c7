"""The learning rate as a function of the update's number, computed inside the graph."""

from __future__ import annotations

import math

import mindspore as ms
from mindspore import Tensor, nn, ops


class LearningRate(nn.Cell):
    """Linear warm-up, then linear or cosine decay to a share of the peak, or no decay.

    Args:
        peak: The largest rate.
        total_steps: Updates in the whole run.
        warmup_steps: Updates of the warm-up: update k (from 0) gets ``peak * (k + 1) / warmup_steps``.
        kind: ``"linear"``, ``"cosine"`` or ``"constant"``.
        min_ratio: The rate at the end as a share of the peak.

    Inputs:
        step: int32 scalar Tensor, the update's number from 0.

    Outputs:
        float32 scalar Tensor.

    Source: GPT-1 paper, section 4.1 (linear warm-up, cosine to 0; linear decay for fine-tuning).
    """

    def __init__(self, peak: float, total_steps: int, warmup_steps: int = 0, kind: str = "linear",
                 min_ratio: float = 0.0) -> None:
        super().__init__()
        self.peak, self.kind, self.min_ratio = float(peak), kind, float(min_ratio)
        self.warmup_steps = max(float(warmup_steps), 1.0)
        self.first_decay = float(warmup_steps)
        self.decay_steps = max(float(total_steps - warmup_steps), 1.0)

    def construct(self, step: Tensor) -> Tensor:
        """Return the rate of one update."""
        step = step.astype(ms.float32)
        rise = ops.minimum((step + 1.0) / self.warmup_steps, Tensor(1.0, ms.float32))
        done = ops.clamp((step - self.first_decay) / self.decay_steps, 0.0, 1.0)
        if self.kind == "cosine":
            left = 0.5 * (1.0 + ops.cos(done * math.pi))
        elif self.kind == "linear":
            left = 1.0 - done
        else:
            left = ops.ones_like(done)
        return self.peak * rise * (self.min_ratio + (1.0 - self.min_ratio) * left)
