"""Files that PyTorch and MindSpore saved, in every layout: read right by all, and written so that their models load."""

from __future__ import annotations

import json

import mindspore as ms
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from checkpoint_helpers import assert_one_line, assert_same
from torch_models import MinGPT, NanoGPT, OldMinGPT, draw

from ms_gpt import AutoModel, checkpoint, runtime
from ms_gpt.checkpoint import CheckpointError

pytestmark = pytest.mark.parity

SIZES = {"vocab_size": 37, "block_size": 12, "n_layer": 2, "n_head": 4, "n_embd": 16}
HF_SIZES = {"vocab_size": 37, "n_positions": 12, "n_layer": 2, "n_head": 4, "n_embd": 16, "bos_token_id": 1,
            "eos_token_id": 2, "pad_token_id": 0}
HEADS = {"n_head": SIZES["n_head"]}
TOLERANCE = 1e-5
IDS = torch.tensor([[1, 36, 5, 5, 0, 17, 23, 2, 30], [9, 4, 0, 35, 12, 12, 3, 28, 7]])
LAYOUTS = {"mingpt": MinGPT, "mingpt-old": OldMinGPT, "nanogpt": NanoGPT}
# A bare state dict of nanoGPT does not tell which GELU it was trained with.
FLAGS = {"mingpt": HEADS, "mingpt-old": HEADS, "nanogpt": {**HEADS, "activation_function": "gelu_exact"}}
MASK = torch.ones(12, 12).tril()[None, None]
SAVES = {"zip": {}, "stream": {"_use_new_zipfile_serialization": False}, "protocol-5": {"pickle_protocol": 5}}
HF_HEADS = ("Model", "LMHeadModel", "DoubleHeadsModel", "ForSequenceClassification")
HF_ARCHITECTURES = [family + head for family in ("OpenAIGPT", "GPT2") for head in HF_HEADS]


@pytest.fixture(autouse=True)
def pynative():
    before = ms.get_context("mode")
    runtime.setup("cpu", "pynative")
    yield
    ms.set_context(mode=before)


def model_of(layout: str, **changes):
    return draw(LAYOUTS[layout](**{**SIZES, **changes}))


def hf_model(architecture: str = "GPT2LMHeadModel", **changes):
    kind = transformers.GPT2Config if architecture.startswith("GPT2") else transformers.OpenAIGPTConfig
    return draw(getattr(transformers, architecture)(kind(**{**HF_SIZES, **changes})))


def ids_for(model):
    """Two sequences; as one example of two choices for a model that chooses."""
    return IDS[None] if "DoubleHeads" in type(model).__name__ else IDS


def logits_of(model):
    with torch.no_grad():
        found = model(ids_for(model))
    return found if isinstance(found, torch.Tensor) else found[0]


def reload_hf(folder, architecture: str = "GPT2LMHeadModel", **flags):
    model, info = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True, **flags)
    assert not any(info.values()), info
    return model.eval()


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def assert_our_logits(source, expected, **flags):
    model = AutoModel.from_pretrained(source, **flags)
    logits = model(ms.Tensor(ids_for(model).numpy(), ms.int32))[0]
    assert_close(torch.from_numpy(logits.asnumpy()), expected)


def assert_read(source, expected, folder, kind: str, **flags):
    """Converted for transformers, and loaded here as it is: the logits are those of the model that was saved."""
    report = checkpoint.convert(source, folder, **flags)
    assert (report.source_format, report.missing, report.unexpected, report.mismatched) == (kind, [], [], [])
    assert_close(logits_of(reload_hf(folder, dtype=torch.float32)), expected)
    assert_our_logits(source, expected, **flags)
    return report


