"""Every layout: recognised by what it holds, read and written back bit by bit, and never as another function."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoint_helpers import (
    FAMILIES,
    HEADS,
    PREFIX,
    assert_one_line,
    make_folder,
    on_disk,
    random_arrays,
    small_config,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ms_gpt import AutoModel, GPTForSequenceClassification, checkpoint, runtime
from ms_gpt.checkpoint import CheckpointError, npz, openai, torch_file
from ms_gpt.errors import UserError

FILES = {"safetensors": "w.safetensors", "ckpt": "w.ckpt", "torch": "w.bin", "npz": "w.npz", "mingpt": "w.pt",
         "mingpt-old": "w.pt", "nanogpt": "w.pt"}
LINEAR = ("mingpt", "mingpt-old", "nanogpt")
ERF = ("mingpt-old", "nanogpt")


def bits_of(path: Path) -> dict[str, tuple]:
    tensors = checkpoint.read_content(path).tensors
    return {name: (info, tensors.bits(name).tobytes()) for name, info in tensors.infos.items()}


@st.composite
def pairs(draw):
    """A layout, and a model and dtype that it can hold."""
    to = draw(st.sampled_from(list(FILES)))
    family = "gpt2" if to in LINEAR else draw(st.sampled_from(FAMILIES))
    head = "LMHeadModel" if to in LINEAR else draw(st.sampled_from(HEADS))
    n_head = draw(st.integers(1, 3))
    changes = {"n_head": n_head, "n_embd": n_head * draw(st.integers(1, 3)), "n_layer": draw(st.integers(1, 3)),
               "tie_word_embeddings": to == "nanogpt" or draw(st.booleans())}
    if to in LINEAR:
        changes["activation_function"] = draw(st.sampled_from(["gelu_new", "gelu_exact", "gelu"]))
    dtypes = ["float32", "float16"] if to == "npz" else ["float32", "float16", "bfloat16"]
    return to, family, head, changes, draw(st.sampled_from(dtypes))


class TestRoundTrips:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(pair=pairs())
    def test_source_to_ours_to_source_is_bit_exact(self, tmp_path_factory, pair):
        to, family, head, changes, dtype = pair
        folder = tmp_path_factory.mktemp("pair")
        make_folder(folder / "m", family, head, **changes)
        checkpoint.convert(folder / "m", folder / "first" / FILES[to], to, dtype)
        first = checkpoint.convert(folder / "first" / FILES[to], folder / "ours")
        checkpoint.convert(folder / "ours", folder / "second" / FILES[to], to)
        assert first.source_format == to
        assert (first.missing, first.unexpected, first.mismatched) == ([], [], [])
        assert bits_of(folder / "first" / FILES[to]) == bits_of(folder / "second" / FILES[to])
        # What was transposed, cut and put together again is what was there at the start.
        checkpoint.convert(folder / "m", folder / "narrow", dtype=dtype)
        ours, narrow = bits_of(folder / "ours"), bits_of(folder / "narrow")
        if to.startswith("mingpt") and changes["tie_word_embeddings"]:
            ours.pop("lm_head.weight", None)
        assert ours == narrow
        read = [checkpoint.open_checkpoint(folder / name).config.replace(extra={}) for name in ("m", "ours")]
        assert read[0] == read[1]

    def test_nanogpt_without_biases_stays_without(self, tmp_path):
        config, arrays = make_folder(tmp_path / "m", activation_function="gelu_exact")
        zero = {name: np.zeros_like(a) if name.endswith(("bias", "beta")) else a for name, a in arrays.items()}
        config.extra["bias"] = False
        checkpoint.write_folder(tmp_path / "zero", config, zero, "GPT2LMHeadModel")
        checkpoint.convert(tmp_path / "zero", tmp_path / "w.pt", "nanogpt")
        names = bits_of(tmp_path / "w.pt")
        assert not any(name.endswith("bias") for name in names)
        checkpoint.convert(tmp_path / "w.pt", tmp_path / "ours")
        assert bits_of(tmp_path / "ours") == bits_of(tmp_path / "zero")
        # Once trained further here, biases are there again.
        checkpoint.write_folder(tmp_path / "trained", config, arrays, "GPT2LMHeadModel")
        checkpoint.convert(tmp_path / "trained", tmp_path / "b.pt", "nanogpt")
        assert "transformer.ln_f.bias" in bits_of(tmp_path / "b.pt")


class TestWhatIsAskedFor:
    def write(self, path: Path, to: str, **changes) -> Path:
        """A file with no configuration beside it."""
        make_folder(path.parent / "m", **changes)
        checkpoint.convert(path.parent / "m", path, to)
        for file in path.parent.glob("*.json"):
            file.unlink()
        return path

    @pytest.mark.parametrize(("to", "activation"), [("mingpt", "gelu_new"), ("mingpt-old", "gelu_exact"),
                                                    ("torch", "gelu_new"), ("npz", "gelu_new")])
    def test_the_layout_tells_the_activation_and_only_the_heads_are_asked_for(self, tmp_path, to, activation):
        path = self.write(tmp_path / FILES[to], to, tie_word_embeddings=not to.startswith("mingpt"))
        with pytest.raises(UserError) as error:
            checkpoint.open_checkpoint(path)
        assert_one_line(error, str(path), "with --n-head")
        found = checkpoint.open_checkpoint(path, n_head=2)
        assert found.config.activation_function == activation
        assert found.format == to

    def test_nanogpt_tells_all(self, tmp_path):
        path = self.write(tmp_path / "w.pt", "nanogpt", resid_pdrop=0.25)
        found = checkpoint.open_checkpoint(path)
        assert (found.config.n_head, found.config.resid_pdrop) == (2, 0.25)
        assert found.config.activation_function == "gelu_exact"
        assert "June 2023" in found.notes[0]
        assert checkpoint.open_checkpoint(path, activation_function="gelu_new").config.activation_function == "gelu_new"
        with pytest.raises(UserError, match="n_head=4 contradicts"):
            checkpoint.open_checkpoint(path, n_head=4)

    def test_nanogpt_before_its_bias_option_is_of_the_tanh_form(self, tmp_path):
        path = self.write(tmp_path / "w.pt", "nanogpt")
        arguments = {"n_layer": 2, "n_head": 2, "n_embd": 4, "block_size": 7, "vocab_size": 11}
        torch_file.write_to(tmp_path / "old.pt", checkpoint.read_content(path).tensors, model_args=arguments)
        found = checkpoint.open_checkpoint(tmp_path / "old.pt")
        assert found.config.activation_function == "gelu_new"
        assert found.notes == ()

    @pytest.mark.parametrize("to", ["nanogpt", "mingpt"])
    def test_a_bare_tied_model_is_asked_for_its_activation(self, tmp_path, to):
        path = tmp_path / "bare.pt"
        torch_file.write_to(path, checkpoint.read_content(self.write(tmp_path / "w.pt", to)).tensors)
        with pytest.raises(UserError) as error:
            checkpoint.open_checkpoint(path, n_head=2)
        assert_one_line(error, "nanoGPT", "--activation-function gelu_exact")
        found = checkpoint.open_checkpoint(path, n_head=2, activation_function="gelu_exact")
        assert found.config.activation_function == "gelu_exact"

    def test_the_published_head_count_is_suggested(self, tmp_path):
        config = small_config("gpt2", vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12)
        infos = {name: checkpoint.TensorInfo(shape, "float32")
                 for name, shape in checkpoint.expected_shapes(config, "GPT2LMHeadModel").items()}
        lazy = checkpoint.LazyTensors(infos, lambda name: np.zeros(infos[name].shape, np.float32))
        with pytest.raises(UserError, match="the published gpt2 has 12"):
            checkpoint.layouts.infer_config(lazy, None)


class TestWhatALayoutCannotExpress:
    @pytest.mark.parametrize("to", LINEAR)
    @pytest.mark.parametrize(("family", "head", "changes", "reason"), [
        ("openai-gpt", "LMHeadModel", {}, "model_type='openai-gpt'"),
        ("gpt2", "ForSequenceClassification", {}, "language models only"),
        ("gpt2", "DoubleHeadsModel", {}, "language models only"),
        ("gpt2", "LMHeadModel", {"n_inner": 6}, "n_inner=6"),
        ("gpt2", "LMHeadModel", {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        ("gpt2", "LMHeadModel", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", "LMHeadModel", {"activation_function": "relu"}, "relu"),
    ])
    def test_it_is_refused(self, tmp_path, to, family, head, changes, reason):
        make_folder(tmp_path / "m", family, head, **changes)
        with pytest.raises(CheckpointError) as error:
            checkpoint.convert(tmp_path / "m", tmp_path / "w.pt", to)
        assert_one_line(error, reason)
        assert not (tmp_path / "w.pt").exists()

    def test_nanogpt_ties_its_head(self, tmp_path):
        make_folder(tmp_path / "m", tie_word_embeddings=False)
        with pytest.raises(CheckpointError, match="tie_word_embeddings=False"):
            checkpoint.convert(tmp_path / "m", tmp_path / "w.pt", "nanogpt")

    @pytest.mark.parametrize("to", LINEAR)
    @pytest.mark.parametrize("activation", ["gelu_new", "gelu_exact"])
    def test_another_gelu_is_said_and_comes_back(self, tmp_path, to, activation):
        make_folder(tmp_path / "m", activation_function=activation)
        report = checkpoint.convert(tmp_path / "m", tmp_path / "w.pt", to)
        assert (len(report.notes) == 1) == ((activation == "gelu_exact") != (to in ERF))
        stated = checkpoint.open_checkpoint(tmp_path / "m").config.activation_function
        assert checkpoint.open_checkpoint(tmp_path / "w.pt").config.activation_function == stated

    def test_an_adapter_is_not_left_out(self, tmp_path):
        config, arrays = make_folder(tmp_path / "m")
        arrays["transformer.h.0.attn.c_attn.lora_A.weight"] = np.ones((2, 4), np.float32)
        checkpoint.write_folder(tmp_path / "a", config, arrays, "GPT2LMHeadModel")
        with pytest.raises(CheckpointError) as error:
            checkpoint.convert(tmp_path / "a", tmp_path / "b")
        assert_one_line(error, "adapter", "merge_and_unload")

    def test_of_several_models_in_one_file_none_is_taken(self, tmp_path):
        config, arrays = make_folder(tmp_path / "m")
        disk = on_disk(config, arrays)
        both = {f"{who}.{name}": array for who in ("student", "ema") for name, array in disk.items()}
        checkpoint.write_safetensors(tmp_path / "both.safetensors", both)
        with pytest.raises(CheckpointError) as error:
            checkpoint.convert(tmp_path / "both.safetensors", tmp_path / "b", n_head=2)
        assert_one_line(error, "several models", "ema., student.")

    def test_nanogpt_s_arguments_say_what_its_tensors_are(self, tmp_path):
        config, arrays = make_folder(tmp_path / "m", activation_function="gelu_exact")
        config.extra["bias"] = False
        checkpoint.write_folder(tmp_path / "a", config, arrays, "GPT2LMHeadModel")
        checkpoint.convert(tmp_path / "a", tmp_path / "w.pt", "nanogpt")
        content = checkpoint.read_content(tmp_path / "w.pt")
        assert content.settings["model_args"]["bias"] is True
        assert "transformer.ln_f.bias" in content.tensors

    def test_npz_has_no_bfloat16(self, tmp_path):
        make_folder(tmp_path / "m")
        with pytest.raises(CheckpointError, match="bfloat16"):
            checkpoint.convert(tmp_path / "m", tmp_path / "w.npz", dtype="bfloat16")


class TestNames:
    @pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "model.", "_orig_mod.module.", "network._backbone."])
    @pytest.mark.parametrize("prefix", [PREFIX, ""])
    def test_wrappers_are_left_off(self, tmp_path, wrapper, prefix):
        config, arrays = make_folder(tmp_path / "m")
        disk = on_disk(config, arrays)
        wrapped = {wrapper + prefix + name.removeprefix(PREFIX): array for name, array in disk.items()}
        checkpoint.write_safetensors(tmp_path / "w.safetensors", wrapped)
        report = checkpoint.convert(tmp_path / "w.safetensors", tmp_path / "ours", n_head=2)
        assert report.rows[0].source.startswith(wrapper)
        assert bits_of(tmp_path / "ours") == bits_of(tmp_path / "m")

    def test_mindnlp_s_names_and_an_optimizer_beside_them(self, tmp_path):
        mindspore = pytest.importorskip("mindspore")
        runtime.setup("cpu", "pynative")
        config, arrays = make_folder(tmp_path / "m")
        theirs = {name.replace("tokens_embed", "wte").replace("positions_embed", "wpe"): array
                  for name, array in arrays.items()}
        moments = {f"{moment}.{name}": array for name, array in theirs.items() for moment in ("moment1", "moment2")}
        entries = {**theirs, **moments, "global_step": np.array([7], np.int32),
                   "learning_rate": np.array(0.1, np.float32)}
        mindspore.save_checkpoint([{"name": name, "data": mindspore.Tensor(array)} for name, array in entries.items()],
                                  str(tmp_path / "w.ckpt"))
        report = checkpoint.convert(tmp_path / "w.ckpt", tmp_path / "ours", n_head=2)
        assert bits_of(tmp_path / "ours") == bits_of(tmp_path / "m")
        assert len(report.unexpected) == 2 * len(theirs) + 2
        model = AutoModel.from_pretrained(tmp_path / "w.ckpt", n_head=2)
        first = arrays["transformer.h.0.ln_1.gamma"]
        np.testing.assert_array_equal(model.weights()["transformer.h.0.ln_1.gamma"].asnumpy(), first)

    @pytest.mark.parametrize("family", ["openai-gpt", "gpt2"])
    def test_the_names_of_mindnlp_01(self, tmp_path, family):
        config, arrays = make_folder(tmp_path / "m", family)
        blocks = "block_list." if family == "openai-gpt" else "h."
        theirs = {}
        for name, array in arrays.items():
            if ".c_" in name:
                name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
            theirs["network." + name.replace(".h.", f".{blocks}")] = array
        masks = {f"network.transformer.{blocks}0.attn.bias": np.ones((1, 1, 8, 8), np.int32),
                 "network.transformer.position_ids": np.arange(8)}
        checkpoint.write_safetensors(tmp_path / "w.safetensors", {**theirs, **masks})
        report = checkpoint.convert(tmp_path / "w.safetensors", tmp_path / "ours", n_head=2)
        assert bits_of(tmp_path / "ours") == bits_of(tmp_path / "m")
        assert set(theirs) == {row.source for row in report.rows}


class TestOpenAI:
    def release(self, folder: Path, squeezed: bool, files: int = 3):
        """What OpenAI's program would have saved: one row of numbers, cut without regard to tensors."""
        config, arrays = make_folder(folder.parent / "m", "openai-gpt")
        order = ["positions_embed.embedding_table", "tokens_embed.embedding_table",
                 *(f"h.{layer}.{part}" for layer in range(config.n_layer) for part in (
                     "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias", "ln_1.gamma",
                     "ln_1.beta", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias",
                     "ln_2.gamma", "ln_2.beta"))]
        arrays = [arrays[PREFIX + name] for name in order]
        folder.mkdir()
        shapes = [[1, *a.shape] if a.ndim == 2 and not squeezed and i > 1 else list(a.shape)
                  for i, a in enumerate(arrays)]
        (folder / "params_shapes.json").write_text(json.dumps(shapes))
        for number, part in enumerate(np.array_split(np.concatenate([a.reshape(-1) for a in arrays]), files)):
            np.save(folder / f"params_{number}.npy", part)

    @pytest.mark.parametrize("squeezed", [True, False])
    @pytest.mark.parametrize("files", [1, 3, 10])
    def test_every_tensor_finds_its_name(self, tmp_path, squeezed, files):
        self.release(tmp_path / "openai", squeezed, files)
        report = checkpoint.convert(tmp_path / "openai", tmp_path / "ours", n_head=2)
        assert (report.source_format, report.architecture) == ("openai-gpt1", "OpenAIGPTLMHeadModel")
        assert bits_of(tmp_path / "ours") == bits_of(tmp_path / "m")

    def test_what_is_missing_is_named(self, tmp_path):
        self.release(tmp_path / "openai", True)
        (tmp_path / "openai" / "params_1.npy").unlink()
        with pytest.raises(CheckpointError, match="lacks params_1.npy"):
            openai.read_openai(tmp_path / "openai")

    def test_the_released_model_has_twelve_heads(self, tmp_path):
        config = small_config("openai-gpt", vocab_size=3, n_positions=2, n_embd=768, n_layer=12, n_head=12)
        count = sum(np.prod(shape) for shape in checkpoint.expected_shapes(config, "OpenAIGPTModel").values())
        sizes = [[2, 768], [3, 768], *[[768, 2304], [2304], [768, 768], [768], [768], [768], [768, 3072], [3072],
                                       [3072, 768], [768], [768], [768]] * 12]
        (tmp_path / "params_shapes.json").write_text(json.dumps(sizes))
        np.save(tmp_path / "params_0.npy", np.zeros(count, np.float32))
        assert checkpoint.open_checkpoint(tmp_path).config.n_head == 12


