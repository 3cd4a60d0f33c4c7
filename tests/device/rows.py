"""What ``check.py`` runs on a device: each row is one property, computed in a process of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import speed
from basics import Outcome, Row, Setting, random_ids, require, strong_model
from mindspore import ParameterTuple, Tensor, nn, ops

from ms_gpt import GPTConfig, GPTForSequenceClassification, GPTLMHeadModel, Trainer, TrainingArguments, cli, runtime
from ms_gpt.console import Console
from ms_gpt.export import export_mindir
from ms_gpt.generation.session import Session
from ms_gpt.training.step import Loss


class Gradients(nn.Cell):
    """Loss and gradients in one graph."""

    def __init__(self, model: Any, columns: tuple[str, ...]) -> None:
        super().__init__(auto_prefix=False)
        self.loss = Loss(model, columns)
        self.value_and_grad = ops.value_and_grad(self.loss, None, ParameterTuple(list(model.weights().values())))

    def construct(self, *batch: Tensor) -> tuple:
        return self.value_and_grad(*batch)


def _arrays(model: Any, setting: Setting) -> dict[str, np.ndarray]:
    """Return loss, logits and gradients for rows with padding on the right, on the left, and without."""
    ids = random_ids(model.config, 4, setting.length)
    mask = np.ones_like(ids)
    mask[1, -setting.length // 3 :] = 0
    mask[2, : setting.length // 3] = 0
    is_language_model = isinstance(model, GPTLMHeadModel)
    labels = ids[:, 0] % 3
    if is_language_model:
        # The first token after padding would be scored by what padding predicts, which is anything.
        labels = np.where(mask & np.roll(mask, 1, -1), ids, -100)
    loss, gradients = Gradients(model, ("input_ids", "attention_mask", "labels"))(
        Tensor(ids), Tensor(mask), Tensor(labels.astype(np.int32)))
    logits = model(Tensor(ids), attention_mask=Tensor(mask))[0].asnumpy()
    # What stands behind padding is never looked at.
    arrays = {"loss": loss.asnumpy(), "logits": logits[mask != 0] if is_language_model else logits}
    return arrays | {f"gradient of {name}": item.asnumpy()
                     for name, item in zip(model.weights(), gradients, strict=True)}


def _gradients(setting: Setting, kind: type, config: GPTConfig, mode: str = "graph") -> Outcome:
    runtime.setup(setting.device, mode)
    arrays = _arrays(strong_model(kind, config), setting)
    return Outcome(arrays, f"loss {float(arrays['loss']):.4f}")


def gpt1_gradients(setting: Setting) -> Outcome:
    return _gradients(setting, GPTLMHeadModel, setting.config("openai-gpt"))


def gpt2_gradients(setting: Setting) -> Outcome:
    return _gradients(setting, GPTLMHeadModel, setting.config())


def banded_gradients(setting: Setting) -> Outcome:
    return _gradients(setting, GPTLMHeadModel, setting.config("ms_gpt", window_size=5))


def classifier_gradients(setting: Setting) -> Outcome:
    return _gradients(setting, GPTForSequenceClassification, setting.config("openai-gpt"))


def pynative_gradients(setting: Setting) -> Outcome:
    return _gradients(setting, GPTLMHeadModel, setting.config(), "graph" if setting.is_reference else "pynative")


def _rows(setting: Setting, count: int = 32) -> list[dict[str, Any]]:
    """Return rows of one length that a model can learn: each token is the last one plus one."""
    config = setting.config()
    first = random_ids(config, count, 1, seed=3)
    ids = (first + np.arange(setting.length)) % (config.vocab_size - 1) + 1
    return [{"input_ids": row.tolist(), "label": int(row[0]) % 3} for row in ids]


def _trainer(setting: Setting, name: str = "run", kind: type = GPTLMHeadModel, dtype: str = "float32",
             **values: Any) -> Trainer:
    """Return a trainer of a new model with dropout; a reference computes in float32."""
    dtype = "float32" if setting.is_reference else dtype
    runtime.setup(setting.device, dtype=dtype)
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.1)
    model = kind(setting.config(**dropout))
    args = {"max_steps": setting.steps, "learning_rate": 3e-3, "logging_steps": 1, "save_strategy": "no", "buckets": 1,
            "lr_scheduler_type": "constant"}
    args = TrainingArguments(str(setting.folder / name), device=setting.device, dtype=dtype, **{**args, **values})
    rows = _rows(setting)
    return Trainer(model, args, rows, rows, console=Console(quiet=True))


def _course(trainer: Trainer) -> np.ndarray:
    """Train; return the loss of every step."""
    trainer.train()
    return np.array([record["loss"] for record in trainer.log.read() if "loss" in record])


def _learns(setting: Setting, dtype: str) -> Outcome:
    trainer = _trainer(setting, dtype=dtype)
    losses = _course(trainer)
    require(len(losses) == setting.steps, f"{len(losses)} losses of {setting.steps} steps were logged")
    require(bool(np.isfinite(losses).all()), f"the losses are {losses}")
    require(losses[-1] < losses[0], f"the loss rose from {losses[0]:.4f} to {losses[-1]:.4f}")
    note = f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {setting.steps} steps"
    if trainer.scaler is not None:
        state = {name: float(item.asnumpy()) for name, item in trainer.scaler.state().items()}
        note += f", loss scale {state['loss_scale']:.0f}, {state['loss_scale_overflows']:.0f} overflows"
        # A skipped batch moves the course, and its size says nothing about the arithmetic.
        require(state["loss_scale_overflows"] < setting.steps, "every step overflowed")
    return Outcome({"losses": losses}, note)


def train_float32(setting: Setting) -> Outcome:
    return _learns(setting, "float32")


def train_float16(setting: Setting) -> Outcome:
    return _learns(setting, "float16")


def train_bfloat16(setting: Setting) -> Outcome:
    return _learns(setting, "bfloat16")


def repeatable(setting: Setting) -> Outcome:
    """Return the bits of all weights after training with dropout."""
    trainer = _trainer(setting)
    trainer.train()
    arrays = {name: item.asnumpy().view(np.int32) for name, item in trainer.model.weights().items()}
    return Outcome(arrays, f"{len(arrays)} tensors, dropout 0.1, {setting.steps} steps")


def evaluation(setting: Setting) -> Outcome:
    figures = {}
    for kind in (GPTLMHeadModel, GPTForSequenceClassification):
        trainer = _trainer(setting, kind=kind)
        for name, value in strong_model(kind, trainer.model.config).weights().items():
            trainer.model.weights()[name].set_data(Tensor(value.asnumpy()))
        found = trainer.evaluate(_rows(setting, 11))
        figures |= {f"{kind.__name__} {key}": np.array(value, np.float64) for key, value in found.items()
                    if isinstance(value, (int, float))}
    return Outcome(figures, ", ".join(f"{key.split()[1]} {float(value):.4g}" for key, value in figures.items()
                                      if key.endswith(("_loss", "accuracy"))))


def generation(setting: Setting) -> Outcome:
    """Return greedy ids, and the logits of a prefill and of each decode step."""
    runtime.setup(setting.device)
    config = setting.config()
    model = strong_model(GPTLMHeadModel, config)
    rows = [row.tolist() for row in random_ids(config, 2, 9)]
    rows[1] = rows[1][:4]
    new = 8 if setting.quick else 40
    ids = model.generate(rows, max_new_tokens=new).asnumpy()
    session = Session(model, 2, 9 + new)
    logits = [session.read(rows)[1].asnumpy()]
    for column in ids[:, 9 : 9 + new - 1].T:
        rows = [[*row, int(token)] for row, token in zip(rows, column, strict=True)]
        logits.append(session.read(rows)[1].asnumpy())
    uncached = model.generate(rows, max_new_tokens=4, use_cache=False).asnumpy()
    cached = model.generate(rows, max_new_tokens=4).asnumpy()
    require(np.array_equal(cached, uncached), "the ids with a cache are not those without one")
    return Outcome({"ids": ids, "logits": np.stack(logits)}, f"{2 * new} tokens")


def beams(setting: Setting) -> Outcome:
    runtime.setup(setting.device)
    config = setting.config()
    model = strong_model(GPTLMHeadModel, config)
    ids = model.generate(random_ids(config, 2, 7).tolist(), num_beams=3, num_return_sequences=2,
                         max_new_tokens=6 if setting.quick else 20).asnumpy()
    return Outcome({"ids": ids}, f"{ids.shape[0]} rows")


def save_and_resume(setting: Setting) -> Outcome:
    """Check that a folder gives back the model, and that a run in two parts leaves the weights of one in one part."""
    steps = setting.steps
    whole = _trainer(setting, "whole")
    whole.train()
    folder = setting.folder / "saved"
    whole.save_model(folder)
    loaded = GPTLMHeadModel.from_pretrained(folder).set_train(False)
    ids = Tensor(random_ids(loaded.config, 2, setting.length))
    require(np.array_equal(loaded(ids)[0].asnumpy(), whole.model.set_train(False)(ids)[0].asnumpy()),
            "the model loaded from a folder computes other logits than the one saved there")

    class Stop(ms.train.Callback):
        def on_train_step_end(self, run_context: Any) -> None:
            if parted.state.step == steps // 2:
                raise KeyboardInterrupt

    parted = _trainer(setting, "parted", save_strategy="steps", save_steps=steps // 2)
    parted.callbacks.append(Stop())
    with contextlib.suppress(KeyboardInterrupt):
        parted.train()
    resumed = _trainer(setting, "parted", save_strategy="steps", save_steps=steps // 2)
    resumed.train(resume=True)
    for name, item in resumed.model.weights().items():
        require(np.array_equal(item.asnumpy(), whole.model.weights()[name].asnumpy()),
                f"{name} of the resumed run is not that of the uninterrupted one")
    return Outcome(note=f"stopped after {parted.state.step} of {steps} steps")


def data_sink(setting: Setting) -> Outcome:
    plain, sunk = _course(_trainer(setting, "plain")), _course(_trainer(setting, "sunk", dataset_sink_mode=True))
    require(len(plain) == len(sunk), f"{len(sunk)} losses with, {len(plain)} without")
    gap = float(np.abs(plain - sunk).max())
    require(gap <= 1e-6, f"the losses differ by {gap:.1e} from those without")
    return Outcome(note=f"{setting.steps} steps")


def flash_attention(setting: Setting) -> Outcome:
    """Check logits and gradients against the plain attention's, both in float16, with padding on either side."""
    runtime.setup(setting.device, dtype="float16")
    model = strong_model(GPTLMHeadModel, setting.config(n_embd=64, n_head=4))
    model.set_compute_dtype("float16")
    plain = _arrays(model, setting)
    model.set_flash_attention(True)
    fused = _arrays(model, setting)
    largest = max(float(np.abs(item).max()) for item in plain.values())
    gap = max(float(np.abs(fused[name] - item).max()) / max(float(np.abs(item).max()), 1e-3 * largest)
              for name, item in plain.items())
    require(gap < 3e-2, f"logits or gradients differ by {gap:.1e} of the largest from those of plain attention")
    return Outcome(note=f"within {gap:.1e} of the plain attention")


