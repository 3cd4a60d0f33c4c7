"""``python mindnlp_01_child.py FOLDER``: MindNLP 0.1 makes small models of its own and writes their ``.ckpt`` files.

For each family ``NAME.ckpt`` gets the weights and ``NAME.npz`` token ids and the logits that MindNLP computes for them.
"""

import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindnlp.models.gpt import GPTConfig, GPTLMHeadModel
from mindnlp.models.gpt2.config_gpt2 import GPT2Config
from mindnlp.models.gpt2.gpt2 import GPT2LMHeadModel

SIZES = {"vocab_size": 19, "n_positions": 12, "n_embd": 12, "hidden_size": 12, "n_layer": 2, "n_head": 3}
GPT2_SIZES = {"vocab_size": 19, "max_position_embeddings": 12, "hidden_size": 12, "num_hidden_layers": 2,
              "num_attention_heads": 3}


def write(folder: Path, name: str, model) -> None:
    rng = np.random.default_rng(0)
    for parameter in model.get_parameters():
        if parameter.requires_grad:
            spread = parameter.shape[0] ** -0.5 if parameter.ndim > 1 else 0.2
            parameter.set_data(ms.Tensor(spread * rng.standard_normal(parameter.shape), ms.float32))
    model.set_train(False)
    input_ids = rng.integers(0, SIZES["vocab_size"], (2, 7)).astype(np.int32)
    logits = model(ms.Tensor(input_ids))[0].asnumpy()
    ms.save_checkpoint(model, str(folder / f"{name}.ckpt"))
    np.savez(folder / f"{name}.npz", input_ids=input_ids, logits=logits)


if __name__ == "__main__":
    ms.set_context(mode=ms.PYNATIVE_MODE)
    write(Path(sys.argv[1]), "gpt", GPTLMHeadModel(GPTConfig(**SIZES)))
    write(Path(sys.argv[1]), "gpt2", GPT2LMHeadModel(GPT2Config(**GPT2_SIZES)))
