"""What characters and words share: one id for each whole token, on the ``tokenizers`` library's word-level model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Backend

from ms_gpt.errors import UserError
from ms_gpt.tokenizer.base import BaseTokenizer
from ms_gpt.tokenizer.files import TokenizerFiles


class VocabularyTokenizer(BaseTokenizer):
    """A tokenizer whose tokens are looked up whole; a subclass says how a text is split into them.

    Special tokens are members of the vocabulary like all others, and are recognised anywhere in a text.

    Args:
        vocab: The tokens in the order of their ids.
        special_tokens: Role, such as ``"pad_token"``, to text; those that ``vocab`` lacks are appended.
        model_max_length: The longest row in tokens; None for no limit.
        padding_side: ``"right"`` or ``"left"``.
        truncation_side: The side that is cut off, ``"right"`` or ``"left"``.

    Raises:
        UserError: A token is not a non-empty text, or occurs twice.
    """

    def __init__(
        self,
        vocab: Iterable[str],
        special_tokens: Mapping[str, str] | None = None,
        model_max_length: int | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
    ) -> None:
        self._tokens: list[str] = []
        self._ids: dict[str, int] = {}
        self._marked: dict[str, None] = {}
        for token in vocab:
            if token in self._ids:
                raise UserError(f"vocab holds {token!r:.40} twice, as {self._ids[token]} and {len(self._ids)}: "
                                "every token has one id")
            self._append(token)
        super().__init__(special_tokens, model_max_length, padding_side, truncation_side)

    @abstractmethod
    def _set_pipeline(self, backend: Backend) -> None:
        """Give ``backend`` what splits a text into tokens and what joins them again."""

    def add_special_tokens(self, tokens: Mapping[str, str]) -> int:
        """Set special tokens by role and append those that the vocabulary lacks.

        Args:
            tokens: As for `BaseTokenizer.add_special_tokens`. From now on the ``unk_token`` stands for what the
                vocabulary lacks.

        Returns:
            How many tokens are new, so by how many rows an embedding table has to grow.

        Raises:
            UserError: A role is not known or a token is not a non-empty text.
        """
        new = super().add_special_tokens(tokens)
        # The model and the pipeline name special tokens, so that neither can be kept.
        self._backend = self._build_backend()
        return new

    def token_to_id(self, token: str) -> int | None:
        """Return the id of ``token``, or None if it is not in the vocabulary."""
        return self._ids.get(token)

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token whose id is ``token_id``, or None if there is none."""
        return self._tokens[int(token_id)] if 0 <= token_id < len(self) else None

    def __len__(self) -> int:
        """Return the number of tokens, special ones included."""
        return len(self._tokens)

    @classmethod
    def _from_files(cls, files: TokenizerFiles, folder: str | Path, **settings: Any) -> VocabularyTokenizer:
        """Build the tokenizer that the files of ``folder`` describe, with the subclass's own ``settings``."""
        config = files.config
        tokens = sorted(files.vocab, key=files.vocab.__getitem__)
        for token_id, token in enumerate(tokens):
            if files.vocab[token] != token_id:
                raise UserError(f"folder {folder} has a vocabulary of {len(tokens)} tokens without the id {token_id}: "
                                "the ids have to be whole numbers from 0 without a gap")
        unknown = files.pipeline["model"].get("unk_token")
        roles = {"unk_token": unknown} if isinstance(unknown, str) and unknown in files.vocab else {}
        tokenizer = cls(
            tokens,
            special_tokens=roles | files.special_tokens,
            model_max_length=files.model_max_length,
            padding_side=config.get("padding_side") or "right",
            truncation_side=config.get("truncation_side") or "right",
            **settings,
        )
        added = sorted(files.added_tokens.items())
        tokenizer._add_tokens([token["content"] for _, token in added])
        tokenizer._backend = tokenizer._build_backend()
        for token_id, token in added:
            found = tokenizer.token_to_id(token["content"])
            if found != token_id:
                raise UserError(
                    f"folder {folder} gives the added token {token['content']!r:.40} the id {token_id}, but after its "
                    f"vocabulary of {len(tokens)} tokens it would be {found}: the files do not belong together"
                )
        return tokenizer

    def _add_tokens(self, tokens: Sequence[str]) -> None:
        for token in tokens:
            if token not in self._ids:
                self._append(token)
            self._marked[token] = None

    def _append(self, token: str) -> None:
        if not isinstance(token, str) or not token:
            raise UserError(f"vocab[{len(self._ids)}] is {token!r:.40}: a token is a non-empty text")
        if any("\ud800" <= character <= "\udfff" for character in token):
            raise UserError(f"token {token!r:.40} holds half of a surrogate pair: no text can hold it")
        self._ids[token] = len(self._tokens)
        self._tokens.append(token)

    def _build_backend(self) -> Backend:
        # Without an unknown token, "" is none: a token is never empty.
        backend = Backend(models.WordLevel(vocab=self._ids, unk_token=self.special_tokens.get("unk_token", "")))
        self._set_pipeline(backend)
        backend.add_tokens([AddedToken(token, special=True, normalized=False) for token in self._marked])
        return backend
