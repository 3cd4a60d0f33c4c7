"""``ms-gpt finetune``: labelled texts in, a trained classifier out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ms_gpt.cli import to_json
from ms_gpt.cli.options import TrainingRuntimeOptions, option
from ms_gpt.cli.runs import place, resumable
from ms_gpt.cli.texts import downloading
from ms_gpt.console import Console
from ms_gpt.training.recipe import recipe

HELP = "train a text classifier, from pre-trained weights or from scratch"
EXAMPLES = """examples:
  ms-gpt finetune                                      the built-in sample, from scratch
  ms-gpt finetune --data reviews.csv                   your texts: columns text and label
  ms-gpt finetune --data imdb --model gpt1-folder      IMDB from pre-trained weights, GPT-1's recipe
  ms-gpt finetune --output-dir runs/sample --resume    go on after an interruption
"""

_BY_RECIPE = "chosen by the recipe"


@dataclass(kw_only=True)
class FinetuneOptions(TrainingRuntimeOptions):
    """What to train on, what to start from, how.

    Args:
        data: sample, imdb, sst2, or a file or folder of labelled texts (.csv, .tsv, .jsonl, each also .gz or .xz); or
            mindnlp:NAME, read by MindNLP.
        eval_data: Texts that choose the best epoch, instead of a part of the training data.
        test_data: Texts that are scored once, at the end.
        text_column: Column that holds the text.
        label_column: Column that holds the label.
        model: Pre-trained weights: a model folder (convert makes one of any file) or a name on the hub; left out, a
            small model is trained from scratch.
        tokenizer: Folder with the tokenizer, if it is not the model's.
        output_dir: Folder of the run.
        resume: Go on from last/ in the output folder.
        num_labels: Number of classes, if the data does not show it; 1 means regression.
        label_names: Names of the classes in order, where the data has numbers only.
        max_length: Longest text in tokens; longer ones are truncated.
        truncation: What a truncated text keeps.
        class_weights: Weigh rare classes up, or all the same.
        num_train_epochs: Passes over the training data.
        max_steps: Fine-tune for this many updates instead of whole epochs.
        pretrain_epochs: Passes of language-model pre-training on the training texts before fine-tuning.
        per_device_train_batch_size: Examples in an update.
        per_device_eval_batch_size: Examples in an evaluation batch.
        learning_rate: Peak of the schedule.
        lr_scheduler_type: Shape of the schedule after the warm-up.
        warmup_ratio: Share of the updates over which the learning rate rises.
        weight_decay: Decoupled decay of the weight matrices.
        adam_beta2: Decay of Adam's second moment.
        buckets: Padded lengths, each with a graph of its own; more of them waste less on padding.
        lm_coef: Weight of the auxiliary language-model loss.
        dropout: Dropout on embeddings, residual branches and the classifier.
        pretrain_learning_rate: Peak rate of the pre-training.
        pretrain_batch_size: Blocks in an update of the pre-training.
        pretrain_block_size: Tokens in a block.
        word_dropout: Share of words replaced by <unk> in training.
        metric_for_best_model: Figure of the validation data that chooses the best epoch.
        early_stopping_patience: Stop after this many epochs without a better one.
        vocab_size: Tokens of the BPE that is learnt when training from scratch.
        n_layer: Blocks of a model from scratch.
        n_head: Attention heads of a model from scratch.
        n_embd: Width of a model from scratch.
        logging_steps: Updates between two lines of metrics.jsonl.
        save_steps: Updates between two saves of last/, besides those at the end of each epoch; 0 for none.
    """

    TITLE = "data, model and recipe"

    data: str = "sample"
    eval_data: str | None = option(None, shown_default="a tenth of the training data")
    test_data: str | None = option(None, shown_default="the data's own test part")
    text_column: str | None = option(None, shown_default="guessed")
    label_column: str | None = option(None, shown_default="guessed")
    model: str | None = option(None, metavar="MODEL", shown_default="none, train from scratch")
    tokenizer: str | None = option(None, metavar="FOLDER", shown_default="the model's, or learnt on the training texts")
    output_dir: Path | None = option(None, shown_default="runs/NAME-OF-DATA")
    resume: bool = False
    num_labels: int | None = option(None, shown_default="read off the data")
    label_names: list[str] = option([], shown_default="the data's, or LABEL_0, LABEL_1 ...")
    max_length: int | None = option(None, shown_default=_BY_RECIPE)
    truncation: Literal["head", "tail", "head_tail"] = "head_tail"
    class_weights: Literal["none", "balanced"] = "none"
    num_train_epochs: float | None = option(None, shown_default=_BY_RECIPE)
    max_steps: int | None = option(None, shown_default="as many as the epochs have")
    pretrain_epochs: float | None = option(None, shown_default=_BY_RECIPE)
    pretrain_learning_rate: float = 2e-3
    pretrain_batch_size: int = 32
    pretrain_block_size: int = 128
    per_device_train_batch_size: int | None = option(None, shown_default=_BY_RECIPE)
    per_device_eval_batch_size: int = 64
    learning_rate: float | None = option(None, shown_default=_BY_RECIPE)
    lr_scheduler_type: Literal["linear", "cosine", "constant"] | None = option(None, shown_default=_BY_RECIPE)
    warmup_ratio: float | None = option(None, shown_default=_BY_RECIPE)
    weight_decay: float = 0.01
    adam_beta2: float | None = option(None, shown_default=_BY_RECIPE)
    buckets: int | None = option(None, shown_default=_BY_RECIPE)
    lm_coef: float | None = option(None, shown_default=_BY_RECIPE)
    dropout: float | None = option(None, shown_default=_BY_RECIPE)
    word_dropout: float | None = option(None, shown_default=_BY_RECIPE)
    metric_for_best_model: Literal["accuracy", "f1", "loss"] = "accuracy"
    early_stopping_patience: int | None = option(None, shown_default="never")
    vocab_size: int | None = option(None, shown_default=_BY_RECIPE)
    n_layer: int | None = option(None, shown_default=_BY_RECIPE)
    n_head: int | None = option(None, shown_default=_BY_RECIPE)
    n_embd: int | None = option(None, shown_default=_BY_RECIPE)
    logging_steps: int = 10
    save_steps: int = 0


OPTIONS = FinetuneOptions
# How much more room than the texts need goes unremarked.
_ROOMY = 8
_ONLY_FROM_SCRATCH = ("vocab_size", "n_layer", "n_head", "n_embd")


def run(options: FinetuneOptions) -> dict[str, Any]:
    """Train, evaluate, write the run folder.

    Args:
        options: What the user asked for.

    Returns:
        ``output_dir``, ``best`` (figures on the validation data) and ``test`` (figures on the test data, or ``None``).
    """
    options = place(options, "finetune", options.data, _ONLY_FROM_SCRATCH)
    console = Console(options.quiet, options.json)
    from ms_gpt import plots, runtime
    from ms_gpt.checkpoint.atomic import make_folder, write_json
    from ms_gpt.training import finetuning as steps

    running = runtime.setup(options.device, options.mode, options.dtype, options.seed)
    with downloading(console, options.data) as progress:
        corpus = steps.load_corpus(options.data, options.eval_data, options.test_data, options.text_column,
                                   options.label_column, options.num_labels, options.seed, progress)
    steps.name_classes(corpus, options.label_names)
    options = with_recipe(options, corpus.train["text"])
    tokenizer = steps.build_tokenizer(corpus.train["text"], options.tokenizer or options.model, options.vocab_size,
                                      options.max_length)
    classifier = steps.build_classifier(corpus, tokenizer, options)
    # Everything the user may have got wrong about data and model shows before the folder is made.
    trainer = steps.finetuning(classifier, tokenizer, corpus, options, console)
    pretrainer = steps.pretraining(classifier, tokenizer, corpus, options, console) if options.pretrain_epochs else None
    make_folder(options.output_dir)
    console.header("fine-tuning", _facts(options, corpus, classifier, trainer, running))
    if options.model is None and options.max_length > _ROOMY * trainer.buckets[-1]:
        console.warn(f"the longest text has at most {trainer.buckets[-1]} tokens: --max-length {options.max_length} "
                     "makes the model larger, and no better")
    if corpus.problem_type == "single_label_classification" and 2 * corpus.num_labels > len(corpus.train):
        console.warn(f"{corpus.num_labels} classes for {len(corpus.train)} texts: is --label-column right?")
    with resumable(options, "finetune", console):
        if pretrainer is not None:
            steps.run_pretraining(pretrainer, options.resume)
        best = trainer.train(resume=options.resume)["best"] or trainer.score(trainer.eval_batches)
    trainer.save_model(options.output_dir / "best")
    test = trainer.score(trainer.prepare(corpus.test)) if corpus.test is not None else None
    plots.loss_plot(trainer.log.read(), options.output_dir / "loss.png")
    _report(console, options, corpus, best, test)
    result = {"output_dir": str(options.output_dir), "best": best, "test": test}
    write_json(options.output_dir / "results.json", to_json(result))
    return result


def _facts(options: FinetuneOptions, corpus: Any, classifier: Any, trainer: Any, running: Any) -> dict[str, str]:
    config, sizes = classifier.config, [corpus.train, corpus.validation, corpus.test or ()]
    start = options.model or "scratch"
    shape = f"{config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide"
    cut = f", {trainer.truncated} of the training texts truncated ({options.truncation})" if trainer.truncated else ""
    return {
        "data": f"{options.data}: {' / '.join(f'{len(part):,}' for part in sizes)} texts to train / validate / test",
        "labels": ", ".join(config.label_names.values()) if config.num_labels > 1 else "a number",
        "model": f"{config.model_type} from {start}: {shape}, {classifier.num_parameters():,} parameters",
        "tokens": f"vocabulary {config.vocab_size:,}, padded to {', '.join(map(str, trainer.buckets))}{cut}",
        "recipe": f"{trainer.state.max_steps:,} steps, {trainer.state.steps_per_epoch} an epoch, batch "
                  f"{options.per_device_train_batch_size}, learning rate {options.learning_rate:g} "
                  f"({options.lr_scheduler_type}), after {options.pretrain_epochs:g} epochs of pre-training",
        "runs on": f"{running.device}, {running.mode} mode, {running.dtype}, seed {running.seed}",
        "folder": str(options.output_dir),
    }


def _report(console: Console, options: FinetuneOptions, corpus: Any, best: dict, test: dict | None) -> None:
    names = [name for name in ("accuracy", "f1", "mae", "loss") if name in best]
    scored = [("validation", best), *([("test", test)] if test else [])]
    console.table(["part", *names, "texts"], [[part, *(figures[name] for name in names), figures["n"]]
                                              for part, figures in scored])
    shown = (test or best).get("confusion")
    if shown and len(shown) <= 12:
        console.confusion(shown, corpus.label_names or [str(i) for i in range(len(shown))])
    text = _to_try((corpus.test or corpus.validation)["text"])
    console.next_command("predict", "--model", options.output_dir / "best", text)


def _to_try(texts: Sequence[str]) -> str:
    """Return the shortest text of the kind that the model knows, of those that fit the line and are no flag."""
    fit = (text for text in texts if text.strip() and text.isprintable() and not text.startswith("-"))
    text = min(fit, key=len, default="")
    return text if 0 < len(text) <= 120 else "a text to label"


def with_recipe(options: FinetuneOptions, texts: Sequence[str]) -> FinetuneOptions:
    """Fill what the user left open from the recipe for these texts.

    Args:
        options: With a folder.
        texts: The training texts; their length decides between the recipes from scratch.

    Returns:
        Options without open settings.
    """
    words = sum(len(text.split()) for text in texts) / len(texts)
    defaults = recipe(options.model is not None, words)
    return dataclasses.replace(
        options, **{name: value for name, value in defaults.items() if getattr(options, name) is None})