def assert_same_tensors(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


class TestFilesOfPyTorch:
    @pytest.mark.parametrize("save", SAVES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_a_state_dict(self, tmp_path, layout, save):
        model = model_of(layout)
        torch.save(model.state_dict(), tmp_path / "a.pt", **SAVES[save])
        assert_read(tmp_path / "a.pt", logits_of(model), tmp_path / "hf", layout, **FLAGS[layout])

    @pytest.mark.parametrize(("bias", "prefix", "save"), [
        (True, "", "zip"), (False, "_orig_mod.", "zip"), (True, "_orig_mod.", "stream"), (False, "", "stream")])
    def test_a_checkpoint_of_nanogpt_tells_everything(self, tmp_path, bias, prefix, save):
        model = model_of("nanogpt", bias=bias, dropout=0.2)
        torch.save(model.checkpoint(prefix), tmp_path / "ckpt.pt", **SAVES[save])
        report = assert_read(tmp_path / "ckpt.pt", logits_of(model), tmp_path / "hf", "nanogpt")
        assert (report.config.n_head, report.config.resid_pdrop) == (SIZES["n_head"], 0.2)

    def test_a_checkpoint_of_nanogpt_from_before_june_2023(self, tmp_path):
        model = model_of("nanogpt", gelu="tanh")
        content = model.checkpoint()
        torch.save(content, tmp_path / "a.pt")
        assert_read(tmp_path / "a.pt", logits_of(model), tmp_path / "a", "nanogpt", activation_function="gelu_new")
        # Older still: no choice of biases, and a mask in each layer.
        del content["model_args"]["bias"]
        content["model"] |= {f"transformer.h.{layer}.attn.bias": MASK for layer in range(SIZES["n_layer"])}
        torch.save(content, tmp_path / "b.pt")
        assert_read(tmp_path / "b.pt", logits_of(model), tmp_path / "b", "nanogpt")

    def test_the_gelu_of_a_bare_nanogpt_has_to_be_said(self, tmp_path):
        torch.save(model_of("nanogpt").state_dict(), tmp_path / "a.pt")
        with pytest.raises(CheckpointError) as error:
            checkpoint.convert(tmp_path / "a.pt", tmp_path / "hf", **HEADS)
        assert_one_line(error, "a.pt", "nanoGPT", "--activation-function")
        assert not (tmp_path / "hf").exists()

    def test_the_tolerance_tells_the_two_gelus_apart(self):
        erf, tanh = model_of("nanogpt"), model_of("nanogpt", gelu="tanh")
        assert_same_tensors(erf.state_dict(), tanh.state_dict())
        assert (logits_of(erf) - logits_of(tanh)).abs().max() > 10 * TOLERANCE

    @pytest.mark.parametrize(("dtype", "save"), [(torch.float16, "zip"), (torch.bfloat16, "stream")])
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_half_precision(self, tmp_path, layout, dtype, save):
        model = model_of(layout)
        state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
        # What is expected is computed in float32, from the rounded weights.
        model.load_state_dict(state)
        torch.save(state, tmp_path / "a.pt", **SAVES[save])
        report = assert_read(tmp_path / "a.pt", logits_of(model), tmp_path / "hf", layout, **FLAGS[layout])
        assert {row.dtype for row in report.rows} == {str(dtype).removeprefix("torch.")}

    @pytest.mark.parametrize("layout", [*LAYOUTS, "hf"])
    def test_names_with_a_wrapper_in_front(self, tmp_path, layout):
        state = (model_of(layout) if layout in LAYOUTS else hf_model()).state_dict()
        wrapped = {prefix: {prefix + name: tensor for name, tensor in state.items()}
                   for prefix in ("module.", "_orig_mod.", "model.", "_orig_mod.module.")}
        contents = [*wrapped.values(), {"epoch": 3, "state_dict": wrapped["model."], "hyper_parameters": {"lr": 0.1}}]
        assert_read_alike(tmp_path, state, contents, **FLAGS.get(layout, HEADS))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_a_state_dict_among_other_things(self, tmp_path, layout):
        model = model_of(layout)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        assert all(isinstance(value, torch.nn.Parameter) for value in parameters.values())
        contents = [{"step": torch.tensor(3), key: parameters, "rng": torch.get_rng_state(), "names": ("a", None)}
                    for key in ("model", "state_dict", "model_state_dict")]
        assert_read_alike(tmp_path, model.state_dict(), [parameters, *contents], **FLAGS[layout])

    @pytest.mark.parametrize("save", SAVES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_views_of_storages(self, tmp_path, layout, save):
        state = model_of(layout).state_dict()
        views = [view(state) for view in (_transposed, _strided, _one_storage)]
        for view in views:
            assert_same_tensors(view, state)
        assert_read_alike(tmp_path, state, views, save, **FLAGS[layout])

    @pytest.mark.parametrize("save", SAVES)
    def test_tensors_from_a_gpu(self, tmp_path, monkeypatch, save):
        model = model_of("mingpt")
        monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:1")
        torch.save(model.state_dict(), tmp_path / "a.pt", **SAVES[save])
        assert b"cuda:1" in (tmp_path / "a.pt").read_bytes()
        assert_read(tmp_path / "a.pt", logits_of(model), tmp_path / "hf", "mingpt", **HEADS)

    @pytest.mark.parametrize("save", SAVES)
    def test_tensors_that_are_not_the_model_s_do_no_harm(self, tmp_path, save):
        model = model_of("mingpt")
        extra = {"empty": torch.zeros(0), "rows": torch.zeros(0, 3, dtype=torch.int64), "step": torch.tensor(7),
                 "done": torch.tensor(True), "ids": torch.arange(5, dtype=torch.int16)}
        torch.save({**extra, **model.state_dict()}, tmp_path / "a.pt", **SAVES[save])
        report = checkpoint.convert(tmp_path / "a.pt", tmp_path / "hf", **HEADS)
        assert set(report.unexpected) == {f"transformer.{name}" for name in extra}
        assert_close(logits_of(reload_hf(tmp_path / "hf")), logits_of(model))
        tensors = checkpoint.open_checkpoint(tmp_path / "a.pt", **HEADS).tensors
        assert_same_tensors({name: torch.from_numpy(tensors[f"transformer.{name}"]) for name in extra}, extra)


def assert_read_alike(folder, state, contents, save: str = "zip", **flags):
    """However a state dict is wrapped and stored, the folder made of it is the same, and so is what is loaded."""
    torch.save(state, folder / "plain.pt")
    checkpoint.convert(folder / "plain.pt", folder / "plain", **flags)
    plain = checkpoint.open_checkpoint(folder / "plain.pt", **flags)
    for number, content in enumerate(contents):
        path = folder / f"{number}.pt"
        torch.save(content, path, **SAVES[save])
        checkpoint.convert(path, folder / str(number), **flags)
        for name in ("config.json", "model.safetensors"):
            assert (folder / str(number) / name).read_bytes() == (folder / "plain" / name).read_bytes()
        opened = checkpoint.open_checkpoint(path, **flags)
        assert (opened.format, opened.config, opened.architecture) == (plain.format, plain.config, plain.architecture)
        assert_same(opened.tensors, plain.tensors)


def _transposed(state):
    return {name: tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor for name, tensor in state.items()}


def _strided(state):
    """Every other element of a larger tensor."""
    return {name: torch.stack([tensor, tensor + 1], -1).flatten(-2)[..., ::2] for name, tensor in state.items()}


def _one_storage(state):
    """Slices of one storage for all, which holds more besides."""
    sizes = [tensor.numel() for tensor in state.values()]
    pieces = torch.cat([torch.ones(3), *(tensor.flatten() for tensor in state.values()), torch.ones(3)])[3:].split(
        [*sizes, 3])
    return {name: piece.view(tensor.shape) for (name, tensor), piece in zip(state.items(), pieces, strict=False)}


class TestFilesOfTransformers:
    @pytest.mark.parametrize("architecture", HF_ARCHITECTURES)
    def test_pytorch_model_bin(self, tmp_path, architecture):
        model = hf_model(architecture)
        folder = tmp_path / "theirs"
        model.config.architectures = [architecture]
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        report = checkpoint.convert(folder, tmp_path / "ours")
        assert (report.source_format, report.architecture, report.unexpected) == ("torch", architecture, [])
        assert_same_tensors(reload_hf(tmp_path / "ours", architecture).state_dict(), model.state_dict())
        assert_our_logits(folder, logits_of(model))

    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("architecture", ["OpenAIGPTLMHeadModel", "GPT2LMHeadModel"])
    def test_without_a_configuration_the_head_tells_whether_it_is_tied(self, tmp_path, architecture, tied):
        model = hf_model(architecture, tie_word_embeddings=tied)
        torch.save(model.state_dict(), tmp_path / "a.bin")
        report = checkpoint.convert(tmp_path / "a.bin", tmp_path / "ours", **HEADS)
        assert report.config.tie_word_embeddings == tied
        assert_same_tensors(reload_hf(tmp_path / "ours", architecture).state_dict(), model.state_dict())
        assert_our_logits(tmp_path / "a.bin", logits_of(model), **HEADS)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
    @pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "GPT2Model"])
    def test_buffers_of_old_versions_are_dropped(self, tmp_path, architecture, dtype):
        model = hf_model(architecture)
        prefix = "transformer." if architecture != "GPT2Model" else ""
        state = dict(model.state_dict())
        for layer in range(SIZES["n_layer"]):
            state[f"{prefix}h.{layer}.attn.bias"] = MASK.to(dtype)
            state[f"{prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        torch.save(state, tmp_path / "a.bin")
        language_model = transformers.GPT2LMHeadModel(model.config).eval()
        language_model.transformer.load_state_dict({name.removeprefix("transformer."): tensor for name, tensor
                                                    in model.state_dict().items() if name != "lm_head.weight"})
        assert_read(tmp_path / "a.bin", logits_of(language_model), tmp_path / "hf", "torch", **HEADS)

    def test_shards(self, tmp_path):
        model = hf_model()
        state = model.state_dict()
        files = [f"pytorch_model-{number:05}-of-00003.bin" for number in (1, 2, 3)]
        weight_map = {name: files[index % 3] for index, name in enumerate(state)}
        for file, save in zip(files, SAVES.values(), strict=True):
            torch.save({name: state[name] for name in state if weight_map[name] == file}, tmp_path / file, **save)
        index = tmp_path / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
        model.config.save_pretrained(tmp_path)
        for source in (tmp_path, index):
            assert_read(source, logits_of(model), tmp_path / "hf", "torch-shards")


def mindnlp_name(name: str) -> str:
    """A parameter's name under MindNLP, by MindSpore's cells: Embedding, LayerNorm, and its own Conv1D."""
    path, leaf = name.rsplit(".", 1)
    if path.endswith(("wte", "wpe", "_embed")):
        return f"{path}.embedding_table"
    is_norm = path.rsplit(".", 1)[-1].startswith("ln_")
    return f"{path}.{({'weight': 'gamma', 'bias': 'beta'}[leaf]) if is_norm else leaf}"


class TestFilesOfMindSpore:
    @pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "OpenAIGPTLMHeadModel"])
    def test_a_ckpt_of_mindnlp(self, tmp_path, architecture):
        model = hf_model(architecture)
        weights = {mindnlp_name(name): tensor.numpy() for name, tensor in model.state_dict().items()}
        assert {"transformer.h.0.ln_1.gamma", "transformer.h.0.attn.c_attn.weight"} < set(weights)
        save = [{"name": name, "data": ms.Tensor(array)} for name, array in weights.items()]
        ms.save_checkpoint(save, str(tmp_path / "plain.ckpt"))
        assert_our_logits(tmp_path / "plain.ckpt", logits_of(model), **HEADS)
        moments = {f"{moment}.{name}": array for moment in ("moment1", "moment2") for name, array in weights.items()}
        save += [{"name": name, "data": ms.Tensor(array)} for name, array in moments.items()]
        save += [{"name": "learning_rate", "data": ms.Tensor(1e-3, ms.float32)},
                 {"name": "global_step", "data": ms.Tensor([7], ms.int32)}]
        ms.save_checkpoint(save, str(tmp_path / "trained.ckpt"))
        for name in ("plain", "trained"):
            report = checkpoint.convert(tmp_path / f"{name}.ckpt", tmp_path / name, **HEADS)
            assert (report.source_format, report.missing) == ("ckpt", [])
            assert_same_tensors(reload_hf(tmp_path / name, architecture).state_dict(), model.state_dict())
        assert len(report.unexpected) == len(moments) + 2


