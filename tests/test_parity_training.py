"""Our train step against PyTorch's AdamW, clipping and transformers' schedules."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from mindspore import Parameter, Tensor, nn
from parity_helpers import make_batch, our_names, to_mindspore, to_torch, torch, total_loss, transformers, twins

from ms_gpt.training.optimizer import AdamW
from ms_gpt.training.schedule import LearningRate
from ms_gpt.training.step import Loss, TrainStep

pytestmark = pytest.mark.parity

HEADS = ("LMHeadModel", "DoubleHeadsModel", "ForSequenceClassification")
ARCHITECTURES = [family + head for family in ("OpenAIGPT", "GPT2") for head in HEADS]
RATE, DECAY, TOTAL = 1e-3, 0.1, 10
SCHEDULES = {"linear": transformers.get_linear_schedule_with_warmup,
             "cosine": transformers.get_cosine_schedule_with_warmup}


@pytest.fixture(autouse=True)
def mode(request):
    """PyNative mode, or the mode that a test asks for, and afterwards the one from before."""
    before = ms.get_context("mode")
    ms.set_context(mode=getattr(request, "param", ms.PYNATIVE_MODE))
    yield
    ms.set_context(mode=before)


def torch_trainer(model, epsilon: float, kind: str, decay_embeddings: bool = False):
    groups = {0.0: [], DECAY: []}
    for name, item in our_names(model).items():
        is_decayed = item.ndim == 2 and (decay_embeddings or "_embed." not in name)
        groups[DECAY if is_decayed else 0.0].append(item)
    optimizer = torch.optim.AdamW([{"params": items, "weight_decay": decay} for decay, items in groups.items()],
                                  lr=RATE, eps=epsilon)
    return optimizer, SCHEDULES[kind](optimizer, 0, TOTAL)


def has_gradient(name: str, shape) -> np.ndarray:
    """Where the true gradient is not 0: a softmax does not feel a number that is added to all its inputs, so key biases
    and the bias of a multiple-choice score are moved by rounding alone, by another amount on every processor."""
    known = np.ones(shape, bool)
    if name.endswith("c_attn.bias"):
        np.split(known, 3)[1][:] = False
    elif name == "multiple_choice_head.summary.bias":
        known[:] = False
    return known


def train_both(architecture, folder, max_grad_norm=0.5, epsilon=1e-6, kind="linear", decay_embeddings=False, steps=3):
    """Train both from the same weights on the same batches; check the parameters after every update.

    Adam divides a gradient by its own size, so where that is close to ``epsilon`` rounding alone decides on the update,
    up to the whole learning rate. With 1e-6 every parameter that has a gradient can be held to 1e-5; with the usual
    1e-8 those whose gradient ever was below 1e-6 are left out.
    """
    theirs, ours = twins(architecture, folder)
    theirs.train()
    ours.set_train(True)
    weights = ours.weights()
    columns, _ = make_batch(architecture, "right")
    ours_optimizer = AdamW(list(weights.values()), list(weights), DECAY, decay_embeddings, epsilon=epsilon)
    step = TrainStep(Loss(ours, tuple(columns)), ours_optimizer, LearningRate(RATE, TOTAL, kind=kind), max_grad_norm)
    optimizer, scheduler = torch_trainer(theirs, epsilon, kind, decay_embeddings)
    known = {name: has_gradient(name, item.shape) for name, item in weights.items()}
    for k in range(steps):
        columns, _ = make_batch(architecture, "right", seed=k)
        loss, norm, rate = (float(item) for item in step(*to_mindspore(columns)))
        optimizer.zero_grad()
        expected_loss = total_loss(theirs(**to_torch(columns)))
        expected_loss.backward()
        expected_norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_grad_norm or float("inf"))
        assert loss == pytest.approx(expected_loss.item(), abs=1e-5)
        assert norm == pytest.approx(expected_norm.item(), rel=1e-5)
        assert rate == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        scheduler.step()
        for name, item in our_names(theirs).items():
            if epsilon < 1e-6:
                known[name] &= item.grad.abs().numpy() > 1e-6
            gap = np.abs(weights[name].asnumpy() - item.detach().numpy())[known[name]]
            assert gap.size == 0 or gap.max() <= 1e-5, f"{name} differs by {gap.max():.2e} after update {k + 1}"
    return known


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameters_after_updates(tmp_path, architecture):
    train_both(architecture, tmp_path)


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE], indirect=True, ids=["graph"])
@pytest.mark.parametrize("architecture", ["OpenAIGPTForSequenceClassification", "GPT2LMHeadModel"])
def test_parameters_after_updates_in_a_graph(tmp_path, architecture):
    train_both(architecture, tmp_path, kind="cosine")


@pytest.mark.parametrize("architecture", ["OpenAIGPTLMHeadModel", "GPT2ForSequenceClassification"])
def test_the_usual_epsilon(tmp_path, architecture):
    known = train_both(architecture, tmp_path, epsilon=1e-8)
    assert np.mean(np.concatenate([item.reshape(-1) for item in known.values()])) > 0.9


@pytest.mark.parametrize("max_grad_norm", [0, 1000.0])
def test_gradients_that_are_not_clipped(tmp_path, max_grad_norm):
    train_both("GPT2LMHeadModel", tmp_path, max_grad_norm, epsilon=1e-5, kind="cosine", decay_embeddings=True)


class Product(nn.Cell):
    """The sum of a parameter times its input, so that the input is the gradient."""

    def __init__(self, shape) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.zeros(shape, np.float32)), name="weight")

    def construct(self, x):
        return (self.weight * x).sum()


def test_the_norm_of_a_large_gradient():
    # The sum of millions of squares, added one by one in float32, is percents too small.
    gradient = np.random.default_rng(0).normal(0, 1e-3, (3000, 1000)).astype(np.float32)
    loss = Product(gradient.shape)
    step = TrainStep(loss, AdamW([loss.weight], ["weight"]), LearningRate(RATE, TOTAL))
    # PyTorch's own float32 norm of this is 6e-5 off.
    weight = torch.nn.Parameter(torch.zeros(gradient.shape, dtype=torch.float64))
    weight.grad = torch.tensor(gradient, dtype=torch.float64)
    expected = torch.nn.utils.clip_grad_norm_([weight], 1.0).item()
    assert float(step(Tensor(gradient))[1]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 4])
def test_schedules(kind, warmup):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=RATE)
    scheduler = SCHEDULES[kind](optimizer, warmup, TOTAL)
    expected = []
    for _ in range(TOTAL):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    # transformers starts a warm-up at 0, so that the first update does nothing; ours starts one step further.
    expected = expected[1:warmup + 1] + expected[warmup:]
    schedule = LearningRate(RATE, TOTAL, warmup, kind)
    found = [float(schedule(Tensor(k, ms.int32))) for k in range(TOTAL)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-10)