def verbs(setting: Setting) -> Outcome:
    """Run the command line: fine-tune on the built-in sample, and predict."""
    flags = ["--device", setting.device, "--json"]
    folder = setting.folder / "run"
    quick = ["--max-steps", "2", "--n-layer", "1", "--n-head", "2", "--n-embd", "32"] if setting.quick else []
    trained = _verb(["finetune", "--output-dir", str(folder), *quick, *flags])
    predicted = _verb(["predict", "--model", str(folder / "best"), *flags, "a wonderful film, not a minute too long"])
    label = predicted["predictions"][0]["label"]
    accuracy = trained["test"]["accuracy"]
    require(setting.quick or (accuracy > 0.9 and label == "positive"), f"accuracy {accuracy}, predicted {label}")
    return Outcome(note=f"test accuracy {accuracy:.3f}{' after 2 steps' if setting.quick else ''}")


def _verb(words: list[str]) -> dict[str, Any]:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = cli.main(words)
    require(code == 0, f"ms_gpt {words[0]} ended with exit code {code}")
    return json.loads(output.getvalue().splitlines()[-1])


def mindir(setting: Setting) -> Outcome:
    runtime.setup(setting.device)
    model = strong_model(GPTLMHeadModel, setting.config())
    report = export_mindir(model, setting.folder / "model.mindir", 2, setting.length)
    require(report.largest_difference < 1e-4, f"the file's logits differ by {report.largest_difference:.1e}")
    return Outcome(note=f"logits of the file, loaded back, within {report.largest_difference:.1e}")


