"""Settings that are known to work: GPT-1's fine-tuning, and training from scratch on the labelled texts alone."""

from __future__ import annotations

from typing import Any

# GPT-1 paper, section 4.1 (fine-tuning): rate 6.25e-5, batch 32, 3 epochs, linear decay with a warm-up over 0.2 % of
# training, dropout 0.1 on the classifier, auxiliary language-model loss with weight 0.5.
PRETRAINED: dict[str, Any] = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 32,
    "learning_rate": 6.25e-5,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.002,
    "weight_decay": 0.01,
    "lm_coef": 0.5,
    "dropout": 0.1,
    "word_dropout": 0.0,
    "pretrain_epochs": 0,
}

# Chosen on validation splits of the built-in sample and of the IMDB training reviews: a small model, language-model
# pre-training on the training texts first, strong dropout.
SCRATCH: dict[str, Any] = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "lm_coef": 0.0,
    "dropout": 0.2,
    "word_dropout": 0.1,
    "pretrain_epochs": 1,
    "vocab_size": 8000,
    "max_length": 256,
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 128,
}


def recipe(pretrained: bool) -> dict[str, Any]:
    """Return the default settings of a fine-tuning.

    Args:
        pretrained: Whether it starts from pre-trained weights.

    Returns:
        Setting to value.
    """
    return dict(PRETRAINED if pretrained else SCRATCH)
