"""Conversion: the same tensors through every format, and nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from checkpoint_helpers import (
    FAMILIES,
    HEADS,
    PREFIX,
    ROOT,
    assert_one_line,
    assert_same,
    make_folder,
    on_disk,
    random_arrays,
    small_config,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ms_gpt import checkpoint
from ms_gpt.checkpoint import CheckpointError
from ms_gpt.cli import main
from ms_gpt.errors import UserError


class TestConvert:
    @pytest.mark.parametrize("head", HEADS)
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("through", ["m.ckpt", "m.safetensors"])
    def test_folder_to_file_and_back(self, tmp_path, family, head, through):
        make_folder(tmp_path / "a", family, head)
        checkpoint.convert(tmp_path / "a", tmp_path / through)
        report = checkpoint.convert(tmp_path / through, tmp_path / "b")
        assert (report.source_format, report.target_format) == (through[2:], "folder")
        assert (report.missing, report.unexpected, report.mismatched) == ([], [], [])
        for name in ("model.safetensors", "config.json"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(family=st.sampled_from(FAMILIES), head=st.sampled_from(HEADS), heads=st.integers(1, 3),
           layers=st.integers(1, 3), width=st.integers(1, 3), tied=st.booleans(), projected=st.booleans(),
           dtype=st.sampled_from(["float32", "float16", "bfloat16"]))
    def test_any_config_survives(self, tmp_path_factory, family, head, heads, layers, width, tied, projected, dtype):
        folder = tmp_path_factory.mktemp("any")
        make_folder(folder / "a", family, head, n_head=heads, n_layer=layers, n_embd=heads * width,
                    tie_word_embeddings=tied, summary_proj_to_labels=projected)
        checkpoint.convert(folder / "a", folder / "b", dtype=dtype)
        checkpoint.convert(folder / "b", folder / "c.safetensors")
        checkpoint.convert(folder / "c.safetensors", folder / "d")
        narrow = checkpoint.read_safetensors(folder / "d" / "model.safetensors")
        assert {info.dtype for info in narrow.infos.values()} == {dtype}
        files = [(folder / name / "model.safetensors").read_bytes() for name in "abd"]
        assert files[1] == files[2]
        assert (files[0] == files[1]) == (dtype == "float32")

    def test_a_folder_with_one_ckpt_is_a_model_folder(self, tmp_path):
        config, arrays = make_folder(tmp_path)
        checkpoint.convert(tmp_path, tmp_path / "model.ckpt")
        (tmp_path / "model.safetensors").unlink()
        assert_same(checkpoint.read_folder(tmp_path)[1], on_disk(config, arrays))
        (tmp_path / "other.ckpt").write_bytes((tmp_path / "model.ckpt").read_bytes())
        with pytest.raises(CheckpointError, match="2 files of weights"):
            checkpoint.read_folder(tmp_path)

    def test_a_backbone_under_an_lm_config_gets_the_prefix(self, tmp_path):
        config = small_config("gpt2")
        checkpoint.write_folder(tmp_path / "a", config, random_arrays(config, "GPT2Model"), "GPT2LMHeadModel")
        report = checkpoint.convert(tmp_path / "a", tmp_path / "b")
        assert all(row.target == PREFIX + row.source for row in report.rows)

    def test_buffers_and_strangers_are_left_out(self, tmp_path):
        config = small_config("gpt2")
        arrays = random_arrays(config, "GPT2LMHeadModel")
        arrays |= {"transformer.h.0.attn.bias": np.ones((1, 1, 7, 7), np.float32), "stranger": np.ones(2, np.float32)}
        checkpoint.write_folder(tmp_path / "a", config, arrays, "GPT2LMHeadModel")
        report = checkpoint.convert(tmp_path / "a", tmp_path / "b")
        assert report.unexpected == ["stranger"]
        assert {"stranger", "transformer.h.0.attn.bias"}.isdisjoint(checkpoint.read_folder(tmp_path / "b")[1])

    def test_what_is_incomplete_is_reported_dry_and_refused_otherwise(self, tmp_path):
        config = small_config("gpt2")
        arrays = random_arrays(config, "GPT2LMHeadModel")
        del arrays["transformer.ln_f.beta"]
        arrays["transformer.h.1.mlp.c_fc.bias"] = np.zeros(3, np.float32)
        checkpoint.write_folder(tmp_path / "a", config, arrays, "GPT2LMHeadModel")
        report = checkpoint.convert(tmp_path / "a", tmp_path / "b", dry_run=True)
        assert report.missing == ["transformer.ln_f.bias"]
        assert report.mismatched == [("transformer.h.1.mlp.c_fc.bias", (16,), (3,))]
        with pytest.raises(CheckpointError) as error:
            checkpoint.convert(tmp_path / "a", tmp_path / "b")
        assert_one_line(error, "1 missing", "1 of another shape")
        assert not (tmp_path / "b").exists()

    def test_tokenizer_and_generation_settings_come_along(self, tmp_path):
        make_folder(tmp_path / "a")
        (tmp_path / "a" / "vocab.json").write_text('{"a": 0}')
        (tmp_path / "a" / "generation_config.json").write_text('{"top_k": 5}')
        checkpoint.convert(tmp_path / "a", tmp_path / "b")
        assert (tmp_path / "b" / "vocab.json").read_text() == '{"a": 0}'
        assert (tmp_path / "b" / "generation_config.json").read_text() == '{"top_k": 5}'

    def test_in_place(self, tmp_path):
        config, arrays = make_folder(tmp_path)
        checkpoint.convert(tmp_path, tmp_path, dtype="bf16")
        read = checkpoint.read_folder(tmp_path)[1]
        assert {info.dtype for info in read.infos.values()} == {"bfloat16"}
        for name, array in on_disk(config, arrays).items():
            np.testing.assert_allclose(read[name], array, rtol=2**-8)

    def test_interrupted_conversion_leaves_no_target(self, tmp_path, monkeypatch):
        make_folder(tmp_path / "a")

        def killed(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("ms_gpt.checkpoint.tensors.LazyTensors.blocks", killed)
        for target in ("b", "c.safetensors"):
            with pytest.raises(KeyboardInterrupt):
                checkpoint.convert(tmp_path / "a", tmp_path / target)
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    @pytest.mark.parametrize(("arguments", "reason"), [
        ({"to": "foldr"}, "Did you mean 'folder'?"),
        ({"dtype": "int8"}, "int8"),
        ({"n_head": 4}, "n_head=4 contradicts"),
        ({"target": "x.onnx"}, "give a folder"),
        ({"source": "nowhere"}, "No such file"),
        ({"source": "a/config.json"}, "no known format"),
    ])
    def test_wrong_arguments_are_one_line(self, tmp_path, arguments, reason):
        make_folder(tmp_path / "a")
        arguments = {"source": "a", "target": "b", **arguments}
        for key in ("source", "target"):
            arguments[key] = tmp_path / arguments[key]
        with pytest.raises(UserError) as error:
            checkpoint.convert(**arguments)
        assert_one_line(error, reason)

    def test_an_unknown_architecture_is_named(self, tmp_path):
        config = small_config("gpt2")
        checkpoint.write_folder(tmp_path / "a", config, random_arrays(config, "GPT2Model"), "GPT2ForQuestionAnswering")
        with pytest.raises(CheckpointError, match="GPT2ForQuestionAnswering"):
            checkpoint.convert(tmp_path / "a", tmp_path / "b")

    def test_no_framework_is_imported(self, tmp_path):
        make_folder(tmp_path / "a")
        program = ("import sys; from ms_gpt.checkpoint import TARGET_FORMATS, convert\n"
                   "for to in TARGET_FORMATS:\n"
                   "    target = {'folder': 'b', 'ckpt': 'b.ckpt'}.get(to, f'b.{to}')\n"
                   "    convert('a', target, to, dtype='fp16'); convert(target, f'from-{to}')\n"
                   "sys.exit(bool({'mindspore', 'torch', 'tensorflow'} & set(sys.modules)))")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)


class TestCommandLine:
    def test_json_holds_the_promised_keys(self, tmp_path, capsys):
        make_folder(tmp_path / "a")
        target = str(tmp_path / "b.safetensors")
        assert main(["convert", str(tmp_path / "a"), target, "--dtype", "float16", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert set(result) == {"source_format", "target_format", "tensors", "missing", "unexpected", "mismatched"}
        assert result["tensors"][0] == {"source": "transformer.wte.weight", "target": "transformer.wte.weight",
                                        "shape": [11, 4], "dtype": "float16", "transposed": False}
        assert len(result["tensors"]) == 28

    def test_dry_run_writes_nothing_and_says_so(self, tmp_path, capsys):
        make_folder(tmp_path / "a")
        assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--dry-run"]) == 0
        assert "28 tensors would be written" in capsys.readouterr().out
        assert not (tmp_path / "b").exists()

    def test_what_a_file_leaves_behind_or_replaces_is_said(self, tmp_path, capsys):
        make_folder(tmp_path / "a")
        (tmp_path / "a" / "tokenizer.json").write_text("{}")
        source, target = str(tmp_path / "a"), str(tmp_path / "b.bin")
        assert main(["convert", source, target]) == 0
        once = capsys.readouterr().out
        assert f"the tokenizer stays in {source}" in once
        assert "replaced" not in once
        assert f"28 tensors written to {target}, the configuration is {tmp_path / 'b_config.json'}" in once
        assert main(["convert", source, target, "--overwrite"]) == 0
        assert f"replaced: {target}" in capsys.readouterr().out

    @pytest.mark.parametrize(("target", "file"), [
        ("b", "model.safetensors"), ("b", "config.json"), ("b", "generation_config.json"), ("b", "tokenizer.json"),
        ("b", "vocab.json"), ("b/c.bin", "c.bin"), ("b/c.bin", "c_config.json"), ("b/model.pt", "config.json")])
    def test_what_is_there_is_kept(self, tmp_path, capsys, target, file):
        make_folder(tmp_path / "a")
        (tmp_path / "a" / "tokenizer.json").write_text('{"new": 1}')
        (tmp_path / "b").mkdir()
        place = tmp_path / "b" / file
        place.write_text('{"mine": 1}')
        command = ["convert", str(tmp_path / "a"), str(tmp_path / target)]
        assert main(command) == 2
        line = f"error: {place} is there already: give another target, or --overwrite\n"
        assert capsys.readouterr().err == line
        assert main([*command, "--dry-run"]) == 0
        assert f"{place} is there already: nothing would be written without --overwrite" in capsys.readouterr().out
        assert [path.name for path in (tmp_path / "b").iterdir()] == [file]
        assert place.read_text() == '{"mine": 1}'
        assert main([*command, "--overwrite"]) == 0
        assert f"{'removed' if file == 'vocab.json' else 'replaced'}: {place}" in capsys.readouterr().out
        # Not even as a stale part of another tokenizer does it stay.
        assert not place.exists() or place.read_text(errors="replace") != '{"mine": 1}'

    def test_what_is_not_touched_is_no_hindrance(self, tmp_path, capsys):
        make_folder(tmp_path / "a")
        for name in ("tokenizer.json", "notes.txt", "optimizer.pt"):
            (tmp_path / name).write_text("{}")
        assert main(["convert", str(tmp_path / "a"), str(tmp_path)]) == 0
        assert "the tokenizer in" in capsys.readouterr().out
        # The second file shares the first one's configuration.
        assert main(["convert", str(tmp_path / "a"), str(tmp_path / "pytorch_model.bin"), "--dtype", "float16"]) == 0
        assert "replaced" not in capsys.readouterr().out

    def test_a_dry_run_names_what_would_go(self, tmp_path, capsys):
        make_folder(tmp_path / "a")
        (tmp_path / "a" / "tokenizer.json").write_text("{}")
        make_folder(tmp_path / "b", n_layer=1)
        (tmp_path / "b" / "merges.txt").write_text("")
        command = ["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--overwrite"]
        assert main([*command, "--dry-run"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert f"to be replaced: {tmp_path / 'b' / 'model.safetensors'}, {tmp_path / 'b' / 'config.json'}" in shown
        assert f"to be removed: {tmp_path / 'b' / 'merges.txt'}" in shown
        assert (tmp_path / "b" / "merges.txt").exists()

    def test_part_of_a_tokenizer_takes_no_whole_one_away(self, tmp_path, capsys):
        whole = {"tokenizer.json", "vocab.json", "merges.txt"}
        for name, files in {"a": ["tokenizer_config.json"], "b": whole}.items():
            make_folder(tmp_path / name)
            for file in files:
                (tmp_path / name / file).write_text("{}")
        assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--overwrite"]) == 0
        shown = capsys.readouterr().out
        assert "removed" not in shown
        assert "was there before: see that it is this model's" in shown
        assert whole <= {path.name for path in (tmp_path / "b").iterdir()}

    @pytest.mark.parametrize("there", ["written meanwhile", "a link to nothing"])
    def test_what_comes_while_it_writes_is_kept(self, tmp_path, there):
        make_folder(tmp_path / "a")
        target = tmp_path / "b.bin"
        if there == "a link to nothing":
            target.symlink_to(tmp_path / "absent")

        def write_too(*_):
            target.write_text("mine")

        with pytest.raises(CheckpointError, match="b.bin is there already"):
            checkpoint.convert(tmp_path / "a", target, overwrite=False, progress=write_too)
        assert target.is_symlink() or target.read_text() == "mine"
        assert {path.name for path in tmp_path.iterdir()} == {"a", "b.bin"}

    def test_an_interruption_while_flushing_keeps_weights_and_configuration(self, tmp_path, monkeypatch):
        make_folder(tmp_path / "a")
        make_folder(tmp_path / "b", n_head=1)
        before = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}

        def interrupt(path):
            # The last file: none may have been renamed before.
            if path.name.startswith(".config"):
                raise KeyboardInterrupt

        monkeypatch.setattr("ms_gpt.checkpoint.atomic._flush", interrupt)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.convert(tmp_path / "a", tmp_path / "b")
        assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == before

    def test_a_folder_in_the_weights_place_leaves_the_rest(self, tmp_path, capsys):
        make_folder(tmp_path / "a")
        (tmp_path / "b" / "model.safetensors").mkdir(parents=True)
        assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--overwrite"]) == 2
        assert "Is a directory" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "b").iterdir()] == ["model.safetensors"]

    def test_a_source_that_is_replaced_cannot_be_verified(self, tmp_path, capsys):
        make_folder(tmp_path / "a")
        weights = tmp_path / "a" / "model.safetensors"
        before = weights.read_bytes()
        for source, target in ((tmp_path / "a", tmp_path / "a"), (weights, weights), (tmp_path / "a", weights)):
            assert main(["convert", str(source), str(target), "--dtype", "float16", "--overwrite", "--verify"]) == 2
            assert f"--verify needs {source} as it was" in capsys.readouterr().err
        assert weights.read_bytes() == before

    @pytest.mark.parametrize(("target", "to", "reason"), [
        ("a", "ckpt", "is a folder"), ("a/config.json", "folder", "is a file")])
    def test_a_target_of_the_wrong_kind_leaves_nothing(self, tmp_path, capsys, target, to, reason):
        make_folder(tmp_path / "a")
        before = sorted(tmp_path.rglob("*"))
        assert main(["convert", str(tmp_path / "a"), str(tmp_path / target), "--to", to, "--overwrite"]) == 2
        assert reason in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_configuration_that_other_weights_fall_back_to_is_kept(self, tmp_path, capsys):
        make_folder(tmp_path / "a")
        make_folder(tmp_path / "z", n_layer=1)
        (tmp_path / "z" / "model.safetensors").rename(tmp_path / "z" / "gpt.safetensors")
        config = (tmp_path / "z" / "config.json").read_bytes()
        assert main(["convert", str(tmp_path / "a"), str(tmp_path / "z" / "model.bin"), "--overwrite"]) == 2
        assert "belongs to gpt.safetensors and says otherwise" in capsys.readouterr().err
        assert (tmp_path / "z" / "config.json").read_bytes() == config

    def test_a_mistake_is_one_line_and_exit_code_2(self, tmp_path, capsys):
        make_folder(tmp_path / "a")
        (tmp_path / "a" / "model.safetensors").write_bytes(b"x" * 30)
        assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
        assert capsys.readouterr().err.count("\n") == 1


    @pytest.mark.parametrize("target", ["b", "new/c.bin", "c.npz"])
    def test_a_scheduler_s_stop_leaves_nothing(self, tmp_path, target):
        make_folder(tmp_path / "a")
        program = ("import os, signal, sys, time\n"
                   "from ms_gpt.checkpoint import LazyTensors\nfrom ms_gpt.cli import main\n"
                   "def blocks(*_): os.kill(os.getpid(), signal.SIGTERM); time.sleep(60); yield\n"
                   "LazyTensors.blocks = blocks; sys.exit(main(['convert', 'a', sys.argv[1]]))")
        done = subprocess.run([sys.executable, "-c", program, target], cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
        assert (done.returncode, done.stderr) == (130, "interrupted\n")
        assert [path.name for path in tmp_path.iterdir()] == ["a"]


class TestRealFiles:
    def test_tiny_gpt2(self, data_dir, tmp_path):
        source = data_dir / "checkpoints" / "hf_gpt2_tiny" / "tiny_gpt2.safetensors"
        with pytest.raises(UserError, match="--n-head"):
            checkpoint.convert(source, tmp_path / "out")
        report = checkpoint.convert(source, tmp_path / "out", n_head=2)
        assert report.model_type == "gpt2"
        assert len(report.rows) == 28
        original = safetensors.numpy.load_file(source)
        assert_same(safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors"),
                    {PREFIX + name: array for name, array in original.items() if not name.endswith(".attn.bias")})

    def test_tiny_classifier_finds_its_config(self, data_dir, tmp_path):
        source = data_dir / "checkpoints" / "hf_gpt2_tiny" / "tiny_gpt2_seqcls.safetensors"
        report = checkpoint.convert(source, tmp_path / "out.ckpt")
        assert report.architecture == "GPT2ForSequenceClassification"
        checkpoint.convert(tmp_path / "out.ckpt", tmp_path / "out")
        assert checkpoint.read_folder(tmp_path / "out")[0].id2label == {0: "neg", 1: "neu", 2: "pos"}
        assert_same(safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors"),
                    safetensors.numpy.load_file(source))
