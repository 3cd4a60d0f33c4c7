"""Learning a BPE from texts, in GPT-1's form or in GPT-2's."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from ms_gpt.errors import UserError
from ms_gpt.tokenizer.backend import END_OF_TEXT, GPT1_UNKNOWN, WORD_END, word_splitter
from ms_gpt.tokenizer.base import iter_texts
from ms_gpt.tokenizer.cleaning import clean_original

# Always in the alphabet, so that a small corpus without a 7 or a ? leaves no unknown token for them.
_ASCII = string.ascii_lowercase + string.digits + string.punctuation
MIN_VOCAB_SIZE = 2 * len(_ASCII) + 2
# The bytes, the end token and one merge.
MIN_BYTE_VOCAB_SIZE = 256 + 2

# All forms find the same words when a text is cut where the blanks at the end of a line begin.
_SEAM = re.compile(r"(?<=\S)(?=[ \t\r]*\n)")

Learnt = tuple[dict[str, int], list[tuple[str, str]]]


def learn_bpe(texts: Iterable[str], vocab_size: int, min_frequency: int, cleaning: str) -> Learnt:
    """Learn a vocabulary and its merges in GPT-1's form.

    The ids are laid out as GPT-1's: ``<unk>``, the characters, the characters that end a word, then one token a merge.

    Args:
        texts: The training texts, read twice; an iterator is read into memory.
        vocab_size: The most tokens to have, at least `MIN_VOCAB_SIZE`.
        min_frequency: How often a character or a pair has to occur, at least 1.
        cleaning: ``"hf"`` or ``"original"``.

    Returns:
        Token to id, and the merges in order of rank.

    Raises:
        UserError: A number is too small, there is no text, or ``texts`` is not an iterable of texts.

    Source: Sennrich, Haddow and Birch 2016, algorithm 1.
    """
    _check_numbers(vocab_size, MIN_VOCAB_SIZE, min_frequency)
    read = _passes(texts, clean_original if cleaning == "original" else str)
    backend = Backend(models.BPE(unk_token=GPT1_UNKNOWN, end_of_word_suffix=WORD_END))
    backend.normalizer, backend.pre_tokenizer = word_splitter(cleaning)
    alphabet = _alphabet(read(), backend, max(len(_ASCII), vocab_size // 4), min_frequency)
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
    return _train(backend, read(), trainer)


def learn_byte_bpe(texts: Iterable[str], vocab_size: int, min_frequency: int) -> Learnt:
    """Learn a vocabulary and its merges in GPT-2's form.

    The ids are laid out as GPT-2's: the bytes, one token a merge, then ``<|endoftext|>``. Where that stands in a text,
    it parts documents.

    Args:
        texts: The training texts, read once and one at a time.
        vocab_size: The most tokens to have, at least `MIN_BYTE_VOCAB_SIZE`.
        min_frequency: How often a pair has to occur, at least 1.

    Returns:
        Token to id, and the merges in order of rank.

    Raises:
        UserError: A number is too small, there is no text, or ``texts`` is not an iterable of texts.

    Source: GPT-2 paper, section 2.2.
    """
    _check_numbers(vocab_size, MIN_BYTE_VOCAB_SIZE, min_frequency)
    is_empty = True

    def documents() -> Iterator[str]:
        nonlocal is_empty
        for text in iter_texts(texts):
            is_empty = is_empty and not text.strip()
            yield from text.split(END_OF_TEXT)

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=min_frequency,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    vocab, merges = _train(backend, documents(), trainer)
    if is_empty:
        raise _nothing_to_learn()
    return {**vocab, END_OF_TEXT: len(vocab)}, merges


def _train(backend: Backend, texts: Iterable[str], trainer: trainers.BpeTrainer) -> Learnt:
    # Short pieces are counted on all cores, and take little memory.
    backend.train_from_iterator((piece for text in texts for piece in _SEAM.split(text)), trainer)
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _passes(texts: Iterable[str], clean: Callable[[str], str]) -> Callable[[], Iterable[str]]:
    """Return what begins a pass over the cleaned texts: what is in memory or cannot be read twice is cleaned once."""
    if isinstance(texts, Sequence | Iterator):
        kept = [clean(text) for text in iter_texts(texts)]
        return lambda: kept
    return lambda: map(clean, iter_texts(texts))


def _alphabet(texts: Iterable[str], backend: Backend, limit: int, min_frequency: int) -> list[str]:
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
    if not set(normalized) - {"\n"}:
        raise _nothing_to_learn()
    others = [item for item in normalized.items() if item[0] not in _ASCII and item[1] >= min_frequency]
    others.sort(key=lambda item: (-item[1], item[0]))
    return sorted([*_ASCII, *(character for character, _ in others[: limit - len(_ASCII)])])


def _check_numbers(vocab_size: int, least: int, min_frequency: int) -> None:
    if vocab_size < least:
        raise UserError(f"vocab_size={vocab_size} leaves no room for merges: give at least {least}")
    if min_frequency < 1:
        raise UserError(f"min_frequency={min_frequency} is not a count: give at least 1")


def _nothing_to_learn() -> UserError:
    return UserError("the training texts hold no words: there is nothing to learn a vocabulary from")
