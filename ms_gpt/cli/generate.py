"""``ms-gpt generate``: text that goes on where a prompt ends."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms_gpt.cli.options import RuntimeOptions, option
from ms_gpt.cli.texts import given_texts
from ms_gpt.console import Console
from ms_gpt.errors import UserError

HELP = "continue a text"
EXAMPLES = """examples:
  ms-gpt generate --model runs/shakespeare-char/best "ROMEO:" --max-new-tokens 300
  ms-gpt generate --model gpt2-folder "In a shocking finding," --temperature 0.7 --top-k 40 --seed 1
  ms-gpt generate --model gpt2-folder "The capital of France is" --greedy --stop "."
  ms-gpt generate --model gpt2-folder "Once upon a time" --num-beams 4 --num-return-sequences 2
  cat prompts.txt | ms-gpt generate --model gpt2-folder -
"""

# What people like to read: neither the most likely text, which repeats itself, nor the unlikely.
_TASTE = {"temperature": 0.8, "top_p": 0.95}


@dataclass(kw_only=True)
class SamplingOptions(RuntimeOptions):
    """How the next token is chosen.

    Args:
        model: Folder of the language model, any file that convert reads, or a name on the hub.
        max_new_tokens: Most tokens to add to each prompt.
        greedy: Take the most likely token each time.
        temperature: Sharpen (below 1) or flatten (above 1) the distribution.
        top_k: Draw from the k most likely tokens.
        top_p: Draw from the most likely tokens that together have this probability.
        repetition_penalty: Make tokens that occurred less likely; 1 for no penalty.
        no_repeat_ngram_size: Never write the same n tokens twice; 0 for no limit.
        stop: Texts that end the generation.
    """

    TITLE = "model and sampling"

    model: str = option(metavar="MODEL")
    max_new_tokens: int = 100
    greedy: bool = False
    temperature: float | None = option(None, shown_default="0.8, if nothing else is said")
    top_k: int | None = option(None, shown_default="all tokens")
    top_p: float | None = option(None, shown_default="0.95, if nothing else is said")
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    stop: list[str] = option([], shown_default="none")


@dataclass(kw_only=True)
class GenerateOptions(SamplingOptions):
    """What to continue.

    Args:
        prompts: Texts to continue; - reads one a line from standard input.
        file: File of prompts: one a line, or .csv, .tsv or .jsonl with a column of texts.
        text_column: Column that holds the text.
        num_beams: Keep this many candidates and return the most likely text; 1 for no search.
        length_penalty: Above 0 longer texts win in a beam search, below 0 shorter ones.
        num_return_sequences: Texts for each prompt.
        batch_size: Prompts in a batch.
        use_cache: Keep keys and values of the tokens so far; without, every step computes all of them again.
    """

    TITLE = "prompts"

    prompts: list[str] = option([], positional=True, metavar="PROMPT")
    file: Path | None = option(None, shown_default="none")
    text_column: str | None = option(None, shown_default="guessed")
    num_beams: int = 1
    length_penalty: float = 1.0
    num_return_sequences: int = 1
    batch_size: int = 8
    use_cache: bool = True


OPTIONS = GenerateOptions


def run(options: GenerateOptions) -> dict[str, Any]:
    """Continue the prompts; one alone is printed as it is written.

    Args:
        options: What the user asked for.

    Returns:
        ``prompts``, ``texts`` (prompt and continuation; a list for each prompt with several return sequences) and
        ``tokens_per_second``, compilation included.
    """
    console = Console(options.quiet, options.json)
    # Without a prompt the model begins by itself.
    prompts = list(given_texts(options.prompts, options.file, options.text_column, "prompts") or ()) or [""]
    settings = {**sampling(options), "num_beams": options.num_beams, "length_penalty": options.length_penalty,
                "num_return_sequences": options.num_return_sequences, "use_cache": options.use_cache}
    from ms_gpt.generation import GenerationSettings

    GenerationSettings(**settings).validate()
    model, tokenizer = load(options)
    texts: list[Any] = []
    tokens, started = 0, time.perf_counter()
    if len(prompts) == 1 and options.num_beams == options.num_return_sequences == 1:
        text, tokens = stream(console, model, tokenizer, prompts[0], settings, with_prompt=True)
        texts = [prompts[0] + text]
    else:
        texts, tokens = _in_batches(console, model, tokenizer, prompts, settings, options.batch_size)
    speed = tokens / max(time.perf_counter() - started, 1e-9)
    console.note(f"{tokens} tokens, {speed:.1f} a second, compilation included")
    return {"prompts": prompts, "texts": texts, "tokens_per_second": speed}


def sampling(options: SamplingOptions) -> dict[str, Any]:
    """Translate the flags of both verbs to settings of ``GenerationSettings``.

    Args:
        options: The flags.

    Returns:
        Names and values of the settings.

    Raises:
        UserError: ``--greedy`` stands beside a setting that is for drawing.
    """
    drawing = {name: value for name in ("temperature", "top_k", "top_p")
               if (value := getattr(options, name)) is not None}
    if options.greedy and drawing:
        raise UserError(f"--greedy takes the most likely token, so --{next(iter(drawing)).replace('_', '-')} has no "
                        "meaning beside it: leave one out")
    if not options.greedy and not drawing and getattr(options, "num_beams", 1) == 1:
        drawing = dict(_TASTE)
    return {**drawing, "max_new_tokens": options.max_new_tokens, "repetition_penalty": options.repetition_penalty,
            "no_repeat_ngram_size": options.no_repeat_ngram_size, "stop": tuple(options.stop), "seed": options.seed}


def load(options: SamplingOptions) -> tuple[Any, Any]:
    """Set the device up and load a language model with its tokenizer.

    Args:
        options: The flags.

    Returns:
        Model and tokenizer.

    Raises:
        UserError: The folder is missing or holds no language model.
    """
    from ms_gpt.heads import GPTLMHeadModel
    from ms_gpt.training.scoring import load_model

    model, tokenizer = load_model(options.model, options)
    if not isinstance(model, GPTLMHeadModel):
        raise UserError(f"{options.model} holds a {type(model).__name__}, which cannot write: give a folder with a "
                        "language model, such as pretrain leaves")
    return model, tokenizer


def stream(console: Console, model: Any, tokenizer: Any, prompt: str, settings: dict[str, Any],
           session: Any = None, with_prompt: bool = False) -> tuple[str, int]:
    """Print a continuation as it is written.

    Args:
        console: Where it is printed.
        model: A language model.
        tokenizer: Its tokenizer.
        prompt: What is continued.
        settings: Fields of ``GenerationSettings``.
        session: A ``generation.Session`` that remembers what it has read, or ``None``.
        with_prompt: Print the prompt first.

    Returns:
        The continuation, and its number of tokens.
    """
    from ms_gpt.generation import stream_generate

    pieces, tokens = [], 0
    if with_prompt:
        console.write(prompt)
    for chunk in stream_generate(model, tokenizer, prompt, session, **settings):
        if chunk.prompt_tokens_cut and not tokens:
            console.warn(f"the prompt is longer than the model's {model.config.n_positions} tokens: the first "
                         f"{chunk.prompt_tokens_cut} are not seen")
        console.write(chunk.text)
        pieces.append(chunk.text)
        tokens += len(chunk.token_ids)
    console.write("\n")
    return "".join(pieces), tokens


def _in_batches(console: Console, model: Any, tokenizer: Any, prompts: list[str], settings: dict[str, Any],
                batch_size: int) -> tuple[list[Any], int]:
    from ms_gpt.generation import generate

    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} is not a whole number of at least 1")
    texts, tokens, each = [], 0, settings["num_return_sequences"]
    for start in range(0, len(prompts), batch_size):
        chunk = prompts[start : start + batch_size]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            written = generate(model, tokenizer, chunk, **settings)
        for warning in said:
            console.warn(str(warning.message))
        for index, prompt in enumerate(chunk):
            group = written[index * each : (index + 1) * each]
            tokens += sum(len(tokenizer.encode(text[len(prompt):])) for text in group)
            for text in group:
                console.result(text + ("\n" if each > 1 or "\n" in text else ""))
            texts.append(group if each > 1 else group[0])
    return texts, tokens
