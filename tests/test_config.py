"""GPTConfig: what it accepts, refuses, reads and writes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from model_helpers import configs, few

from ms_gpt import GPTConfig, UserError
from ms_gpt.config import PRESETS


def test_defaults_are_gpt1():
    config = GPTConfig()
    assert (config.vocab_size, config.n_positions, config.n_embd, config.n_layer, config.n_head) == (
        40478, 512, 768, 12, 12)
    assert config.post_norm
    assert config.afn == "gelu"
    assert config.inner_size == 3072
    assert config.head_size == 64
    assert config.layer_norm_epsilon == 1e-5
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == config.classifier_pdrop == 0.1


def test_the_first_two_arguments_are_positional():
    config = GPTConfig(65, 128, n_layer=2, n_head=2, n_embd=8, model_type="gpt2")
    assert (config.vocab_size, config.n_positions, config.block_size) == (65, 128, 128)
    assert not config.post_norm


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    config = GPTConfig.preset(name, num_labels=7)
    assert config.num_labels == 7
    assert config.n_embd % config.n_head == 0


@pytest.mark.parametrize(("values", "message"), [
    ({"n_embd": 100, "n_head": 12}, "n_embd=100 is not divisible by n_head=12"),
    ({"n_layer": 0}, "n_layer=0 is not a whole number of at least 1"),
    ({"vocab_size": -5}, "vocab_size=-5"),
    ({"n_positions": 2.5}, "n_positions=2.5"),
    ({"n_head": True}, "n_head=True"),
    ({"n_head": "12"}, "n_head='12'"),
    ({"n_inner": 0}, "n_inner=0"),
    ({"n_inner": 100}, "n_inner=100 is a setting of GPT-2"),
    ({"scale_attn_weights": False}, "scale_attn_weights=False is a setting of GPT-2"),
    ({"scale_attn_by_inverse_layer_idx": True}, "is a setting of GPT-2"),
    ({"resid_pdrop": 1.0}, r"resid_pdrop=1.0 is outside \[0, 1\)"),
    ({"attn_pdrop": -0.1}, "attn_pdrop=-0.1"),
    ({"embd_pdrop": "0.1"}, "embd_pdrop='0.1'"),
    ({"classifier_pdrop": float("nan")}, "classifier_pdrop=nan"),
    ({"layer_norm_epsilon": 0.0}, r"layer_norm_epsilon=0.0 is outside \(0, inf\)"),
    ({"initializer_range": -1}, "initializer_range=-1"),
    ({"lm_coef": -0.5}, "lm_coef=-0.5"),
    ({"activation_function": "gleu"}, "activation_function='gleu' is not one of .* Did you mean 'gelu'"),
    ({"model_type": "gpt-2"}, "model_type='gpt-2' is not one of .* Did you mean 'gpt2'"),
    ({"problem_type": "single_label"}, "problem_type='single_label' is not one of"),
    ({"summary_type": "attn"}, "summary_type='attn'"),
    ({"pad_token_id": 40478}, "pad_token_id=40478 is outside the vocabulary"),
    ({"eos_token_id": -2}, "eos_token_id=-2"),
    ({"id2label": {0: "a", 2: "b"}}, r"id2label has the keys \[0, 2\]"),
])
def test_what_breaks_a_rule_is_named_in_one_line(values, message):
    with pytest.raises(UserError, match=message) as error:
        GPTConfig(**values)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=message):
        GPTConfig.from_dict(values)


@few(25)
@given(configs())
def test_json_round_trip(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(config.to_json(), encoding="utf-8")
    again = GPTConfig.from_json(path)
    assert again.to_dict() == config.to_dict()
    assert GPTConfig.from_json(path.parent).to_json() == config.to_json()
    keys = list(json.loads(config.to_json()))
    assert keys == sorted(keys)


def test_unknown_keys_survive_and_known_synonyms_are_understood():
    values = {"afn": "relu", "n_ctx": 64, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
              "task_specific_params": {"a": [1, 2]}, "architectures": ["OpenAIGPTLMHeadModel"], "n_special": 0}
    config = GPTConfig.from_dict(values)
    assert (config.afn, config.n_positions, config.n_embd, config.n_layer, config.n_head) == ("relu", 64, 24, 3, 4)
    written = config.to_dict()
    for key in ("task_specific_params", "architectures", "n_special"):
        assert written[key] == values[key]
    assert GPTConfig.from_dict(written).extra == config.extra


def test_a_key_goes_before_its_synonym():
    assert GPTConfig.from_dict({"n_ctx": 32, "n_positions": 64}).n_positions == 64
    assert GPTConfig.from_dict({"n_positions": 64, "n_ctx": 32}).n_positions == 64


def test_null_means_the_default():
    config = GPTConfig.from_dict({"resid_pdrop": None, "vocab_size": None, "n_inner": None, "model_type": "gpt2"})
    assert (config.resid_pdrop, config.vocab_size, config.n_inner) == (0.1, 50257, None)


def test_labels_have_names():
    config = GPTConfig.from_dict({"id2label": {"0": "neg", "1": "neutral", "2": "pos"}})
    assert config.num_labels == 3
    assert config.label2id == {"neg": 0, "neutral": 1, "pos": 2}
    assert GPTConfig.from_dict(json.loads(config.to_json())).label_names == config.label_names
    assert GPTConfig(num_labels=2).label_names == {0: "LABEL_0", 1: "LABEL_1"}
    assert config.replace(num_labels=2).label_names == {0: "LABEL_0", 1: "LABEL_1"}


def test_replace_checks_names_and_values():
    config = GPTConfig(n_embd=8, n_head=2)
    assert config.replace(n_layer=3, block_size=16).n_positions == 16
    with pytest.raises(UserError, match="'n_layers' is not a field of GPTConfig. Did you mean 'n_layer'"):
        config.replace(n_layers=3)
    with pytest.raises(UserError, match="not divisible"):
        config.replace(n_head=3)
    assert config.n_layer == 12


def test_unknown_presets_are_named():
    with pytest.raises(UserError, match="preset 'gpt2-larg' is unknown.*Did you mean 'gpt2-large'"):
        GPTConfig.preset("gpt2-larg")


@pytest.mark.parametrize(("content", "message"), [
    (None, "does not exist"), ("{", "cannot be read as JSON"), ("[1]", "holds a JSON list"),
    ('{"n_embd": 7, "n_head": 2}', "n_embd=7 is not divisible by n_head=2"),
])
def test_files_that_are_no_configuration(tmp_path, content, message):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        GPTConfig.from_json(path)
    assert "\n" not in str(error.value)


def test_activations_are_written_under_transformers_names():
    assert GPTConfig(model_type="gpt2", activation_function="gelu_exact").to_dict()["activation_function"] == "gelu"
    assert GPTConfig(model_type="gpt2", activation_function="gelu_new").to_dict()["activation_function"] == "gelu_new"
    assert GPTConfig(activation_function="gelu_new").to_dict()["afn"] == "gelu"
    with pytest.raises(UserError, match="activation_function='gelu_exact' is a setting of GPT-2"):
        GPTConfig(activation_function="gelu_exact")


def test_default_tokens_outside_a_small_vocabulary_are_left_out():
    config = GPTConfig.from_dict({"model_type": "gpt2", "vocab_size": 99, "bos_token_id": 50256, "eos_token_id": 98})
    assert (config.bos_token_id, config.eos_token_id) == (None, 98)
