"""Our models against transformers on PyTorch: outputs, losses and gradients; folders that both load."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from gradient_helpers import assert_same_gradients
from parity_helpers import (
    SIZES,
    assert_same_outputs,
    hf_model,
    make_batch,
    run_ours,
    run_theirs,
    to_mindspore,
    torch,
    transformers,
    twins,
)

from ms_gpt import AutoModel
from ms_gpt.training.optimizer import AdamW
from ms_gpt.training.schedule import LearningRate
from ms_gpt.training.step import Forward, Loss, TrainStep

pytestmark = pytest.mark.parity

FAMILIES = ("OpenAIGPT", "GPT2")
HEADS = ("LMHeadModel", "DoubleHeadsModel", "ForSequenceClassification")
ARCHITECTURES = [family + head for family in FAMILIES for head in HEADS]
ALL_ARCHITECTURES = [*ARCHITECTURES, *(f"{family}Model" for family in FAMILIES)]
GPT1_CHANGES = [
    {"afn": "relu"}, {"afn": "silu"}, {"afn": "swish"}, {"tie_word_embeddings": False},
    {"n_layer": 3, "n_head": 1, "layer_norm_epsilon": 1e-3},
]
GPT2_CHANGES = [
    *({"activation_function": name} for name in ("gelu", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh")),
    {"n_layer": 3, "scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False}, {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    {"n_inner": 24}, {"tie_word_embeddings": False}, {"n_layer": 3, "n_head": 1, "layer_norm_epsilon": 1e-3},
]
CONFIGS = [("OpenAIGPTLMHeadModel", changes) for changes in GPT1_CHANGES]
CONFIGS += [("GPT2LMHeadModel", changes) for changes in GPT2_CHANGES]
GRAPH_CASES = [
    ("OpenAIGPTModel", "left types", {}),
    ("OpenAIGPTLMHeadModel", "left types", {"afn": "silu", "tie_word_embeddings": False}),
    ("OpenAIGPTDoubleHeadsModel", "right types", {"summary_activation": "tanh"}),
    ("OpenAIGPTForSequenceClassification", "right", {}),
    ("GPT2LMHeadModel", "embeds", {"activation_function": "gelu", "scale_attn_by_inverse_layer_idx": True}),
    ("GPT2DoubleHeadsModel", "right", {"activation_function": "tanh", "n_inner": 24}),
    ("GPT2ForSequenceClassification", "left types", {}),
]


@pytest.fixture(autouse=True)
def mode(request):
    """PyNative mode, or the mode that a test asks for, and afterwards the one from before."""
    before = ms.get_context("mode")
    ms.set_context(mode=getattr(request, "param", ms.PYNATIVE_MODE))
    yield
    ms.set_context(mode=before)


def describe(changes):
    return ",".join(f"{key}={value}" for key, value in changes.items()) if isinstance(changes, dict) else None


def compare(architecture, folder, kind="", batch=None, **changes):
    theirs, ours = twins(architecture, folder, **changes)
    columns, real = batch or make_batch(architecture, kind)
    (expected, expected_gradients), (found, gradients) = run_theirs(theirs, columns), run_ours(ours, columns)
    assert_same_outputs(found, expected, real)
    assert_same_gradients(gradients, expected_gradients)


@pytest.mark.parametrize("kind", ["", "right", "left types", "embeds", "left embeds"])
@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_outputs_and_gradients(tmp_path, architecture, kind):
    if "embeds" in kind and architecture.endswith("DoubleHeadsModel"):
        pytest.skip("transformers' double-heads models take no inputs_embeds with choices")
    compare(architecture, tmp_path, kind)


@pytest.mark.parametrize(("architecture", "changes"), CONFIGS, ids=describe)
def test_configurations(tmp_path, architecture, changes):
    compare(architecture, tmp_path, **changes)


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE], indirect=True, ids=["graph"])
@pytest.mark.parametrize(("architecture", "kind", "changes"), GRAPH_CASES, ids=describe)
def test_graph_mode(tmp_path, architecture, kind, changes):
    compare(architecture, tmp_path, kind, **changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_by_the_hundred(tmp_path, family):
    # Few classes and many take two forms of the logarithm of the softmax.
    architecture = f"{family}ForSequenceClassification"
    compare(architecture, tmp_path, batch=make_batch(architecture, num_labels=100), num_labels=100)


@pytest.mark.parametrize("changes", [{"summary_activation": "tanh"}, {"tie_word_embeddings": False}], ids=describe)
@pytest.mark.parametrize("family", FAMILIES)
def test_choices(tmp_path, family, changes):
    compare(f"{family}DoubleHeadsModel", tmp_path, "right", **changes)


@pytest.mark.parametrize("summary_type", ["cls_index", "last", "first", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_summaries(tmp_path, family, summary_type):
    # Inside transformers' models with choices, all but cls_index pick a choice and not a token.
    theirs, ours = twins(f"{family}DoubleHeadsModel", tmp_path, summary_type=summary_type, summary_activation="tanh")
    hidden_states = np.random.default_rng(0).normal(0, 5, (4, 5, SIZES["n_embd"])).astype(np.float32)
    index = np.array([3, 0, 4, 2])
    for given in (None, index) if summary_type == "cls_index" else (None,):
        with torch.no_grad():
            position = None if given is None else torch.tensor(given)
            expected = theirs.multiple_choice_head(torch.tensor(hidden_states), position).numpy()
        position = None if given is None else ms.Tensor(given, ms.int32)
        found = ours.multiple_choice_head(ms.Tensor(hidden_states), position).asnumpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"summary_proj_to_labels": False}, {"summary_use_proj": False}], ids=describe)
@pytest.mark.parametrize("family", FAMILIES)
def test_choices_without_labels_or_positions(tmp_path, family, changes):
    architecture = f"{family}DoubleHeadsModel"
    columns, real = make_batch(architecture)
    del columns["mc_labels"], columns["mc_token_ids"]
    compare(architecture, tmp_path, batch=(columns, real), **changes)


@pytest.mark.parametrize(("problem", "num_labels", "problem_type"), [
    ("single", 2, None), ("single", 5, "single_label_classification"),
    ("multi", 4, None), ("multi", 4, "multi_label_classification"),
    ("regression", 1, None), ("regression", 1, "regression"), ("regression", 3, "regression"),
])
@pytest.mark.parametrize("family", FAMILIES)
def test_problem_types(tmp_path, family, problem, num_labels, problem_type):
    architecture = f"{family}ForSequenceClassification"
    batch = make_batch(architecture, "right", num_labels, problem)
    compare(architecture, tmp_path, batch=batch, num_labels=num_labels, problem_type=problem_type)


@pytest.mark.parametrize(("family", "mode"), [("OpenAIGPT", ms.PYNATIVE_MODE), ("GPT2", ms.GRAPH_MODE)],
                         indirect=["mode"], ids=["OpenAIGPT-pynative", "GPT2-graph"])
def test_full_depth_and_width(tmp_path, family):
    sizes = {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 300}
    architecture = f"{family}LMHeadModel"
    theirs, ours = twins(architecture, tmp_path, **sizes)
    columns, real = make_batch(architecture, "left types", vocab_size=300)
    (expected, expected_gradients), (found, gradients) = run_theirs(theirs, columns), run_ours(ours, columns)
    assert_same_outputs(found, expected, real, atol=1e-4)
    # Deep in a random GPT-1 all tokens look alike, and query and key gradients are the rest of sums that cancel: there
    # PyTorch's own float32 is 9e-4 of them away from its float64.
    assert_same_gradients(gradients, expected_gradients, floor=1e-7)


def logits_of(model, columns):
    """All logits of either library's model for columns without labels."""
    if isinstance(model, torch.nn.Module):
        with torch.no_grad():
            outputs = model(**{name: torch.tensor(value) for name, value in columns.items()})
        return [outputs[name].numpy() for name in ("logits", "mc_logits") if outputs.get(name) is not None]
    return [item.asnumpy() for item in Forward(model, tuple(columns))(*to_mindspore(columns))]


