"""``ms-gpt evaluate``: score a saved classifier on labelled texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ms_gpt.cli.options import RuntimeOptions, option
from ms_gpt.console import Console

HELP = "score a saved classifier on labelled texts"
EXAMPLES = """examples:
  ms-gpt evaluate --model runs/sample/best                      the built-in sample's test part
  ms-gpt evaluate --model runs/imdb/best --data test.jsonl.xz   every text of a file
"""


@dataclass(kw_only=True)
class EvaluateOptions(RuntimeOptions):
    """What to score, and on what.

    Args:
        model: Folder of the classifier.
        data: sample, imdb, sst2, or a file or folder of labelled texts.
        part: Which part of the data; a file that is one part is scored whole.
        text_column: Column that holds the text.
        label_column: Column that holds the label.
        batch_size: Texts in a batch.
    """

    TITLE = "model and data"

    model: str = option(metavar="FOLDER")
    data: str = "sample"
    part: str = option("test", metavar="{train,validation,test}")
    text_column: str | None = option(None, shown_default="guessed")
    label_column: str | None = option(None, shown_default="guessed")
    batch_size: int = 64


OPTIONS = EvaluateOptions


def run(options: EvaluateOptions) -> dict[str, Any]:
    """Score the classifier and print the figures.

    Args:
        options: What the user asked for.

    Returns:
        ``accuracy``, ``f1``, ``loss``, ``confusion`` and ``n``; ``mae`` for a regression.
    """
    console = Console(options.quiet, options.json)
    from ms_gpt.training.scoring import load_classifier, load_part, scorer

    classifier, tokenizer = load_classifier(options.model, options)
    dataset = load_part(options.data, options.part, classifier.config, options.text_column, options.label_column)
    trainer = scorer(classifier, tokenizer, options, console)
    batches = trainer.prepare(dataset)
    with console.compiling("and scoring"):
        figures = trainer.score(batches)
    if trainer.truncated:
        console.note(f"{trainer.truncated} of {len(dataset)} texts were truncated to {trainer.max_length} tokens "
                     f"({trainer.args.truncation})")
    for name in ("accuracy", "f1", "mae", "loss", "n"):
        if name in figures:
            value = figures[name]
            console.result(f"{name:<9}{value:.4f}" if isinstance(value, float) else f"{name:<9}{value}")
    if "confusion" in figures and len(figures["confusion"]) <= 12:
        console.confusion(figures["confusion"], list(classifier.config.label_names.values()))
    return figures
