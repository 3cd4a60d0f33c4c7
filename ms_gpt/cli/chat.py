"""``ms-gpt chat``: a conversation with a language model, line by line."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from typing import Any

from ms_gpt.cli.generate import SamplingOptions, load, sampling, stream
from ms_gpt.cli.options import option
from ms_gpt.console import Console

HELP = "talk with a language model, line by line"
EXAMPLES = """examples:
  ms-gpt chat --model gpt2-folder
  ms-gpt chat --model gpt2-folder --system "A chat between a curious user and a helpful assistant."
  ms-gpt chat --model runs/shakespeare-char/best --user "JULIET:" --assistant "ROMEO:"

/reset forgets the conversation, /undo the last turn, /context shows what the model sees, /quit or Ctrl-D ends.
"""
COMMANDS = ("/reset", "/undo", "/context", "/quit")


@dataclass(kw_only=True)
class ChatOptions(SamplingOptions):
    """Who talks.

    Args:
        system: What stands before the first turn.
        user: What stands before a line of yours.
        assistant: What stands before an answer.
    """

    TITLE = "roles"

    system: str = option("", shown_default="nothing")
    user: str = "User:"
    assistant: str = "Assistant:"


OPTIONS = ChatOptions


@dataclass
class Conversation:
    """What has been said, and as much of it as a model can look at.

    Args:
        system: What stands before the first turn.
        user: What stands before a line of the user's.
        assistant: What stands before an answer.
        turns: Pairs of a line and its answer.
    """

    system: str
    user: str
    assistant: str
    turns: list[tuple[str, str]] = field(default_factory=list)

    def prompt(self, line: str, tokenizer: Any = None, limit: int | None = None) -> tuple[str, int]:
        """Return the text to continue, the oldest turns left out where it would be too long.

        Args:
            line: What the user says now.
            tokenizer: Counts tokens; needed with a limit.
            limit: Most tokens.

        Returns:
            The text, and the number of turns that were left out.
        """
        for first in range(len(self.turns) + 1):
            text = self._text(self.turns[first:], line)
            if limit is None or len(tokenizer.encode(text)) <= limit:
                return text, first
        return text, len(self.turns)

    def _text(self, turns: list[tuple[str, str]], line: str) -> str:
        said = [f"{self.user} {question}\n{self.assistant} {answer}" for question, answer in turns]
        start = [self.system] if self.system else []
        return "\n".join([*start, *said, f"{self.user} {line}\n{self.assistant}"])


def run(options: ChatOptions) -> dict[str, Any]:
    """Read lines and answer them until the input ends.

    Args:
        options: What the user asked for.

    Returns:
        ``turns``: pairs of a line and its answer.
    """
    console = Console(options.quiet, options.json)
    settings = sampling(options)
    # An answer ends where the model would go on with the user's next line.
    settings["stop"] = (*settings["stop"], f"\n{options.user}")
    from ms_gpt.generation import GenerationSettings, Session

    GenerationSettings(**settings).validate()
    model, tokenizer = load(options)
    # What has been said is not read again.
    session = Session(model)
    talk = Conversation(options.system, options.user, options.assistant)
    limit = max(model.config.n_positions - options.max_new_tokens, model.config.n_positions // 2)
    console.note(f"{', '.join(COMMANDS[:-1])} and {COMMANDS[-1]} are commands; everything else is said to the model")
    while (line := _read(options.user)) is not None:
        if line in COMMANDS:
            if line == "/quit":
                break
            _obey(line, talk, console)
        elif line:
            _answer(line, talk, console, session, tokenizer, settings, limit)
    return {"turns": talk.turns}


def _answer(line: str, talk: Conversation, console: Console, session: Any, tokenizer: Any, settings: dict[str, Any],
            limit: int) -> None:
    text, left_out = talk.prompt(line, tokenizer, limit)
    if left_out:
        console.note(f"(the oldest {left_out} of {len(talk.turns)} turns no longer fit into {limit} tokens)")
    console.write(talk.assistant)
    answer, _ = stream(console, session.model, tokenizer, text, settings, session)
    talk.turns.append((line, answer.strip()))


def _obey(command: str, talk: Conversation, console: Console) -> None:
    if command == "/context":
        console.result(talk.prompt("...")[0])
    elif command == "/undo":
        del talk.turns[-1:]
    else:
        talk.turns.clear()
    console.note(f"({len(talk.turns)} turns so far)")


def _read(prefix: str) -> str | None:
    """Return the user's next line, or ``None`` at the end of the input."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() history and editing
        try:
            return input(f"{prefix} ").strip()
        except EOFError:
            return None
    line = sys.stdin.readline()
    return line.strip() if line else None
