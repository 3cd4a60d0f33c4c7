"""Pre-training through the command line on small texts, sums, and what is said to bad input; and writing afterwards."""

import contextlib
import io
import json
import math
import os
import re
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from model_helpers import random_ids, random_model, tiny_config
from test_verbs import fails, run

from ms_gpt import AutoModel, GPTLMHeadModel, Tokenizer
from ms_gpt.cli import main
from ms_gpt.cli.chat import Conversation
from ms_gpt.data.arithmetic import addition_tokenizer, encode_addition, make_addition
from ms_gpt.data.blocks import RowBatches
from ms_gpt.training.arguments import TrainingArguments
from ms_gpt.training.pretraining import AdditionTrainer
from ms_gpt.training.recipe import PRETRAIN_RECIPES, pretrain_recipe
from ms_gpt.training.step import SampledTargetLoss, TargetLoss

QUICK = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--block-size", "8", "--max-steps", "12", "--eval-steps",
         "6", "--per-device-train-batch-size", "4", "--vocab-size", "300", "--logging-steps", "3",
         "--sample-tokens", "0"]
SENTENCE = "the little dog ran over the hill and saw the sea , and the sea was wide .\n"


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(SENTENCE * 40, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return ["--cache-dir", str(tmp_path_factory.mktemp("cache"))]


@pytest.fixture(scope="session")
def trained(book, cache, tmp_path_factory):
    """A run folder, made once, and what pretrain printed as JSON."""
    folder = tmp_path_factory.mktemp("pretrain") / "run"
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        code = main(["pretrain", "--data", str(book), "--output-dir", str(folder), "--json", *QUICK, *cache,
                     "--sample-tokens", "3"])
    assert code == 0, said.getvalue()
    return folder, json.loads(out.getvalue()), said.getvalue()


class TestRun:
    def test_leaves_its_folder(self, trained):
        folder, result, said = trained
        assert {"recipe.yaml", "metrics.jsonl", "loss.png", "best", "last", "results.json"} <= set(os.listdir(folder))
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir(folder / "best"))
        assert set(result) == {"output_dir", "best", "test"}
        assert set(result["best"]) == set(result["test"]) == {"loss", "perplexity", "perplexity_per_word",
                                                              "bits_per_character", "n"}
        assert said.count("  sample: ") == 2

    def test_figures_agree_with_each_other(self, trained):
        text = SENTENCE * 40
        first, second = int(len(text) * 0.8), int(len(text) * 0.9)
        for part, figures in ((text[first:second], trained[1]["best"]), (text[second:], trained[1]["test"])):
            assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
            nats = figures["loss"] * figures["n"]
            words = len(part.split()) + part.count("\n")
            assert figures["perplexity_per_word"] == pytest.approx(math.exp(nats / words))
            assert figures["bits_per_character"] == pytest.approx(nats / len(part) / math.log(2))

    def test_log_says_what_was_asked_for(self, trained):
        records = [json.loads(line) for line in (trained[0] / "metrics.jsonl").read_text().splitlines()]
        steps = [record for record in records if "loss" in record]
        assert [record["step"] for record in steps] == [3, 6, 9, 12]
        assert {"learning_rate", "ms_per_batch", "loss", "perplexity", "tokens_per_second"} <= set(steps[-1])
        assert [record["step"] for record in records if "eval_loss" in record] == [6, 12]

    def test_best_is_the_lowest_validation_loss(self, trained):
        records = [json.loads(line) for line in (trained[0] / "metrics.jsonl").read_text().splitlines()]
        assert trained[1]["best"]["loss"] == pytest.approx(min(item.get("eval_loss", 99) for item in records), abs=1e-5)

    def test_evaluate_agrees(self, trained, book, cache, tmp_path, capsys):
        text = tmp_path / "test.txt"
        characters = SENTENCE * 40
        text.write_text(characters[int(len(characters) * 0.9):])
        code, out, _ = run(capsys, "evaluate", "--model", trained[0] / "best", "--data", text, "--json", *cache)
        assert code == 0
        figures, before = json.loads(out), trained[1]["test"]
        assert figures["n"] == before["n"]
        assert figures["loss"] == pytest.approx(before["loss"], abs=1e-5)
        assert figures["perplexity_per_word"] == pytest.approx(before["perplexity_per_word"], rel=1e-4)

    def test_resumed_equals_uninterrupted(self, trained, book, cache, tmp_path, capsys, monkeypatch):
        folder = tmp_path / "run"
        words = ["pretrain", "--data", book, "--output-dir", folder, *QUICK, *cache]
        with monkeypatch.context() as patch:
            from ms_gpt.training.callbacks import EvaluateAndSave

            whole = EvaluateAndSave.on_train_step_end

            def stop(self, run_context):
                whole(self, run_context)
                if self.trainer.state.step == 8:
                    raise KeyboardInterrupt

            patch.setattr(EvaluateAndSave, "on_train_step_end", stop)
            code, _, err = run(capsys, *words)
        assert code == 130
        command = re.search(r"'python -m ms_gpt (pretrain --output-dir .* --resume)'", err).group(1)
        assert run(capsys, *command.split())[0] == 0
        name = "best/model.safetensors"
        assert (folder / name).read_bytes() == (trained[0] / name).read_bytes()
        code, out, _ = run(capsys, *command.split())
        assert code == 0
        assert "last is of a run that ended after 12 steps: none is left" in out
        # Other text does not go on from this state.
        changed = book.with_name("changed.txt")
        changed.write_text(book.read_text()[::-1])
        recipe = (folder / "recipe.yaml").read_text()
        error = fails(capsys, *command.split(), "--data", changed, "--learning-rate", "0.5", *cache)
        assert "the checksum of training and validation data was" in error
        assert "learning_rate was" in error
        assert (folder / "recipe.yaml").read_text() == recipe

    def test_goes_on_with_a_model(self, trained, book, cache, tmp_path, capsys):
        code, out, err = run(capsys, "pretrain", "--model", trained[0] / "best", "--data", book, "--output-dir",
                             tmp_path / "more", "--json", "--block-size", "8", "--max-steps", "3", "--eval-steps", "3",
                             "--sample-tokens", "0", *cache)
        assert code == 0, err
        assert json.loads(out)["best"]["loss"] < trained[1]["best"]["loss"]
        assert "all 3 steps are warm-up, after which the learning rate would be" in err


