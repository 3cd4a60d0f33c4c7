"""Settings that are known to work: GPT-1's fine-tuning, and training from scratch on the labelled texts alone."""

from __future__ import annotations

from typing import Any

# Texts of more words than this on average are reviews or articles, of fewer sentences.
LONG_TEXT_WORDS = 60

# GPT-1 paper, section 4.1 (fine-tuning): rate 6.25e-5, batch 32, 3 epochs, linear decay with a warm-up over 0.2 % of
# training, dropout 0.1 on the classifier, auxiliary language-model loss with weight 0.5.
PRETRAINED: dict[str, Any] = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 32,
    "learning_rate": 6.25e-5,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.002,
    "adam_beta2": 0.999,
    "lm_coef": 0.5,
    "dropout": 0.1,
    "word_dropout": 0.0,
    "pretrain_epochs": 0,
    "buckets": 4,
}

# Chosen on the validation part of the built-in sample: the language-model losses are what makes word order learnable.
SCRATCH_SHORT: dict[str, Any] = {
    "num_train_epochs": 16,
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "adam_beta2": 0.999,
    "lm_coef": 0.5,
    "dropout": 0.1,
    "word_dropout": 0.0,
    "pretrain_epochs": 6,
    "buckets": 3,
    "max_length": 128,
    "vocab_size": 8000,
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 128,
}

# Chosen on a tenth of the IMDB training reviews: the verdict on a long review hangs on many words, so one layer that
# reads all of it, with strong dropout on the words, is enough.
SCRATCH_LONG: dict[str, Any] = {
    **SCRATCH_SHORT,
    "num_train_epochs": 3,
    "adam_beta2": 0.98,
    "lm_coef": 0.0,
    "dropout": 0.2,
    "word_dropout": 0.3,
    "pretrain_epochs": 0.25,
    "buckets": 5,
    "max_length": 512,
    "vocab_size": 16000,
    "n_layer": 1,
    "n_head": 2,
}


def recipe(pretrained: bool, words: float = 0.0) -> dict[str, Any]:
    """Return the default settings of a fine-tuning.

    Args:
        pretrained: Whether it starts from pre-trained weights.
        words: Mean number of words in a training text.

    Returns:
        Setting to value.
    """
    if pretrained:
        return dict(PRETRAINED)
    return dict(SCRATCH_LONG if words > LONG_TEXT_WORDS else SCRATCH_SHORT)
