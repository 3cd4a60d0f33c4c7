"""Characters as tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from pathlib import Path

from tokenizers import Regex, decoders, pre_tokenizers
from tokenizers import Tokenizer as Backend

from ms_gpt.errors import UserError
from ms_gpt.tokenizer.base import iter_texts
from ms_gpt.tokenizer.vocabulary import VocabularyTokenizer


class CharacterTokenizer(VocabularyTokenizer):
    """One token a character, that is a Unicode code point: every text made of known ones comes back exactly.

    A character that the vocabulary lacks is the ``unk_token`` if there is one, and an error if not. A special token
    written out in a text is that token, not its characters.

    Args:
        vocab: The characters in the order of their ids; a text will do.
        special_tokens: Role to text, such as ``{"eos_token": "<|endoftext|>"}`` for an end of text or
            ``{"unk_token": "<unk>"}``; none by default.
        model_max_length: The longest row in tokens; None for no limit.
        padding_side: ``"right"`` or ``"left"``.
        truncation_side: The side that is cut off, ``"right"`` or ``"left"``.

    Raises:
        UserError: A token is not a non-empty text, or occurs twice.
    """

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        special_tokens: Mapping[str, str] | None = None,
        model_max_length: int | None = None,
    ) -> CharacterTokenizer:
        """Take the characters of texts, sorted by code point, as the vocabulary.

        Args:
            texts: The training texts; an iterator is read one text at a time.
            special_tokens: Role to text; appended after the characters.
            model_max_length: The longest row in tokens; None for no limit.

        Returns:
            The tokenizer.

        Raises:
            UserError: ``texts`` is not an iterable of texts or holds no character.
        """
        alphabet: set[str] = set()
        for text in iter_texts(texts):
            alphabet.update(text)
        if not alphabet:
            raise UserError("the training texts hold no characters: there is nothing to make a vocabulary of")
        return cls(sorted(alphabet), special_tokens, model_max_length)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> CharacterTokenizer:
        """Load a tokenizer from the files that `save_pretrained` wrote.

        Args:
            folder: Holds ``tokenizer.json``, and ``tokenizer_config.json`` with the special tokens and the longest
                row.

        Returns:
            The tokenizer.

        Raises:
            UserError: A file is missing, damaged, of another kind of tokenizer, or does not fit the others.
        """
        from ms_gpt.tokenizer.wordlevel import load

        return load(folder, cls)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [self._look_up(text, position) for position, text in enumerate(texts)]

    def _look_up(self, text: str, position: int) -> list[int]:
        # The library gives the same ids in thirty times the time and, at 400 bytes a character, much more memory.
        ids: list[int] = []
        for index, part in enumerate(self._specials.split(text) if self._specials else [text]):
            if index % 2:
                ids.append(self._ids[part])
            elif self.unk_token_id is not None:
                ids.extend(map(self._ids.get, part, repeat(self.unk_token_id)))
            else:
                self._extend_known(ids, part, position)
        return ids

    def _extend_known(self, ids: list[int], part: str, position: int) -> None:
        try:
            ids.extend(map(self._ids.__getitem__, part))
        except KeyError as error:
            character = error.args[0]
            raise UserError(
                f"texts[{position}] holds {character!r} (U+{ord(character):04X}), which is not among the {len(self)} "
                "tokens: train on texts that hold it, or add an unk_token"
            ) from None

    def _add_tokens(self, tokens: Sequence[str]) -> None:
        super()._add_tokens(tokens)
        longest_first = sorted(self._marked, key=len, reverse=True)
        self._specials = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None

    def _set_pipeline(self, backend: Backend) -> None:
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
