"""``ms-gpt evaluate``: score a saved model: a classifier on labelled texts, a language model on any text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms_gpt.cli.options import RuntimeOptions, flag_name, option
from ms_gpt.cli.texts import downloading
from ms_gpt.console import Console
from ms_gpt.errors import UserError

HELP = "score a saved model: a classifier on labelled texts, a language model on any text"
EXAMPLES = """examples:
  ms-gpt evaluate --model runs/sample/best                      the built-in sample's test part
  ms-gpt evaluate --model runs/imdb/best --data test.jsonl.xz   every text of a file
  ms-gpt evaluate --model runs/small/best --data book.txt       perplexity of a language model
  ms-gpt evaluate --model openai-community/openai-gpt --zero-shot sst2
                                                                a language model as a classifier, nothing trained
"""


@dataclass(kw_only=True)
class EvaluateOptions(RuntimeOptions):
    """What to score, and on what.

    Args:
        model: The model: a folder, or a name on the hub; its own configuration says whether it is a classifier.
        zero_shot: Let a language model classify by what it would say next: sst2, imdb or sample (GPT-1, section 5).
        data: For a classifier sample, imdb, sst2, or a file or folder of labelled texts; for a language model what
            pretrain reads.
        part: Which part of the data; a file that is one part is scored whole.
        text_column: Column that holds the text.
        label_column: Column that holds the label.
        batch_size: Texts, or blocks of a language model, in a batch.
        block_size: Tokens that a language model reads at a time.
        cache_dir: Folder for token ids, which are kept from run to run.
    """

    TITLE = "model and data"

    model: str = option(metavar="MODEL")
    zero_shot: str | None = option(None, metavar="TASK")
    data: str | None = option(None, shown_default="sample; the task's with --zero-shot")
    part: str | None = option(None, metavar="{train,validation,test}", shown_default="test; validation for sst2")
    text_column: str | None = option(None, shown_default="guessed")
    label_column: str | None = option(None, shown_default="guessed")
    batch_size: int | None = option(None, shown_default="64; for a language model what fits about 1 GiB")
    block_size: int | None = option(None, shown_default="all the model can read")
    cache_dir: Path | None = option(None, shown_default="the user's cache folder")


OPTIONS = EvaluateOptions
_TEXTS_IN_BATCH = 64


def run(options: EvaluateOptions) -> dict[str, Any]:
    """Score the model and print the figures.

    Args:
        options: What the user asked for.

    Returns:
        ``accuracy``, ``f1``, ``loss``, ``confusion`` and ``n``; ``mae`` for a regression; for a language model
        ``loss``, ``perplexity``, ``perplexity_per_word``, ``bits_per_character`` and ``n``.
    """
    console = Console(options.quiet, options.json)
    if options.batch_size is not None and options.batch_size < 1:
        raise UserError(f"{flag_name('batch_size')}={options.batch_size} is not a whole number of at least 1")
    if options.zero_shot is not None:
        return _zero_shot(options, console)
    from ms_gpt.heads import GPTForSequenceClassification, GPTLMHeadModel
    from ms_gpt.training.scoring import load_model

    model, tokenizer = load_model(options.model, options)
    if isinstance(model, GPTForSequenceClassification):
        return _classifier(model, tokenizer, options, console)
    if isinstance(model, GPTLMHeadModel):
        return _language_model(model, tokenizer, options, console)
    raise UserError(f"{options.model} holds a {type(model).__name__}: give a classifier or a language model")


def _classifier(model: Any, tokenizer: Any, options: EvaluateOptions, console: Console) -> dict[str, Any]:
    from ms_gpt.training.scoring import load_part, scorer

    config = model.config
    label2id = config.label2id if config.id2label else None
    data = options.data or "sample"
    with downloading(console, data) as progress:
        dataset = load_part(data, options.part or "test", label2id, options.text_column, options.label_column, progress)
    console.note(f"{data}: {len(dataset):,} texts")
    trainer = scorer(model, tokenizer, options.batch_size or _TEXTS_IN_BATCH, options, console)
    batches = trainer.prepare(dataset)
    with console.compiling(before="scored"):
        figures = trainer.score(batches)
    if trainer.truncated:
        console.note(f"{trainer.truncated} of {len(dataset)} texts were truncated to {trainer.max_length} tokens "
                     f"({trainer.args.truncation})")
    _report(console, figures, list(config.label_names.values()))
    return figures


def _zero_shot(options: EvaluateOptions, console: Console) -> dict[str, Any]:
    from ms_gpt.heads import GPTLMHeadModel
    from ms_gpt.training.scoring import load_model, load_part
    from ms_gpt.training.zero_shot import ContinuationScorer, find_task, score_zero_shot

    task = find_task(options.zero_shot)
    model, tokenizer = load_model(options.model, options)
    if not isinstance(model, GPTLMHeadModel):
        raise UserError(f"{options.model} holds a {type(model).__name__}, and --zero-shot needs a language model: give "
                        "one, or leave --zero-shot out")
    data = options.data or task.data
    with downloading(console, data) as progress:
        dataset = load_part(data, options.part or task.part, task.label2id, options.text_column, options.label_column,
                            progress)
    scorer = ContinuationScorer(model, tokenizer, list(task.verbalizers.values()), options.batch_size)
    with console.compiling(before="scored"):
        figures = score_zero_shot(scorer, dataset)
    console.note("scored " + " against ".join(repr(ending) for ending in task.verbalizers.values()))
    if scorer.truncated:
        console.note(f"{scorer.truncated} of {len(dataset)} texts lost their beginning: with a continuation they take "
                     f"more than {model.config.n_positions} tokens")
    _report(console, figures, list(task.verbalizers))
    return figures


def _language_model(model: Any, tokenizer: Any, options: EvaluateOptions, console: Console) -> dict[str, Any]:
    from ms_gpt.training.perplexity import load_scored_text, score_language_model

    if "label_column" in options.explicit:
        raise UserError(f"{options.model} holds a language model, which reads no labels: leave --label-column out, or "
                        "give --zero-shot")
    data = options.data or "sample"
    with downloading(console, data) as progress:
        batches = load_scored_text(data, options.part or "test", model, tokenizer, options.block_size,
                                   options.batch_size, options.text_column, options.cache_dir, progress)
    console.note(f"{data}: {batches.words:,} words, {batches.characters:,} characters, in blocks of "
                 f"{batches.block_size} tokens")
    with console.compiling(before="scored"):
        figures = score_language_model(model, batches)
    _report(console, figures)
    return figures


def _report(console: Console, figures: dict[str, Any], label_names: list[str] = ()) -> None:
    width = max(9, *(len(name) + 1 for name in figures if name != "confusion"))
    for name in ("accuracy", "f1", "mae", "loss", "perplexity", "perplexity_per_word", "bits_per_character", "n"):
        if name in figures:
            value = figures[name]
            console.result(f"{name:<{width}}{value:.4f}" if isinstance(value, float) else f"{name:<{width}}{value}")
    if "confusion" in figures and len(figures["confusion"]) <= 12:
        console.confusion(figures["confusion"], label_names)
