"""A small transformers model and ours with the same weights; what both compute for one batch, as arrays."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from gradient_helpers import OutputsAndGradients, difference
from mindspore import Tensor

from ms_gpt import AutoModel, GPTDoubleHeadsModel, checkpoint
from ms_gpt.training.step import Forward

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIGS = {"OpenAIGPT": transformers.OpenAIGPTConfig, "GPT2": transformers.GPT2Config}
SIZES = {"vocab_size": 61, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "summary_first_dropout": 0.0}
LENGTH = 9


def hf_model(architecture: str, seed: int = 0, **changes):
    """A transformers model in which no weight, bias or gain is at its neutral value."""
    family = "GPT2" if architecture.startswith("GPT2") else "OpenAIGPT"
    # On disk the number of labels is the length of id2label; models with choices set their own.
    labels = {"num_labels": 3} if architecture.endswith("Classification") else {}
    config = CONFIGS[family](**{**SIZES, **NO_DROPOUT, **labels, **changes}, attn_implementation="eager")
    torch.manual_seed(seed)
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                centre, std = float("ln_" in name and name.endswith("weight")), 0.2
            elif any(part in name for part in ("wte", "wpe", "_embed")):
                centre, std = 0.0, parameter.shape[1] ** -0.5
            else:
                is_dense = name.startswith(("lm_head", "score", "multiple_choice_head"))
                centre, std = 0.0, parameter.shape[1 if is_dense else 0] ** -0.5
            parameter.normal_(centre, std)
    return model


def twins(architecture: str, folder, seed: int = 0, **changes):
    """A transformers model and ours, loaded from the folder that transformers saved."""
    theirs = hf_model(architecture, seed, **changes)
    theirs.save_pretrained(folder)
    return theirs, AutoModel.from_pretrained(folder, output_hidden_states=True, output_attentions=True,
                                             classifier_pdrop=0.0)


def make_batch(architecture: str, kind: str = "", num_labels: int = 3, problem: str = "single", seed: int = 0,
               vocab_size: int = SIZES["vocab_size"], width: int = SIZES["n_embd"], length: int = LENGTH):
    """Columns by transformers' names, and which positions are real.

    ``kind`` holds any of the words right, left (padding), types (token types) and embeds (in place of ids).
    """
    rng = np.random.default_rng(seed)
    has_choices = architecture.endswith("DoubleHeadsModel")
    lead = (2, 2) if has_choices else (4,)
    shape = (*lead, length)
    ids = rng.integers(3, vocab_size, shape)
    lengths = rng.integers(2, length - 1, lead) if "right" in kind or "left" in kind else np.full(lead, length)
    index = np.arange(length)
    real = index >= length - lengths[..., None] if "left" in kind else index < lengths[..., None]
    ids = np.where(real, ids, SIZES["pad_token_id"])
    columns = {"inputs_embeds": rng.normal(0, 0.5, (*shape, width))} if "embeds" in kind else {"input_ids": ids}
    if not real.all():
        columns["attention_mask"] = real.astype(np.int64)
    if "left" in kind:
        columns["position_ids"] = np.maximum(np.cumsum(real, -1) - 1, 0)
    if "types" in kind:
        columns["token_type_ids"] = rng.integers(0, vocab_size, shape)
    if architecture.endswith(("LMHeadModel", "DoubleHeadsModel")):
        # The first real token after padding would be predicted from a padded position, which is undefined.
        follows = np.concatenate([np.zeros((*lead, 1), bool), real[..., :-1]], -1)
        columns["labels"] = np.where(real & follows & (rng.random(shape) < 0.8), ids, -100)
    if has_choices:
        columns["mc_token_ids"] = np.where(real, index, 0).max(-1)
        columns["mc_labels"] = rng.integers(0, lead[1], lead[0])
    if architecture.endswith("Classification"):
        columns["labels"] = {
            "single": lambda: rng.integers(0, num_labels, lead),
            "multi": lambda: rng.integers(0, 2, (*lead, num_labels)).astype(np.float64),
            "regression": lambda: rng.normal(size=lead if num_labels == 1 else (*lead, num_labels)),
        }[problem]()
    return columns, real


def to_torch(columns):
    """The columns as transformers takes them: it flattens the choices of the ids, but not of the mask and positions."""
    inputs = {name: torch.tensor(value, dtype=torch.float32 if value.dtype.kind == "f" else torch.long)
              for name, value in columns.items()}
    for name in {"attention_mask", "position_ids"} & set(inputs):
        inputs[name] = inputs[name].reshape(-1, inputs[name].shape[-1])
    return inputs


def to_mindspore(columns):
    return tuple(Tensor(value, ms.float32 if value.dtype.kind == "f" else ms.int32) for value in columns.values())


def total_loss(outputs):
    """The sum of the losses that transformers returned, or None."""
    losses = [outputs[name] for name in ("loss", "mc_loss") if outputs.get(name) is not None]
    return sum(losses) if losses else None


def our_names(model):
    """A transformers model's parameters under our names."""
    return {checkpoint.our_name(name): item for name, item in model.named_parameters()}


