"""A program that compiles the graphs named on its command line and prints what they compute, for test_compile_cache."""

import json
import sys

import numpy as np
from mindspore import Tensor

from ms_gpt import GPTConfig, GPTLMHeadModel, compile_cache, runtime
from ms_gpt.training.optimizer import AdamW
from ms_gpt.training.schedule import LearningRate
from ms_gpt.training.step import TargetLoss, TrainStep

VARIANTS = {
    "base": {}, "dropout": {"dropout": 0.2}, "layers": {"layers": 2}, "rate": {"rate": 2e-2}, "length": {"length": 12},
}


def language_model(layers=1, dropout=0.1, **changes):
    settings = {"model_type": "gpt2", "resid_pdrop": dropout, "attn_pdrop": dropout, "embd_pdrop": dropout, **changes}
    return GPTLMHeadModel(GPTConfig(32, 16, n_layer=layers, n_head=2, n_embd=8, **settings))


def train_step(model, rate=1e-2, max_grad_norm=1.0):
    weights = model.weights()
    optimizer = AdamW(list(weights.values()), list(weights))
    return TrainStep(TargetLoss(model), optimizer, LearningRate(rate, 10), max_grad_norm).set_train()


def batch(length=8):
    ids = np.random.RandomState(0).randint(0, 32, (2, length + 1)).astype(np.int32)
    return Tensor(np.ascontiguousarray(ids[:, :-1])), Tensor(np.ascontiguousarray(ids[:, 1:]))


def train(length=8, rate=1e-2, **changes):
    """Return the losses of two steps, of a step after the weights were set back, and a sum over the weights."""
    model = language_model(**changes)
    step, inputs = train_step(model, rate), batch(length)
    first = {name: item.asnumpy().copy() for name, item in model.weights().items()}
    losses = [float(step(*inputs)[0].asnumpy()) for _ in range(2)]
    for name, item in model.weights().items():
        item.set_data(Tensor(first[name]))
    losses.append(float(step(*inputs)[0].asnumpy()))
    return [*losses, *(float(np.abs(item.asnumpy()).sum()) for item in model.weights().values())]


def generate():
    return language_model().generate([[1, 2, 3]], max_new_tokens=8).tolist()


def graphs():
    folder = compile_cache._folder()
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def noting_take(loaded):
    """The stage's ``take``, which also notes whether the graph was loaded."""
    original = compile_cache._Stage.take

    def take(self, is_laid):
        content = original(self, is_laid)
        loaded.append(content is None)
        return content

    return take


def main(names):
    runtime.setup("cpu", "graph")
    loaded = []
    compile_cache._Stage.take = noting_take(loaded)
    found = {}
    for name in names:
        before, files = len(loaded), set(graphs())
        found[name] = {"numbers": generate() if name == "generate" else train(**VARIANTS[name])}
        found[name].update(loaded=loaded[before:], files=sorted(set(graphs()) - files))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
