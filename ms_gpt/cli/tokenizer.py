"""``ms-gpt tokenizer``: learn a tokenizer on any text, and look at what one does."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ms_gpt.cli.options import Options, flag_name, option
from ms_gpt.cli.texts import downloading
from ms_gpt.console import Console
from ms_gpt.errors import UserError

if TYPE_CHECKING:
    from ms_gpt.data.corpus import Documents
    from ms_gpt.tokenizer import BaseTokenizer

HELP = "learn a tokenizer on any text, or see what one does"
EXAMPLES = """examples:
  ms-gpt tokenizer train book.txt                             a byte BPE, GPT-2's form, in the folder tokenizer
  ms-gpt tokenizer train texts/ more.jsonl --vocab-size 16000 --output-dir my-tokenizer
  ms-gpt tokenizer train wikitext2 --kind words --min-frequency 3
  ms-gpt tokenizer show my-tokenizer "Any text."              its tokens and their ids
  ms-gpt tokenizer decode my-tokenizer 464 2646               the text of ids
"""

# Which flags belong to which kind.
_KINDS_OF = {
    "vocab_size": ("byte-bpe", "bpe", "words"),
    "min_frequency": ("byte-bpe", "bpe", "words"),
    "cleaning": ("bpe",),
    "word_mode": ("words",),
}
_MEASURED_CHARACTERS = 2_000_000
_EXAMPLE_CHARACTERS = 60


@dataclass(kw_only=True)
class TokenizerOptions(Options):
    """What to do, and with what.

    Args:
        action: train, show or decode.
        inputs: For train: texts, as for pretrain --data, of which the training part is read. For show: a folder, and
            texts to split. For decode: a folder, and ids.
        kind: byte-bpe (GPT-2's form), bpe (GPT-1's: lower case), words or characters.
        vocab_size: Most tokens to learn.
        min_frequency: How often a pair or a word has to occur to become a token.
        cleaning: What comes before GPT-1's BPE: as transformers does it, or as GPT-1's authors did.
        word_mode: Lower-case words apart from punctuation, or words as they stand between blanks.
        text_column: Column that holds the text.
        output_dir: Folder for the tokenizer.
    """

    TITLE = "tokenizer"

    action: Literal["train", "show", "decode"] = option(positional=True)
    inputs: list[str] = option([], positional=True, metavar="INPUT")
    kind: Literal["byte-bpe", "bpe", "words", "characters"] = "byte-bpe"
    vocab_size: int | None = option(None, shown_default="8000; no limit for words")
    min_frequency: int | None = option(None, shown_default="2; 1 for words")
    cleaning: Literal["hf", "original"] = "hf"
    word_mode: Literal["basic_english", "whitespace"] = "whitespace"
    text_column: str | None = option(None, shown_default="guessed")
    output_dir: Path = Path("tokenizer")


OPTIONS = TokenizerOptions


def run(options: TokenizerOptions) -> dict[str, Any]:
    """Do what is asked for.

    Args:
        options: What the user asked for.

    Returns:
        For ``train`` the folder, what the vocabulary is and ``characters_per_token``; for ``show`` what the vocabulary
        is and the ``ids`` and ``tokens`` of each text; for ``decode`` the ``text``.
    """
    console = Console(options.quiet, options.json)
    if not options.inputs:
        what = {"train": "a text to learn from", "show": "a tokenizer's folder", "decode": "a tokenizer's folder"}
        raise UserError(f"tokenizer {options.action} needs {what[options.action]}: name it after {options.action}")
    return {"train": _train, "show": _show, "decode": _decode}[options.action](console, options)


def _train(console: Console, options: TokenizerOptions) -> dict[str, Any]:
    for name, kinds in _KINDS_OF.items():
        if name in options.explicit and options.kind not in kinds:
            raise UserError(f"{flag_name(name)} is for --kind {' or '.join(kinds)}, not for {options.kind}")
    from ms_gpt.tokenizer import train_tokenizer

    _check_folder(options.output_dir)
    documents = _documents(console, options)
    console.header("tokenizer", {"learns from": ", ".join(options.inputs), "kind": options.kind,
                                 "folder": options.output_dir})
    tokenizer = train_tokenizer(documents, options.kind, options.vocab_size, options.min_frequency, options.cleaning,
                                options.word_mode)
    tokenizer.save_pretrained(options.output_dir)
    result = {"output_dir": str(options.output_dir), **_facts(tokenizer), **_measure(tokenizer, documents)}
    console.result(f"{result['vocab_size']:,} tokens; {result['characters_per_token']:.2f} characters a token on the "
                   f"first {result['characters']:,} characters")
    example = _split(tokenizer, result.pop("example"))
    console.result(f"{example['text']!r} is {' | '.join(example['tokens'])}")
    if len(options.inputs) == 1:
        console.next_command("pretrain", "--data", *options.inputs, "--tokenizer", options.output_dir)
    return {**result, "example": example}


def _show(console: Console, options: TokenizerOptions) -> dict[str, Any]:
    from ms_gpt.tokenizer import Tokenizer

    folder, *texts = options.inputs
    tokenizer = Tokenizer.from_pretrained(folder)
    facts = _facts(tokenizer)
    special = ", ".join(f"{role.removesuffix('_token')} {token}" for role, token in facts["special_tokens"].items())
    console.header("tokenizer", {"folder": folder, "class": facts["tokenizer"], "tokens": f"{facts['vocab_size']:,}",
                                 "special": special or "none", "longest row": facts["model_max_length"] or "no limit"})
    rows = [_split(tokenizer, text) for text in texts]
    for row in rows:
        # Of a byte BPE, tokens alone are hard to read.
        console.table(["id", "token", "text"], [[token_id, token, repr(tokenizer.decode([token_id], False))]
                                                for token_id, token in zip(row["ids"], row["tokens"], strict=True)])
    return {**facts, "texts": rows}


def _decode(console: Console, options: TokenizerOptions) -> dict[str, Any]:
    from ms_gpt.tokenizer import Tokenizer

    folder, *words = options.inputs
    tokenizer = Tokenizer.from_pretrained(folder)
    wrong = [word for word in words if not word.isdecimal() or tokenizer.id_to_token(int(word)) is None]
    if wrong:
        raise UserError(f"{wrong[0]!r} is not an id of {folder}: give whole numbers from 0 to {len(tokenizer) - 1}")
    text = tokenizer.decode([int(word) for word in words], skip_special_tokens=False)
    console.result(text)
    return {"text": text}


def _check_folder(folder: Path) -> None:
    from ms_gpt.checkpoint.files import TOKENIZER_FILES

    there = [name for name in TOKENIZER_FILES if (folder / name).exists()]
    if there:
        raise UserError(f"{folder} already holds a tokenizer ({there[0]}): give another --output-dir")


def _documents(console: Console, options: TokenizerOptions) -> Documents:
    from ms_gpt.data.corpus import Documents, read_parts

    parts = []
    for source in options.inputs:
        with downloading(console, source) as received:
            found = read_parts(source, options.text_column, received)
        parts.append(found.get("train") or next(iter(found.values())))
    return Documents(lambda: chain.from_iterable(part.read() for part in parts))


def _facts(tokenizer: BaseTokenizer) -> dict[str, Any]:
    return {"tokenizer": type(tokenizer).__name__, "vocab_size": len(tokenizer),
            "special_tokens": dict(tokenizer.special_tokens), "model_max_length": tokenizer.model_max_length}


def _measure(tokenizer: BaseTokenizer, documents: Documents) -> dict[str, Any]:
    """Encode the beginning of the texts, piece by piece."""
    characters = tokens = 0
    example = ""
    for text in documents:
        characters += len(text)
        tokens += len(tokenizer.encode(text))
        example = example or _first_words(text)
        if characters >= _MEASURED_CHARACTERS:
            break
    return {"characters": characters, "tokens": tokens, "characters_per_token": characters / max(tokens, 1),
            "example": example}


def _first_words(text: str) -> str:
    """Return the beginning of a text, up to a blank."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= _EXAMPLE_CHARACTERS else line[:_EXAMPLE_CHARACTERS].rsplit(None, 1)[0]


def _split(tokenizer: BaseTokenizer, text: str) -> dict[str, Any]:
    ids = tokenizer.encode(text)
    return {"text": text, "ids": ids, "tokens": [tokenizer.id_to_token(token_id) for token_id in ids]}