def test_gpt3_has_local_layers_and_a_ramp(cache, tmp_path, capsys):
    code, _, err = run(capsys, "pretrain", "--recipe", "gpt3", "--data", "sample", "--output-dir", tmp_path / "run",
                       *QUICK, *cache, "--n-layer", "2", "--window-size", "3", "--batch-ramp-steps", "6", "--json")
    assert code == 0, err
    model = AutoModel.from_pretrained(tmp_path / "run" / "best")
    assert model.config.model_type == "ms_gpt"
    assert model.config.window_size == 3
    assert [f"batches of {rows} x 8" in err for rows in (1, 2, 3, 4)] == [True] * 4


def test_characters_without_a_line_end(cache, tmp_path, capsys):
    (tmp_path / "line.txt").write_text("ab ba abba " * 60, encoding="utf-8")
    code, out, err = run(capsys, "pretrain", "--data", tmp_path / "line.txt", "--tokenizer", "characters", "--json",
                         "--output-dir", tmp_path / "run", *QUICK, *cache, "--sample-tokens", "4")
    assert code == 0, err
    assert json.loads(out)["test"]["n"] == 66


class TestRecipes:
    @pytest.mark.parametrize("name", PRETRAIN_RECIPES)
    def test_settings_are_flags_and_valid(self, name):
        from ms_gpt.cli.pretrain import PretrainOptions, with_recipe

        options = with_recipe(PretrainOptions(recipe=name))
        assert options.n_embd % options.n_head == 0
        names = set(TrainingArguments().to_dict()) & set(pretrain_recipe(name))
        values = {key: getattr(options, key) for key in names if getattr(options, key) is not None}
        TrainingArguments(**{**values, "max_steps": options.max_steps or -1})

    def test_epochs_of_the_user_win_over_steps_of_the_recipe(self):
        from ms_gpt.cli.pretrain import PretrainOptions, with_recipe

        assert with_recipe(PretrainOptions(num_train_epochs=2.0)).max_steps is None

    def test_a_model_brings_its_tokenizer_when_it_is_resumed_too(self):
        from ms_gpt.cli.pretrain import PretrainOptions, with_recipe

        assert with_recipe(PretrainOptions(model="folder")).tokenizer is None
        # The second time what was said the first time comes from recipe.yaml, and is not explicit.
        assert with_recipe(PretrainOptions(model="folder", tokenizer="bpe")).tokenizer == "bpe"


