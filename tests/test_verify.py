"""Verification tells equal checkpoints from different ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
from checkpoint_helpers import make_folder

from ms_gpt import checkpoint
from ms_gpt.cli import main
from ms_gpt.verify import Comparison, compare


@pytest.mark.parametrize(("difference", "dtype", "is_close"), [
    (1e-6, "float32", True), (1e-3, "float32", False), (5e-3, "float16", True), (float("nan"), "float16", False)])
def test_what_counts_as_close(difference, dtype, is_close):
    assert Comparison("a", "b", difference, 1.0).is_close(dtype) == is_close


@pytest.mark.parametrize(("family", "head"), [("gpt2", "LMHeadModel"), ("openai-gpt", "ForSequenceClassification"),
                                              ("gpt2", "DoubleHeadsModel"), ("openai-gpt", "Model")])
def test_a_faithful_conversion_differs_by_nothing_to_speak_of(tmp_path, family, head):
    make_folder(tmp_path / "a", family, head)
    checkpoint.convert(tmp_path / "a", tmp_path / "b.ckpt")
    found = compare(tmp_path / "a", tmp_path / "b.ckpt", {})
    assert found.largest_difference <= 1e-5 < found.largest_output


def test_a_changed_weight_shows(tmp_path):
    config, arrays = make_folder(tmp_path / "a")
    arrays["transformer.h.1.mlp.c_proj.bias"][0] += np.float32(0.5)
    checkpoint.write_folder(tmp_path / "b", config, arrays, "GPT2LMHeadModel")
    assert compare(tmp_path / "a", tmp_path / "b", {}).largest_difference > 1e-2


def test_a_second_file_in_the_source_s_folder_is_verified(tmp_path):
    make_folder(tmp_path / "a")
    # The folder goes on being read from model.safetensors.
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "a" / "pytorch_model.bin"), "--verify"]) == 0


def test_the_command_reports_it(tmp_path, capsys):
    make_folder(tmp_path / "a")
    target = str(tmp_path / "b.npz")
    assert main(["convert", str(tmp_path / "a"), target, "--verify", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["largest_difference"] <= 1e-5
    assert len(result["compared"]) == 2
    assert "differ by at most" in captured.err