class TestFilesForPyTorch:
    @pytest.mark.parametrize(("dtype", "tied"), [
        (torch.float32, True), (torch.bfloat16, False), (torch.float16, True)])
    @pytest.mark.parametrize("architecture", HF_ARCHITECTURES)
    def test_a_state_dict_of_transformers(self, tmp_path, architecture, dtype, tied):
        model = hf_model(architecture, tie_word_embeddings=tied).to(dtype)
        model.save_pretrained(tmp_path / "theirs")
        expected = model.state_dict()
        if tied:
            expected.pop("lm_head.weight", None)
        for name in ("x.bin", "x.pt", "x.pth", "pytorch_model.bin"):
            checkpoint.convert(tmp_path / "theirs", tmp_path / name)
            assert (tmp_path / name).read_bytes() == (tmp_path / "x.bin").read_bytes()
        for mmap in (False, True):
            found = torch.load(tmp_path / "x.bin", weights_only=True, mmap=mmap)
            assert_same_tensors(found, expected)
            assert all(tensor.is_contiguous() for tensor in found.values())
        model.config.save_pretrained(tmp_path)
        (tmp_path / "theirs" / "model.safetensors").unlink()
        found = reload_hf(tmp_path, architecture)
        assert_same_tensors(found.state_dict(), model.state_dict())
        assert torch.equal(logits_of(found), logits_of(model))

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_we_round_as_torch_does(self, tmp_path, dtype):
        model = hf_model("GPT2Model")
        model.save_pretrained(tmp_path / "theirs")
        checkpoint.convert(tmp_path / "theirs", tmp_path / "x.pt", dtype=dtype)
        assert_same_tensors(torch.load(tmp_path / "x.pt", weights_only=True),
                            model.to(getattr(torch, dtype)).state_dict())

    @pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
    @pytest.mark.parametrize("head", ["Model", "LMHeadModel"])
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_a_model_of_another_program(self, tmp_path, layout, head, activation):
        model = hf_model("GPT2LMHeadModel", activation_function=activation)
        (model if head == "LMHeadModel" else model.transformer).save_pretrained(tmp_path / "theirs")
        report = checkpoint.convert(tmp_path / "theirs", tmp_path / "x.pt", to=layout)
        other = load_layout(layout, tmp_path / "x.pt")
        is_same_gelu = (activation == "gelu_new") == (layout == "mingpt")
        assert any("GELU" in note for note in report.notes) != is_same_gelu
        gap = (logits_of(other) - logits_of(model)).abs().max()
        assert gap < TOLERANCE if is_same_gelu else TOLERANCE < gap < 1e-2

    @pytest.mark.parametrize("layout", ["mingpt", "mingpt-old"])
    def test_an_untied_head_stays_apart(self, tmp_path, layout):
        activation = "gelu_new" if layout == "mingpt" else "gelu"
        model = hf_model("GPT2LMHeadModel", activation_function=activation, tie_word_embeddings=False)
        model.save_pretrained(tmp_path / "theirs")
        checkpoint.convert(tmp_path / "theirs", tmp_path / "x.pt", to=layout)
        assert_close(logits_of(load_layout(layout, tmp_path / "x.pt")), logits_of(model))
        with pytest.raises(CheckpointError) as error:
            checkpoint.convert(tmp_path / "theirs", tmp_path / "y.pt", to="nanogpt")
        assert_one_line(error, "tie_word_embeddings")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(("layout", "changes"), [
        ("mingpt", {"n_layer": 11}), ("mingpt-old", {"n_layer": 11}), ("nanogpt", {"n_layer": 11}),
        ("nanogpt", {"bias": False, "dropout": 0.25})])
    def test_there_and_back_is_bit_exact(self, tmp_path, layout, changes, dtype):
        model = model_of(layout, **changes)
        state = model.to(dtype).state_dict()
        if layout == "nanogpt":
            torch.save({"model": state, "model_args": model.model_args}, tmp_path / "a.pt")
        else:
            torch.save(state, tmp_path / "a.pt")
        checkpoint.convert(tmp_path / "a.pt", tmp_path / "hf", **({} if layout == "nanogpt" else HEADS))
        checkpoint.convert(tmp_path / "hf", tmp_path / "b.pt", to=layout)
        back = torch.load(tmp_path / "b.pt", weights_only=True)
        if layout == "nanogpt":
            assert back["model_args"] == model.model_args
        back = back.get("model", back)
        assert_same_tensors(back, state)