class TestSampledSoftmax:
    CONFIG = tiny_config("gpt2", vocab_size=23)

    def test_the_estimate_of_the_sum_has_the_true_sum_as_its_mean(self):
        model = random_model(GPTLMHeadModel, self.CONFIG)
        loss = SampledTargetLoss(model, 9)
        hidden = Tensor(np.random.default_rng(0).normal(size=(5, self.CONFIG.n_embd)).astype(np.float32))
        targets = Tensor(np.array([0, 2, 3, 11, 22], np.int32))
        sums, seen = [], np.zeros(23)
        for start in range(loss.rare):
            scores = loss.scores(hidden, targets, Tensor(start, ms.int32)).asnumpy()
            ids = loss.scored_ids(Tensor(start, ms.int32)).asnumpy()
            assert len(set(ids)) == len(ids) == 9
            seen[ids] += 1
            sums.append(np.exp(scores).sum(-1))
        assert len(set(seen[: loss.frequent])) == len(set(seen[loss.frequent :])) == 1
        true = np.exp(hidden.asnumpy() @ model.output_table().asnumpy().T).sum(-1)
        np.testing.assert_allclose(np.mean(sums, 0), true, rtol=1e-5)

    def test_is_the_whole_loss_where_all_tokens_are_scored(self):
        config = self.CONFIG.replace(embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0)
        model = random_model(GPTLMHeadModel, config)
        ids = random_ids(self.CONFIG, 3, 7)
        batch = Tensor(ids[:, :-1].copy()), Tensor(np.where(ids[:, 1:] % 4, ids[:, 1:], -100).astype(np.int32))
        whole = TargetLoss(model)(*batch).asnumpy()
        model.set_train()
        assert SampledTargetLoss(model, 23)(*batch).asnumpy() == pytest.approx(whole, abs=1e-5)

    def test_learns_what_the_whole_loss_measures(self, book, cache, tmp_path, capsys):
        words = ["pretrain", "--data", book, "--json", "--tokenizer", "words", *QUICK, *cache,
                 "--max-steps", "60", "--eval-steps", "60", "--learning-rate", "0.01"]
        losses = []
        for name, more in (("whole", ()), ("sampled", ("--softmax-tokens", "9"))):
            code, out, err = run(capsys, *words, "--output-dir", tmp_path / name, *more)
            assert code == 0, err
            losses.append(json.loads(out)["best"]["loss"])
        assert losses[1] < losses[0] + 0.3 < 2.0


