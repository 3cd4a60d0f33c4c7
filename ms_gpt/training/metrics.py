"""Figures of merit, from logits and labels in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from ms_gpt.generation.processors import log_softmax


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_labels: int) -> np.ndarray:
    """Count how often class i was predicted as class j.

    Args:
        labels: int array (N,), in [0, num_labels).
        predicted: int array (N,), in [0, num_labels).
        num_labels: Number of classes, C.

    Returns:
        int array (C, C): row true class, column predicted class.
    """
    return np.bincount(labels * num_labels + predicted, minlength=num_labels**2).reshape(num_labels, num_labels)


def f1_scores(matrix: np.ndarray) -> np.ndarray:
    """Compute the F1 of each class.

    Args:
        matrix: A confusion matrix (C, C).

    Returns:
        float array (C,) in [0, 1]; 0 for a class that neither occurs nor is predicted.
    """
    support = matrix.sum(0) + matrix.sum(1)
    return 2 * np.diag(matrix) / np.maximum(support, 1)


def single_label_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Score a classifier with one label for each example.

    Args:
        logits: Array (N, C).
        labels: int array (N,).

    Returns:
        ``loss`` (mean cross-entropy, nats), ``accuracy``, ``f1`` (of class 1 for two classes, else the mean over
        classes), ``confusion`` (list of C lists) and ``n``.
    """
    labels = np.asarray(labels, np.int64)
    matrix = confusion_matrix(labels, logits.argmax(-1), logits.shape[-1])
    scores = f1_scores(matrix)
    return {
        "loss": float(-np.take_along_axis(log_softmax(logits), labels[:, None], 1).mean()),
        "accuracy": float(np.diag(matrix).sum() / len(labels)),
        "f1": float(scores[1] if len(scores) == 2 else scores.mean()),
        "confusion": matrix.tolist(),
        "n": len(labels),
    }


def multi_label_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Score a classifier with several labels for each example.

    Args:
        logits: Array (N, C).
        labels: Array (N, C) of 0 and 1.

    Returns:
        ``loss`` (mean binary cross-entropy, nats), ``accuracy`` (share of examples with every label right), ``f1``
        (over all labels together) and ``n``.
    """
    logits, labels = logits.astype(np.float64), np.asarray(labels, np.float64)
    predicted = logits > 0
    hits = float((predicted * labels).sum())
    return {
        "loss": float((np.logaddexp(0, logits) - logits * labels).mean()),
        "accuracy": float((predicted == (labels > 0.5)).all(-1).mean()),
        "f1": 2 * hits / max(float(predicted.sum() + labels.sum()), 1.0),
        "n": len(labels),
    }


def regression_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Score a regression.

    Args:
        logits: Array (N, 1) or (N,).
        labels: Array (N,).

    Returns:
        ``loss`` (mean squared error), ``mae`` (mean absolute error) and ``n``.
    """
    error = logits.reshape(len(labels), -1).astype(np.float64) - np.asarray(labels).reshape(len(labels), -1)
    return {"loss": float((error**2).mean()), "mae": float(np.abs(error).mean()), "n": len(labels)}


METRICS = {
    "single_label_classification": single_label_metrics,
    "multi_label_classification": multi_label_metrics,
    "regression": regression_metrics,
}
