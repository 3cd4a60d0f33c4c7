"""Learning a BPE in GPT-1's form from texts."""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer as Backend
from tokenizers import models, trainers

from ms_gpt.errors import UserError
from ms_gpt.tokenizer.backend import GPT1_UNKNOWN, WORD_END, word_splitter
from ms_gpt.tokenizer.base import check_texts
from ms_gpt.tokenizer.cleaning import clean_original

# Always in the alphabet, so that a small corpus without a 7 or a ? leaves no unknown token for them.
_ASCII = string.ascii_lowercase + string.digits + string.punctuation
MIN_VOCAB_SIZE = 2 * len(_ASCII) + 2


def learn_bpe(
    texts: Iterable[str], vocab_size: int, min_frequency: int, cleaning: str
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learn a vocabulary and its merges.

    The ids are laid out as GPT-1's: ``<unk>``, the characters, the characters that end a word, then one token a merge.

    Args:
        texts: The training texts; an iterator is read into memory.
        vocab_size: The most tokens to have, at least `MIN_VOCAB_SIZE`.
        min_frequency: How often a character or a pair has to occur, at least 1.
        cleaning: ``"hf"`` or ``"original"``.

    Returns:
        Token to id, and the merges in order of rank.

    Raises:
        UserError: A number is too small, there is no text, or ``texts`` is not an iterable of texts.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(f"vocab_size={vocab_size} leaves no room for merges: give at least {MIN_VOCAB_SIZE}")
    if min_frequency < 1:
        raise UserError(f"min_frequency={min_frequency} is not a count: give at least 1")
    texts = check_texts(texts)
    if not any(text.strip() for text in texts):
        raise UserError(f"the {len(texts)} training texts hold no words: there is nothing to learn a vocabulary from")
    if cleaning == "original":
        texts = [clean_original(text) for text in texts]
    backend = Backend(models.BPE(unk_token=GPT1_UNKNOWN, end_of_word_suffix=WORD_END))
    backend.normalizer, backend.pre_tokenizer = word_splitter(cleaning)
    alphabet = _alphabet(texts, backend, max(len(_ASCII), vocab_size // 4), min_frequency)
    # The trainer numbers word-ending characters in the order of a hash table that differs from run to run, and
    # breaks ties between pairs by number. Naming all of them beforehand makes the result repeat.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[GPT1_UNKNOWN, *alphabet, *(character + WORD_END for character in alphabet)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer, length=len(texts))
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _alphabet(texts: list[str], backend: Backend, limit: int, min_frequency: int) -> list[str]:
    """Return the characters that are tokens of their own: ASCII's, then the most frequent others, sorted."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    normalized: Counter[str] = Counter()
    for character, count in counts.items():
        text = backend.normalizer.normalize_str(character) if backend.normalizer else character
        normalized.update({part: count for part in text if part == "\n" or not part.isspace()})
    if backend.normalizer:
        normalized.pop("\n", None)
    others = [item for item in normalized.items() if item[0] not in _ASCII and item[1] >= min_frequency]
    others.sort(key=lambda item: (-item[1], item[0]))
    return sorted([*_ASCII, *(character for character, _ in others[: limit - len(_ASCII)])])
