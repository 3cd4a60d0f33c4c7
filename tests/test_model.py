"""Properties that every model has, over random small configurations of both families."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mindspore import Tensor, nn, ops
from model_helpers import (
    FAMILIES,
    MODES,
    close,
    configs,
    few,
    positions_of,
    random_ids,
    random_model,
    run,
    set_mode,
    tiny_config,
)

from ms_gpt import (
    AutoModel,
    GPTConfig,
    GPTDoubleHeadsModel,
    GPTForSequenceClassification,
    GPTLMHeadModel,
    GPTModel,
    UserError,
)
from ms_gpt.training.step import Loss

HEADS = (GPTModel, GPTLMHeadModel, GPTDoubleHeadsModel, GPTForSequenceClassification)
head_masks = st.lists(st.booleans(), min_size=9, max_size=9)


@pytest.fixture(autouse=True)
def _op_by_op():
    """Graph mode is for the tests that ask for it: compiling takes longer than running a shape once or twice."""
    set_mode("pynative")
    yield
    set_mode("graph")


@pytest.fixture
def graph_mode(_op_by_op):
    set_mode("graph")


def heads_to_prune(config: GPTConfig, flags: list[bool]) -> dict[int, list[int]]:
    """Some heads of each layer, never all of them."""
    chosen = {}
    for layer in range(config.n_layer):
        row = flags[layer * config.n_head : (layer + 1) * config.n_head]
        heads = [head for head, flag in enumerate(row) if flag]
        chosen[layer] = heads[: config.n_head - 1]
    return chosen


def mask_of(config: GPTConfig, pruned: dict[int, list[int]]) -> np.ndarray:
    mask = np.ones((config.n_layer, config.n_head), np.float32)
    for layer, heads in pruned.items():
        mask[layer, heads] = 0
    return mask


def copy_of(model):
    """Another model with the same weights."""
    twin = type(model)(model.config)
    twin.load_arrays({name: item.asnumpy() for name, item in model.weights().items()})
    return twin.set_train(False)


@pytest.mark.usefixtures("graph_mode")
@few(5)
@given(configs(), st.data())
def test_changing_a_token_never_changes_earlier_logits(config, data):
    length = config.n_positions
    model, ids = random_model(GPTLMHeadModel, config), random_ids(config, 2, length)
    before = run(model, input_ids=ids)[0]
    for _ in range(3):
        position = data.draw(st.integers(1, length - 1))
        changed = ids.copy()
        changed[:, position] = (ids[:, position] + 1) % config.vocab_size
        after = run(model, input_ids=changed)[0]
        np.testing.assert_array_equal(after[:, :position], before[:, :position])
        assert (np.abs(after[:, position:] - before[:, position:]).max(-1) > 0).all()


@few(4)
@given(configs(), st.sampled_from(["left", "right"]), st.integers(1, 3))
def test_padding_on_either_side_changes_nothing(config, side, pads):
    length = config.n_positions
    ids, fill = random_ids(config, 2, length - pads), random_ids(config, 2, pads, seed=9)
    mask = np.ones((2, length), np.int32)
    padded = np.concatenate([fill, ids] if side == "left" else [ids, fill], 1)
    real = slice(pads, None) if side == "left" else slice(None, length - pads)
    mask[:, :pads] = side == "right"
    mask[:, length - pads :] &= side == "left"
    inputs = {"input_ids": padded, "attention_mask": mask, "position_ids": positions_of(mask)}
    language_model = random_model(GPTLMHeadModel, config)
    close(run(language_model, **inputs)[0][:, real], run(language_model, input_ids=ids)[0])
    classifier = random_model(GPTForSequenceClassification, config)
    close(run(classifier, **inputs)[0], run(classifier, input_ids=ids)[0])


@few(4)
@given(configs(), head_masks)
def test_pruning_equals_a_head_mask_of_zero_and_zeroed_projection_rows(config, flags):
    model, ids = random_model(GPTLMHeadModel, config), random_ids(config, 2, config.n_positions)
    flags[0] = True
    pruned_heads = heads_to_prune(config, flags)
    full = run(model, input_ids=ids)[0]
    masked = run(model, input_ids=ids, head_mask=mask_of(config, pruned_heads))[0]
    zeroed, pruned = copy_of(model), copy_of(model)
    for layer, heads in pruned_heads.items():
        weight = zeroed.transformer.h[layer].attn.c_proj.weight
        rows = weight.asnumpy().reshape(config.n_head, config.head_size, -1).copy()
        rows[heads] = 0
        weight.set_data(Tensor(rows.reshape(weight.shape)))
    pruned.prune_heads(pruned_heads)
    close(run(pruned, input_ids=ids)[0], masked)
    close(run(zeroed, input_ids=ids)[0], masked)
    assert np.abs(masked - full).max() > 1e-3
    for layer, heads in pruned_heads.items():
        width = (config.n_head - len(heads)) * config.head_size
        assert pruned.transformer.h[layer].attn.c_attn.weight.shape == (config.n_embd, 3 * width)
        assert pruned.transformer.h[layer].attn.c_proj.weight.shape == (width, config.n_embd)


@few(6)
@given(configs(), head_masks, head_masks)
def test_pruning_twice_equals_pruning_the_union(config, first, second):
    once, twice = (random_model(GPTModel, config) for _ in range(2))
    union = heads_to_prune(config, [a or b for a, b in zip(first, second, strict=True)])
    parts = [{layer: [head for head in heads if flags[layer * config.n_head + head]] for layer, heads in union.items()}
             for flags in (first, second)]
    once.prune_heads(union)
    for part in parts:
        twice.prune_heads(part)
    assert twice.pruned_heads == once.pruned_heads == {layer: heads for layer, heads in union.items() if heads}
    for name, weight in once.weights().items():
        np.testing.assert_array_equal(twice.weights()[name].asnumpy(), weight.asnumpy())


@pytest.mark.usefixtures("graph_mode")
def test_pruning_after_a_first_call_compiles_the_pruned_graph():
    config = tiny_config()
    model, ids = random_model(GPTModel, config), random_ids(config, 1, 8)
    before = run(model, input_ids=ids)[0]
    model.prune_heads({0: [1]})
    pruned = run(model, input_ids=ids)[0]
    model.prune_heads({0: [2], 1: [0]})
    assert np.abs(pruned - before).max() > 1e-3
    assert np.abs(run(model, input_ids=ids)[0] - pruned).max() > 1e-3


def test_a_head_mask_keeps_the_numbers_of_the_unpruned_layer():
    config = tiny_config("gpt2")
    model, ids = random_model(GPTModel, config), random_ids(config, 2, 8)
    expected = run(model, input_ids=ids, head_mask=mask_of(config, {0: [0, 2], 1: [2]}))[0]
    pruned = copy_of(model)
    pruned.prune_heads({0: [0]})
    close(run(pruned, input_ids=ids, head_mask=mask_of(config, {0: [2], 1: [2]}))[0], expected)
    # A mask for one layer holds for all of them.
    close(run(model, input_ids=ids, head_mask=np.array([1, 0, 1], np.float32))[0],
          run(model, input_ids=ids, head_mask=mask_of(config, {0: [1], 1: [1]}))[0])


@pytest.mark.parametrize(("heads", "message"), [
    ({0: [3]}, "head 3 does not exist: this layer's heads are 0 to 2"),
    ({0: [-1]}, "head -1 does not exist"),
    ({2: [0]}, "layer 2 does not exist: this model's layers are 0 to 1"),
    ({1: [0, 1, 2]}, "leave at least one"),
])
def test_pruning_what_is_not_there_is_one_line(heads, message):
    model = random_model(GPTModel, tiny_config())
    with pytest.raises(UserError, match=message) as error:
        model.prune_heads(heads)
    assert "\n" not in str(error.value)


@few(3)
@given(configs(tie_word_embeddings=True), head_masks)
def test_pruned_models_save_and_load(tmp_path_factory, config, flags):
    folder = tmp_path_factory.mktemp("pruned")
    flags[0] = True
    model, ids = random_model(GPTForSequenceClassification, config), random_ids(config, 2, config.n_positions)
    model.prune_heads(heads_to_prune(config, flags))
    model.save_pretrained(folder)
    loaded = AutoModel.from_pretrained(folder)
    assert type(loaded) is GPTForSequenceClassification
    assert loaded.pruned_heads == model.pruned_heads != {}
    assert loaded.num_parameters() == model.num_parameters()
    close(run(loaded, input_ids=ids)[0], run(model, input_ids=ids)[0])
    loaded.prune_heads({layer: block.attn.heads[1:] for layer, block in enumerate(loaded.transformer.h)})
    loaded.save_pretrained(folder)
    again = AutoModel.from_pretrained(folder)
    assert again.pruned_heads == loaded.pruned_heads
    close(run(again, input_ids=ids)[0], run(loaded, input_ids=ids)[0])


def all_inputs(config: GPTConfig, head) -> dict[str, np.ndarray]:
    """Every input a head takes, padding included."""
    shape = (2, 3) if head is GPTDoubleHeadsModel else (2,)
    rows, length = int(np.prod(shape)), config.n_positions - 1
    ids, types = random_ids(config, rows, length), random_ids(config, rows, length, seed=1)
    mask = (np.arange(length) < length - np.arange(rows)[:, None] % 3).astype(np.int32)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "position_ids": positions_of(mask)}
    if head in (GPTLMHeadModel, GPTDoubleHeadsModel):
        inputs["labels"] = np.where(mask, ids, -100).astype(np.int32)
    inputs = {name: value.reshape(*shape, length) for name, value in inputs.items()}
    if head is GPTDoubleHeadsModel:
        inputs["mc_token_ids"] = (mask.sum(-1) - 1).reshape(shape).astype(np.int32)
        inputs["mc_labels"] = np.array([2, 0], np.int32)
    if head is GPTForSequenceClassification:
        inputs["labels"] = np.array([1, 0], np.int32)
    return {**inputs, "head_mask": mask_of(config, {0: [0]})}


def flat(outputs) -> list[np.ndarray]:
    found = []
    for item in outputs:
        found += flat(item) if isinstance(item, tuple) else [item.asnumpy() if isinstance(item, Tensor) else item]
    return found


@pytest.mark.parametrize("head", HEADS)
@few(2)
@given(config=configs(max_layer=1, output_attentions=True, output_hidden_states=True, lm_coef=0.5))
def test_graph_equals_pynative(head, config):
    outputs = {}
    for mode in MODES:
        set_mode(mode)
        outputs[mode] = flat(run(random_model(head, config), **all_inputs(config, head)))
    assert len(outputs["graph"]) == len(outputs["pynative"])
    for first, second in zip(*outputs.values(), strict=True):
        close(first, second)


@pytest.mark.parametrize("family", FAMILIES)
def test_graph_equals_pynative_with_dropout_and_in_gradients(family):
    config = tiny_config(family, n_layer=1, resid_pdrop=0.3, embd_pdrop=0.2, attn_pdrop=0.25, classifier_pdrop=0.4)
    inputs, found = all_inputs(config, GPTForSequenceClassification), {}
    batch = [Tensor(value) for value in list(inputs.values())[:4]] + [Tensor(inputs["labels"])]
    for mode in MODES:
        set_mode(mode)
        model = random_model(GPTForSequenceClassification, config)
        loss = Loss(model, [*list(inputs)[:4], "labels"]).set_train()
        step = ops.value_and_grad(loss, None, list(model.weights().values()))
        found[mode] = [step(*batch) for _ in range(2)]
    for (loss, gradients), (other_loss, other_gradients) in zip(*found.values(), strict=True):
        close(loss.asnumpy(), other_loss.asnumpy())
        for first, second in zip(gradients, other_gradients, strict=True):
            close(first.asnumpy(), second.asnumpy())
    assert abs(found["graph"][0][0].asnumpy() - found["graph"][1][0].asnumpy()) > 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_a_row_of_padding_only_gives_finite_values_and_gradients(mode):
    set_mode(mode)
    config = tiny_config(lm_coef=0.5, n_layer=1, pad_token_id=0)
    model = random_model(GPTForSequenceClassification, config)
    ids, mask = random_ids(config, 3, 6), np.array([[0] * 6, [1] * 6, [0] * 6], np.int32)
    inputs = [Tensor(ids), Tensor(mask), Tensor(np.array([-100, 2, 1], np.int32))]

    def loss_of(input_ids, attention_mask, labels):
        return model(input_ids, attention_mask, labels=labels)[:2]

    (loss, logits), gradients = ops.value_and_grad(loss_of, None, list(model.weights().values()),
                                                   has_aux=True)(*inputs)
    assert np.isfinite(loss.asnumpy())
    assert np.isfinite(logits.asnumpy()).all()
    assert all(np.isfinite(gradient.asnumpy()).all() for gradient in gradients)
    alone = run(model, input_ids=ids[1:2], attention_mask=mask[1:2])[0]
    close(logits.asnumpy()[1:2], alone)
    assert np.isfinite(run(model, input_ids=np.zeros((2, 6), np.int32))[0]).all()


@few(4)
@given(configs(), st.sampled_from(["one row", "full length", "one token"]))
def test_edges_of_the_shape(config, edge):
    length = {"one row": 3, "full length": config.n_positions, "one token": 1}[edge]
    batch = 1 if edge == "one row" else 2
    model, ids = random_model(GPTLMHeadModel, config), random_ids(config, batch, length)
    logits = run(model, input_ids=ids)[0]
    assert logits.shape == (batch, length, config.vocab_size)
    longer = random_ids(config, 3, config.n_positions, seed=4)
    longer[:batch, :length] = ids
    close(run(model, input_ids=longer)[0][:batch, :length], logits)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("head", HEADS)
def test_more_tokens_than_positions_is_one_line(head, mode):
    set_mode(mode)
    model = head(tiny_config(n_layer=1)).set_train(False)
    shape = (1, 2, 9) if head is GPTDoubleHeadsModel else (1, 9)
    for inputs in ({"input_ids": np.zeros(shape, np.int32)}, {"inputs_embeds": np.zeros((*shape, 12), np.float32)}):
        with pytest.raises(ValueError, match="a sequence of 9 tokens is longer than n_positions=8") as error:
            run(model, **inputs)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("mode", MODES)
def test_ids_and_embeddings_exclude_each_other(mode):
    set_mode(mode)
    model = GPTModel(tiny_config(n_layer=1))
    ids, embeds = Tensor(np.zeros((1, 4), np.int32)), Tensor(np.zeros((1, 4, 12), np.float32))
    for inputs in ({}, {"input_ids": ids, "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds") as error:
            model(**inputs)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_in_place_of_ids_and_token_types_are_added(family):
    config = tiny_config(family, n_layer=1)
    model, ids, types = random_model(GPTModel, config), random_ids(config, 2, 5), random_ids(config, 2, 5, seed=3)
    table = model.get_input_embeddings().embedding_table.asnumpy()
    close(run(model, inputs_embeds=table[ids])[0], run(model, input_ids=ids)[0])
    close(run(model, inputs_embeds=table[ids] + table[types])[0], run(model, input_ids=ids, token_type_ids=types)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_optional_outputs_have_their_shapes_and_meaning(family):
    config = tiny_config(family, output_attentions=True, output_hidden_states=True)
    mask = np.ones((2, 6), np.int32)
    mask[1, 4:] = 0
    model = random_model(GPTModel, config)
    last, hidden, attentions = run(model, input_ids=random_ids(config, 2, 6), attention_mask=mask)
    assert [item.shape for item in hidden] == [(2, 6, 12)] * 3
    np.testing.assert_array_equal(hidden[-1].asnumpy(), last)
    for item in attentions:
        weights = item.asnumpy()
        assert weights.shape == (2, 3, 6, 6)
        close(weights.sum(-1), np.ones((2, 3, 6)))
        assert not np.triu(weights, 1).any()
        assert not weights[1, :, :, 4:].any()


@pytest.mark.parametrize(("mode", "tied", "new_size"), [
    ("graph", True, 17), ("pynative", False, 17), ("pynative", True, 9), ("graph", False, 9)])
def test_resizing_the_vocabulary_keeps_the_old_tokens(tmp_path, mode, tied, new_size):
    set_mode(mode)
    config = tiny_config(tie_word_embeddings=tied, n_layer=1)
    model, kept = random_model(GPTLMHeadModel, config), min(new_size, config.vocab_size)
    ids = random_ids(config, 2, 6) % kept
    before = run(model, input_ids=ids)[0]
    model.resize_token_embeddings(new_size)
    after = run(model, input_ids=ids)[0]
    assert after.shape == (2, 6, new_size)
    close(after[..., :kept], before[..., :kept])
    assert model.config.vocab_size == model.transformer.config.vocab_size == new_size
    if new_size > kept:
        new_rows = model.get_input_embeddings().embedding_table.asnumpy()[kept:]
        assert 0 < new_rows.std() < 3 * config.initializer_range
        assert np.isfinite(run(model, input_ids=np.full((2, 6), new_size - 1, np.int32))[0]).all()
    model.save_pretrained(tmp_path)
    close(run(AutoModel.from_pretrained(tmp_path), input_ids=ids)[0], after)


def test_resized_embeddings_are_trained():
    model = random_model(GPTLMHeadModel, tiny_config(n_layer=1))
    model.resize_token_embeddings(15)
    weights = model.weights()
    ids = Tensor(np.array([[14, 1, 14, 2]], np.int32))
    gradients = ops.grad(Loss(model, ["input_ids", "labels"]), None, list(weights.values()))(ids, ids)
    table = dict(zip(weights, gradients, strict=True))["transformer.tokens_embed.embedding_table"].asnumpy()
    assert table.shape == (15, 12)
    assert np.abs(table[14]).max() > 0


def test_set_input_embeddings_replaces_the_table():
    config = tiny_config(n_layer=1)
    model, ids = random_model(GPTModel, config), random_ids(config, 1, 4)
    before = run(model, input_ids=ids)[0]
    table = nn.Embedding(config.vocab_size, config.n_embd)
    model.set_input_embeddings(table)
    assert model.get_input_embeddings() is table
    assert np.abs(run(model, input_ids=ids)[0] - before).max() > 1e-3


@pytest.mark.usefixtures("graph_mode")
def test_dropout_counts_training_passes_only():
    model = random_model(GPTModel, tiny_config(n_layer=1, seed=5))
    ids = Tensor(random_ids(model.config, 1, 4))
    model(ids)
    np.testing.assert_array_equal(model.dropout_state.asnumpy(), [5, 0])
    model.set_train()
    first, second = model(ids)[0].asnumpy(), model(ids)[0].asnumpy()
    np.testing.assert_array_equal(model.dropout_state.asnumpy(), [5, 2])
    assert np.abs(first - second).max() > 1e-3
    model.reseed(5)
    np.testing.assert_array_equal(model(ids)[0].asnumpy(), first)
    model.reseed(5, step=1)
    np.testing.assert_array_equal(model(ids)[0].asnumpy(), second)
    model.reseed(6)
    assert np.abs(model(ids)[0].asnumpy() - first).max() > 1e-3
    assert ms.get_context("mode") == ms.GRAPH_MODE


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize(("head", "shape"), [(GPTLMHeadModel, (None, None)), (GPTForSequenceClassification, (None, 5))])
def test_open_shapes_give_what_fixed_ones_give(head, shape, monkeypatch, compilations):
    monkeypatch.setenv("MS_GPT_KERNELS", "off")  # they are compiled for one shape
    model = random_model(head, tiny_config("gpt2"))
    sizes = [(2, 5), (3, 7), (1, 1)] if shape[1] is None else [(2, 5), (3, 5)]
    batches = [Tensor(random_ids(model.config, *size)) for size in sizes]
    expected = [model(ids)[0].asnumpy() for ids in batches]
    compilations.clear()
    model.set_inputs(Tensor(shape=list(shape), dtype=ms.int32))
    for ids, logits in zip(batches, expected, strict=True):
        close(model(ids)[0].asnumpy(), logits)
    assert len(compilations) == 1
