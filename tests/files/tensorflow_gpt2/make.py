"""Makes the other files of this folder with TensorFlow's own Saver: ``python make.py`` (tensorflow 2.x, numpy)."""

import json
import math
import os
import zlib
from pathlib import Path

import numpy as np
import tensorflow as tf

os.chdir(Path(__file__).resolve().parent)
HPARAMS = {"n_vocab": 17, "n_ctx": 12, "n_embd": 8, "n_head": 2, "n_layer": 2}
WIDTH = HPARAMS["n_embd"]


def shapes():
    yield "model/wpe", (HPARAMS["n_ctx"], WIDTH)
    yield "model/wte", (HPARAMS["n_vocab"], WIDTH)
    for layer in range(HPARAMS["n_layer"]):
        for norm in ("ln_1", "ln_2"):
            yield from ((f"model/h{layer}/{norm}/{part}", (WIDTH,)) for part in "gb")
        for name, n_in, n_out in (("attn/c_attn", 1, 3), ("attn/c_proj", 1, 1), ("mlp/c_fc", 1, 4),
                                  ("mlp/c_proj", 4, 1)):
            yield f"model/h{layer}/{name}/w", (1, n_in * WIDTH, n_out * WIDTH)
            yield f"model/h{layer}/{name}/b", (n_out * WIDTH,)
    yield from ((f"model/ln_f/{part}", (WIDTH,)) for part in "gb")


def values(name, shape):
    flat = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(math.prod(shape))
    return flat.astype(np.float32).reshape(shape)


with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    for name, shape in shapes():
        tf.compat.v1.get_variable(name, initializer=values(name, shape), use_resource=False)
    session.run(tf.compat.v1.global_variables_initializer())
    tf.compat.v1.train.Saver(save_relative_paths=True).save(session, "./model.ckpt", write_meta_graph=False)
Path("hparams.json").write_text(json.dumps(HPARAMS) + "\n")
