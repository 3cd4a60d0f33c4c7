"""What MindNLP computes, in a process of its own: it puts its own torch in place of PyTorch, and changes transformers.

``python mindnlp_child.py JOBS``: for each ``{"folder", "architecture"}`` in the JSON list, ``batch.npz`` of the folder
goes through the model that MindNLP 0.5 loads from it, and ``theirs.npz`` gets logits, loss and gradients by
transformers' names.
"""

import json
import sys
from pathlib import Path

# First of all.
import mindnlp  # noqa: F401
import mindspore as ms
import numpy as np
import torch
import transformers


def compute(folder: Path, architecture: str) -> None:
    batch = {name: torch.tensor(value) for name, value in np.load(folder / "batch.npz").items()}
    model = getattr(transformers, architecture).from_pretrained(folder)
    model.eval()
    names, parameters = zip(*model.named_parameters(), strict=True)

    def forward():
        outputs = model(**batch)
        return outputs.loss, outputs.logits

    (loss, logits), gradients = ms.value_and_grad(forward, None, list(parameters), has_aux=True)()
    arrays = {name: gradient.asnumpy() for name, gradient in zip(names, gradients, strict=True)}
    np.savez(folder / "theirs.npz", **arrays, **{"outputs.loss": loss.asnumpy(), "outputs.logits": logits.asnumpy()})


if __name__ == "__main__":
    for job in json.loads(sys.argv[1]):
        compute(Path(job["folder"]), job["architecture"])
