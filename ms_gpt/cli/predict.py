"""``ms-gpt predict``: labels for texts from the command line, a file or standard input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms_gpt.cli.options import RuntimeOptions, option
from ms_gpt.cli.texts import given_texts
from ms_gpt.console import Console
from ms_gpt.errors import UserError

HELP = "label texts with a saved classifier"
EXAMPLES = """examples:
  ms-gpt predict --model runs/sample/best "a wonderful film"
  ms-gpt predict --model runs/sample/best --file reviews.txt
  cat reviews.txt | ms-gpt predict --model runs/sample/best -
"""


@dataclass(kw_only=True)
class PredictOptions(RuntimeOptions):
    """What to label, and with what.

    Args:
        texts: Texts to label; - reads one text a line from standard input.
        model: Folder of the classifier.
        file: File of texts: one a line, or .csv, .tsv or .jsonl with a column of texts.
        text_column: Column that holds the text.
        batch_size: Texts in a batch.
    """

    TITLE = "model and texts"

    texts: list[str] = option([], positional=True, metavar="TEXT")
    model: str = option(metavar="FOLDER")
    file: Path | None = option(None, shown_default="none")
    text_column: str | None = option(None, shown_default="guessed")
    batch_size: int = 32


OPTIONS = PredictOptions


def run(options: PredictOptions) -> dict[str, Any]:
    """Label texts in batches, in their order, as they come.

    Args:
        options: What the user asked for.

    Returns:
        ``predictions``: a list of ``text``, ``label`` and ``probability`` (``value`` for a regression).
    """
    console = Console(options.quiet, options.json)
    texts = given_texts(options.texts, options.file, options.text_column, "texts")
    if texts is None:
        raise UserError("there is no text to label: give one in quotes, or --file, or - for standard input")
    from ms_gpt.training.scoring import Labeller, load_classifier

    classifier, tokenizer = load_classifier(options.model, options)
    labeller = Labeller(classifier, tokenizer, options.batch_size)
    predictions = []
    for prediction in labeller.label(texts):
        predictions.append(prediction)
        figure = prediction.get("probability", prediction.get("value"))
        label = prediction.get("label", "")
        shown = ", ".join(label) if isinstance(label, list) else label
        number = " ".join(f"{item:.4f}" for item in figure) if isinstance(figure, list) else f"{figure:.4f}"
        if not options.json:
            console.result(f"{shown}\t{number}\t{' '.join(prediction['text'].split())[:200]}".lstrip("\t"))
    if not predictions:
        raise UserError("there is no text to label: standard input held none. Give one in quotes, or --file")
    if labeller.truncated:
        console.note(f"{labeller.truncated} of {len(predictions)} texts were truncated to {labeller.max_length} tokens "
                     f"({labeller.truncation})")
    empty = sum(not prediction["text"].strip() for prediction in predictions)
    if empty:
        console.note(f"{empty} of {len(predictions)} texts say nothing: their labels are what the model guesses unread")
    return {"predictions": predictions}