def named_gradients(model):
    """A transformers model's gradients under our names; 0 for what took no part."""
    return {name: np.zeros(item.shape, np.float32) if item.grad is None else item.grad.numpy().copy()
            for name, item in our_names(model).items()}


def run_theirs(model, columns):
    """Outputs and gradients of transformers, as names and arrays."""
    model.zero_grad()
    outputs = model(**to_torch(columns), output_hidden_states=True, output_attentions=True)
    loss = total_loss(outputs)
    if loss is not None:
        loss.backward()
    names = ("loss", "mc_loss", "logits", "mc_logits", "last_hidden_state")
    found = {name: outputs[name].detach().numpy() for name in names if outputs.get(name) is not None}
    for name in ("hidden_states", "attentions"):
        found.update({f"{name}.{i}": item.detach().numpy() for i, item in enumerate(outputs[name])})
    return found, {} if loss is None else named_gradients(model)


def run_ours(model, columns):
    """Outputs and gradients of our model, under the names of ``run_theirs``."""
    batch = to_mindspore(columns)
    losses = [name for name in ("labels", "mc_labels") if name in columns]
    gradients = {}
    if losses:
        (_, outputs), arrays = OutputsAndGradients(model, tuple(columns), len(losses))(*batch)
        gradients = {name: array.asnumpy() for name, array in zip(model.weights(), arrays, strict=True)}
    else:
        outputs = Forward(model, tuple(columns))(*batch)
    names = ["loss", "mc_loss"][:len(losses)]
    names += ["last_hidden_state"] if model.backbone is model else ["logits"]
    names += ["mc_logits"] if isinstance(model, GPTDoubleHeadsModel) else []
    assert len(outputs) == len(names) + 2
    found = {name: item.asnumpy() for name, item in zip(names, outputs[:-2], strict=True)}
    for name, items in zip(("hidden_states", "attentions"), outputs[-2:], strict=True):
        found.update({f"{name}.{i}": item.asnumpy() for i, item in enumerate(items)})
    return found, gradients


def at_real_positions(name: str, value: np.ndarray, real: np.ndarray) -> np.ndarray:
    """The part of an output that padding leaves defined: a padded query may look anywhere."""
    if name.startswith("attentions"):
        value, kept = value.swapaxes(1, 2), 2  # (N, T, H, S)
    elif name.startswith(("hidden", "last")) or (name == "logits" and value.ndim > 2):
        kept = 1
    else:
        return value
    # In a model with choices transformers gives the last hidden state four axes and the others three.
    return value.reshape(-1, *value.shape[-kept:])[real.reshape(-1)]


def assert_same_outputs(ours, theirs, real, atol: float = 1e-5) -> None:
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        gap = difference(at_real_positions(name, ours[name], real), at_real_positions(name, value, real))
        assert gap <= atol, f"{name} differs by {gap:.2e}"
