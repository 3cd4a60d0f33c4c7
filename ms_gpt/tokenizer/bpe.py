"""GPT's byte pair encodings on the ``tokenizers`` library: GPT-1's, and GPT-2's byte-level one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from ms_gpt.checkpoint.files import BPE_FILES
from ms_gpt.errors import UserError, suggest
from ms_gpt.tokenizer import wordlevel
from ms_gpt.tokenizer.backend import END_OF_TEXT, GPT1_UNKNOWN, build_backend, is_byte_level
from ms_gpt.tokenizer.base import ID_LIMIT, BaseTokenizer
from ms_gpt.tokenizer.cleaning import check_cleaning, clean_original
from ms_gpt.tokenizer.files import (
    added_token_fields,
    merges_text,
    read_folder,
    read_merges,
    read_vocab,
    to_json,
)
from ms_gpt.tokenizer.training import learn_bpe, learn_byte_bpe

BPE_KINDS = ("bpe", "byte-bpe")


class Tokenizer(BaseTokenizer):
    """GPT-1's BPE (lower case, ``</w>`` ends a word), or GPT-2's byte-level BPE, by what the vocabulary holds.

    GPT-1's texts are cleaned in one of two ways. ``"hf"`` gives the ids of transformers' ``OpenAIGPTTokenizer``:
    accents are stripped and every punctuation sign is a word. ``"original"`` follows the code GPT-1 was trained with:
    ftfy, OpenAI's standardisation of dashes, quotes and blanks, and spaCy's words (rewritten, see
    `ms_gpt.tokenizer.words`); accents stay, "hasn't" is has + n't, a line end is a token. `ms_gpt.tokenizer.cleaning`
    lists how they differ. Both recognise special tokens in a text, ``<unk>`` included, which OpenAI's code did not.
    transformers gives the ids of a saved folder for ``"hf"`` only: its files cannot express the other cleaning, so
    ``tokenizer.json`` always holds ``"hf"``. Words are parted by single blanks when ids are decoded; GPT-2's vocabulary
    gives back every text exactly.

    Args:
        vocab: Token to id, without tokens added later.
        merges: The pairs in order of rank.
        cleaning: ``"hf"`` or ``"original"``; byte-level vocabularies know ``"hf"`` only.
        special_tokens: Role, such as ``"pad_token"``, to text; ``<unk>`` (GPT-1) or ``<|endoftext|>`` for unknown,
            start and end (GPT-2) come by themselves.
        model_max_length: The longest row in tokens; GPT-1's 512 or GPT-2's 1,024 by default.
        padding_side: ``"right"`` or ``"left"``.
        truncation_side: The side that is cut off, ``"right"`` or ``"left"``.

    Raises:
        UserError: ``cleaning`` is not known or does not fit, or the vocabulary is of neither form or lacks the
            unknown token.

    Source: GPT-1 paper, section 4.1; GPT-2 paper, section 2.2.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        cleaning: str = "hf",
        special_tokens: Mapping[str, str] | None = None,
        model_max_length: int | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
    ) -> None:
        self.cleaning = check_cleaning(cleaning)
        self.byte_level = is_byte_level(vocab)
        required = END_OF_TEXT if self.byte_level else GPT1_UNKNOWN
        if required not in vocab:
            raise UserError(
                f"the vocabulary of {len(vocab)} tokens lacks {required!r}: it is neither GPT-1's form nor GPT-2's"
            )
        if self.byte_level:
            _check_byte_level_cleaning(cleaning)
        roles = ("unk_token", "bos_token", "eos_token") if self.byte_level else ("unk_token",)
        self._hf_class = "GPT2Tokenizer" if self.byte_level else "OpenAIGPTTokenizer"
        self._vocab, self._merges = dict(vocab), list(merges)
        self._added: list[AddedToken] = []
        self._backend = self._build_backend(cleaning)
        super().__init__(
            dict.fromkeys(roles, required) | dict(special_tokens or {}),
            model_max_length or (1024 if self.byte_level else 512),
            padding_side,
            truncation_side,
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path, cleaning: str | None = None) -> BaseTokenizer:
        """Load a tokenizer of any kind from its files.

        Args:
            folder: Holds ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``, or OpenAI's
                ``encoder_bpe_40000.json`` and ``vocab_40000.bpe``. ``tokenizer_config.json`` gives the cleaning, the
                special tokens and the longest row.
            cleaning: ``"hf"`` or ``"original"``; by default the saved one, else ``"original"`` under OpenAI's names
                and ``"hf"`` under Hugging Face's.

        Returns:
            The tokenizer; a `CharacterTokenizer` or `WordTokenizer` if the folder holds one.

        Raises:
            UserError: A file is missing, damaged, of another kind of tokenizer, or does not fit the others.
        """
        files = read_folder(folder, ("BPE", "WordLevel"))
        if files.model == "WordLevel":
            if cleaning is not None:
                raise UserError(f"cleaning={cleaning!r} is GPT-1's: folder {folder} holds no byte pair encoding")
            return wordlevel.build(files, folder, BaseTokenizer)
        config = files.config
        tokenizer = cls(
            files.vocab,
            files.merges,
            cleaning or config.get("cleaning") or ("original" if files.openai else "hf"),
            model_max_length=files.model_max_length,
            padding_side=config.get("padding_side") or "right",
            truncation_side=config.get("truncation_side") or "right",
        )
        added = sorted(files.added_tokens.items())
        tokenizer._register([AddedToken(**added_token_fields(token)) for _, token in added])
        for token_id, token in added:
            found = tokenizer.token_to_id(token["content"])
            if found != token_id:
                raise UserError(
                    f"folder {folder} gives the added token {token['content']!r} the id {token_id}, but after its "
                    f"vocabulary of {len(files.vocab)} tokens it would be {found}: the files do not belong together"
                )
        tokenizer.add_special_tokens(files.special_tokens)
        return tokenizer

    @classmethod
    def from_files(cls, vocab: str | Path, merges: str | Path, cleaning: str = "hf") -> Tokenizer:
        """Load a tokenizer from its two files, whatever they are called.

        Args:
            vocab: JSON of token to id.
            merges: Text with one merge a line.
            cleaning: ``"hf"`` or ``"original"``.

        Returns:
            The tokenizer.

        Raises:
            UserError: A file is missing or damaged, or the two do not fit.
        """
        tokens = read_vocab(vocab)
        return cls(tokens, read_merges(merges, tokens, Path(vocab).name), cleaning)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int = 8000,
        min_frequency: int = 2,
        cleaning: str = "hf",
        model_max_length: int | None = None,
        kind: str = "bpe",
    ) -> Tokenizer:
        """Learn a BPE in GPT-1's form or in GPT-2's; the same texts give the same tokenizer.

        Args:
            texts: The training texts. ``"byte-bpe"`` reads them one at a time, and so does ``"bpe"`` what can be read
                twice; an iterator it keeps in memory.
            vocab_size: The most tokens to learn, ``<unk>`` or ``<|endoftext|>`` included and tokens added later not.
            min_frequency: How often a pair, and a character of GPT-1's form, has to occur to become a token, at
                least 1.
            cleaning: ``"hf"`` or ``"original"``; ``"byte-bpe"`` knows ``"hf"`` only.
            model_max_length: The longest row in tokens; as for the class by default.
            kind: ``"bpe"`` (GPT-1's form) or ``"byte-bpe"`` (GPT-2's: no text is unknown, and all come back exactly).

        Returns:
            The tokenizer.

        Raises:
            UserError: An argument is not known or out of range, or there is nothing to learn from.
        """
        check_cleaning(cleaning)
        if kind not in BPE_KINDS:
            known = " or ".join(map(repr, BPE_KINDS))
            raise UserError(f"kind={kind!r} is not known: use {known}.{suggest(kind, BPE_KINDS)}")
        if kind == "bpe":
            vocab, merges = learn_bpe(texts, vocab_size, min_frequency, cleaning)
        else:
            _check_byte_level_cleaning(cleaning)
            vocab, merges = learn_byte_bpe(texts, vocab_size, min_frequency)
        return cls(vocab, merges, cleaning, model_max_length=model_max_length)

    def token_to_id(self, token: str) -> int | None:
        """Return the id of ``token``, or None if it is not in the vocabulary."""
        return self._backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token whose id is ``token_id``, or None if there is none."""
        return self._backend.id_to_token(int(token_id)) if 0 <= token_id < ID_LIMIT else None

    def __len__(self) -> int:
        """Return the number of tokens, added ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def _saved_backend(self) -> Any:
        # ``tokenizer.json`` can express no other cleaning.
        backend = self._build_backend("hf")
        backend.add_tokens(self._added)
        return backend

    def _settings(self) -> dict[str, Any]:
        return {"cleaning": self.cleaning}

    def _vocabulary_files(self) -> dict[str, str]:
        vocab = dict(sorted(self._vocab.items(), key=lambda item: item[1]))
        vocab_name, merges_name = BPE_FILES[0]
        return {vocab_name: to_json(vocab, indent=None), merges_name: merges_text(self._merges)}

    def _build_backend(self, cleaning: str) -> Any:
        return build_backend(self._vocab, self._merges, "byte-level" if self.byte_level else cleaning)

    def _add_tokens(self, tokens: Sequence[str]) -> None:
        known = {token.content for token in self._added if token.special}
        self._register([AddedToken(token, special=True, normalized=False) for token in tokens if token not in known])

    def _register(self, tokens: Sequence[AddedToken]) -> None:
        self._backend.add_tokens(list(tokens))
        latest = {token.content: token for token in [*self._added, *tokens]}
        self._added = list(latest.values())
        contents = sorted(latest, key=len, reverse=True)
        self._added_pattern = re.compile("(" + "|".join(map(re.escape, contents)) + ")") if contents else None

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return super()._encode([self._clean(text) for text in texts] if self.cleaning == "original" else texts)

    def _clean(self, text: str) -> str:
        """Clean as for GPT-1, except for added tokens, which cleaning would tear apart."""
        if self._added_pattern is None:
            return clean_original(text)
        parts = self._added_pattern.split(text)
        return " ".join(part if position % 2 else clean_original(part) for position, part in enumerate(parts))


def _check_byte_level_cleaning(cleaning: str) -> None:
    if cleaning != "hf":
        raise UserError(f"cleaning={cleaning!r} is GPT-1's: a byte-level vocabulary takes cleaning='hf'")
