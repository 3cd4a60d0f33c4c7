"""finetune, evaluate and predict through the command line, on small input, and what they say to bad input."""

import contextlib
import io
import json
import math
import os
import re
import shutil

import numpy as np
import pytest

from ms_gpt import AutoModel, GPTLMHeadModel, Tokenizer, UserError, generate, predict
from ms_gpt.checkpoint import read_safetensors, write_safetensors
from ms_gpt.cli import main

QUICK = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--vocab-size", "300", "--max-length", "24",
         "--pretrain-epochs", "0", "--num-train-epochs", "1", "--buckets", "1", "--word-dropout", "0"]


def run(capsys, *words):
    """Run a verb in this process; return the exit code, stdout and stderr."""
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def fails(capsys, *words):
    """Run a verb that must fail with the user's fault; return its one line."""
    code, _, err = run(capsys, *words)
    lines = [line for line in err.splitlines() if not line.startswith("warning:")]
    assert code == 2, err
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="session")
def reviews(tmp_path_factory):
    """A csv of 80 texts with string labels; 'fine' decides."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    rng = np.random.default_rng(0)
    words = ["the", "film", "was", "long", "and", "had", "many", "people", "in", "it", "who", "spoke", "of", "rain"]
    lines = ["text,label"]
    for i in range(80):
        text = " ".join(rng.choice(words, int(rng.integers(4, 15))))
        lines.append(f"{text} {'fine' if i % 2 else 'grim'} {i},{'good' if i % 2 else 'bad'}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def trained(reviews, tmp_path_factory):
    """A run folder, made once, and what finetune printed as JSON."""
    folder = tmp_path_factory.mktemp("run") / "run"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["finetune", "--data", str(reviews), "--output-dir", str(folder), "--json", *QUICK,
                     "--pretrain-epochs", "1"])
    assert code == 0
    return folder, json.loads(out.getvalue())


def test_finetune_leaves_the_run_folder(trained):
    folder, result = trained
    assert {"recipe.yaml", "metrics.jsonl", "loss.png", "best", "last", "results.json"} <= set(os.listdir(folder))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir(folder / "best"))
    assert set(result) == {"output_dir", "best", "test"}
    assert 0 <= result["best"]["accuracy"] <= 1
    assert result["best"]["n"] == 8
    assert result["test"]["n"] == 8
    phases = {json.loads(line)["phase"] for line in (folder / "metrics.jsonl").read_text().splitlines()}
    assert phases == {"pretrain", "finetune"}
    config = json.loads((folder / "best" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}


def test_evaluate_and_predict_agree(trained, reviews, capsys, tmp_path):
    folder, _ = trained
    code, out, _ = run(capsys, "evaluate", "--model", folder / "best", "--data", reviews, "--json")
    figures = json.loads(out)
    assert code == 0
    assert figures["n"] == 80
    rows = [line.rsplit(",", 1) for line in reviews.read_text().splitlines()[1:]]
    code, out, _ = run(capsys, "predict", "--model", folder / "best", "--file", reviews, "--json", "--batch-size", "7")
    predictions = json.loads(out)["predictions"]
    assert [item["text"] for item in predictions] == [text for text, _ in rows]
    model, tokenizer = AutoModel.from_pretrained(folder / "best"), Tokenizer.from_pretrained(folder / "best")
    model.set_train(True)
    by_function = predict(model, tokenizer, (text for text, _ in rows), batch_size=7)
    assert model.training
    assert [(item["text"], item["label"]) for item in by_function] == [
        (item["text"], item["label"]) for item in predictions]
    np.testing.assert_allclose([item["probability"] for item in by_function],
                               [item["probability"] for item in predictions], atol=1e-6, rtol=0)
    right = sum(item["label"] == label for item, (_, label) in zip(predictions, rows, strict=True))
    assert right / 80 == pytest.approx(figures["accuracy"])
    chances = [item["probability"] if item["label"] == label else 1 - item["probability"]
               for item, (_, label) in zip(predictions, rows, strict=True)]
    assert -np.mean(np.log(chances)) == pytest.approx(figures["loss"], abs=1e-5)


def test_predict_in_python(trained, compilations):
    folder, _ = trained
    model, tokenizer = AutoModel.from_pretrained(folder / "best"), Tokenizer.from_pretrained(folder / "best")
    first = predict(model, tokenizer, ["a good film"])
    assert len(compilations) == 1
    assert predict(model, tokenizer, ["a good film"]) == first
    assert len(compilations) == 1
    assert predict(model, tokenizer, []) == []
    assert [item["probability"] for item in predict(model, tokenizer, ["a good film", "", "a bad film"])][0] == (
        pytest.approx(first[0]["probability"], abs=1e-6))
    for texts, message in (("a text", "texts is one str"), ({"text": ["a"]}, "texts is one dict"),
                           (["a", None], r"texts\[1\] is a NoneType")):
        with pytest.raises(UserError, match=message):
            predict(model, tokenizer, texts)
    for size in (0, 2.5, "4", True):
        with pytest.raises(UserError, match="batch_size="):
            predict(model, tokenizer, ["a"], batch_size=size)
    with pytest.raises(UserError, match="a GPTLMHeadModel has no labels to predict"):
        predict(GPTLMHeadModel(model.config), tokenizer, ["a text"])
    model.prune_heads({0: [1]})
    assert predict(model, tokenizer, ["a good film"]) != first


def test_predict_prints_a_line_for_each_text(trained, capsys):
    folder, _ = trained
    texts = ["the film was fine", "", "a very " * 60]
    code, out, _ = run(capsys, "predict", "--model", folder / "best", *texts)
    lines = out.splitlines()
    assert code == 0
    assert [line.split("\t")[0] in ("good", "bad") for line in lines[:3]] == [True] * 3
    assert "1 of 3 texts were truncated to 24 tokens (head_tail)" in out
    assert "1 of 3 texts say nothing" in out


def test_a_continuation_that_is_refused_changes_nothing(reviews, tmp_path, capsys):
    data, folder = tmp_path / "reviews.csv", tmp_path / "run"
    data.write_text(reviews.read_text())
    assert run(capsys, "finetune", "--data", data, "--output-dir", folder, *QUICK)[0] == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    resume = ["finetune", "--output-dir", folder, "--resume"]
    assert "learning_rate was 0.001 and is 0.5 now" in fails(capsys, *resume, "--learning-rate", "0.5")
    assert "cannot be resumed by pretrain: " in fails(capsys, "pretrain", *resume[1:])
    data.write_text(reviews.read_text().replace(",good", ",x").replace(",bad", ",good").replace(",x", ",bad"))
    assert "the checksum of training and validation data was" in fails(capsys, *resume)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    # What may change is the run's from then on, the place of the same data too.
    data.with_name("moved.csv").write_text(reviews.read_text())
    assert run(capsys, *resume, "--data", data.with_name("moved.csv"))[0] == 0
    assert "moved.csv" in (folder / "recipe.yaml").read_text()


def test_an_interruption_before_the_first_save(reviews, tmp_path, capsys, monkeypatch):
    from ms_gpt.training.trainer import Trainer

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    again = tmp_path / "again"
    assert run(capsys, "finetune", "--data", reviews, "--output-dir", again, *QUICK)[0] == 0
    monkeypatch.setattr(Trainer, "train", interrupted)
    assert run(capsys, "finetune", "--output-dir", again, "--resume", "--logging-steps", "7")[0] == 130
    assert "logging_steps: 7" in (again / "recipe.yaml").read_text()
    folder = tmp_path / "a run"
    code, out, err = run(capsys, "finetune", "--data", reviews, "--output-dir", folder, "--resume", *QUICK)
    assert f"{folder} holds no run to go on with: this is a new one" in " ".join(out.split())
    assert code == 130
    assert f"nothing was saved yet; 'python -m ms_gpt finetune --output-dir '{folder}' --resume' starts again" in err


@pytest.mark.parametrize(("words", "message"), [
    (["--num-labels", "5"], "num_labels=5, but the labels of"), (["--num-labels", "1"], "are 2 names (bad, good)"),
    (["--max-steps", "0"], "max_steps=0 is not a whole number of at least 1"),
    (["--max-steps", "-2"], "max_steps=-2 is not a whole number of at least 1")])
def test_what_finetune_refuses(reviews, tmp_path, capsys, words, message):
    assert message in fails(capsys, "finetune", "--data", reviews, "--output-dir", tmp_path / "run", *QUICK, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("words", "message"), [
    (["--max-length", "2000"], "makes the model larger, and no better"),
    (["--label-column", "id"], "80 classes for 64 texts: is --label-column right?")])
def test_what_finetune_wonders_at(reviews, tmp_path, capsys, words, message):
    data = tmp_path / "reviews.csv"
    lines = reviews.read_text().splitlines()
    data.write_text("\n".join([f"{lines[0]},id", *(f"{line},{i}" for i, line in enumerate(lines[1:]))]))
    arguments = ["finetune", "--data", data, "--output-dir", tmp_path / "run", *QUICK, "--max-steps", "1", *words]
    code, _, err = run(capsys, *arguments)
    assert code == 0, err
    assert message in " ".join(err.split())


def test_predict_with_another_tokenizer(trained):
    model = AutoModel.from_pretrained(trained[0] / "best")
    words = ["".join(letters) for letters in np.random.default_rng(0).choice(list("abcdefgh"), (400, 4))]
    tokenizer = Tokenizer.train(words * 3, vocab_size=600)
    with pytest.raises(UserError, match="is outside the model's vocabulary"):
        predict(model, tokenizer, words)
    with pytest.raises(UserError, match="a GPTForSequenceClassification cannot write"):
        generate(model, tokenizer, "film")
    with pytest.raises(UserError, match="a Tokenizer cannot write"):
        generate(tokenizer, model, "film")


def test_a_misspelt_folder_is_suggested(trained, reviews, tmp_path, capsys):
    words = ["--data", reviews, "--output-dir", tmp_path / "run"]
    for verb, *more in (["finetune", *words], ["predict", "a text"]):
        assert "Did you mean 'best'?" in fails(capsys, verb, "--model", trained[0] / "bets", *more)


def test_predict_takes_the_file_in_a_folder(trained, capsys):
    words = ["predict", "the film was fine 3", "--json", "--model"]
    folder, file = (run(capsys, *words, trained[0] / "best" / name)[1] for name in ("", "model.safetensors"))
    assert json.loads(folder) == json.loads(file)


def test_predict_without_a_text(trained, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert "standard input held none" in fails(capsys, "predict", "--model", trained[0] / "best")
    monkeypatch.setattr("sys.stdin", io.StringIO("caf\udce9\n"))
    assert "standard input is not UTF-8 text" in fails(capsys, "predict", "--model", trained[0] / "best", "-")


def test_a_broken_model_labels_nothing(trained, tmp_path, capsys):
    shutil.copytree(trained[0] / "best", tmp_path / "best")
    weights = dict(read_safetensors(tmp_path / "best" / "model.safetensors"))
    weights["transformer.wte.weight"] = np.full_like(weights["transformer.wte.weight"], np.nan)
    write_safetensors(tmp_path / "best" / "model.safetensors", weights)
    assert "outputs are not finite" in fails(capsys, "predict", "--model", tmp_path / "best", "a text")


def test_an_interrupted_finetune_goes_on(reviews, tmp_path, capsys, monkeypatch):
    """Killed after the first epoch; the resumed run leaves the weights of an uninterrupted one."""
    from ms_gpt.training.trainer import Trainer

    words = ["finetune", "--data", reviews, *QUICK, "--num-train-epochs", "3", "--quiet"]
    assert run(capsys, *words, "--output-dir", tmp_path / "whole")[0] == 0
    save = Trainer.save_state

    def interrupted(self):
        save(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save_state", interrupted)
    code, _, err = run(capsys, *words, "--output-dir", tmp_path / "cut")
    assert code == 130
    assert "--resume" in err
    monkeypatch.undo()
    # The settings come from the interrupted run's recipe.yaml.
    code, out, _ = run(capsys, "finetune", "--output-dir", tmp_path / "cut", "--resume", "--no-quiet")
    assert code == 0
    assert "resume: false" in (tmp_path / "cut" / "recipe.yaml").read_text()
    # What to type next is tried on a text of the user's own.
    assert re.search(r"next: .* predict --model .*best '([^']+)'", out)[1] + "," in reviews.read_text()
    whole, cut = ((tmp_path / name / "best" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


@pytest.mark.parametrize(("texts", "shown"), [
    (["longer by far", "short one"], "short one"), (["-5 of 10", "", "a longer text"], "a longer text"),
    (["two\nlines"], "a text to label"), ([" "], "a text to label"), (["long " * 30], "a text to label")])
def test_the_text_to_try_fits_the_line(texts, shown):
    from ms_gpt.cli.finetune import _to_try

    assert _to_try(texts) == shown


@pytest.mark.parametrize("setting", ["epochs", "epoch"])
def test_a_setting_is_found_by_one_of_its_words(setting, tmp_path, capsys):
    expected = "Did you mean '--num-train-epochs' or '--pretrain-epochs'?"
    assert expected in fails(capsys, "finetune", f"--{setting}", "3")
    (tmp_path / "run.yaml").write_text(f"{setting}: 3\n")
    assert "'num_train_epochs' or 'pretrain_epochs'" in fails(capsys, "finetune", "--config", tmp_path / "run.yaml")


def test_a_second_run_does_not_overwrite_the_first(trained, reviews, capsys):
    folder, _ = trained
    assert "already holds a run" in fails(capsys, "finetune", "--data", reviews, "--output-dir", folder)
    assert f"The model of a run is in {folder / 'best'}" in fails(capsys, "predict", "--model", folder, "a text")


@pytest.mark.parametrize(("content", "message"), [
    ("", "empty"),
    ("text,label\n", "empty|no row|no example"),
    ("words,mark\na,1\n", "column"),
    ("text,label\na,0\nb,0\nc,0\nd,0\ne,0\nf,0\ng,0\nh,0\ni,0\nj,0\nk,0\nl,0\n", "at least two classes"),
])
def test_bad_data_is_one_line(content, message, tmp_path, capsys):
    path = tmp_path / "data.csv"
    path.write_text(content)
    assert re.search(message, fails(capsys, "finetune", "--data", path, "--output-dir", tmp_path / "run", *QUICK))
    assert not (tmp_path / "run").exists()


def test_labels_outside_the_range_are_one_line(tmp_path, capsys):
    path = tmp_path / "data.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{i % 4}\n" for i in range(40)))
    line = fails(capsys, "finetune", "--data", path, "--num-labels", "3", "--output-dir", tmp_path / "run", *QUICK)
    assert "label 3" in line
    assert "num_labels=3" in line
    line = fails(capsys, "finetune", "--data", path, *QUICK, "--label-names", "a", "b", "--output-dir", tmp_path / "r")
    assert "label_names has 2 names for 4 classes" in line


def test_bad_flags_are_one_line(reviews, tmp_path, capsys, trained):
    folder, _ = trained
    place = ["--data", reviews, "--output-dir", tmp_path / "run"]
    assert "nowhere.csv" in fails(capsys, "finetune", "--data", tmp_path / "nowhere.csv")
    assert "--learning-rate" in fails(capsys, "finetune", "--learnig-rate", "1")
    line = fails(capsys, "finetune", *place, "--model", folder / "best", "--max-length", "25")
    assert "25 is greater than n_positions=24" in line
    assert "n_embd=10 is not divisible by n_head=4" in fails(capsys, "finetune", *place, "--n-embd", "10",
                                                            "--n-head", "4")
    assert "--device cpu" in fails(capsys, "finetune", *place, "--device", "ascend")
    assert "bfloat16" in fails(capsys, "finetune", *place, "--dtype", "bfloat16", "--device", "cpu")
    assert "training from scratch" in fails(capsys, "finetune", *place, "--model", folder / "best", "--n-layer", "3")
    (tmp_path / "bad.yaml").write_text("learning-rte: 1\n")
    assert "Did you mean 'learning-rate'" in fails(capsys, "finetune", "--config", tmp_path / "bad.yaml")
    assert "no" in fails(capsys, "predict", "--model", tmp_path / "nothing", "a text")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_one_line(reviews, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = fails(capsys, "finetune", "--data", reviews, *QUICK, "--output-dir", tmp_path / "file" / "run")
    assert str(tmp_path / "file") in line


@pytest.mark.parametrize(("change", "message"), [
    (lambda tensors: tensors.pop("transformer.h.0.attn.c_attn.weight"), "1 missing .*c_attn.weight"),
    (lambda tensors: tensors.update({"transformer.h.7.ln_1.weight": np.ones(16, np.float32)}), "1 unexpected .*h.7"),
    (lambda tensors: tensors.update({"score.weight": np.ones((5, 16), np.float32)}), "another shape .*score.weight"),
])
def test_a_model_file_that_does_not_fit_is_one_line(change, message, trained, reviews, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(trained[0] / "best", folder)
    tensors = dict(read_safetensors(folder / "model.safetensors"))
    change(tensors)
    write_safetensors(folder / "model.safetensors", tensors)
    for verb in (["evaluate", "--data", reviews], ["predict", "a text"]):
        assert re.search(message, fails(capsys, verb[0], "--model", folder, *verb[1:]))


def test_retraining_from_a_saved_folder(trained, reviews, tmp_path, capsys):
    """Pre-trained weights: GPT-1's recipe, with its auxiliary language-model loss."""
    folder, _ = trained
    code, out, err = run(capsys, "finetune", "--data", reviews, "--model", folder / "best", "--num-train-epochs", "1",
                         "--buckets", "1", "--pretrain-epochs", "1", "--output-dir", tmp_path / "run", "--json")
    assert code == 0, err
    assert math.isfinite(json.loads(out)["best"]["loss"])
    config = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    assert config["lm_coef"] == 0.5