HALF_DEVICES = ("gpu", "ascend")
ROWS = {
    "gpt1": Row("GPT-1: logits, loss and gradients", gpt1_gradients),
    "gpt2": Row("GPT-2: logits, loss and gradients", gpt2_gradients),
    "banded": Row("GPT-3's banded attention: logits, loss and gradients", banded_gradients),
    "classifier": Row("classifier: logits, loss and gradients", classifier_gradients),
    "pynative": Row("PyNative mode: logits, loss and gradients", pynative_gradients),
    "train": Row("training in float32, with dropout: every loss", train_float32, tolerance=1e-3),
    "float16": Row("training in float16 with dynamic loss scaling: every loss", train_float16, tolerance=2e-2,
                   devices=HALF_DEVICES),
    "bfloat16": Row("training in bfloat16: every loss", train_bfloat16, tolerance=3e-2, devices=("ascend",)),
    "repeat": Row("two runs with dropout leave byte-equal weights", repeatable, "itself", 0.0),
    "evaluate": Row("evaluation: loss, perplexity, accuracy", evaluation),
    "generate": Row("greedy ids, prefill and decode logits; with a cache as without", generation),
    "beams": Row("beam search: ids", beams),
    "resume": Row("a saved model and a resumed run are byte-equal", save_and_resume, None),
    "sink": Row("dataset sink mode takes the same steps", data_sink, None, devices=HALF_DEVICES),
    "flash": Row("flash attention", flash_attention, None, devices=("ascend",)),
    "verbs": Row("the command line: finetune, predict", verbs, None),
    "mindir": Row("MINDIR export", mindir, None),
    "speed-float32": Row("speed of training, float32", speed.float32, None, is_timed=True),
    "speed-float16": Row("speed of training, float16", speed.float16, None, devices=HALF_DEVICES, is_timed=True),
    "speed-bfloat16": Row("speed of training, bfloat16", speed.bfloat16, None, devices=("ascend",), is_timed=True),
    "speed-generate": Row("speed of generation, float32", speed.generation, None, is_timed=True),
}


def main(name: str, device: str, size: str, role: str, folder: str) -> None:
    """Run one row in this process; leave its arrays and its note in a folder.

    Args:
        name: Key in ``ROWS``.
        device: Where.
        size: ``"quick"`` or ``"full"``.
        role: ``"reference"`` or ``"device"``.
        folder: An empty folder.
    """
    # Graphs are compiled here, not taken from an earlier version's.
    os.environ["MS_GPT_COMPILE_CACHE"] = "off"
    place = Path(folder)
    started = time.perf_counter()
    outcome = ROWS[name].run(Setting(device, size == "quick", role == "reference", place))
    np.savez(place / "arrays.npz", **outcome.arrays)
    (place / "note.txt").write_text(f"{time.perf_counter() - started:.1f}\n{outcome.note}\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