class TestAddition:
    def test_accuracy_is_what_greedy_decoding_gets_right(self):
        tokenizer = addition_tokenizer()
        pairs = make_addition(1)["train"]
        rows = RowBatches(*encode_addition(pairs, 1, tokenizer), 16, shuffle=True)
        test = RowBatches(*encode_addition(pairs, 1, tokenizer), 40)
        model = GPTLMHeadModel(tiny_config("gpt2", vocab_size=12, n_positions=5))
        arguments = TrainingArguments("unused", max_steps=40, learning_rate=1e-2, save_strategy="no")
        trainer = AdditionTrainer(model, arguments, rows, test)
        step = trainer._build_step()
        for input_ids, targets in [batch for epoch in range(12) for batch in rows.epoch(epoch)]:
            step(Tensor(input_ids), Tensor(targets))
        accuracy = trainer.score(test)["accuracy"]
        prompts = test.input_ids[:, :4]
        answers = tokenizer.batch_decode(model.generate(prompts, max_new_tokens=2).asnumpy()[:, 4:])
        right = np.mean([answer == f"{total:02}" for answer, total in zip(answers, pairs.sum(1), strict=True)])
        assert 0.02 < accuracy < 1
        assert accuracy == pytest.approx(right)

    def test_from_the_command_line(self, tmp_path, capsys):
        code, out, err = run(capsys, "pretrain", "--recipe", "adder-2", "--data", "addition-1", "--json", "--n-layer",
                             "1", "--n-embd", "16", "--max-steps", "4", "--eval-steps", "4", "--sample-prompt", "8+5=",
                             "--per-device-train-batch-size", "16", "--output-dir", tmp_path / "run")
        assert code == 0, err
        test = json.loads(out)["test"]
        assert set(test) == {"loss", "perplexity", "accuracy", "n"}
        assert test["n"] >= 10
        assert re.search(r"sample: '8\+5=..'", err)

    def test_other_sums_are_refused(self, capsys, tmp_path):
        assert "addition-2" in fails(capsys, "pretrain", "--data", "addition-9", "--output-dir", tmp_path / "run")


class TestBadInput:
    def test_unknown_recipe(self, capsys):
        assert "Did you mean 'shakespeare-char'?" in fails(capsys, "pretrain", "--recipe", "shakespear-char")

    def test_text_shorter_than_a_block(self, capsys, tmp_path, cache):
        (tmp_path / "short.txt").write_text("hardly anything to read here")
        line = fails(capsys, "pretrain", "--data", tmp_path / "short.txt", "--output-dir", tmp_path / "run", *cache)
        assert "block" in line
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(("content", "said"), [(b"", "empty"), (b" \n\n", "empty"), (b"caf\xe9 au lait", "UTF-8")])
    def test_empty_and_not_utf8(self, content, said, capsys, tmp_path, cache):
        (tmp_path / "bad.txt").write_bytes(content)
        line = fails(capsys, "pretrain", "--data", tmp_path / "bad.txt", "--output-dir", tmp_path / "run", *cache)
        assert "bad.txt" in line
        assert said in line

    def test_full_disk_while_caching(self, book, capsys, tmp_path, monkeypatch):
        from ms_gpt.data import token_cache

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(token_cache, "_encode", full)
        folder = tmp_path / "cache"
        line = fails(capsys, "pretrain", "--data", book, "--output-dir", tmp_path / "run", "--cache-dir", folder)
        assert "No space left on device" in line
        assert not (tmp_path / "run").exists()
        assert not folder.exists() or not list(folder.iterdir())

    def test_shares_that_are_not_three(self, book, capsys, tmp_path):
        line = fails(capsys, "pretrain", "--data", book, "--shares", "0.5", "0.5", "--output-dir", tmp_path / "run")
        assert "shares" in line

    def test_a_block_longer_than_the_model(self, trained, book, cache, capsys, tmp_path):
        line = fails(capsys, "pretrain", "--model", trained[0] / "best", "--data", book, "--block-size", "64",
                     "--output-dir", tmp_path / "run", *cache)
        assert "n_positions=8" in line

    def test_a_folder_that_holds_a_run(self, trained, book, capsys):
        assert "--resume" in fails(capsys, "pretrain", "--data", book, "--output-dir", trained[0])


