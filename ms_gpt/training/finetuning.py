"""The steps of a fine-tuning, one function each: data, tokenizer, model, pre-training, final scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms_gpt import checkpoint
from ms_gpt.checkpoint.errors import some
from ms_gpt.config import GPTConfig
from ms_gpt.data import Dataset, load_dataset, split
from ms_gpt.data.batches import pack_blocks
from ms_gpt.data.encode import clean_text
from ms_gpt.errors import UserError
from ms_gpt.heads import GPTForSequenceClassification, GPTLMHeadModel
from ms_gpt.tokenizer import GPT1_SPECIAL_TOKENS, Tokenizer
from ms_gpt.training.arguments import TrainingArguments
from ms_gpt.training.trainer import Trainer

TASK = "text-classification"
VALIDATION_SHARE = TEST_SHARE = 0.1


@dataclass
class Corpus:
    """Labelled texts in their parts, and what the labels are.

    Args:
        train: What the weights are learnt from.
        validation: What chooses the best epoch.
        test: What is scored once at the end, or ``None``.
        num_labels: Number of classes; 1 for regression.
        label_names: Name of each class, or ``None``.
        problem_type: As in ``GPTConfig``.
    """

    train: Dataset
    validation: Dataset
    test: Dataset | None
    num_labels: int
    label_names: list[str] | None
    problem_type: str


def load_corpus(data: str, eval_data: str | None = None, test_data: str | None = None,
                text_column: str | None = None, label_column: str | None = None, num_labels: int | None = None,
                seed: int = 0, progress: Any = None) -> Corpus:
    """Load labelled texts and cut off what parts are missing.

    A missing validation part is a tenth of the training data, drawn by seed and stratified; of a single file another
    tenth becomes the test part. The test part is never used to choose anything.

    Args:
        data: Name or path, as for ``load_dataset``.
        eval_data: Path of the validation texts, or ``None``.
        test_data: Path of the test texts, or ``None``.
        text_column: Column of the text, or ``None`` to guess.
        label_column: Column of the label, or ``None`` to guess.
        num_labels: Number of classes, or ``None`` to read it off the labels.
        seed: Seed of the split.
        progress: Called with bytes so far and bytes in all while downloading, or ``None``.

    Returns:
        The parts.

    Raises:
        UserError: The data cannot be read, or its labels do not fit together.
    """
    parts = load_dataset(data, text_column, label_column, progress=progress)
    is_single = set(parts) == {"train"}
    for name, path in (("validation", eval_data), ("test", test_data)):
        if path is not None:
            parts[name] = _only_part(path, text_column, label_column, parts["train"].label_names)
    if "train" not in parts:
        raise UserError(f"{data} has no training part, only {', '.join(parts)}")
    shares = {} if "validation" in parts else {"validation": VALIDATION_SHARE}
    if is_single and "test" not in parts:
        shares["test"] = TEST_SHARE
    if shares:
        parts.update(split(parts["train"], {"train": 1 - sum(shares.values()), **shares}, seed=seed))
    labels, named = parts["train"]["label"], parts["train"].label_names or []
    if named and num_labels not in (None, len(named)):
        raise UserError(f"num_labels={num_labels}, but the labels of {data} are {len(named)} names ({some(named)}): "
                        "leave it out, or give labels that are numbers")
    problem_type, found = _problem(labels, num_labels)
    return Corpus(parts["train"], parts["validation"], parts.get("test"), max(found, len(named)), named or None,
                  problem_type)


def name_classes(corpus: Corpus, names: Sequence[str]) -> None:
    """Give the classes names.

    Args:
        corpus: What gets them.
        names: One for each class, in order; nothing to leave the data's.

    Raises:
        UserError: Their number is not that of the classes.
    """
    if names and len(names) != corpus.num_labels:
        raise UserError(f"label_names has {len(names)} names for {corpus.num_labels} classes: give one for each")
    if names:
        corpus.label_names = list(names)


def _only_part(path: str, text_column: str | None, label_column: str | None, names: list[str] | None) -> Dataset:
    """Load a file that is one part as a whole, its string labels numbered as in the training data."""
    parts = load_dataset(path, text_column, label_column)
    part = next(iter(parts.values()))
    if names and part.label_names and part.label_names != names:
        unknown = sorted(set(part.label_names) - set(names))
        if unknown:
            raise UserError(f"{path} has the label {unknown[0]!r}, which the training data lacks: "
                            f"known are {', '.join(names)}")
        index = [names.index(name) for name in part.label_names]
        part = Dataset({**{name: part[name] for name in part.column_names},
                        "label": [index[label] for label in part["label"]]}, names)
    return part


def _problem(labels: Sequence[Any], num_labels: int | None) -> tuple[str, int]:
    if isinstance(labels[0], (list, tuple)):
        return "multi_label_classification", len(labels[0])
    if num_labels == 1 or any(isinstance(label, float) for label in labels):
        return "regression", 1
    return "single_label_classification", num_labels or max(int(max(labels)) + 1, 2)


def build_tokenizer(texts: Sequence[str], folder: str | Path | None, vocab_size: int | None,
                    max_length: int) -> Tokenizer:
    """Load a tokenizer, or learn a BPE on the training texts, with GPT-1's special tokens added.

    Args:
        texts: The training texts.
        folder: Where the tokenizer is, or ``None`` to learn one.
        vocab_size: Tokens to learn.
        max_length: Longest text in tokens, kept with a learnt tokenizer.

    Returns:
        The tokenizer.
    """
    if folder is None:
        cleaned = [clean_text(text) for text in texts]
        tokenizer = Tokenizer.train(cleaned, vocab_size=vocab_size, model_max_length=max_length)
    else:
        tokenizer = Tokenizer.from_pretrained(folder)
    present = tokenizer.special_tokens
    tokenizer.add_special_tokens({role: text for role, text in GPT1_SPECIAL_TOKENS.items() if role not in present})
    return tokenizer


def build_classifier(corpus: Corpus, tokenizer: Tokenizer, settings: Any) -> GPTForSequenceClassification:
    """Build or load the classifier.

    Args:
        corpus: Says how many classes there are.
        tokenizer: Says how many tokens there are.
        settings: Has ``model`` (folder or ``None``), ``dropout``, ``lm_coef``, ``max_length``, ``truncation`` and
            ``seed``; for a model from scratch ``n_layer``, ``n_head`` and ``n_embd`` too.

    Returns:
        The model; new tokens have new embeddings.

    Raises:
        UserError: The settings or the folder do not fit.
    """
    names = corpus.label_names
    shape: dict[str, Any] = {
        "num_labels": corpus.num_labels,
        "problem_type": corpus.problem_type,
        "lm_coef": settings.lm_coef,
        "classifier_pdrop": settings.dropout,
        "embd_pdrop": settings.dropout,
        "resid_pdrop": settings.dropout,
        "seed": settings.seed,
    }
    if names:
        shape["id2label"] = dict(enumerate(names))
    tokens = {role: getattr(tokenizer, role) for role in ("pad_token_id", "bos_token_id", "eos_token_id")}
    if settings.model is None:
        # Attention dropout costs a T x T mask in every layer and does not help models of this size.
        model = GPTForSequenceClassification(GPTConfig(
            model_type="gpt2", vocab_size=len(tokenizer), n_positions=settings.max_length, n_layer=settings.n_layer,
            n_head=settings.n_head, n_embd=settings.n_embd, attn_pdrop=0.0, **shape, **tokens))
    else:
        model = GPTForSequenceClassification.from_pretrained(settings.model, **shape)
        if len(tokenizer) > model.config.vocab_size:
            model.resize_token_embeddings(len(tokenizer))
        model.config = model.backbone.config = model.config.replace(**tokens)
        model.pad_token_id = tokenizer.pad_token_id
    if settings.max_length is not None and settings.max_length > model.config.n_positions:
        raise UserError(f"max_length={settings.max_length} is greater than n_positions={model.config.n_positions} of "
                        f"{settings.model}: give a smaller --max-length")
    # Where Hugging Face keeps settings of a task; predict truncates as training did.
    rule = {"max_length": settings.max_length or model.config.n_positions, "truncation": settings.truncation}
    model.config.extra["task_specific_params"] = {TASK: rule}
    return model


def truncation_rule(config: GPTConfig) -> dict[str, Any]:
    """Return ``max_length`` and ``truncation`` that a classifier was trained with, or the defaults."""
    rule = (config.extra.get("task_specific_params") or {}).get(TASK) or {}
    return {"max_length": min(int(rule.get("max_length", config.n_positions)), config.n_positions),
            "truncation": rule.get("truncation", "head_tail")}


def pretraining(classifier: GPTForSequenceClassification, tokenizer: Tokenizer, corpus: Corpus, settings: Any,
                console: Any = None) -> Trainer:
    """Prepare language-model pre-training of the classifier's own transformer on the training texts.

    Args:
        classifier: Whose transformer is trained.
        tokenizer: Turns texts into tokens.
        corpus: Training texts to learn from, validation texts to measure on; labels are not read.
        settings: Has ``output_dir``, ``pretrain_epochs``, ``max_length``, ``seed`` and so on.
        console: Where progress is drawn.

    Returns:
        A trainer for the language model; its weights are the classifier's.
    """
    model = GPTLMHeadModel(classifier.config)
    model.transformer = classifier.transformer
    length = min(truncation_rule(classifier.config)["max_length"], settings.pretrain_block_size)
    blocks = [_blocks(part["text"], tokenizer, length) for part in (corpus.train, corpus.validation)]
    arguments = TrainingArguments(
        str(Path(settings.output_dir) / "pretrain"), num_train_epochs=settings.pretrain_epochs,
        per_device_train_batch_size=settings.pretrain_batch_size, learning_rate=settings.pretrain_learning_rate,
        lr_scheduler_type="cosine", warmup_ratio=0.05, metric_for_best_model="loss", buckets=1, max_length=length,
        logging_dir=str(settings.output_dir), **_shared(settings))
    return Trainer(model, arguments, *blocks, console=console, phase="pretrain")


def _blocks(texts: Sequence[str], tokenizer: Tokenizer, block_size: int) -> list[dict[str, list[int]]]:
    begin, end = tokenizer.bos_token_id, tokenizer.cls_token_id
    documents = [[begin, *ids] for ids in tokenizer.encode_batch([clean_text(text) for text in texts])]
    return [{"input_ids": block} for block in pack_blocks(documents, block_size, separator=end)]


def finetuning(classifier: GPTForSequenceClassification, tokenizer: Tokenizer, corpus: Corpus, settings: Any,
               console: Any = None) -> Trainer:
    """Prepare the fine-tuning of a classifier.

    Args:
        classifier: What is trained.
        tokenizer: Turns texts into tokens.
        corpus: The labelled texts.
        settings: The resolved options of ``finetune``.
        console: Where progress is drawn.

    Returns:
        The trainer.
    """
    from ms_gpt.data import class_weights

    weights = None
    if settings.class_weights == "balanced" and corpus.problem_type == "single_label_classification":
        weights = class_weights(corpus.train["label"], corpus.num_labels)
    metric = "loss" if corpus.problem_type == "regression" else settings.metric_for_best_model
    arguments = TrainingArguments(
        str(settings.output_dir), num_train_epochs=settings.num_train_epochs,
        max_steps=-1 if settings.max_steps is None else settings.max_steps,
        per_device_train_batch_size=settings.per_device_train_batch_size, learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type, warmup_ratio=settings.warmup_ratio,
        word_dropout=settings.word_dropout, class_weights=weights, load_best_model_at_end=True,
        metric_for_best_model=metric, early_stopping_patience=settings.early_stopping_patience,
        buckets=settings.buckets, **_shared(settings), **truncation_rule(classifier.config))
    return Trainer(classifier, arguments, corpus.train, corpus.validation, tokenizer=tokenizer, console=console,
                   phase="finetune")


def _shared(settings: Any) -> dict[str, Any]:
    """Return the arguments that both phases take from the settings."""
    return {
        "per_device_eval_batch_size": settings.per_device_eval_batch_size,
        "weight_decay": settings.weight_decay,
        "adam_beta2": settings.adam_beta2,
        "logging_steps": settings.logging_steps,
        "eval_strategy": "epoch",
        "save_strategy": "steps" if settings.save_steps else "epoch",
        "save_steps": settings.save_steps,
        "seed": settings.seed,
        "device": settings.device,
        "mode": settings.mode,
        "dtype": settings.dtype,
        "flash_attention": settings.flash_attention,
        "dataset_sink_mode": settings.dataset_sink_mode,
    }


def run_pretraining(trainer: Trainer, resume: bool) -> dict[str, Any]:
    """Pre-train, or take the result of a pre-training that had already finished.

    Args:
        trainer: From ``pretraining``.
        resume: Look for an earlier result.

    Returns:
        What ``Trainer.train`` returns.
    """
    finished = trainer.output_dir / "model"
    if resume and (finished / "model.safetensors").exists():
        _, tensors = checkpoint.read_folder(finished)
        trainer.model.load_arrays(tensors, source=str(finished))
        return {"train_loss": math.nan, "steps": 0, "seconds": 0.0, "best": {}, "best_step": 0}
    result = trainer.train(resume=resume)
    trainer.save_model(finished)
    return result
