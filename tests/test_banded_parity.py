"""Locally banded attention beside GPT-Neo in transformers, which alternates dense and local layers too."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor

from ms_gpt import GPTConfig, GPTLMHeadModel, runtime

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("window", [1, 3, 5])
def test_logits_are_those_of_gpt_neo(window):
    torch.manual_seed(0)
    theirs = transformers.GPTNeoForCausalLM(transformers.GPTNeoConfig(
        vocab_size=31, max_position_embeddings=12, hidden_size=8, num_layers=4, num_heads=2, window_size=window,
        attention_types=[[["global", "local"], 2]], intermediate_size=32, bos_token_id=1, eos_token_id=2)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    # GPT-Neo does not scale its scores, and has no biases at queries, keys and values.
    config = GPTConfig(31, 12, 8, 4, 2, "ms_gpt", window_size=window, scale_attn_weights=False)
    ours = GPTLMHeadModel(config).set_train(False)
    ours.load_arrays(arrays_of(theirs))
    ids = np.random.default_rng(0).integers(0, 31, (3, 12))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits.numpy()
    runtime.setup("cpu", "pynative")
    found = ours(Tensor(ids.astype(np.int32)))[0].asnumpy()
    runtime.setup("cpu", "graph")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def arrays_of(model) -> dict[str, np.ndarray]:
    """GPT-Neo's weights under GPT-2's names."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    arrays = {}
    for name, array in state.items():
        name = name.replace("attn.attention.", "attn.").replace("out_proj", "c_proj")
        if name.endswith(("k_proj.weight", "v_proj.weight")) or name == "lm_head.weight":
            continue
        if name.endswith("q_proj.weight"):
            parts = [state[name.replace("attn.q", f"attn.attention.{part}")] for part in "qkv"]
            name, array = name.replace("q_proj", "c_attn"), np.concatenate([part.T for part in parts], 1)
            arrays[name.replace("weight", "bias")] = np.zeros(array.shape[1], np.float32)
        elif array.ndim == 2 and ".h." in name:
            array = array.T
        arrays[name] = np.ascontiguousarray(array)
    return {name: array for name, array in arrays.items() if not name.endswith((".attn.bias", ".masked_bias"))}