def test_a_tensor_negated_only_when_read_is_refused(tmp_path):
    negated = torch.view_as_complex(torch.arange(8.0).view(4, 2)).conj().imag
    torch.save({"x": negated}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as error:
        checkpoint.read_content(tmp_path / "a.pt")
    assert_one_line(error, "negated", "resolve_neg")


def test_what_is_expanded_or_complex_is_in_nobody_s_way(tmp_path):
    model = model_of("mingpt")
    state = {**model.state_dict(), "seen": torch.zeros(1).expand(5), "phase": torch.zeros(2, dtype=torch.complex64)}
    torch.save(state, tmp_path / "a.pt")
    report = checkpoint.convert(tmp_path / "a.pt", tmp_path / "hf", **HEADS)
    assert set(report.unexpected) == {"transformer.seen", "transformer.phase"}


def test_a_dropout_of_0_is_read(tmp_path):
    model = model_of("nanogpt")
    torch.save({"model": model.state_dict(), "model_args": {**model.model_args, "dropout": 0}}, tmp_path / "a.pt")
    assert checkpoint.open_checkpoint(tmp_path / "a.pt").config.resid_pdrop == 0


def load_layout(layout: str, path):
    content = torch.load(path, weights_only=True)
    if layout == "nanogpt":
        model = NanoGPT(**content["model_args"])
        model.load_state_dict(content["model"], strict=True)
        assert model.state_dict()["lm_head.weight"].data_ptr() == model.transformer["wte"].weight.data_ptr()
    else:
        model = LAYOUTS[layout](**SIZES)
        model.load_state_dict(content, strict=True)
    return model.eval()
