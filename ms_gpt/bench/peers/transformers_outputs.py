"""``python -m ms_gpt.bench.peers.transformers_outputs FOLDER IDS.npy OUT.npy``: a model's output by transformers."""

from __future__ import annotations

import sys

import numpy as np


def main(folder: str, ids_file: str, out_file: str) -> None:
    """Run a model folder on token ids and save the first of its outputs that is no loss.

    Args:
        folder: A model folder with ``architectures`` in its ``config.json``.
        ids_file: ``.npy`` file of ids, of the shape that the model takes.
        out_file: ``.npy`` file to write: logits, or hidden states of a model without a head; float32.
    """
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    model_class = getattr(transformers, config.architectures[0])
    model, found = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if found["missing_keys"] or found["mismatched_keys"]:
        sys.exit("transformers has drawn weights at random that it did not find in the folder")
    model.eval()
    with torch.no_grad():
        output = model(torch.from_numpy(np.load(ids_file)))[0]
    np.save(out_file, output.numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
