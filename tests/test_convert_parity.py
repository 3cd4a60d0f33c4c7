"""What transformers writes, we convert; what we write, transformers loads: the same tensors and the same logits."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ms_gpt import checkpoint
from ms_gpt.checkpoint.tensors import float32_to_bits

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

SIZES = {"vocab_size": 31, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "pad_token_id": 0}
CONFIGS = {"OpenAIGPT": transformers.OpenAIGPTConfig, "GPT2": transformers.GPT2Config}
ARCHITECTURES = [family + head for family in CONFIGS
                 for head in ("Model", "LMHeadModel", "DoubleHeadsModel", "ForSequenceClassification")]
IDS = torch.arange(1, 11).reshape(2, 5)


def hf_model(architecture: str, **changes):
    family = "GPT2" if architecture.startswith("GPT2") else "OpenAIGPT"
    # Ids outside a tiny vocabulary are what GPT2Config defaults to.
    config = CONFIGS[family](**{**SIZES, "bos_token_id": 1, "eos_token_id": 2, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def reload(architecture: str, folder):
    model, info = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def logits_of(model):
    with torch.no_grad():
        return model(IDS)[0]


def assert_equal_weights(first, second):
    assert set(first.state_dict()) == set(second.state_dict())
    for name, tensor in first.state_dict().items():
        assert tensor.dtype == second.state_dict()[name].dtype, name
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("through", ["folder", "model.ckpt", "model.safetensors"])
def test_there_and_back_is_bit_exact(tmp_path, architecture, through):
    model = hf_model(architecture, num_labels=3)
    model.save_pretrained(tmp_path / "theirs")
    report = checkpoint.convert(tmp_path / "theirs", tmp_path / "between" / through)
    assert (report.architecture, report.missing, report.unexpected, report.mismatched) == (architecture, [], [], [])
    checkpoint.convert(tmp_path / "between" / through, tmp_path / "ours")
    ours = reload(architecture, tmp_path / "ours")
    assert_equal_weights(model, ours)
    assert torch.equal(logits_of(model), logits_of(ours))


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name.endswith(("LMHeadModel", "Heads"))])
def test_an_untied_head_stays_apart(tmp_path, architecture):
    model = hf_model(architecture, tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "theirs")
    checkpoint.convert(tmp_path / "theirs", tmp_path / "ours")
    assert_equal_weights(model, reload(architecture, tmp_path / "ours"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_bit_by_bit(tmp_path, architecture, dtype):
    model = hf_model(architecture).to(dtype)
    model.save_pretrained(tmp_path / "theirs")
    checkpoint.convert(tmp_path / "theirs", tmp_path / "between.ckpt")
    checkpoint.convert(tmp_path / "between.ckpt", tmp_path / "ours")
    assert_equal_weights(model, reload(architecture, tmp_path / "ours"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_we_round_as_torch_does(tmp_path, dtype):
    model = hf_model("GPT2LMHeadModel")
    model.save_pretrained(tmp_path / "theirs")
    checkpoint.convert(tmp_path / "theirs", tmp_path / "ours", dtype=dtype)
    assert_equal_weights(model.to(getattr(torch, dtype)), reload("GPT2LMHeadModel", tmp_path / "ours"))


def test_bfloat16_rounding_of_any_bits_is_torch_s():
    bits = np.random.default_rng(0).integers(0, 2**32, 1_000_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[~np.isnan(values)]
    theirs = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(float32_to_bits(values), theirs)


@pytest.mark.parametrize("architecture", ["OpenAIGPTLMHeadModel", "GPT2ForSequenceClassification"])
def test_shards(tmp_path, architecture):
    model = hf_model(architecture)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="2KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 2
    report = checkpoint.convert(tmp_path / "theirs", tmp_path / "ours")
    assert report.source_format == "safetensors-shards"
    assert_equal_weights(model, reload(architecture, tmp_path / "ours"))


@pytest.mark.parametrize("family", CONFIGS)
def test_our_double_heads_folder_loads_into_every_class(tmp_path, family):
    model = hf_model(f"{family}DoubleHeadsModel")
    model.save_pretrained(tmp_path / "theirs")
    checkpoint.convert(tmp_path / "theirs", tmp_path / "ours")
    for head in ("Model", "LMHeadModel", "ForSequenceClassification"):
        loaded, info = getattr(transformers, family + head).from_pretrained(tmp_path / "ours", output_loading_info=True)
        assert set(info["missing_keys"]) <= {"score.weight"}
        embedding = loaded.get_input_embeddings().weight
        assert torch.equal(embedding, model.get_input_embeddings().weight)


@pytest.mark.parametrize(("file", "flags"), [("tiny_gpt2", {"n_head": 2}), ("tiny_gpt2_seqcls", {})])
def test_published_logits_are_reproduced(data_dir, tmp_path, file, flags):
    folder = data_dir / "checkpoints" / "hf_gpt2_tiny"
    report = checkpoint.convert(folder / f"{file}.safetensors", tmp_path / "ours", **flags)
    expected = json.loads((folder / f"{file}_logits.json").read_text())
    model = reload(report.architecture, tmp_path / "ours")
    with torch.no_grad():
        logits = model(torch.tensor(expected["sequences"])).logits
    torch.testing.assert_close(logits, torch.tensor(expected["logits"]), rtol=0, atol=1e-5)


def test_greedy_tokens_of_the_random_gpt2_are_those_of_transformers(data_dir, tmp_path):
    from mindspore import Tensor

    from ms_gpt import AutoModel, runtime

    runtime.setup("cpu", "pynative")
    folder = data_dir / "checkpoints" / "hf_gpt2_random"
    source = folder / "hf_tiny_random_gpt2_from_onnx.npz"
    prompts = json.loads((folder / "hf_tiny_random_gpt2_expected_beam4.json").read_text())["input_ids"]
    checkpoint.convert(source, tmp_path / "ours", n_head=4)
    theirs = reload("GPT2LMHeadModel", tmp_path / "ours").generate(
        torch.tensor(prompts), attention_mask=torch.ones(3, 12, dtype=torch.long), max_length=24, do_sample=False,
        eos_token_id=None, pad_token_id=0)
    model, ids = AutoModel.from_pretrained(source, n_head=4), np.array(prompts, np.int32)
    while ids.shape[1] < 24:
        logits = model(Tensor(ids))[0].asnumpy()[:, -1]
        ids = np.concatenate([ids, logits.argmax(-1, keepdims=True).astype(np.int32)], 1)
    runtime.setup("cpu", "graph")
    assert ids.tolist() == theirs.tolist()
