"""``python -m ms_gpt.bench.peers.mindnlp_worker``: MindNLP's side, in an environment of its own.

It needs nothing but mindnlp 0.5.1 and what that needs. On a CPU its optimizers fail and its ``backward`` does nothing:
what can be timed is forward and gradient, op by op.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

# First of all: it puts a torch of its own in place and changes transformers.
import mindnlp  # noqa: F401
import mindspore as ms
import numpy as np
import torch
import transformers

from ms_gpt.bench.cases import Case, last_token_loss, read_batch
from ms_gpt.bench.serving import PRODUCT_SIZE, Worker, serve


class MindNlpWorker(Worker):
    """MindNLP, op by op."""

    def load(self, case: dict[str, Any], folder: str) -> dict[str, Any]:
        """Load the model."""
        self.case = Case(**case)
        ids, self.labels = read_batch(folder)
        self.batch = torch.tensor(ids), torch.tensor(self.labels)
        self.model = getattr(transformers, self.case.architecture).from_pretrained(folder)
        self.model.train(self.case.trains)
        self.gradient = ms.value_and_grad(self._loss, None, list(self.model.parameters()))
        self.step = self.gradient if self.case.trains else self._logits
        return {"mindnlp": metadata.version("mindnlp"), "mindspore": ms.__version__}

    def _loss(self) -> Any:
        return self.model(input_ids=self.batch[0], labels=self.batch[1].long()).loss

    def _logits(self) -> tuple:
        with torch.no_grad():
            return (self.model(input_ids=self.batch[0]).logits,)

    def wait(self, result: tuple) -> None:
        """Fetch all that was computed: ops are only queued."""
        loss, *rest = result
        loss.asnumpy()
        for gradient in rest[0] if rest else ():
            gradient.asnumpy()

    def check(self) -> dict[str, Any]:
        """Return the loss without dropout."""
        if not self.case.trains:
            return {"loss": last_token_loss(self.step()[0].asnumpy()[:, -1], self.labels)}
        self.model.eval()
        loss = float(self._loss())
        self.model.train()
        return {"loss": loss}

    def product(self) -> Callable[[], Any]:
        """Return NumPy's product."""
        matrix = np.ones((PRODUCT_SIZE, PRODUCT_SIZE), np.float32)
        return lambda: matrix @ matrix


if __name__ == "__main__":
    serve(MindNlpWorker)
