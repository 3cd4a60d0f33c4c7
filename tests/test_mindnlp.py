"""MindNLP, whose models and files people bring along: the same folder gives the same numbers, in both directions.

It runs where MindNLP 0.5.1 is installed (nox -s mindnlp), and MindNLP itself in child processes only, because it
changes the process that imports it. ``MINDNLP_01`` names a folder with MindNLP 0.1.1, which has the same package name.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from gradient_helpers import OutputsAndGradients, assert_same_gradients, difference
from mindspore import Tensor

from ms_gpt import AutoModel, GPTConfig, GPTForSequenceClassification, GPTLMHeadModel, checkpoint, cli
from ms_gpt.data import load_dataset

pytestmark = pytest.mark.mindnlp

TESTS = Path(__file__).resolve().parent
SIZES = {"vocab_size": 61, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0}
CASES = {
    "OpenAIGPTLMHeadModel": (GPTLMHeadModel, "openai-gpt"),
    "OpenAIGPTForSequenceClassification": (GPTForSequenceClassification, "openai-gpt"),
    "GPT2LMHeadModel": (GPTLMHeadModel, "gpt2"),
    "GPT2ForSequenceClassification": (GPTForSequenceClassification, "gpt2"),
}


def child(program: str, *arguments: str, **environment: str) -> None:
    done = subprocess.run([sys.executable, str(TESTS / program), *arguments], capture_output=True, text=True,
                          check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr


def make_batch(architecture: str) -> dict[str, np.ndarray]:
    """Rows of unequal length, padded on the right, with labels."""
    rng = np.random.default_rng(7)
    lengths = np.array([9, 4, 6])
    mask = (np.arange(9) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask, rng.integers(1, SIZES["vocab_size"], mask.shape), SIZES["pad_token_id"])
    labels = np.where(mask, ids, -100) if architecture.endswith("LMHeadModel") else rng.integers(0, 3, 3)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def random_model(model_class, config: GPTConfig):
    """A model with products of the size that GPT-1 and GPT-2 start with, 0.02 at a width of 768, and no neutral bias.

    Larger ones show MindNLP's rounding: its logits are ten times as far from those in float64 as ours.
    """
    rng = np.random.default_rng(0)
    model = model_class(config)
    for name, parameter in model.weights().items():
        spread = 0.02 * (768 / config.n_embd) ** 0.5 if parameter.ndim > 1 else 0.1
        parameter.set_data(Tensor(spread * rng.standard_normal(parameter.shape) + name.endswith("gamma"), ms.float32))
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders that we saved, with what MindNLP computes from them."""
    top = tmp_path_factory.mktemp("saved")
    for architecture, (model_class, family) in CASES.items():
        model = random_model(model_class, GPTConfig(**SIZES, model_type=family, num_labels=3))
        model.save_pretrained(top / architecture)
        np.savez(top / architecture / "batch.npz", **make_batch(architecture))
    child("mindnlp_child.py", json.dumps([{"folder": str(top / name), "architecture": name} for name in CASES]))
    return top


@pytest.mark.parametrize("architecture", CASES)
def test_a_folder_that_we_saved_gives_the_same_in_mindnlp(folders, architecture, graph_mode):
    folder = folders / architecture
    theirs = dict(np.load(folder / "theirs.npz"))
    batch = make_batch(architecture)
    model = AutoModel.from_pretrained(folder).set_train(False)
    (loss, outputs), gradients = OutputsAndGradients(model, tuple(batch), 1)(
        *(Tensor(value, ms.int32) for value in batch.values()))
    real = batch["attention_mask"].astype(bool) if architecture.endswith("LMHeadModel") else slice(None)
    assert difference(outputs[1].asnumpy()[real], theirs.pop("outputs.logits")[real]) <= 1e-5
    assert difference(loss.asnumpy(), theirs.pop("outputs.loss")) <= 1e-5
    ours = {name: gradient.asnumpy() for name, gradient in zip(model.weights(), gradients, strict=True)}
    theirs = {checkpoint.our_name(name): gradient for name, gradient in theirs.items()}
    if architecture.startswith("GPT2"):
        # MindNLP 0.5.1 loses this gradient, so that GPT-2's positions do not learn there. PyTorch has it, as we do.
        lost = "transformer.positions_embed.embedding_table"
        assert not theirs.pop(lost).any()
        assert ours.pop(lost).any()
    assert_same_gradients(ours, theirs)


@pytest.fixture(scope="module")
def old_files(tmp_path_factory):
    """The ``.ckpt`` files that MindNLP 0.1 writes, and what it computes with them."""
    folder = tmp_path_factory.mktemp("old")
    child("mindnlp_01_child.py", str(folder), PYTHONPATH=os.environ["MINDNLP_01"])
    return folder


@pytest.mark.parametrize("name", ["gpt", "gpt2"])
def test_a_ckpt_of_mindnlp_01_gives_the_same_here(old_files, name, tmp_path, graph_mode):
    assert cli.main(["convert", str(old_files / f"{name}.ckpt"), str(tmp_path / name), "--n-head", "3", "--quiet"]) == 0
    weights = {key: value.asnumpy() for key, value in ms.load_checkpoint(str(old_files / f"{name}.ckpt")).items()}
    model = AutoModel.from_pretrained(tmp_path / name)
    assert isinstance(model, GPTLMHeadModel)
    assert not model.config.tie_word_embeddings
    np.testing.assert_array_equal(model.weights()["lm_head.weight"].asnumpy(), weights["lm_head.weight"])
    expected = np.load(old_files / f"{name}.npz")
    logits = model(Tensor(expected["input_ids"]))[0].asnumpy()
    assert difference(logits, expected["logits"]) <= 1e-5


def test_data_through_mindnlp(tmp_path):
    """Its real loader, on a folder of this machine: the hub's data sets need a network."""
    folder = tmp_path / "reviews"
    folder.mkdir()
    for part, rows in {"train": [("good, \"really\"", 1), ("b\u00e4d\nfilm", 0)], "test": [("fine", 1)]}.items():
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        (folder / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    parts = load_dataset(f"mindnlp:{folder}")
    assert list(parts) == ["train", "test"]
    assert parts["train"]["text"] == ["good, \"really\"", "b\u00e4d\nfilm"]
    assert parts["train"]["label"] == [1, 0]


def test_nothing_here_imports_mindnlp(folders, old_files):
    assert "mindnlp" not in sys.modules
    assert "torch" not in sys.modules
