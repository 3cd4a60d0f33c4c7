"""``python -m ms_gpt.bench.peers.torch_worker``: PyTorch's side, in a process of its own.

Models are those of transformers, but for the language model's train step, which is a plain GPT with fused attention.
The update is PyTorch's fused AdamW, four times as fast as its plain one: what transformers' Trainer takes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from ms_gpt.bench.cases import MAX_GRAD_NORM, OPTIMIZER, Case, last_token_loss, read_batch
from ms_gpt.bench.peers.torch_sdpa import SdpaGPT
from ms_gpt.bench.serving import PRODUCT_SIZE, Worker, serve


class TorchWorker(Worker):
    """PyTorch in eager mode."""

    def load(self, case: dict[str, Any], folder: str) -> dict[str, Any]:
        """Load the model."""
        self.case = Case(**case)
        ids, self.labels = read_batch(folder)
        self.batch = torch.from_numpy(ids).long(), torch.from_numpy(self.labels).long()
        if self.case.name == "lm":
            config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
            self.model = SdpaGPT(config).load_gpt2(load_file(Path(folder) / "model.safetensors"))
        else:
            self.model = self._from_transformers(folder)
        self.step = self._step()
        return {"torch": torch.__version__, "transformers": transformers.__version__}

    def _from_transformers(self, folder: str) -> Any:
        model_class = getattr(transformers, self.case.architecture)
        model, found = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        if found["missing_keys"] or found["mismatched_keys"]:
            raise SystemExit("transformers has drawn weights at random that it did not find in the folder")
        return model

    def _loss(self) -> torch.Tensor:
        if self.case.name == "lm":
            return self.model(*self.batch)
        return self.model(input_ids=self.batch[0], labels=self.batch[1]).loss

    def _step(self) -> Callable[[], Any]:
        self.model.train(self.case.trains)
        if self.case.generates:
            return self._generate
        if not self.case.trains:
            return self._forward
        if not self.case.updates:
            return self._gradient
        self.optimizer = self._optimizer()
        return self._train

    def _optimizer(self) -> torch.optim.Optimizer:
        embeddings = {id(item.weight) for item in self.model.modules() if isinstance(item, torch.nn.Embedding)}
        groups: tuple[list, list] = ([], [])
        for item in self.model.parameters():
            groups[item.ndim > 1 and id(item) not in embeddings].append(item)
        return torch.optim.AdamW(
            [{"params": groups[0], "weight_decay": 0.0}, {"params": groups[1]}], OPTIMIZER["learning_rate"],
            (OPTIMIZER["beta1"], OPTIMIZER["beta2"]), OPTIMIZER["epsilon"], OPTIMIZER["weight_decay"], fused=True)

    def _train(self) -> torch.Tensor:
        loss = self._loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _gradient(self) -> torch.Tensor:
        self.model.zero_grad(set_to_none=True)
        loss = self._loss()
        loss.backward()
        return loss

    @torch.no_grad()
    def _forward(self) -> torch.Tensor:
        return self.model(input_ids=self.batch[0]).logits

    def _generate(self) -> torch.Tensor:
        return self.model.generate(self.batch[0], attention_mask=torch.ones_like(self.batch[0]), do_sample=False,
                                   max_new_tokens=self.case.new_tokens, min_new_tokens=self.case.new_tokens,
                                   use_cache=True)

    def check(self) -> dict[str, Any]:
        """Return the generated ids, or the loss without dropout."""
        if self.case.generates:
            return {"ids": self.step().tolist()}
        if not self.case.trains:
            return {"loss": last_token_loss(self.step()[:, -1].numpy(), self.labels)}
        self.model.eval()
        with torch.no_grad():
            loss = float(self._loss())
        self.model.train()
        return {"loss": loss}

    def product(self) -> Callable[[], Any]:
        """Return PyTorch's product."""
        matrix = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE)
        return lambda: matrix @ matrix

    def profile_steps(self, folder: Path, steps: int) -> list[tuple[str, int, float]]:
        """Run steps under PyTorch's profiler."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            self.run(steps)
        return [(item.key, item.count, item.self_cpu_time_total / 1000) for item in profiler.key_averages()]


def make() -> TorchWorker:
    """Give PyTorch the threads that the environment says."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    return TorchWorker()


if __name__ == "__main__":
    serve(make)
