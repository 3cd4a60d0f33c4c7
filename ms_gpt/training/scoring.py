"""Using a saved model: scores on labelled texts, labels for new ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor

from ms_gpt import runtime
from ms_gpt.checkpoint import resolve
from ms_gpt.data import Dataset, load_dataset
from ms_gpt.data.batches import Batches
from ms_gpt.data.encode import encode_texts
from ms_gpt.data.splits import choose_part
from ms_gpt.errors import UserError
from ms_gpt.generation.processors import log_softmax
from ms_gpt.generation.session import evaluating
from ms_gpt.heads import AutoModel, GPTForSequenceClassification
from ms_gpt.pretrained import GPTPreTrainedModel
from ms_gpt.tokenizer import BaseTokenizer, Tokenizer
from ms_gpt.training.arguments import TrainingArguments
from ms_gpt.training.finetuning import truncation_rule
from ms_gpt.training.perplexity import check_vocabulary
from ms_gpt.training.step import Forward
from ms_gpt.training.trainer import Trainer


def load_model(source: str | Path, options: Any) -> tuple[GPTPreTrainedModel, BaseTokenizer]:
    """Set the device up and load a model with its tokenizer.

    Args:
        source: A folder, a file in one that holds the tokenizer, or a name on the hub.
        options: Has ``device``, ``mode``, ``dtype`` and ``seed``.

    Returns:
        Model, of the class that was saved, and tokenizer.

    Raises:
        UserError: There is no model or no tokenizer.
    """
    runtime.setup(options.device, options.mode, options.dtype, options.seed)
    source = Path(resolve(source))
    model = AutoModel.from_pretrained(source)
    if options.dtype != "float32":
        model.set_compute_dtype(options.dtype)
    return model, Tokenizer.from_pretrained(source.parent if source.is_file() else source)


def load_classifier(folder: str | Path, options: Any) -> tuple[GPTForSequenceClassification, BaseTokenizer]:
    """Set the device up and load a classifier with its tokenizer.

    Args:
        folder: As ``finetune`` leaves it in ``best/``.
        options: Has ``device``, ``mode``, ``dtype`` and ``seed``.

    Returns:
        Model and tokenizer.

    Raises:
        UserError: The folder is missing or holds no classifier.
    """
    model, tokenizer = load_model(folder, options)
    if not isinstance(model, GPTForSequenceClassification):
        raise UserError(f"{folder} holds a {type(model).__name__}, not a classifier: give a folder that finetune has "
                        "written")
    return model, tokenizer


def load_part(data: str, part: str, label2id: Mapping[str, int] | None = None, text_column: str | None = None,
              label_column: str | None = None, progress: Any = None) -> Dataset:
    """Load one part of a data set, its labels numbered as the model numbers them.

    Args:
        data: Name or path, as for ``load_dataset``.
        part: ``"train"``, ``"validation"`` or ``"test"``; data that is one part is taken whole.
        label2id: Name of each class to its number, or ``None`` where the model's classes have no names.
        text_column: Column of the text, or ``None`` to guess.
        label_column: Column of the label, or ``None`` to guess.
        progress: Called with bytes so far and bytes in all while downloading, or ``None``.

    Returns:
        The rows.

    Raises:
        UserError: The part does not exist, or a label's name is not one of the model's.
    """
    dataset = choose_part(load_dataset(data, text_column, label_column, progress=progress), part, data)
    if dataset.label_names and label2id:
        unknown = [name for name in dataset.label_names if name not in label2id]
        if unknown:
            raise UserError(f"{data} has the label {unknown[0]!r}, which the model does not know: "
                            f"known are {', '.join(label2id)}")
        numbers = [label2id[name] for name in dataset.label_names]
        columns = {name: dataset[name] for name in dataset.column_names}
        dataset = Dataset({**columns, "label": [numbers[label] for label in dataset["label"]]}, list(label2id))
    return dataset


def scorer(model: GPTForSequenceClassification, tokenizer: BaseTokenizer, batch_size: int, options: Any,
           console: Any = None) -> Trainer:
    """Make a trainer that only scores, with the truncation the model was trained with.

    Args:
        model: The classifier.
        tokenizer: Its tokenizer.
        batch_size: Texts in a batch.
        options: Has ``device``, ``mode``, ``dtype`` and ``seed``.
        console: Where anything is drawn.

    Returns:
        The trainer, of which ``evaluate`` and ``predict`` are of use.
    """
    arguments = TrainingArguments(per_device_eval_batch_size=batch_size, device=options.device,
                                  mode=options.mode, dtype=options.dtype, seed=options.seed,
                                  **truncation_rule(model.config))
    return Trainer(model, arguments, tokenizer=tokenizer, console=console)


class Labeller:
    """Labels a stream of texts in batches, keeping their order.

    Args:
        model: The classifier.
        tokenizer: Its tokenizer.
        batch_size: Texts in a batch.
    """

    def __init__(self, model: GPTForSequenceClassification, tokenizer: Tokenizer, batch_size: int = 32) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size={batch_size} is not a whole number of at least 1")
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        rule = truncation_rule(model.config)
        self.max_length, self.truncation = rule["max_length"], rule["truncation"]
        # Texts come as a stream, so the padded lengths cannot be fitted to them.
        self.buckets = sorted({max(self.max_length // 4, 1), max(self.max_length // 2, 1), self.max_length})
        # Kept with the model, so that the next labeller does not compile it again.
        self.forward = model.graphs.setdefault("labels", Forward(model, ["input_ids", "attention_mask"]))
        self.forward.set_train(False)
        self.truncated = 0

    def label(self, texts: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Yield one prediction for each text, in order.

        Args:
            texts: Any iterable; it is read one batch ahead.

        Yields:
            ``text`` with ``label`` and ``probability``; lists of both for a multi-label model; ``value`` for a
            regression.
        """
        texts = iter(texts)
        while chunk := list(islice(texts, self.batch_size)):
            for text, logits in zip(chunk, self.logits(chunk), strict=True):
                yield {"text": text, **self.read(logits)}

    def logits(self, texts: list[str]) -> np.ndarray:
        """Return logits (N, num_labels) of at most a batch of texts."""
        encoded = encode_texts(texts, self.tokenizer, self.max_length, self.truncation)
        self.truncated += encoded.truncated
        pad_id = max(self.model.config.pad_token_id or 0, 0)
        sequences = [sequence or [pad_id] for sequence in encoded.sequences]
        check_vocabulary(max(map(max, sequences)), self.model.config)
        longest = max(map(len, sequences))
        bucket = next(length for length in self.buckets if length >= longest)
        batches = Batches(sequences, [0] * len(sequences), self.batch_size, [bucket], pad_id)
        input_ids, mask, _ = batches.collate(bucket, np.arange(len(sequences)))
        logits = self.forward(Tensor(input_ids), Tensor(mask))[0].asnumpy()[: len(texts)]
        if not np.isfinite(logits).all():
            raise UserError("the model's outputs are not finite: its weights hold NaN or infinity, or a dtype of less "
                            "range overflows")
        return logits

    def read(self, logits: np.ndarray) -> dict[str, Any]:
        """Turn one row of logits into what a user reads."""
        config = self.model.config
        names = config.label_names
        if config.problem_type == "regression" or config.num_labels == 1:
            values = [float(value) for value in logits]
            return {"value": values[0] if len(values) == 1 else values}
        if config.problem_type == "multi_label_classification":
            chances = 1 / (1 + np.exp(-logits.astype(np.float64)))
            chosen = [i for i, chance in enumerate(chances) if chance > 0.5]
            return {"label": [names[i] for i in chosen], "probability": [float(chances[i]) for i in chosen]}
        chances = np.exp(log_softmax(logits))
        best = int(chances.argmax())
        return {"label": names[best], "probability": float(chances[best])}