class TestRealFiles:
    @pytest.fixture(autouse=True)
    def pynative(self):
        runtime.setup("cpu", "pynative")
        yield
        runtime.setup("cpu", "graph")

    @pytest.mark.parametrize("file", ["tiny_gpt2.safetensors", "tiny_gpt2.bin", "tiny_gpt2.bin.index.json"])
    def test_published_logits_of_a_language_model(self, data_dir, tmp_path, file):
        from mindspore import Tensor

        folder = data_dir / "checkpoints" / "hf_gpt2_tiny"
        report = checkpoint.convert(folder / file, tmp_path / "ours", n_head=2)
        assert report.source_format == {"safetensors": "safetensors", "bin": "torch", "json": "torch-shards"}[
            file.rsplit(".", 1)[-1]]
        expected = json.loads((folder / "tiny_gpt2_logits.json").read_text())
        ids = Tensor(np.array(expected["sequences"], np.int32))
        for model in (AutoModel.from_pretrained(tmp_path / "ours"), AutoModel.from_pretrained(folder / file, n_head=2)):
            np.testing.assert_allclose(model(ids)[0].asnumpy(), expected["logits"], rtol=0, atol=1e-5)

    def test_published_logits_of_a_classifier(self, data_dir):
        from mindspore import Tensor

        folder = data_dir / "checkpoints" / "hf_gpt2_tiny"
        model = AutoModel.from_pretrained(folder / "tiny_gpt2_seqcls.safetensors")
        assert isinstance(model, GPTForSequenceClassification)
        expected = json.loads((folder / "tiny_gpt2_seqcls_logits.json").read_text())
        logits = model(Tensor(np.array(expected["sequences"], np.int32)))[0].asnumpy()
        np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-5)
        assert [model.config.label_names[i] for i in logits.argmax(-1)] == expected["labels"]

    def test_the_adder_gets_every_sum_right(self, data_dir, tmp_path):
        from mindspore import Tensor

        checkpoint.convert(data_dir / "checkpoints" / "mingpt_adder" / "adder.pt", tmp_path / "ours", n_head=3)
        model = AutoModel.from_pretrained(tmp_path / "ours")
        a, b = np.divmod(np.arange(10_000), 100)
        ids = np.stack([a // 10, a % 10, b // 10, b % 10], 1).astype(np.int32)
        for _ in range(3):
            logits = model(Tensor(ids))[0].asnumpy()
            ids = np.concatenate([ids, logits[:, -1].argmax(-1, keepdims=True).astype(np.int32)], 1)
        # The digits of the sum come from the last to the first.
        assert int((ids[:, 4] + 10 * ids[:, 5] + 100 * ids[:, 6] == a + b).sum()) == 10_000

    def test_four_beams_of_the_random_gpt2(self, data_dir):
        folder = data_dir / "checkpoints" / "hf_gpt2_random"
        model = AutoModel.from_pretrained(folder / "hf_tiny_random_gpt2_from_onnx.npz", n_head=4)
        expected = json.loads((folder / "hf_tiny_random_gpt2_expected_beam4.json").read_text())
        prompts = expected["input_ids"]
        ids = model.generate(prompts, num_beams=expected["num_beams"], eos_token_id=-1,
                             max_new_tokens=expected["max_length"] - len(prompts[0]))
        assert ids.asnumpy().tolist() == expected["expected"]

    def test_openai_s_gpt1(self, data_dir, tmp_path):
        source = data_dir / "checkpoints" / "gpt1_openai_layout" / "transformer_small.tar.gz"
        report = checkpoint.convert(source, tmp_path / "ours", n_head=2)
        assert (report.source_format, len(report.rows), report.unexpected) == ("openai-gpt1", 26, [])
        config, tensors = checkpoint.read_folder(tmp_path / "ours")
        assert (config.n_layer, config.n_embd, config.vocab_size, config.n_positions) == (2, 10, 50, 50)
        assert tensors.infos["transformer.h.1.mlp.c_fc.weight"].shape == (10, 40)
        assert AutoModel.from_pretrained(source, n_head=2).num_parameters() == 3660


def test_npz_of_numpy_s_own(tmp_path):
    config = small_config("gpt2")
    arrays = on_disk(config, random_arrays(config, "GPT2LMHeadModel"))
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "w.npz", **arrays)
        read = npz.read_npz(tmp_path / "w.npz")
        assert {name: read[name].tobytes() for name in read} == {name: a.tobytes() for name, a in arrays.items()}
        assert checkpoint.open_checkpoint(tmp_path / "w.npz", n_head=2).architecture == "GPT2LMHeadModel"
