"""Names, folders and shards: every tensor finds its parameter, and what does not fit is said in one line."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from checkpoint_helpers import (
    FAMILIES,
    HEADS,
    PREFIX,
    assert_one_line,
    assert_same,
    make_folder,
    on_disk,
    random_arrays,
    small_config,
)

from ms_gpt import checkpoint
from ms_gpt.checkpoint import CheckpointError
from ms_gpt.checkpoint.layouts import architecture_name, expected_shapes, infer_config
from ms_gpt.checkpoint.tensors import LazyTensors
from ms_gpt.config import GPTConfig
from ms_gpt.errors import UserError

BLOCK = ("attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias", "ln_1.weight",
         "ln_1.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias", "ln_2.weight",
         "ln_2.bias")
# Written out from transformers' own files, so that a mistake in the key map cannot hide.
DISK_NAMES = {
    "openai-gpt": {"tokens_embed.weight", "positions_embed.weight", *(f"h.0.{name}" for name in BLOCK)},
    "gpt2": {"wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias", *(f"h.0.{name}" for name in BLOCK)},
}


class TestNames:
    @pytest.mark.parametrize("family", DISK_NAMES)
    def test_names_on_disk_are_those_of_transformers(self, family):
        shapes = expected_shapes(small_config(family, n_layer=1), architecture_name(family, "Model"))
        assert {checkpoint.hf_name(name, family) for name in shapes} == DISK_NAMES[family]

    @pytest.mark.parametrize("head", HEADS)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_map_is_invertible_and_idempotent(self, family, head):
        for name in expected_shapes(small_config(family), architecture_name(family, head)):
            disk = checkpoint.hf_name(name, family)
            assert checkpoint.our_name(disk) == name
            assert checkpoint.our_name(name) == name
            assert checkpoint.hf_name(disk, family) == disk

    @pytest.mark.parametrize("name", ["h.3.attn.bias", "transformer.h.11.attn.masked_bias", "position_ids",
                                      "transformer.position_ids"])
    def test_buffers_are_dropped(self, name):
        assert checkpoint.our_name(name) is None

    @pytest.mark.parametrize("name", ["h.0.attn.c_attn.bias", "h.0.attn.c_proj.bias", "score.weight", "strange.bias"])
    def test_weights_are_not_taken_for_buffers(self, name):
        assert checkpoint.our_name(name) == name

    def test_prefix(self):
        assert checkpoint.with_prefix("h.0.ln_1.gamma") == "transformer.h.0.ln_1.gamma"
        assert checkpoint.with_prefix("transformer.h.0.ln_1.gamma") == "transformer.h.0.ln_1.gamma"
        assert checkpoint.with_prefix("lm_head.weight") == "lm_head.weight"
        assert checkpoint.strip_prefix("transformer.ln_f.beta") == "ln_f.beta"


class TestMatch:
    @pytest.mark.parametrize("source_prefix", [True, False])
    @pytest.mark.parametrize("head", ["Model", "LMHeadModel"])
    def test_prefix_may_be_there_or_not_on_either_side(self, head, source_prefix):
        config = small_config()
        shapes = expected_shapes(config, architecture_name("openai-gpt", head))
        arrays = on_disk(config, random_arrays(config, "OpenAIGPTModel"))
        arrays = {PREFIX * source_prefix + name: array for name, array in arrays.items()}
        mapping, report = checkpoint.match(shapes, arrays, config)
        assert report.ok
        assert set(mapping) == set(shapes)
        assert mapping[PREFIX * (head != "Model") + "h.1.ln_2.gamma"] == PREFIX * source_prefix + "h.1.ln_2.weight"

    def test_what_does_not_fit_is_reported_under_names_on_disk(self):
        config = small_config("gpt2")
        arrays = on_disk(config, random_arrays(config, "GPT2LMHeadModel"))
        del arrays["transformer.ln_f.weight"]
        arrays["transformer.wpe.weight"] = np.zeros((9, 4), np.float32)
        arrays["stranger"] = np.zeros(1, np.float32)
        mapping, report = checkpoint.match(expected_shapes(config, "GPT2LMHeadModel"), arrays, config)
        assert report.missing == ["transformer.ln_f.weight"]
        assert report.mismatched == [("transformer.wpe.weight", (7, 4), (9, 4))]
        assert report.unexpected == ["stranger"]
        assert not report.ok
        assert report.summary() == ("1 missing (transformer.ln_f.weight); 1 of another shape "
                                    "(transformer.wpe.weight (9, 4) instead of (7, 4)); 1 unexpected (stranger)")
        assert "transformer.positions_embed.embedding_table" not in mapping

    def test_buffers_are_not_unexpected(self):
        config = small_config("gpt2")
        arrays = on_disk(config, random_arrays(config, "GPT2Model"))
        arrays["h.0.attn.bias"] = np.ones((1, 1, 7, 7), np.float32)
        assert checkpoint.match(expected_shapes(config, "GPT2LMHeadModel"), arrays, config)[1].ok

    def test_tied_head_that_equals_the_embedding_is_left_out(self):
        config = small_config()
        arrays = on_disk(config, random_arrays(config, "OpenAIGPTLMHeadModel"))
        arrays["lm_head.weight"] = arrays["transformer.tokens_embed.weight"].copy()
        mapping, report = checkpoint.match(expected_shapes(config, "OpenAIGPTLMHeadModel"), arrays, config)
        assert report.ok
        assert "lm_head.weight" not in mapping.values()

    def test_tied_head_stands_in_for_a_missing_embedding(self):
        config = small_config()
        arrays = on_disk(config, random_arrays(config, "OpenAIGPTDoubleHeadsModel"))
        arrays["lm_head.weight"] = arrays.pop("transformer.tokens_embed.weight")
        mapping, report = checkpoint.match(expected_shapes(config, "OpenAIGPTDoubleHeadsModel"), arrays, config)
        assert report.ok
        assert mapping["transformer.tokens_embed.embedding_table"] == "lm_head.weight"

    def test_tied_head_that_differs_is_refused_where_it_would_be_used(self):
        config = small_config()
        arrays = on_disk(config, random_arrays(config, "OpenAIGPTLMHeadModel"))
        arrays["lm_head.weight"] = arrays["transformer.tokens_embed.weight"] + 1
        with pytest.raises(CheckpointError) as error:
            checkpoint.match(expected_shapes(config, "OpenAIGPTLMHeadModel"), arrays, config)
        assert_one_line(error, "lm_head.weight differs", "tie_word_embeddings")
        for head in ("Model", "ForSequenceClassification"):
            shapes = expected_shapes(config, architecture_name("openai-gpt", head))
            assert checkpoint.match(shapes, arrays, config)[1].unexpected == ["lm_head.weight"]

    def test_untied_head_is_loaded(self):
        config = small_config(tie_word_embeddings=False)
        arrays = on_disk(config, random_arrays(config, "OpenAIGPTLMHeadModel"))
        mapping, report = checkpoint.match(expected_shapes(config, "OpenAIGPTLMHeadModel"), arrays, config)
        assert report.ok
        assert mapping["lm_head.weight"] == "lm_head.weight"

    def test_with_and_without_prefix_at_once_is_refused(self):
        config = small_config()
        arrays = on_disk(config, random_arrays(config, "OpenAIGPTModel"))
        arrays["transformer.h.0.ln_1.weight"] = arrays["h.0.ln_1.weight"]
        with pytest.raises(CheckpointError, match="twice"):
            checkpoint.match(expected_shapes(config, "OpenAIGPTModel"), arrays, config)


class TestInference:
    def bare_file(self, folder: Path, family: str, head: str, **changes) -> tuple[GPTConfig, Path]:
        config, arrays = make_folder(folder / "m", family, head, **changes)
        path = folder / "bare.safetensors"
        checkpoint.write_safetensors(path, on_disk(config, arrays))
        return config, path

    @pytest.mark.parametrize("head", HEADS)
    @pytest.mark.parametrize("family", ["openai-gpt", "gpt2"])
    def test_everything_but_the_head_count_is_told(self, tmp_path, family, head):
        config, path = self.bare_file(tmp_path, family, head, tie_word_embeddings=False, n_layer=3)
        with pytest.raises(UserError) as error:
            checkpoint.open_checkpoint(path)
        assert_one_line(error, str(path), family, "3 layers", "--n-head")
        found = checkpoint.open_checkpoint(path, n_head=2)
        for key in ("model_type", "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "inner_size",
                    "activation_function"):
            assert getattr(found.config, key) == getattr(config, key)
        assert found.config.tie_word_embeddings == (head not in ("LMHeadModel", "DoubleHeadsModel"))
        # A bare backbone is also all there is of a tied language model.
        assert found.architecture == architecture_name(family, "LMHeadModel" if head == "Model" else head)
        assert found.config.num_labels == (3 if head == "ForSequenceClassification" else 2)

    def test_the_config_beside_a_file_is_used(self, tmp_path):
        _, path = self.bare_file(tmp_path, "gpt2", "LMHeadModel")
        (tmp_path / "config.json").write_text((tmp_path / "m" / "config.json").read_text())
        assert checkpoint.open_checkpoint(path).config.n_head == 2
        (tmp_path / "bare_config.json").write_text(json.dumps({"n_head": 4, "n_embd": 4}))
        assert checkpoint.open_checkpoint(path).config.n_head == 4

    @pytest.mark.parametrize(("change", "reason"), [
        (lambda t: {name: a for name, a in t.items() if "ln_f" not in name}, "without ln_f"),
        (lambda t: {name: a for name, a in t.items() if "wpe" not in name}, "no position table"),
        (lambda t: {name.replace("wpe", "positions_embed"): a for name, a in t.items()}, "with ln_f"),
        (lambda t: {name: a for name, a in t.items() if "h.0." not in name}, "block h.0 is missing"),
        (lambda t: {name: a for name, a in t.items() if "wte" not in name}, "lm_head.weight is missing"),
        (lambda t: {**t, "transformer.wpe.weight": np.zeros(3, np.float32)}, "two dimensions"),
        (lambda _: {"conv.weight": np.zeros(3, np.float32)}, "no GPT block"),
        (lambda _: {}, "there are none"),
    ])
    def test_what_is_no_gpt_is_never_guessed(self, tmp_path, change, reason):
        config, arrays = make_folder(tmp_path / "m", "gpt2", "LMHeadModel")
        path = tmp_path / "bare.safetensors"
        checkpoint.write_safetensors(path, change(on_disk(config, arrays)))
        with pytest.raises(CheckpointError) as error:
            checkpoint.open_checkpoint(path, n_head=2)
        assert_one_line(error, str(path), reason)

    def test_a_head_count_that_cannot_be(self, tmp_path):
        _, path = self.bare_file(tmp_path, "gpt2", "LMHeadModel")
        with pytest.raises(UserError, match="not divisible by n_head=3"):
            checkpoint.open_checkpoint(path, n_head=3)

    def test_names_in_memory_are_recognised_too(self):
        config = small_config("gpt2", n_inner=6)
        found = infer_config(LazyTensors.wrap(random_arrays(config, "GPT2LMHeadModel")), n_head=2)
        assert (found.model_type, found.n_inner) == ("gpt2", 6)


class TestFolder:
    @pytest.mark.parametrize("head", HEADS)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_what_is_written_is_read(self, tmp_path, family, head):
        config, arrays = make_folder(tmp_path / "m", family, head, pad_token_id=2, eos_token_id=-1)
        read_config, read = checkpoint.read_folder(tmp_path / "m")
        assert_same(read, on_disk(config, arrays))
        assert read_config.extra["architectures"] == [architecture_name(family, head)]
        assert read_config.n_embd == config.n_embd
        stated = json.loads((tmp_path / "m" / "config.json").read_text())
        assert stated["model_type"] == family
        assert stated["dtype"] == "float32"
        generation = json.loads((tmp_path / "m" / "generation_config.json").read_text())
        assert generation == {"_from_model_config": True, "pad_token_id": 2}

    def test_a_dtype_carried_along_from_another_file_is_put_right(self, tmp_path):
        config = small_config()
        config.extra["torch_dtype"] = "float16"
        checkpoint.write_folder(tmp_path, config, random_arrays(config, "OpenAIGPTModel"), "OpenAIGPTModel")
        stated = json.loads((tmp_path / "config.json").read_text())
        assert stated["dtype"] == "float32"
        assert "torch_dtype" not in stated
        checkpoint.write_folder(tmp_path, config, random_arrays(config, "OpenAIGPTModel"), "OpenAIGPTModel",
                                dtype="bfloat16")
        assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"

    def test_extra_files_are_written_too(self, tmp_path):
        config = small_config()
        arrays = random_arrays(config, "OpenAIGPTModel")
        checkpoint.write_folder(tmp_path, config, arrays, "OpenAIGPTModel", {"vocab.json": b"{}"})
        assert (tmp_path / "vocab.json").read_bytes() == b"{}"
        with pytest.raises(CheckpointError, match="plain file name"):
            checkpoint.write_folder(tmp_path, config, arrays, "OpenAIGPTModel", {"../vocab.json": b"{}"})

    @pytest.mark.parametrize("failing", ["model.safetensors", "config.json"])
    def test_a_full_disk_in_the_middle_keeps_every_old_file(self, tmp_path, monkeypatch, failing):
        config, _ = make_folder(tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        original = Path.write_bytes

        def full(path, data):
            if failing.split(".")[0] in path.name:
                original(path, data[:10])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(path, data)

        def full_weights(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_bytes", full)
        if failing == "model.safetensors":
            monkeypatch.setattr("ms_gpt.checkpoint.tensors.LazyTensors.blocks", full_weights)
        with pytest.raises(UserError) as error:
            checkpoint.write_folder(tmp_path, config, random_arrays(config, "GPT2LMHeadModel", seed=1),
                                    "GPT2LMHeadModel")
        assert_one_line(error, failing, "No space left")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_a_file_in_the_folder_s_place(self, tmp_path):
        (tmp_path / "m").write_text("")
        with pytest.raises(UserError, match="is a file"):
            make_folder(tmp_path / "m")
        with pytest.raises(CheckpointError, match="give the folder"):
            checkpoint.read_folder(tmp_path / "m")

    def test_what_is_missing_is_named_with_what_is_there(self, tmp_path):
        make_folder(tmp_path)
        (tmp_path / "config.json").rename(tmp_path / "settings.json")
        with pytest.raises(CheckpointError) as error:
            checkpoint.read_folder(tmp_path)
        assert_one_line(error, "no config.json", "settings.json", "model.safetensors")
        (tmp_path / "settings.json").rename(tmp_path / "config.json")
        (tmp_path / "model.safetensors").rename(tmp_path / "weights.zzz")
        with pytest.raises(CheckpointError) as error:
            checkpoint.read_folder(tmp_path)
        assert_one_line(error, "no model.safetensors", "weights.zzz")
        with pytest.raises(CheckpointError, match="No such file"):
            checkpoint.read_folder(tmp_path / "nowhere")

    @pytest.mark.parametrize(("content", "reason"), [("{", "JSON"), ("[]", "JSON list"), ("\udcff", "JSON"),
                                                     ('{"model_type": "llama"}', "llama"),
                                                     ('{"model_type": "openai-gpt"}', "do not belong together")])
    def test_a_config_that_does_not_fit(self, tmp_path, content, reason):
        make_folder(tmp_path)
        (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError) as error:
            checkpoint.read_folder(tmp_path)
        assert_one_line(error, reason)

    def test_a_config_without_model_type_takes_that_of_the_tensors(self, tmp_path):
        make_folder(tmp_path)
        values = json.loads((tmp_path / "config.json").read_text())
        del values["model_type"]
        (tmp_path / "config.json").write_text(json.dumps(values))
        assert checkpoint.read_folder(tmp_path)[0].model_type == "gpt2"

    def test_a_symlink_loop_is_one_line(self, tmp_path):
        (tmp_path / "a").symlink_to(tmp_path / "b")
        (tmp_path / "b").symlink_to(tmp_path / "a")
        with pytest.raises(CheckpointError) as error:
            checkpoint.read_folder(tmp_path / "a")
        assert_one_line(error, "cannot be read")


class TestShards:
    @pytest.fixture
    def sharded(self, tmp_path):
        config, arrays = make_folder(tmp_path)
        disk = on_disk(config, arrays)
        (tmp_path / "model.safetensors").unlink()
        names = sorted(disk)
        parts = {"one.safetensors": names[:9], "two.safetensors": names[9:]}
        for file, members in parts.items():
            checkpoint.write_safetensors(tmp_path / file, {name: disk[name] for name in members})
        weight_map = {name: file for file, members in parts.items() for name in members}
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return tmp_path, disk, index, weight_map

    def test_shards_read_as_one(self, sharded):
        folder, disk, *_ = sharded
        assert_same(checkpoint.read_folder(folder)[1], disk)
        assert checkpoint.open_checkpoint(folder).format == "safetensors-shards"

    @pytest.mark.parametrize(("change", "reason"), [
        (lambda table: {**table, "transformer.wte.weight": "../elsewhere.safetensors"}, "in the folder itself"),
        (lambda table: {**table, "transformer.wte.weight": "/etc/passwd"}, "in the folder itself"),
        (lambda table: {**table, "transformer.wte.weight": ".."}, "lacks the shard"),
        (lambda table: {**table, "transformer.wte.weight": "three.safetensors"}, "lacks the shard three"),
        (lambda table: {**table, "transformer.wte.weight": "one.safetensors"}, "lacks the tensor"),
        (lambda table: {**table, "transformer.wte.weight": 1}, "weight_map"),
        (lambda _: None, "weight_map"),
    ])
    def test_an_index_that_lies_is_refused(self, sharded, change, reason):
        folder, _, index, weight_map = sharded
        index.write_text(json.dumps({"weight_map": change(weight_map)}))
        with pytest.raises(CheckpointError) as error:
            checkpoint.read_folder(folder)
        assert_one_line(error, reason)