def predict(model: GPTForSequenceClassification, tokenizer: Tokenizer, texts: Iterable[str],
            batch_size: int = 32) -> list[dict[str, Any]]:
    """Label texts.

    Args:
        model: The classifier; in training or not, it is left as it was.
        tokenizer: Its tokenizer.
        texts: What to label; a text that is too long is truncated as in training.
        batch_size: Most texts in a batch; few texts make a smaller one.

    Returns:
        One dict for each text, in order: ``text`` with ``label`` and ``probability``; lists of both for a multi-label
        model; ``value`` for a regression.

    Raises:
        UserError: The model is no classifier, ``texts`` is no series of strings, or ``batch_size`` is no size.
    """
    if not isinstance(model, GPTForSequenceClassification):
        raise UserError(f"a {type(model).__name__} has no labels to predict: load a classifier")
    if isinstance(texts, str | bytes | Mapping):
        raise UserError(f"texts is one {type(texts).__name__}: give a list of strings")
    texts = list(texts)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"texts[{place}] is a {type(text).__name__}: give a list of strings")
    with evaluating(model):
        labeller = Labeller(model, tokenizer, batch_size)
        # Each size is a graph of its own: powers of two are few, and do not read 32 rows for one text.
        labeller.batch_size = min(batch_size, 2 ** max(len(texts) - 1, 0).bit_length())
        # Texts of about one length share a batch, and with it a padded length.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        labelled = dict(zip(order, labeller.label(texts[place] for place in order), strict=True))
        return [labelled[place] for place in range(len(texts))]
