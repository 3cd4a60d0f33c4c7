"""Record a command in a terminal and save the last screen as an SVG: ``pip install pyte rich``.

``python docs/record.py docs/images/run.svg python -m ms_gpt finetune --output-dir runs/sample``
"""

import os
import pty
import shlex
import subprocess
import sys

import pyte
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

COLUMNS, LINES = 112, 60


def record(command: list[str]) -> pyte.HistoryScreen:
    """Run a command in a terminal of its own, show what it prints, and return the screen it leaves."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    reader, writer = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": str(LINES), "TERM": "xterm-256color"}
    with subprocess.Popen(command, stdin=writer, stdout=writer, stderr=writer, env=environment) as process:
        os.close(writer)
        while True:
            try:
                data = os.read(reader, 65536)
            except OSError:  # What Linux says when the last writer has closed its end.
                break
            if not data:
                break
            stream.feed(data)
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
    if process.returncode:
        raise SystemExit(process.returncode)
    return screen


def lines(screen: pyte.Screen) -> list[Text]:
    """Return the lines of a screen down to the last that is not empty, in their colours."""
    found = []
    for row in range(screen.lines):
        text = Text()
        for column in range(screen.columns):
            char = screen.buffer[row][column]
            color = "" if char.fg == "default" else f"#{char.fg}" if len(char.fg) == 6 else char.fg
            color = color.replace("bright", "bright_").replace("brown", "yellow")
            text.append(char.data, f"{'bold ' if char.bold else ''}{color}".strip())
        text.rstrip()
        found.append(text)
    while found and not found[-1].plain:
        found.pop()
    return found


def main() -> None:
    """Read the file to write and the command from the command line."""
    target, *command = sys.argv[1:]
    screen = record(command)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(Text(f"$ {shlex.join(command)}", "bold green"))
        for line in lines(screen):
            console.print(line)
        console.save_svg(target, title="ms_gpt", theme=MONOKAI)


if __name__ == "__main__":
    main()
