"""Settings that are known to work, for fine-tuning and for pre-training."""

from __future__ import annotations

from typing import Any

from ms_gpt.errors import UserError, suggest

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


# What a recipe for pre-training does not say.
_PRETRAIN: dict[str, Any] = {
    "data": "sample",
    "shares": [0.8, 0.1, 0.1],
    "tokenizer": "byte-bpe",
    "vocab_size": 8000,
    "min_frequency": 2,
    "model_type": "gpt2",
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "window_size": None,
    "block_size": 128,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "max_steps": 2000,
    "num_train_epochs": None,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 100,
    "min_lr_ratio": 0.0,
    "weight_decay": 0.1,
    "decay_embeddings": False,
    "adam_beta1": 0.9,
    "adam_beta2": 0.98,
    "max_grad_norm": 1.0,
    "batch_ramp_steps": 0,
    "softmax_tokens": 0,
    "eval_steps": 250,
    "sample_prompt": "",
    "sample_tokens": 40,
}

PRETRAIN_RECIPES: dict[str, dict[str, Any]] = {
    "small": {},
    # GPT-1 paper, section 4.1: Adam 2.5e-4, 2,000 updates of warm-up, cosine to 0, dropout 0.1 everywhere, decay 0.01
    # of everything but biases and gains, 100 epochs of 64 blocks of 512 tokens.
    "gpt1": {
        "tokenizer": "bpe",
        "vocab_size": 40478,
        "model_type": "openai-gpt",
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "block_size": 512,
        "attention_dropout": 0.1,
        "per_device_train_batch_size": 64,
        "max_steps": None,
        "num_train_epochs": 100.0,
        "learning_rate": 2.5e-4,
        "warmup_steps": 2000,
        "weight_decay": 0.01,
        "decay_embeddings": True,
        "adam_beta2": 0.999,
        "eval_steps": 1000,
    },
    # GPT-3 paper, table 2.1 and appendix B, the 125M model: betas 0.9 and 0.95, decay 0.1, clipping at 1.0, cosine to
    # a tenth, half a million tokens in a batch that grows from a small one; every second layer looks at a window.
    "gpt3": {
        "vocab_size": 50257,
        "model_type": "ms_gpt",
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "window_size": 256,
        "block_size": 2048,
        "dropout": 0.0,
        "per_device_train_batch_size": 256,
        "max_steps": None,
        "num_train_epochs": 1.0,
        "learning_rate": 6e-4,
        "warmup_steps": 750,
        "min_lr_ratio": 0.1,
        "adam_beta2": 0.95,
        "batch_ramp_steps": 20000,
        "eval_steps": 1000,
    },
    # nanoGPT's setting for a CPU, its rate and its decay apart.
    "shakespeare-char": {
        "data": "shakespeare",
        "shares": [0.9, 0.1, 0.0],
        "tokenizer": "characters",
        "block_size": 64,
        "dropout": 0.0,
        "per_device_train_batch_size": 12,
        "max_steps": 2000,
        "learning_rate": 4e-3,
        "adam_beta2": 0.99,
        "eval_steps": 500,
        "sample_tokens": 100,
    },
    # minGPT's play_math: two layers, four heads, 128 wide.
    "adder-2": {
        "data": "addition-2",
        "n_layer": 2,
        "dropout": 0.0,
        "per_device_train_batch_size": 512,
        "per_device_eval_batch_size": 1000,
        "max_steps": 1000,
        "eval_steps": 200,
        "sample_prompt": "85+50=",
    },
    "adder-3": {
        "data": "addition-3",
        "n_layer": 2,
        "dropout": 0.0,
        "per_device_train_batch_size": 512,
        "per_device_eval_batch_size": 1000,
        "max_steps": 2000,
        "eval_steps": 500,
        "sample_prompt": "185+250=",
    },
    "wikitext2-word": {
        "data": "wikitext2",
        "tokenizer": "words",
        "vocab_size": 50000,
        "min_frequency": 1,
        "n_layer": 2,
        "n_embd": 256,
        "per_device_eval_batch_size": 8,
        "max_steps": None,
        "num_train_epochs": 5.0,
        "warmup_steps": 200,
        "softmax_tokens": 6144,
        "eval_steps": 1000,
    },
    "wikitext2-bpe": {
        "data": "wikitext2",
        "n_layer": 2,
        "n_embd": 256,
        "max_steps": None,
        "num_train_epochs": 2.0,
        "warmup_steps": 200,
        "eval_steps": 1000,
    },
}


def pretrain_recipe(name: str) -> dict[str, Any]:
    """Return the settings of a recipe for pre-training.

    Args:
        name: One of ``PRETRAIN_RECIPES``.

    Returns:
        Setting to value.

    Raises:
        UserError: The recipe is unknown; the message has a suggestion.
    """
    if name not in PRETRAIN_RECIPES:
        raise UserError(f"recipe {name!r} is unknown: choose one of {', '.join(PRETRAIN_RECIPES)}."
                        f"{suggest(name, PRETRAIN_RECIPES)}")
    return {**_PRETRAIN, **PRETRAIN_RECIPES[name]}
