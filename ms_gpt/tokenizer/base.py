"""What every tokenizer here can do: encode, pad, truncate, decode and keep special tokens by role."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ms_gpt.errors import UserError, suggest

# In the order in which transformers adds the ones that a vocabulary lacks.
SPECIAL_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")

# The tokens of GPT-1's fine-tuning: start, delimiter and extract (the one whose hidden state is classified),
# with padding and an end of text for language modelling.
GPT1_SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "sep_token": "<delimiter>",
    "cls_token": "<extract>",
}

_SIDES = ("left", "right")
_PADDINGS = ("longest", "max_length")
# The library counts ids in 32 bits.
ID_LIMIT = 2**32


class _SpecialToken:
    """The text of the special token in one role, or None; assigning a text adds the token."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.role = name

    def __get__(self, tokenizer: BaseTokenizer, owner: type | None = None) -> str | None:
        return tokenizer.special_tokens.get(self.role)

    def __set__(self, tokenizer: BaseTokenizer, token: str) -> None:
        tokenizer.add_special_tokens({self.role: token})


class _SpecialTokenId:
    """The id of the special token in one role, or None."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.role = name.removesuffix("_id")

    def __get__(self, tokenizer: BaseTokenizer, owner: type | None = None) -> int | None:
        token = tokenizer.special_tokens.get(self.role)
        return None if token is None else tokenizer.token_to_id(token)


class BaseTokenizer(ABC):
    """The protocol of all tokenizers: text to ids and back.

    A subclass says what the vocabulary is and builds a pipeline of the ``tokenizers`` library from it; encoding,
    decoding, padding, truncation, special tokens and files are done here.

    Args:
        special_tokens: Role, such as ``"pad_token"``, to the token's text.
        model_max_length: The longest row in tokens that truncation and padding default to; None for no limit.
        padding_side: ``"right"`` or ``"left"``.
        truncation_side: The side that is cut off, ``"right"`` or ``"left"``.
    """

    unk_token, unk_token_id = _SpecialToken(), _SpecialTokenId()
    bos_token, bos_token_id = _SpecialToken(), _SpecialTokenId()
    eos_token, eos_token_id = _SpecialToken(), _SpecialTokenId()
    pad_token, pad_token_id = _SpecialToken(), _SpecialTokenId()
    sep_token, sep_token_id = _SpecialToken(), _SpecialTokenId()
    cls_token, cls_token_id = _SpecialToken(), _SpecialTokenId()
    # The pipeline, and the class of transformers that reads the files.
    _backend: Any
    _hf_class = "PreTrainedTokenizerFast"

    def __init__(
        self,
        special_tokens: Mapping[str, str] | None = None,
        model_max_length: int | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
    ) -> None:
        self.special_tokens: dict[str, str] = {}
        self.model_max_length = model_max_length
        self.padding_side = padding_side
        self.truncation_side = truncation_side
        self.add_special_tokens(special_tokens or {})

    @abstractmethod
    def token_to_id(self, token: str) -> int | None:
        """Return the id of ``token``, or None if it is not in the vocabulary."""

    @abstractmethod
    def id_to_token(self, token_id: int) -> str | None:
        """Return the token whose id is ``token_id``, or None if there is none."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of tokens, added ones included."""

    @abstractmethod
    def _add_tokens(self, tokens: Sequence[str]) -> None:
        """Append special tokens that the vocabulary lacks, in order, and mark all of them as special."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens, added ones included: what an embedding table needs."""
        return len(self)

    @property
    def start_token_id(self) -> int | None:
        """The token that stands in front of a document: the end of the one before, else a line end, or None."""
        candidates = (self.eos_token_id, self.token_to_id("\n"), self.token_to_id("\n</w>"))
        return next((token_id for token_id in candidates if token_id is not None), None)

    def add_special_tokens(self, tokens: Mapping[str, str]) -> int:
        """Set special tokens by role and append those that the vocabulary lacks.

        Args:
            tokens: Role (``unk_token``, ``bos_token``, ``eos_token``, ``pad_token``, ``sep_token``, ``cls_token``) to
                text. One text may have several roles. `GPT1_SPECIAL_TOKENS` is a ready set.

        Returns:
            How many tokens are new, so by how many rows an embedding table has to grow.

        Raises:
            UserError: A role is not known or a token is not a non-empty text.
        """
        for role, token in tokens.items():
            if role not in SPECIAL_ROLES:
                known = ", ".join(SPECIAL_ROLES)
                raise UserError(f"special token role {role!r} is not known: use {known}.{suggest(role, SPECIAL_ROLES)}")
            if not isinstance(token, str) or not token:
                raise UserError(f"{role}={token!r} is not a token: give a non-empty text")
        before = len(self)
        self._add_tokens(list(dict.fromkeys(tokens.values())))
        self.special_tokens.update(tokens)
        return len(self) - before

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Turn texts into rows of ids on all cores, adding no special tokens.

        Args:
            texts: The texts.

        Returns:
            One list of ids a text; empty for an empty text.

        Raises:
            UserError: ``texts`` is not a list of texts, or a text holds half of a surrogate pair.
        """
        return self._encode(check_texts(texts))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Turn ids into text.

        Args:
            ids: A list, array or tensor of ids, of one dimension; ids outside the vocabulary are left out.
            skip_special_tokens: Leave special tokens out.

        Returns:
            The text.
        """
        values: Any = ids.tolist() if hasattr(ids, "tolist") else ids
        return self._backend.decode([int(value) for value in values if 0 <= value < ID_LIMIT], skip_special_tokens)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the files that `Tokenizer.from_pretrained` reads, and transformers: it gives the same ids.

        Args:
            folder: Made if it is missing.

        Raises:
            UserError: A file cannot be written.
        """
        from ms_gpt.tokenizer.files import to_json, write_folder

        backend = self._saved_backend()
        added = {str(entry.pop("id")): entry for entry in json.loads(backend.to_str())["added_tokens"]}
        special_tokens = {role: self.special_tokens[role] for role in SPECIAL_ROLES if role in self.special_tokens}
        config = {
            "tokenizer_class": self._hf_class,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "clean_up_tokenization_spaces": False,
            **self._settings(),
            **special_tokens,
            "added_tokens_decoder": added,
        }
        write_folder(folder, {
            **self._vocabulary_files(),
            "tokenizer.json": backend.to_str(pretty=True) + "\n",
            "special_tokens_map.json": to_json(special_tokens),
            "tokenizer_config.json": to_json(config),
        })

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Turn texts that were checked into rows of ids."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _saved_backend(self) -> Any:
        """Return the pipeline that ``tokenizer.json`` holds."""
        return self._backend

    def _settings(self) -> dict[str, Any]:
        """Return a subclass's own settings for ``tokenizer_config.json``."""
        return {}

    def _vocabulary_files(self) -> dict[str, str]:
        """Return name and text of the files beside ``tokenizer.json`` that hold the vocabulary."""
        return {}

    def encode(self, text: str) -> list[int]:
        """Turn one text into ids, adding no special tokens.

        Args:
            text: The text.

        Returns:
            Its ids.

        Raises:
            UserError: ``text`` is not a text.
        """
        return self.encode_batch([text])[0]

    def batch_decode(self, rows: Iterable[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        """Turn rows of ids into texts.

        Args:
            rows: Lists of ids, or an array or tensor of two dimensions.
            skip_special_tokens: Leave special tokens out.

        Returns:
            One text a row.
        """
        return [self.decode(row, skip_special_tokens) for row in rows]

    def __call__(
        self,
        texts: str | Sequence[str],
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        truncation_side: str | None = None,
        return_tensors: str | None = None,
    ) -> dict[str, Any]:
        """Encode texts to rows of ids with their mask.

        Args:
            texts: One text or several.
            padding: False, True or ``"longest"`` (to the longest row), or ``"max_length"``.
            truncation: Cut rows to ``max_length``.
            max_length: Tokens a row, at least 1; `model_max_length` by default.
            truncation_side: The side that is cut off; the tokenizer's own by default.
            return_tensors: None for lists, ``"np"`` for NumPy arrays, ``"ms"`` for MindSpore tensors; both int32.

        Returns:
            ``input_ids`` and ``attention_mask`` (1 for a token, 0 for padding), one row a text. For one text without
            ``return_tensors``, the row itself.

        Raises:
            UserError: An argument is not one of those above, padding is asked for without a pad token, a length is
                needed and none is known, or tensors are asked for and the rows differ in length.
        """
        single = isinstance(texts, str)
        rows = self.encode_batch([texts] if single else texts)
        if truncation:
            length = self._length(max_length, "truncation=True")
            keep_end = _check("truncation_side", truncation_side or self.truncation_side, _SIDES) == "left"
            rows = [row[-length:] if keep_end else row[:length] for row in rows]
        masks = [[1] * len(row) for row in rows]
        if padding:
            rows, masks = self._pad(rows, masks, "longest" if padding is True else padding, max_length)
        if return_tensors is not None:
            return {"input_ids": _tensor(rows, return_tensors), "attention_mask": _tensor(masks, return_tensors)}
        return {"input_ids": rows[0] if single else rows, "attention_mask": masks[0] if single else masks}

    def _pad(
        self, rows: list[list[int]], masks: list[list[int]], padding: str, max_length: int | None
    ) -> tuple[list[list[int]], list[list[int]]]:
        _check("padding", padding, _PADDINGS)
        if self.pad_token_id is None:
            raise UserError(
                "padding needs a pad token and none is set: call add_special_tokens({'pad_token': '<pad>'})"
            )
        if padding == "longest":
            length = max(map(len, rows), default=0)
        else:
            length = self._length(max_length, "padding='max_length'")
        left = _check("padding_side", self.padding_side, _SIDES) == "left"

        def fill(items: list[int], value: int) -> list[int]:
            extra = [value] * (length - len(items))
            return extra + items if left else items + extra

        return [fill(row, self.pad_token_id) for row in rows], [fill(mask, 0) for mask in masks]

    def _length(self, max_length: int | None, reason: str) -> int:
        length = self.model_max_length if max_length is None else max_length
        if length is None:
            raise UserError(f"{reason} needs max_length: neither it nor the tokenizer's model_max_length is set")
        if not isinstance(length, int) or length < 1:
            raise UserError(f"max_length={length!r} is not a length: give a whole number of at least 1")
        return length


def check_texts(texts: Sequence[str]) -> list[str]:
    """Return ``texts`` as a list after checking that it holds texts only.

    Args:
        texts: What was passed as a batch.

    Returns:
        The texts.

    Raises:
        UserError: ``texts`` is a single text, or an item is not a text or holds half of a surrogate pair.
    """
    return list(iter_texts(texts))


def iter_texts(texts: Iterable[str]) -> Iterator[str]:
    """Yield ``texts`` one by one, each checked, so that what is larger than memory can be read.

    Args:
        texts: What was passed as a batch.

    Yields:
        The texts.

    Raises:
        UserError: As for `check_texts`, when the item is reached.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise UserError(f"texts is {texts!r:.40}, a {type(texts).__name__}: pass a list of texts")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"texts[{position}] is {text!r:.40}, a {type(text).__name__}: every item has to be a text")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"texts[{position}] holds {text[error.start]!r} at character {error.start}, half of a surrogate "
                    "pair: repair the text, for example with text.encode('utf-8', 'replace').decode()"
                ) from None
        yield text


def _check(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        known = " or ".join(map(repr, allowed))
        raise UserError(f"{name}={value!r} is not known: use {known}.{suggest(value, allowed)}")
    return value


def _tensor(rows: list[list[int]], kind: str) -> Any:
    import numpy as np

    _check("return_tensors", kind, ("np", "ms"))
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise UserError(
            f"rows of {lengths[0]} to {lengths[-1]} tokens make no tensor: pass padding=True, and truncation=True "
            "if some are too long"
        )
    array = np.array(rows, dtype=np.int32).reshape(len(rows), -1 if lengths and lengths[0] else 0)
    if kind == "np":
        return array
    import mindspore

    return mindspore.Tensor(array)
