"""Words as tokens, and loading of tokenizers that have one id a whole token."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from ms_gpt.errors import UserError, suggest
from ms_gpt.tokenizer.base import BaseTokenizer, iter_texts
from ms_gpt.tokenizer.characters import CharacterTokenizer
from ms_gpt.tokenizer.files import TokenizerFiles, read_folder
from ms_gpt.tokenizer.vocabulary import VocabularyTokenizer

WORD_MODES = ("basic_english", "whitespace")

_UNKNOWN = "<unk>"
_LINE_END = "<eos>"
# The library's trainer wants a limit.
_ALL_WORDS = 2**31
_T = TypeVar("_T", bound=BaseTokenizer)


class WordTokenizer(VocabularyTokenizer):
    r"""One token a word, and ``<unk>`` for words that the vocabulary lacks.

    ``"basic_english"`` follows torchtext: lower case; ``. , ' ( ) ! ?`` are words; ``" ; :`` and ``<br />`` are left
    out. ``"whitespace"`` gives WikiText's official tokens: case and punctuation stay, and every line end (``\n``) is
    the ``eos_token``. Special tokens written out in a text are recognised.

    Args:
        vocab: The words in the order of their ids.
        mode: ``"basic_english"`` or ``"whitespace"``.
        special_tokens: Role, such as ``"pad_token"``, to text; ``<unk>``, and ``<eos>`` for line ends, come by
            themselves.
        model_max_length: The longest row in tokens; None for no limit.
        padding_side: ``"right"`` or ``"left"``.
        truncation_side: The side that is cut off, ``"right"`` or ``"left"``.

    Raises:
        UserError: ``mode`` is not known, a token is not a non-empty text or occurs twice, or the token for line ends
            holds white space.
    """

    def __init__(
        self,
        vocab: Iterable[str],
        mode: str = "basic_english",
        special_tokens: Mapping[str, str] | None = None,
        model_max_length: int | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
    ) -> None:
        self.mode = _check_mode(mode)
        roles = _default_roles(mode) | dict(special_tokens or {})
        super().__init__(vocab, roles, model_max_length, padding_side, truncation_side)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        mode: str = "basic_english",
        vocab_size: int | None = None,
        min_frequency: int = 1,
        special_tokens: Mapping[str, str] | None = None,
        model_max_length: int | None = None,
    ) -> WordTokenizer:
        """Count the words of texts: special tokens come first, then words by falling frequency, ties in order.

        Args:
            texts: The training texts; an iterator is read piece by piece.
            mode: ``"basic_english"`` or ``"whitespace"``.
            vocab_size: The most tokens to have, special ones included; None for no limit.
            min_frequency: How often a word has to occur, at least 1.
            special_tokens: Role to text, as for the class.
            model_max_length: The longest row in tokens; None for no limit.

        Returns:
            The tokenizer.

        Raises:
            UserError: An argument is out of range, or there is nothing to learn from.
        """
        roles = _default_roles(_check_mode(mode)) | dict(special_tokens or {})
        empty = cls([], mode, roles)
        if vocab_size is not None and vocab_size <= len(empty):
            raise UserError(f"vocab_size={vocab_size} leaves no room for words beside the {len(empty)} special tokens: "
                            f"give at least {len(empty) + 1}")
        if min_frequency < 1:
            raise UserError(f"min_frequency={min_frequency} is not a count: give at least 1")
        words = [word for word in _count_words(empty, texts, min_frequency) if word not in empty._ids]
        if not words:
            raise UserError(f"the training texts hold no word that occurs {min_frequency} times or more: there is "
                            "nothing to make a vocabulary of")
        vocab = [*empty._tokens, *words]
        return cls(vocab[:vocab_size], mode, roles, model_max_length)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> WordTokenizer:
        """Load a tokenizer from the files that `save_pretrained` wrote.

        Args:
            folder: Holds ``tokenizer.json``, and ``tokenizer_config.json`` with the special tokens and the longest
                row.

        Returns:
            The tokenizer, in the mode it was saved in.

        Raises:
            UserError: A file is missing, damaged, of another kind of tokenizer, or does not fit the others.
        """
        return load(folder, cls)

    def add_special_tokens(self, tokens: Mapping[str, str]) -> int:
        """Set special tokens by role and append those that the vocabulary lacks.

        Args:
            tokens: As for `BaseTokenizer.add_special_tokens`. A new ``eos_token`` takes over the line ends in mode
                ``"whitespace"``.

        Returns:
            How many tokens are new, so by how many rows an embedding table has to grow.

        Raises:
            UserError: A role is not known, or a token is not a non-empty text or, for line ends, holds white space.
        """
        end = tokens.get("eos_token")
        if self.mode == "whitespace" and isinstance(end, str) and end and end.split() != [end]:
            raise UserError(f"eos_token={end!r:.40} holds white space: mode='whitespace' needs one word for line ends")
        return super().add_special_tokens(tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        r"""Turn ids into text; words are parted by single blanks.

        Args:
            ids: A list, array or tensor of ids, of one dimension; ids outside the vocabulary are left out.
            skip_special_tokens: Leave special tokens out; in mode ``"whitespace"`` the ``eos_token`` is then a line
                end (``\n``).

        Returns:
            The text.
        """
        if self.mode != "whitespace" or not skip_special_tokens:
            return super().decode(ids, skip_special_tokens)
        values: Any = ids.tolist() if hasattr(ids, "tolist") else ids
        lines: list[list[int]] = [[]]
        for value in values:
            if value == self.eos_token_id:
                lines.append([])
            else:
                lines[-1].append(value)
        return "\n".join(super(WordTokenizer, self).decode(line) for line in lines)

    def _set_pipeline(self, backend: Backend) -> None:
        blanks = pre_tokenizers.Split(Regex(r"[\s\x1c-\x1f]+"), "removed")  # Python's white space
        if self.mode == "whitespace":
            backend.normalizer = normalizers.Replace("\n", f" {self.special_tokens['eos_token']} ")
            backend.pre_tokenizer = blanks
        else:
            backend.normalizer = normalizers.Sequence([
                normalizers.Lowercase(),
                normalizers.Replace('"', ""),
                normalizers.Replace("<br />", " "),
                normalizers.Replace(Regex("[;:]"), " "),
            ])
            signs = pre_tokenizers.Split(Regex("['.,()!?]"), "isolated")
            backend.pre_tokenizer = pre_tokenizers.Sequence([blanks, signs])


def load(folder: str | Path, expected: type[_T]) -> _T:
    """Load a tokenizer of one id a whole token.

    Args:
        folder: Holds ``tokenizer.json``.
        expected: The class that it has to be; `BaseTokenizer` for any.

    Returns:
        The tokenizer.

    Raises:
        UserError: A file is missing, damaged, of another kind of tokenizer, or does not fit the others.
    """
    return build(read_folder(folder, ("WordLevel",)), folder, expected)


def build(files: TokenizerFiles, folder: str | Path, expected: type[_T]) -> _T:
    """Build the tokenizer that files of a word-level vocabulary describe.

    Args:
        files: What the files say.
        folder: Where they lie, for messages.
        expected: The class that it has to be; `BaseTokenizer` for any.

    Returns:
        The tokenizer.

    Raises:
        UserError: The files are of another kind of tokenizer, or do not fit each other.
    """
    ends = {"eos_token": files.special_tokens["eos_token"]} if "eos_token" in files.special_tokens else {}
    forms = [(CharacterTokenizer, {}), *((WordTokenizer, {"mode": mode}) for mode in WORD_MODES)]
    for kind, settings in forms:
        # The only sure sign of what a vocabulary is for is how texts are split for it.
        if _pipeline(kind([], special_tokens=ends, **settings)) == _steps(files.pipeline):
            if not issubclass(kind, expected):
                raise UserError(f"folder {folder} holds a {kind.__name__}: use {kind.__name__}.from_pretrained")
            return kind._from_files(files, folder, **settings)
    raise UserError(f"folder {folder} holds a tokenizer.json whose texts are split in a way that is not known here: "
                    "only the characters and words of ms_gpt can be read")


def _pipeline(tokenizer: VocabularyTokenizer) -> list[Any]:
    return _steps(json.loads(tokenizer._backend.to_str()))


def _steps(data: Mapping[str, Any]) -> list[Any]:
    return [data.get("normalizer"), data.get("pre_tokenizer"), data.get("decoder")]


def _count_words(tokenizer: WordTokenizer, texts: Iterable[str], min_frequency: int) -> list[str]:
    """Return the words that occur often enough, the most frequent first."""
    backend = Backend(models.WordLevel())
    tokenizer._set_pipeline(backend)
    trainer = trainers.WordLevelTrainer(vocab_size=_ALL_WORDS, min_frequency=min_frequency, show_progress=False)
    # A line end parts words in both modes, and short pieces are counted on all cores.
    lines = (line for text in iter_texts(texts) for line in text.splitlines(keepends=True))
    backend.train_from_iterator(lines, trainer)
    vocab = backend.get_vocab()
    return sorted(vocab, key=vocab.__getitem__)


def _check_mode(mode: str) -> str:
    if mode not in WORD_MODES:
        known = " or ".join(map(repr, WORD_MODES))
        raise UserError(f"mode={mode!r} is not known: use {known}.{suggest(mode, WORD_MODES)}")
    return mode


def _default_roles(mode: str) -> dict[str, str]:
    return {"unk_token": _UNKNOWN} | ({"eos_token": _LINE_END} if mode == "whitespace" else {})
