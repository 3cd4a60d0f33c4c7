"""Hostile folders: special files, false configurations, indexes and packed folders cost nothing and run nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoint_helpers import make_folder, on_disk, random_arrays, small_config
from hostile_helpers import KNOWN, Prison, assert_refused

from ms_gpt import checkpoint
from ms_gpt.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured as on Linux")
SHARDS = "model.safetensors.index.json"
# What every process can read without end, and who reads it to the end fills the memory.
ENDLESS = Path("/dev/zero")


@pytest.fixture(scope="module")
def prison():
    prison = Prison()
    yield prison
    prison.close()


@pytest.fixture
def refused(prison, tmp_path):
    """A function that asserts that something can be neither opened nor converted."""

    def check(path, *reasons):
        assert_refused([prison(path), prison(path, "convert", tmp_path / "out")], *reasons)
        assert not (tmp_path / "out").exists()

    return check


@pytest.fixture
def hf(tmp_path):
    """A sound folder."""
    make_folder(tmp_path / "hf")
    return tmp_path / "hf"


def set_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def put(kind: str, path: Path) -> None:
    """Put something that is no plain file at a path."""
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(path.parent)
        try:
            socket.socket(socket.AF_UNIX).bind(path.name)
        finally:
            os.chdir(here)
    else:
        path.symlink_to({"loop": path.name, "device": ENDLESS, "nowhere": "nowhere", "itself": "."}[kind])


SPECIAL = ("folder", "pipe", "socket", "loop", "device", "nowhere", "itself")


class TestSpecialFiles:
    @pytest.mark.parametrize("kind", SPECIAL)
    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "pytorch_model.bin", "a.ckpt", "a.npz",
                                      SHARDS, "params_shapes.json", "checkpoint.index", "a.tar.gz"])
    def test_what_is_needed(self, hf, refused, kind, name):
        if name not in ("config.json", "model.safetensors"):
            (hf / "model.safetensors").unlink()
        put(kind, hf / name)
        if kind != "nowhere" or name != "config.json":
            refused(hf)
        if name != "config.json" and kind not in ("folder", "itself"):
            refused(hf / name)

    @pytest.mark.parametrize("kind", SPECIAL)
    @pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json", "generation_config.json", "hparams.json",
                                      "checkpoint", "README.md", "x.bin"])
    def test_what_is_not_needed(self, hf, prison, tmp_path, kind, name):
        put(kind, hf / name)
        assert prison(hf).kind == "read"
        assert prison(hf, "convert", tmp_path / "out").kind == "read"

    @pytest.mark.parametrize("kind", SPECIAL)
    def test_a_shard(self, hf, refused, kind):
        weights = {name: "a.safetensors" for name in checkpoint.read_safetensors(hf / "model.safetensors")}
        (hf / SHARDS).write_text(json.dumps({"weight_map": weights}))
        (hf / "model.safetensors").unlink()
        put(kind, hf / "a.safetensors")
        refused(hf, "a.safetensors")

    @pytest.mark.parametrize("kind", SPECIAL)
    @pytest.mark.parametrize("name", ["params_shapes.json", "params_0.npy", "params_1.npy"])
    def test_openai_gpt1(self, tmp_path, refused, kind, name):
        write_openai(tmp_path / "openai")
        put(kind, tmp_path / "openai" / name)
        refused(tmp_path / "openai")

    @pytest.mark.parametrize("kind", SPECIAL)
    @pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
    def test_openai_gpt2(self, tmp_path, refused, kind, suffix):
        folder = Path(shutil.copytree(Path(__file__).parent / "files" / "tensorflow_gpt2", tmp_path / "tf"))
        put(kind, next(folder.glob(f"*{suffix}")))
        refused(folder)

    @pytest.mark.parametrize("path", [str(ENDLESS), "/dev/null", "/proc/self/mem", "a\0b", "a" * 5000],
                             ids=lambda path: repr(path[:9]))
    def test_as_they_are(self, refused, path):
        refused(path)

    @pytest.mark.parametrize("length", [240, 248, 255])
    def test_a_name_as_long_as_names_can_be(self, hf, prison, length):
        path = (hf / "model.safetensors").rename(hf / f"{'x' * (length - 12)}.safetensors")
        assert prison(path).kind == "read"

    def test_a_tokenizer_of_a_terabyte(self, hf, prison, tmp_path):
        (hf / "vocab.json").touch()
        os.truncate(hf / "vocab.json", 2**40)
        assert prison(hf).kind == "read"
        assert_refused([prison(hf, "convert", tmp_path / "out")], "vocab.json")


class TestConfigurations:
    @pytest.mark.parametrize("changes", [
        {"n_layer": 10**9}, {"n_layer": 3}, {"vocab_size": 10**12}, {"vocab_size": 10**4000}, {"n_positions": 10**12},
        {"n_embd": 10**12}, {"n_inner": 10**12}, {"n_head": 0}, {"n_head": -1}, {"n_head": 3}, {"n_head": True},
        {"n_head": "2"}, {"n_head": 2.0}, {"n_head": float("nan")}, {"n_layer": None, "vocab_size": {}},
        {"resid_pdrop": float("nan")}, {"resid_pdrop": float("inf")}, {"layer_norm_epsilon": 10**4000},
        {"layer_norm_epsilon": float("nan")}, {"initializer_range": 10**4000}, {"lm_coef": "1"},
        {"model_type": "x" * 7_000_000}, {"model_type": ["gpt2"]}, {"model_type": {}}, {"model_type": "openai-gpt"},
        {"activation_function": "gelu" * 1_000_000}, {"activation_function": [[]]}, {"summary_type": {"a": 1}},
        {"architectures": ["GPT2ForSequenceClassification"], "num_labels": 10**12, "id2label": None},
        {"num_labels": 10**12, "id2label": None}, {"num_labels": 10**9, "id2label": None}, {"id2label": "x"},
        {"id2label": ["a"]}, {"id2label": {"a": "b"}}, {"id2label": {"5": "b"}}, {"id2label": {}},
        {"id2label": {"0": "a", "00": "b"}, "num_labels": 5, "problem_type": 3}, {"pad_token_id": 10**4000},
        {"architectures": ["BertModel"]}, {"architectures": ["x" * 7_000_000]},
        {"architectures": ["\x1b[2J\n\ud800"]}, {"note": "\ud800"}, {"\ud800": 1}, {"extra": {"\udfff": 1}},
    ], ids=lambda changes: repr(changes)[:40])
    def test_values(self, hf, prison, tmp_path, changes):
        set_config(hf, **changes)
        outcomes = [prison(hf), prison(hf, "convert", tmp_path / "out")]
        # Some of these are told only where the tensors are held against the configuration.
        assert_refused([item for item in outcomes if item.kind != "read" or item is outcomes[1]])

    @pytest.mark.parametrize(("name", "text"), {
        "nothing": b"", "a list": b"[]", "a number": b"1", "NaN": b"NaN", "cut short": b'{"n_head": 2',
        "not UTF-8": b'{"a": "\xff"}', "UTF-16": '{"a": 1}'.encode("utf-16"), "NUL bytes": bytes(100),
        "nested lists": b'{"a": ' + b"[" * 100_000, "nested tables": b'{"a":' * 100_000,
        "closed lists": b'{"n_head": ' + b"[" * 900 + b"]" * 900 + b"}",
        "closed tables": b'{"id2label": ' + b'{"0":' * 900 + b"1" + b"}" * 901,
        "a number of 5,000,000 digits": b'{"n_head": ' + b"9" * 5_000_000 + b"}",
        "small tables": b'{"n_head": [' + b"{}," * 2_700_000 + b"{}]}",
        "tables of one": b'{"n_head": [' + b'{"":0},' * 1_100_000 + b"{}]}",
        "a wide text": ('{"n_head": "' + "\U0001f600" + "a" * 8_000_000 + '"}').encode(),
    }.items())
    def test_texts(self, hf, refused, prison, name, text):
        for file in ("config.json", SHARDS, "hparams.json", "params_shapes.json"):
            folder = Path(shutil.copytree(hf, hf.with_name(file)))
            if file == SHARDS:
                (folder / "model.safetensors").unlink()
            if file == "hparams.json":
                shutil.rmtree(folder)
                shutil.copytree(Path(__file__).parent / "files" / "tensorflow_gpt2", folder)
            (folder / file).write_bytes(text)
            if file == "config.json":
                refused(folder)
            elif file != "hparams.json":
                assert_refused([prison(folder)])
            elif (outcome := prison(folder)).kind != "read":
                # Of its values only the number of heads is read.
                assert_refused([outcome], "hparams.json")

    @pytest.mark.parametrize("name", ["config.json", SHARDS, "params_shapes.json"])
    def test_holes(self, hf, refused, name):
        if name == SHARDS:
            (hf / "model.safetensors").unlink()
        (hf / name).touch()
        os.truncate(hf / name, 2**40)
        refused(hf, "larger than")

    @pytest.mark.parametrize("changes", [
        {"vocab_size": 10**12}, {"n_positions": 10**12}, {"n_layer": 10**9}, {"num_labels": 10**12, "id2label": None},
        {"ms_gpt_pruned_heads": "x"}, {"ms_gpt_pruned_heads": {"0": 10**12}}, {"ms_gpt_pruned_heads": {"x": [0]}},
        {"ms_gpt_pruned_heads": {"0": ["a"]}}, {"ms_gpt_pruned_heads": {"0": [[0]]}}, {"ms_gpt_pruned_heads": [1]},
        {"ms_gpt_pruned_heads": {"0": [0, 1]}}, {"layer_norm_epsilon": 10**4000},
    ], ids=lambda changes: repr(changes)[:40])
    @pytest.mark.parametrize("head", ["LMHeadModel", "ForSequenceClassification"])
    def test_no_model_is_built_from_them(self, tmp_path, monkeypatch, changes, head):
        from ms_gpt import AutoModel
        from ms_gpt.pretrained import GPTPreTrainedModel

        make_folder(tmp_path, "gpt2", head, **({"num_labels": 2} if head == "LMHeadModel" else {}))
        set_config(tmp_path, **changes)
        built = []
        post_init = GPTPreTrainedModel.post_init
        monkeypatch.setattr(GPTPreTrainedModel, "post_init", lambda self: (built.append(self), post_init(self)))
        with pytest.raises(UserError) as error:
            AutoModel.from_pretrained(tmp_path)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 5000
        assert not built or "does not exist" in str(error.value) or "were to be pruned" in str(error.value)

    def test_a_mask_as_wide_as_a_false_position_table(self, tmp_path, prison):
        config = small_config("gpt2", n_embd=2, n_positions=10**6)
        checkpoint.write_folder(tmp_path / "a", config, random_arrays(config, "GPT2LMHeadModel"), "GPT2LMHeadModel")
        assert prison(tmp_path / "a").kind == "read"
        assert_refused([prison(tmp_path / "a", "to mingpt", tmp_path / "b.pt")], "n_positions=1000000")


class TestIndexes:
    def write(self, folder, weight_map):
        folder.mkdir(exist_ok=True)
        (folder / SHARDS).write_text(json.dumps({"weight_map": weight_map}))
        return folder

    @pytest.mark.parametrize("file", ["../hf/model.safetensors", "sub/../model.safetensors", "./model.safetensors", ".",
                                      "..", "", "/", "a/", "https://example.org/a.safetensors", "a\0.safetensors",
                                      "a" * 5000, "\n\x1b[2J", "\ud800", "*.safetensors", SHARDS, "config.json"])
    def test_names_of_shards(self, hf, refused, tmp_path, file):
        names = checkpoint.read_safetensors(hf / "model.safetensors")
        folder = Path(shutil.copytree(hf, tmp_path / "shards"))
        (folder / "sub").mkdir()
        (folder / "model.safetensors").rename(folder / "weights.bin")
        for name in (file, str(hf / "model.safetensors")):
            refused(self.write(folder, dict.fromkeys(names, name)), SHARDS, "config.json")

    @pytest.mark.parametrize("weight_map", [None, [], 3, {"a": 1}, {"a": None}, {"a": ["b"]}, {"a": {}}, {}],
                             ids=lambda item: repr(item)[:20])
    def test_maps(self, hf, refused, weight_map):
        (hf / "model.safetensors").unlink()
        refused(self.write(hf, weight_map))

    @pytest.mark.parametrize("count", [100_000, 1_000_000])
    def test_many_names(self, hf, refused, count):
        (hf / "model.safetensors").rename(hf / "a.bin")
        folder = self.write(hf, {f"h.{number}.x": "a.bin" for number in range(count)})
        refused(folder, "larger than", "lacks the tensor")

    def test_a_name_of_control_characters(self, hf, refused):
        (hf / "model.safetensors").rename(hf / "a.bin")
        refused(self.write(hf, {"h.0.x\n\r\x1b[2J\x7f\u2028": "a.bin"}), "lacks the tensor h.0.x")


def write_openai(folder, shapes=None, pieces=3):
    width = 4
    if shapes is None:
        shapes = [[7, 4], [11, 4], [1, width, 3 * width], [3 * width], [1, width, width], [width], [width], [width],
                  [1, width, 4 * width], [4 * width], [1, 4 * width, width], [width], [width], [width]]
    folder.mkdir(exist_ok=True)
    (folder / "params_shapes.json").write_text(json.dumps(shapes))
    count = sum(int(np.prod(shape)) for shape in shapes)
    for number, piece in enumerate(np.array_split(np.arange(count, dtype=np.float32), pieces)):
        np.save(folder / f"params_{number}.npy", piece)
    return folder


class TestOpenAI:
    @pytest.mark.parametrize("shape", [[2**62], [-1], [0], [2**40, 2**40], [True], [1.0], ["1"], [[1]], [1] * 40, [],
                                       None, [10**4000]], ids=lambda shape: repr(shape)[:20])
    def test_shapes(self, tmp_path, refused, shape):
        folder = write_openai(tmp_path / "a")
        shapes = json.loads((folder / "params_shapes.json").read_text())
        (folder / "params_shapes.json").write_text(json.dumps([*shapes[:5], shape, *shapes[6:]]))
        refused(folder, "params_shapes.json")

    def test_object_arrays(self, tmp_path, refused):
        folder = write_openai(tmp_path / "a")
        np.save(folder / "params_1.npy", np.array([{}], object), allow_pickle=True)
        refused(folder, "pickled Python objects")

    def test_many_tensors_in_many_pieces(self, tmp_path, prison):
        shapes = [[1, 1], [1, 1], *[[1]] * (12 * 1500)]
        folder = write_openai(tmp_path / "a", shapes, 1500)
        assert prison(folder, "read").kind == "read"


class TestNames:
    @pytest.mark.parametrize("names", [
        {"model/we": (3, 4), "wpe.weight": (3, 4), "ln_f.weight": (4,), "h.0.ln_1.weight": (4,)},
        {"model/we": (3, 4), "positions_embed.weight": (3, 4), "h.0.ln_1.weight": (4,)},
        {"model/wte": (), "model/wpe": (), "model/h0/attn/c_attn/w": ()},
        {"tok_emb.weight": (), "pos_emb": (), "blocks.0.attn.query.weight": (4,), "blocks.0.attn.key.weight": (4,),
         "blocks.0.attn.value.weight": (4,)},
        {"wte.weight": (0, 4), "wpe.weight": (0, 4), "ln_f.weight": (4,), "h.0.mlp.c_fc.weight": (4, 16)},
        {"wte.weight": (0, 0), "wpe.weight": (0, 0), "ln_f.weight": (0,), "h.0.mlp.c_fc.weight": (0, 0)},
        {"h.0.attn.c_attn.weight": (0, 0), "wpe.weight": (0, 0), "ln_f.weight": (0,)},
        {"h.0.attn.c_attn.weight": (12, 4), "transformer.h.0.attn.c_attn.weight": (12, 4)},
        {"": (1,)}, {".": (1,)}, {"h.0.": (1,)}, {"transformer.": (1,)}, {"h.0.x": (1,), "a.h.0.x": (1,)},
    ], ids=lambda names: " ".join(names)[:40])
    def test_of_tensors(self, tmp_path, refused, names):
        tensors = {name: np.zeros(shape, np.float32) for name, shape in names.items()}
        checkpoint.write_safetensors(tmp_path / "a.safetensors", tensors)
        refused(tmp_path / "a.safetensors")

    @pytest.mark.parametrize("linear", [False, True])
    def test_a_tensor_with_and_without_prefix(self, tmp_path, prison, linear):
        config = small_config("gpt2")
        tensors = on_disk(config, random_arrays(config, "GPT2LMHeadModel"))
        if linear:
            tensors = {name: array.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else array
                       for name, array in tensors.items()}
        tensors["wpe.weight"] = tensors["transformer.wpe.weight"] + 1
        checkpoint.write_safetensors(tmp_path / "a.safetensors", tensors)
        assert_refused([prison(tmp_path / "a.safetensors", "convert", tmp_path / "out")], "wpe.weight")


def test_refusals_name_the_file(hf):
    (hf / "config.json").write_text('{"n_head": 0}')
    with pytest.raises(UserError, match=re.escape(str(hf))) as error:
        checkpoint.open_checkpoint(hf, **{**KNOWN, "n_head": None})
    assert "config.json" in str(error.value)
