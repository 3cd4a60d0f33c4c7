"""``python -m ms_gpt.bench.worker``: our side, in a process of its own."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ms_gpt import runtime
from ms_gpt.bench.cases import MAX_GRAD_NORM, OPTIMIZER, Case, last_token_loss, read_batch
from ms_gpt.bench.serving import PRODUCT_SIZE, Worker, serve
from ms_gpt.heads import GPTForSequenceClassification, GPTLMHeadModel
from ms_gpt.training.optimizer import AdamW
from ms_gpt.training.schedule import LearningRate
from ms_gpt.training.step import Forward, Loss, TargetLoss, TrainStep


class Gradient(nn.Cell):
    """Loss and gradients in one graph.

    Args:
        loss: A Cell from a batch to a scalar loss.
        parameters: What the gradients are for.

    Outputs:
        Tuple of the loss and a tuple of gradients.
    """

    def __init__(self, loss: nn.Cell, parameters: list[ms.Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.value_and_grad = ops.value_and_grad(loss, None, ms.ParameterTuple(parameters))

    def construct(self, *batch: Tensor) -> tuple:
        """Return the loss and the gradients."""
        return self.value_and_grad(*batch)


class OurWorker(Worker):
    """This library: each step is one graph, but for generation, which is what ``model.generate`` does."""

    def load(self, case: dict[str, Any], folder: str) -> dict[str, Any]:
        """Load the model."""
        self.case = Case(**case)
        is_classifier = self.case.architecture.endswith("Classification")
        model_class = GPTForSequenceClassification if is_classifier else GPTLMHeadModel
        self.model = model_class.from_pretrained(folder)
        self.ids, self.labels = read_batch(folder)
        self.batch = (Tensor(self.ids), Tensor(self.labels))
        self.loss = Loss(self.model, ["input_ids", "labels"]) if is_classifier else TargetLoss(self.model)
        self.step = self._step()
        return {"mindspore": ms.__version__}

    def _step(self) -> Callable[[], Any]:
        if self.case.generates:
            return lambda: self.model.generate(self.ids, max_new_tokens=self.case.new_tokens, eos_token_id=-1)
        if not self.case.trains:
            self.forward = Forward(self.model, ["input_ids"]).set_train(False)
            return lambda: self.forward(self.batch[0])
        cell = (self._train_step if self.case.updates else self._gradient)()
        cell.set_train()

        def step() -> Any:
            return cell(*self.batch)

        return step

    def _gradient(self) -> Gradient:
        return Gradient(self.loss, list(self.model.weights().values()))

    def _train_step(self) -> TrainStep:
        settings = dict(OPTIMIZER)
        schedule = LearningRate(settings.pop("learning_rate"), 1, kind="constant")
        weights = self.model.weights()
        optimizer = AdamW(list(weights.values()), list(weights), **settings)
        return TrainStep(self.loss, optimizer, schedule, MAX_GRAD_NORM)

    def wait(self, result: Any) -> None:
        """Return when a step's first result is there; a step's graph is finished with it."""
        (result[0] if isinstance(result, tuple) else result).asnumpy()

    def check(self) -> dict[str, Any]:
        """Return the generated ids, or the loss without dropout."""
        if self.case.generates:
            return {"ids": self.step().asnumpy().tolist()}
        if not self.case.trains:
            return {"loss": last_token_loss(self.step()[0].asnumpy()[:, -1], self.labels)}
        return {"loss": float(self.loss.set_train(False)(*self.batch).asnumpy())}

    def product(self) -> Callable[[], Any]:
        """Return NumPy's product or MindSpore's, whichever is faster: the limit is the machine's, not the library's."""
        array = np.random.default_rng(0).standard_normal((PRODUCT_SIZE, PRODUCT_SIZE), np.float32)
        tensor, matmul = Tensor(array), ops.MatMul(transpose_b=True)
        choices = (lambda: array @ array, lambda: matmul(tensor, tensor).asnumpy())
        seconds = []
        for choice in choices:
            choice()
            start = time.perf_counter()
            choice()
            seconds.append(time.perf_counter() - start)
        return choices[seconds.index(min(seconds))]

    def profile_steps(self, folder: Path, steps: int) -> list[tuple[str, int, float]]:
        """Run steps under MindSpore's profiler and read the table that it writes."""
        from mindspore.profiler import ProfilerActivity, profile, tensorboard_trace_handler

        with profile(activities=[ProfilerActivity.CPU], on_trace_ready=tensorboard_trace_handler(str(folder))):
            self.run(steps)
        table = next(folder.rglob("cpu_op_type_info_*.csv"))
        with table.open(newline="", encoding="utf-8") as file:
            return [(row["op_type"], int(row["type_occurrences"]), float(row["total_compute_time"]))
                    for row in csv.DictReader(file)]


def make() -> OurWorker:
    """Set the process up as every verb does."""
    runtime.setup("cpu")
    return OurWorker()


if __name__ == "__main__":
    serve(make)
