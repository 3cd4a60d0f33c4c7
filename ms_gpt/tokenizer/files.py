"""Tokenizer files: finding, reading and checking them, and writing them as transformers reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ms_gpt.checkpoint.atomic import write_text
from ms_gpt.checkpoint.errors import nearby
from ms_gpt.checkpoint.files import BPE_FILES
from ms_gpt.checkpoint.hub import resolve
from ms_gpt.errors import UserError
from ms_gpt.tokenizer.backend import WORD_END, is_byte_level
from ms_gpt.tokenizer.base import SPECIAL_ROLES

_ADDED_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

_READABLE = {
    "BPE": "GPT-1's and GPT-2's byte pair encodings",
    "WordLevel": "the characters and words of ms_gpt",
}

# What transformers writes for "no limit" is a number of thirty digits.
_NO_LIMIT = 10**9


@dataclass
class TokenizerFiles:
    """What the files of one folder say.

    Args:
        vocab: Token to id, without added tokens.
        merges: The pairs in order of rank; none for a word-level vocabulary.
        openai: Whether the files carry OpenAI's GPT-1 names.
        added_tokens: Id to the added token's ``content`` and flags.
        config: ``tokenizer_config.json`` over ``special_tokens_map.json``.
        model: ``"BPE"`` or ``"WordLevel"``.
        pipeline: ``tokenizer.json`` without its model, for a word-level vocabulary.
    """

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    openai: bool = False
    added_tokens: dict[int, dict[str, Any]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    model: str = "BPE"
    pipeline: dict[str, Any] = field(default_factory=dict)

    @property
    def special_tokens(self) -> dict[str, str]:
        """Role to text, for the roles that are set."""
        tokens = {role: self.config.get(role) for role in SPECIAL_ROLES}
        contents = {role: item.get("content") if isinstance(item, dict) else item for role, item in tokens.items()}
        return {role: content for role, content in contents.items() if content}

    @property
    def model_max_length(self) -> int | None:
        """The longest row in tokens, None for no limit or if the files do not say."""
        length = self.config.get("model_max_length")
        return int(length) if isinstance(length, int | float) and 1 <= length < _NO_LIMIT else None


def read_folder(folder: str | Path, models: Sequence[str] = ("BPE",)) -> TokenizerFiles:
    """Read a tokenizer's folder.

    Args:
        folder: Holds ``tokenizer.json`` or one of `BPE_FILES`; the former is preferred. Or a model's name on the hub.
        models: Which models ``tokenizer.json`` may hold, of ``"BPE"`` and ``"WordLevel"``.

    Returns:
        What the files say.

    Raises:
        UserError: The folder or a file is missing, is not what its name says, or does not fit the others.
    """
    folder = resolve(folder)
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "not there"
        raise UserError(f"tokenizer folder {folder} is {what}: give a folder with {_expected()}.{nearby(folder)}"
                        .removesuffix("."))
    if (folder / "tokenizer.json").exists():
        files = _read_tokenizer_json(folder / "tokenizer.json", models)
    else:
        files = _read_pair(folder)
    special_map, config, added = (
        _read_object(folder / name) if (folder / name).exists() else {}
        for name in ("special_tokens_map.json", "tokenizer_config.json", "added_tokens.json")
    )
    files.config = special_map | config
    decoder = (config.get("added_tokens_decoder") or {}).items()
    listed = [*decoder, *((token_id, {"content": content, "special": True}) for content, token_id in added.items())]
    for token_id, token in listed:
        if not str(token_id).isdecimal() or not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise UserError(f"folder {folder} lists the added token {token!r:.60} with the id {token_id!r:.20}: "
                            "expected a whole number and an object with its content")
        files.added_tokens.setdefault(int(token_id), token)
    return files


def read_vocab(path: str | Path) -> dict[str, int]:
    """Read a vocabulary.

    Args:
        path: A JSON object of token to id.

    Returns:
        The same.

    Raises:
        UserError: The file is missing, not such an object, empty, or gives one id twice.
    """
    return _check_vocab(_read_object(Path(path)), path)


def read_merges(path: str | Path, vocab: Mapping[str, int], vocab_name: str) -> list[tuple[str, str]]:
    """Read the merges of a vocabulary.

    Args:
        path: A text file with an optional ``#version`` line and one pair a line, parted by a blank.
        vocab: Token to id.
        vocab_name: The vocabulary's file name, for messages.

    Returns:
        The pairs in order of rank.

    Raises:
        UserError: The file is missing, a line is not a pair, or a pair or its product is not in ``vocab``.
    """
    path = Path(path)
    lines = _read_text(path).split("\n")
    first = 1 if lines[0].startswith("#version") else 0
    merges = []
    for number, line in enumerate(lines[first:], first + 1):
        line = line.removesuffix("\r")
        if not line:
            continue
        pair = tuple(line.split(" "))
        if len(pair) != 2 or not all(pair):
            raise UserError(f"{path} line {number} is {line!r:.60}: a merge is two tokens parted by one blank")
        _check_merge(pair, vocab, f"{path} line {number}", vocab_name)
        merges.append(pair)
    return merges


def write_folder(folder: str | Path, contents: Mapping[str, str]) -> None:
    """Write a tokenizer's files, each beside its place and renamed.

    Args:
        folder: Made if it is missing.
        contents: File name to text.

    Raises:
        UserError: A file cannot be written.
    """
    for name, text in contents.items():
        write_text(Path(folder) / name, text)


def to_json(value: Any, indent: int | None = 2) -> str:
    """Return ``value`` as JSON in its own order, with all characters as they are."""
    return json.dumps(value, indent=indent, ensure_ascii=False) + "\n"


def merges_text(merges: Sequence[tuple[str, str]]) -> str:
    """Return the text of a ``merges.txt``."""
    return "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""])


def _read_pair(folder: Path) -> TokenizerFiles:
    for names in BPE_FILES:
        vocab_path, merges_path = (folder / name for name in names)
        if vocab_path.exists() and merges_path.exists():
            vocab = read_vocab(vocab_path)
            merges = read_merges(merges_path, vocab, vocab_path.name)
            return TokenizerFiles(vocab, merges, openai=names == BPE_FILES[1])
    for vocab_name, merges_name in BPE_FILES:
        for present, absent in ((vocab_name, merges_name), (merges_name, vocab_name)):
            if (folder / present).exists():
                raise UserError(f"{folder / absent} is missing: {present} is of no use without it")
    raise UserError(f"folder {folder} holds no tokenizer: expected {_expected()}")


def _read_tokenizer_json(path: Path, models: Sequence[str]) -> TokenizerFiles:
    data = _read_object(path)
    model = data.get("model")
    known = isinstance(model, dict) and isinstance(model.get("vocab"), dict)
    kind = ("BPE" if "merges" in model else model.get("type")) if known else None
    if kind not in models:
        wanted = " and no ".join(f"{name} model" for name in models)
        readable = " and ".join(_READABLE[name] for name in models)
        raise UserError(f"{path} holds no {wanted}: only {readable} can be read")
    vocab = _check_vocab(model["vocab"], path)
    added_tokens = _read_added(data, path)
    if kind == "WordLevel":
        return TokenizerFiles(vocab, [], added_tokens=added_tokens, model=kind, pipeline=data)
    _check_pipeline(data, vocab, path)
    merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    for number, pair in enumerate(merges):
        if len(pair) != 2:
            raise UserError(f"{path} merge {number} is {pair!r:.60}: a merge is two tokens")
        _check_merge(pair, vocab, f"{path} merge {number}", "its vocabulary")
    return TokenizerFiles(vocab, merges, added_tokens=added_tokens)


def _read_added(data: dict[str, Any], path: Path) -> dict[int, dict[str, Any]]:
    added = {}
    for token in data.get("added_tokens") or []:
        if not isinstance(token, dict) or type(token.get("id")) is not int or not isinstance(token.get("content"), str):
            raise UserError(f"{path} lists the added token {token!r:.60}: expected an object with its id and content")
        added[token["id"]] = token
    return added


def _check_pipeline(data: dict[str, Any], vocab: Mapping[str, int], path: Path) -> None:
    """Refuse a pipeline whose ids would differ from those of the two that are built here."""
    normalizer, splitter = data.get("normalizer") or {}, data.get("pre_tokenizer") or {}
    if is_byte_level(vocab):
        known = not normalizer and splitter.get("type") == "ByteLevel" and not splitter.get("add_prefix_space")
    else:
        known = (
            (normalizer.get("type"), normalizer.get("lowercase")) == ("BertNormalizer", True)
            and splitter.get("type") == "BertPreTokenizer"
            and data["model"].get("end_of_word_suffix") == WORD_END
        )
    if not known:
        steps = f"{normalizer.get('type')} and {splitter.get('type')}"
        raise UserError(
            f"{path} cleans and splits with {steps}: only GPT-1's (BertNormalizer in lower case and BertPreTokenizer, "
            "with '</w>') and GPT-2's (None and ByteLevel) can be read"
        )


def _check_vocab(vocab: dict[str, Any], path: str | Path) -> dict[str, int]:
    if not vocab:
        raise UserError(f"{path} holds no tokens: expected a JSON object of token to id")
    owners: dict[int, str] = {}
    for token, token_id in vocab.items():
        if type(token_id) is not int or token_id < 0:
            raise UserError(f"{path} gives {token!r} the id {token_id!r:.40}: an id is a whole number from 0")
        if token_id in owners:
            raise UserError(f"{path} gives the id {token_id} to both {owners[token_id]!r} and {token!r}")
        owners[token_id] = token
    return vocab


def _check_merge(pair: Sequence[str], vocab: Mapping[str, int], place: str, vocab_name: str) -> None:
    for token in (*pair, "".join(pair)):
        if token not in vocab:
            raise UserError(
                f"{place} is {' '.join(pair)!r:.60} but {token!r:.40} is not in {vocab_name}: "
                "the merges and the vocabulary have to come from one tokenizer"
            )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}: expected an object")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: give the path of an existing file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from None


def _expected() -> str:
    return "tokenizer.json, or " + ", or ".join(" and ".join(names) for names in BPE_FILES)


def added_token_fields(token: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of ``tokenizers.AddedToken`` out of a file's entry."""
    special = bool(token.get("special"))
    return {"content": token["content"], "normalized": not special} | {
        flag: bool(token[flag]) for flag in _ADDED_TOKEN_FLAGS if flag in token
    }
