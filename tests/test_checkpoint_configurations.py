"""Which configuration a file of weights is read with, and that a conversion changes no other file's."""

from __future__ import annotations

import json

import pytest
from checkpoint_helpers import assert_one_line, make_folder

from ms_gpt import checkpoint
from ms_gpt.checkpoint import CheckpointError


class TestParts:
    def test_one_part_of_a_model_is_no_model(self, tmp_path):
        make_folder(tmp_path / "a")
        name = "model-00001-of-00002.safetensors"
        (tmp_path / "a" / "model.safetensors").rename(tmp_path / "a" / name)
        with pytest.raises(CheckpointError, match="is one of 2 parts of a model: give its folder, or the index file"):
            checkpoint.open_checkpoint(tmp_path / "a" / name)
        # The only part is the whole.
        (tmp_path / "a" / name).rename(tmp_path / "a" / "model-00001-of-00001.safetensors")
        checkpoint.open_checkpoint(tmp_path / "a" / "model-00001-of-00001.safetensors")


class TestConfigurations:
    def test_two_files_do_not_share_one_that_is_wrong_for_either(self, tmp_path):
        make_folder(tmp_path / "two", n_head=2)
        make_folder(tmp_path / "four", n_head=4)
        for first, second in (("w.bin", "w.safetensors"), ("model.safetensors", "pytorch_model.bin")):
            checkpoint.convert(tmp_path / "two", tmp_path / first)
            before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
            with pytest.raises(CheckpointError) as error:
                checkpoint.convert(tmp_path / "four", tmp_path / second)
            assert_one_line(error, f"belongs to {first}", second)
            assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
            checkpoint.convert(tmp_path / "two", tmp_path / second, dtype="float16")
            assert {path: path.read_bytes() for path in before} == before

    def test_weights_without_one_do_not_get_another_s(self, tmp_path):
        make_folder(tmp_path / "a")
        make_folder(tmp_path / "b", n_head=1)
        (tmp_path / "b" / "model.safetensors").rename(tmp_path / "b" / "foo.safetensors")
        # foo.safetensors falls back to config.json, but a foo_config.json would come first.
        with pytest.raises(CheckpointError, match="config.json belongs to foo.safetensors and says otherwise"):
            checkpoint.convert(tmp_path / "a", tmp_path / "b" / "foo.bin")
        with pytest.raises(CheckpointError, match="config.json belongs to foo.safetensors and says otherwise"):
            checkpoint.convert(tmp_path / "a", tmp_path / "b")
        (tmp_path / "b" / "config.json").unlink()
        with pytest.raises(CheckpointError) as error:
            checkpoint.convert(tmp_path / "a", tmp_path / "b" / "model.bin")
        assert_one_line(error, "foo.safetensors has no configuration", "choose another folder")
        assert {path.name for path in (tmp_path / "b").iterdir()} == {"foo.safetensors", "generation_config.json"}
        # Its own configuration it does get, and a folder is read from model.safetensors, whatever else it holds.
        checkpoint.convert(tmp_path / "b", tmp_path / "b", n_head=1)
        assert checkpoint.open_checkpoint(tmp_path / "b" / "foo.safetensors").config.n_head == 1

    @pytest.mark.parametrize("listed", [["GPT2LMHeadModel", "X"], []])
    def test_what_is_no_other_model_is_no_hindrance(self, tmp_path, listed):
        make_folder(tmp_path / "a")
        make_folder(tmp_path / "b")
        (tmp_path / "b" / "model.safetensors").rename(tmp_path / "b" / "pytorch_model.bin")
        stated = json.loads((tmp_path / "b" / "config.json").read_text())
        (tmp_path / "b" / "config.json").write_text(json.dumps({**stated, "architectures": listed}))
        (tmp_path / "b" / "rng_state_0.pth").write_text("")
        (tmp_path / "b" / "old.bin").symlink_to("nowhere")
        for name in ("checkpoints.pt", "merges.txt"):
            (tmp_path / "b" / name).mkdir()
        (tmp_path / "a" / "tokenizer.json").write_text("{}")
        checkpoint.convert(tmp_path / "a", tmp_path / "b" / "model.ckpt")
        assert checkpoint.convert(tmp_path / "a", tmp_path / "b").removed == []

    def test_a_classifier_and_a_language_model_do_not_share_one(self, tmp_path):
        make_folder(tmp_path / "model")
        make_folder(tmp_path / "classifier", head="ForSequenceClassification", num_labels=3)
        for source, there in (("model", "classifier"), ("classifier", "model")):
            with pytest.raises(CheckpointError, match="belongs to model.safetensors and says otherwise"):
                checkpoint.convert(tmp_path / source, tmp_path / there / "pytorch_model.bin")

    def test_a_folder_of_openai_s_stays_one(self, tmp_path):
        make_folder(tmp_path / "a")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "params_shapes.json").write_text("[]")
        with pytest.raises(CheckpointError, match="is read as OpenAI's model, for its params_shapes.json"):
            checkpoint.convert(tmp_path / "a", tmp_path / "b")

    def test_one_that_contradicts_the_file_is_refused(self, tmp_path):
        make_folder(tmp_path / "m", n_head=2)
        checkpoint.convert(tmp_path / "m", tmp_path / "ckpt.pt", "nanogpt")
        stated = json.loads((tmp_path / "ckpt_config.json").read_text())
        (tmp_path / "ckpt_config.json").unlink()
        (tmp_path / "config.json").write_text(json.dumps({**stated, "n_head": 4}))
        with pytest.raises(CheckpointError) as error:
            checkpoint.open_checkpoint(tmp_path / "ckpt.pt")
        assert_one_line(error, "config.json says n_head=4", "do not belong together")
