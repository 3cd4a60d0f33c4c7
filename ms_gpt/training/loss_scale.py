"""Dynamic loss scaling, for training in float16."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops


class LossScaler(nn.Cell):
    """The factor of the loss that keeps small float16 gradients from becoming 0, and what it learns from overflows.

    All of it is Parameters that the graph of the train step updates, so nothing waits for the host. Factors are
    powers of two, hence scaling and unscaling round nothing.

    Args:
        initial: First factor of the loss.
        growth_interval: Updates without an overflow, one after the other, after which the factor doubles.

    Inputs:
        is_finite: bool scalar Tensor, whether the gradients of this step are.

    Outputs:
        int32 scalar Tensor, the steps skipped so far.

    Source: Micikevicius et al. 2018, section 3.2.
    """

    largest, smallest = 2.0**126, 1.0

    def __init__(self, initial: float = 2.0**16, growth_interval: int = 2000) -> None:
        super().__init__(auto_prefix=False)
        self.growth_interval = growth_interval
        self.scale = Parameter(Tensor(initial, ms.float32), name="loss_scale", requires_grad=False)
        self.good_steps = Parameter(Tensor(0, ms.int32), name="loss_scale_good_steps", requires_grad=False)
        self.overflows = Parameter(Tensor(0, ms.int32), name="loss_scale_overflows", requires_grad=False)

    def state(self) -> dict[str, Parameter]:
        """Return what a resumed run needs, by name."""
        return {item.name: item for item in (self.scale, self.good_steps, self.overflows)}

    def construct(self, is_finite: Tensor) -> Tensor:
        """Count a step, and adapt the factor: half after an overflow, double after a long time without."""
        good = is_finite.astype(ms.int32)
        run = (self.good_steps + 1) * good
        grows = (run >= self.growth_interval).astype(ms.int32)
        up, down = grows.astype(ms.float32), 1.0 - good.astype(ms.float32)
        scale = ops.clamp(self.scale * (1.0 + up - 0.5 * down), self.smallest, self.largest)
        ops.assign(self.scale, scale)
        ops.assign(self.good_steps, run * (1 - grows))
        return ops.assign_add(self.overflows, 1 - good)


class ScaledLoss(nn.Cell):
    """A loss times the scaler's factor, with the loss itself beside it.

    Args:
        loss: A Cell from a batch to a scalar loss.
        scaler: Has the factor.

    Inputs:
        *batch: The columns of a batch.

    Outputs:
        Two float32 scalar Tensors: what is differentiated, and the loss.
    """

    def __init__(self, loss: nn.Cell, scaler: LossScaler) -> None:
        super().__init__(auto_prefix=False)
        self.loss, self.scaler = loss, scaler

    def construct(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled loss and the loss."""
        loss = self.loss(*batch)
        return loss * self.scaler.scale, loss