def assert_transformers_agrees(ours, architecture, folder):
    """What we save loads in transformers, complete, and gives our logits."""
    ours.save_pretrained(folder)
    theirs, info = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    columns = {name: value for name, value in make_batch(architecture)[0].items() if "labels" not in name}
    for found, expected in zip(logits_of(ours, columns), logits_of(theirs.eval(), columns), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    return theirs


def load_ours(architecture, folder):
    hf_model(architecture).save_pretrained(folder)
    return AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folders_there_and_back(tmp_path, architecture):
    ours = load_ours(architecture, tmp_path / "theirs")
    back = assert_transformers_agrees(ours, architecture, tmp_path / "ours")
    original = getattr(transformers, architecture).from_pretrained(tmp_path / "theirs")
    assert list(original.state_dict()) == list(back.state_dict())
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name
    for key, value in original.config.to_dict().items():
        # The paths of the two folders differ, and transformers adds nothing of its own to ours.
        assert key == "_name_or_path" or back.config.to_dict()[key] == value, key


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_trained_and_resized_model_in_transformers(tmp_path, architecture):
    ours = load_ours(architecture, tmp_path / "theirs")
    before = {name: item.asnumpy().copy() for name, item in ours.weights().items()}
    ours.resize_token_embeddings(SIZES["vocab_size"] + 5)
    columns, _ = make_batch(architecture, vocab_size=SIZES["vocab_size"] + 5)
    ours.set_train(True)
    optimizer = AdamW(list(ours.weights().values()), list(ours.weights()))
    step = TrainStep(Loss(ours, tuple(columns)), optimizer, LearningRate(1e-2, 2, kind="constant"))
    for _ in range(2):
        step(*to_mindspore(columns))
    ours.set_train(False)
    theirs = assert_transformers_agrees(ours, architecture, tmp_path / "ours")
    assert theirs.config.vocab_size == theirs.get_input_embeddings().weight.shape[0] == SIZES["vocab_size"] + 5
    changed = [name for name, item in ours.weights().items()
               if item.shape != before[name].shape or not np.array_equal(item.asnumpy(), before[name])]
    assert changed == list(before)


@pytest.mark.parametrize("architecture", ["OpenAIGPTLMHeadModel", "GPT2ForSequenceClassification"])
def test_a_pruned_model_in_transformers(tmp_path, architecture):
    ours = load_ours(architecture, tmp_path / "theirs")
    ours.prune_heads({0: [1, 3], 1: [0]})
    assert_transformers_agrees(ours, architecture, tmp_path / "ours")


@pytest.mark.parametrize("auto", ["AutoModelForCausalLM", "AutoModelForSequenceClassification"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_auto_classes(tmp_path, family, auto):
    head = "LMHeadModel" if auto.endswith("LM") else "ForSequenceClassification"
    ours = load_ours(family + head, tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    theirs = getattr(transformers, auto).from_pretrained(tmp_path / "ours")
    assert type(theirs).__name__ == family + head