class TestGenerate:
    def test_json_has_its_keys_and_the_prompt_comes_first(self, trained, capsys):
        words = ["generate", "--model", trained[0] / "best", "--json", "--max-new-tokens", "4", "--greedy"]
        code, out, err = run(capsys, *words, "the little", "the sea")
        assert code == 0, err
        result = json.loads(out)
        assert set(result) == {"prompts", "texts", "tokens_per_second"}
        assert [text.startswith(prompt) for text, prompt in zip(result["texts"], result["prompts"], strict=True)] == \
            [True, True]
        assert result["tokens_per_second"] > 0
        code, out, _ = run(capsys, *words, "the little")
        assert json.loads(out)["texts"] == result["texts"][:1]

    def test_one_prompt_is_printed_as_it_is_written(self, trained, capsys):
        code, out, _ = run(capsys, "generate", "--model", trained[0] / "best", "the dog", "--max-new-tokens", "5",
                           "--quiet", "--seed", "3")
        assert code == 0
        assert out.startswith("the dog")
        code, again, _ = run(capsys, "generate", "--model", trained[0] / "best", "the dog", "--max-new-tokens", "5",
                             "--quiet", "--seed", "3")
        assert again == out

    def test_beams_and_several_sequences(self, trained, capsys):
        code, out, err = run(capsys, "generate", "--model", trained[0] / "best", "the", "--num-beams", "3",
                             "--num-return-sequences", "2", "--max-new-tokens", "4", "--json")
        assert code == 0, err
        texts = json.loads(out)["texts"]
        assert len(texts) == 1
        assert len(set(texts[0])) == 2

    @pytest.mark.parametrize(("flags", "said"), [
        (["--temperature", "0"], "temperature=0"), (["--temperature", "-1"], "temperature=-1"),
        (["--top-p", "0"], "top_p=0"), (["--top-p", "1.5"], "top_p=1.5"), (["--top-k", "0"], "top_k=0"),
        (["--greedy", "--top-k", "5"], "--greedy"), (["--batch-size", "0", "a"], "batch_size=0"),
        (["--max-new-tokens", "0"], "max_new_tokens=0"),
    ])
    def test_settings_outside_their_range(self, flags, said, trained, capsys):
        assert said in fails(capsys, "generate", "--model", trained[0] / "best", "the", *flags)

    def test_a_classifier_cannot_write(self, trained, tmp_path, capsys):
        from ms_gpt import GPTForSequenceClassification

        tokenizer = Tokenizer.from_pretrained(trained[0] / "best")
        GPTForSequenceClassification(tiny_config("gpt2")).save_pretrained(tmp_path, tokenizer=tokenizer)
        assert "cannot write" in fails(capsys, "generate", "--model", tmp_path, "the")


class TestChat:
    def test_answers_every_line_and_knows_its_commands(self, trained, capsys, monkeypatch):
        lines = "the dog\n/context\nthe sea\n/undo\n/reset\nthe hill\n/quit\nnever read\n"
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        code, out, err = run(capsys, "chat", "--model", trained[0] / "best", "--max-new-tokens", "3", "--json",
                             "--user", "you:", "--assistant", "me:")
        assert code == 0, err
        turns = json.loads(out)["turns"]
        assert [line for line, _ in turns] == ["the hill"]
        assert "you: the dog\nme:" in err

    def test_the_oldest_turns_are_left_out(self, trained):
        tokenizer = Tokenizer.from_pretrained(trained[0] / "best")
        talk = Conversation("", "U:", "A:", [("the dog", "ran"), ("the sea", "was wide")])
        whole, left_out = talk.prompt("and")
        assert whole == "U: the dog\nA: ran\nU: the sea\nA: was wide\nU: and\nA:"
        assert left_out == 0
        limit = len(tokenizer.encode(whole)) - 1
        text, left_out = talk.prompt("and", tokenizer, limit)
        assert left_out == 1
        assert text == "U: the sea\nA: was wide\nU: and\nA:"
