"""The folder of a run: where it is, what it says about itself, and how it is taken up again."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ms_gpt.cli.options import RuntimeOptions, flag_name, read_config
from ms_gpt.console import Console, program_name
from ms_gpt.errors import UserError

AnyRun = TypeVar("AnyRun", bound=RuntimeOptions)


def place(options: AnyRun, verb: str, name: str, only_from_scratch: Sequence[str] = ()) -> AnyRun:
    """Choose the folder of the run, and take up the settings of the run that is to be resumed.

    Args:
        options: As parsed; has ``output_dir``, ``resume`` and ``model``.
        verb: The verb, for messages.
        name: What is trained on, or how: names the folder under ``runs`` where none was given.
        only_from_scratch: Settings that do not go with ``model``.

    Returns:
        Options with a folder.

    Raises:
        UserError: The folder already holds a run, or a setting does not go with pre-trained weights.
    """
    folder = options.output_dir or _default_folder(name, options.resume)
    written = folder / "recipe.yaml"
    values: dict[str, Any] = {"output_dir": folder}
    if options.resume and written.exists():
        try:
            before = read_config(written, type(options), verb)
        except UserError as error:
            raise UserError(f"{folder} cannot be resumed by {verb}: {error}") from None
        values = {**{key: value for key, value in before.items() if key not in options.explicit}, **values,
                  "resume": True}
    elif written.exists():
        raise UserError(f"{folder} already holds a run: add --resume to go on with it, or give another --output-dir")
    options = dataclasses.replace(options, **values)
    if options.model is not None and not options.resume:
        wrong = [item for item in only_from_scratch if item in options.explicit]
        if wrong:
            raise UserError(f"{flag_name(wrong[0])} is for training from scratch: {options.model} already says what "
                            "the model is")
    return options


@contextlib.contextmanager
def resumable(options: RuntimeOptions, verb: str, console: Console) -> Iterator[None]:
    """Write the recipe, and say how to go on with what an interruption inside the block leaves.

    Args:
        options: Has ``output_dir`` and ``resume``.
        verb: The verb.
        console: Where it is said that there was nothing to resume.

    Raises:
        KeyboardInterrupt: With the command that goes on.
    """
    from ms_gpt.checkpoint.resume import STATE_FILE

    folder = options.output_dir
    is_resumed = options.resume and ((folder / "recipe.yaml").exists() or any(folder.rglob(STATE_FILE)))
    if options.resume and not is_resumed:
        console.note(f"{folder} holds no run to go on with: this is a new one")
    if not is_resumed:
        _write_recipe(options)
    try:
        yield
    except KeyboardInterrupt:
        if is_resumed:
            _write_recipe(options)
        command = f"'{program_name()} {verb} --output-dir {shlex.quote(str(folder))} --resume'"
        is_saved = any(folder.rglob(STATE_FILE))
        raise KeyboardInterrupt(f"{folder} holds the run so far; {command} goes on from its last save" if is_saved else
                                f"nothing was saved yet; {command} starts again") from None
    if is_resumed:
        # Only afterwards: the settings of a continuation that was refused are not the run's.
        _write_recipe(options)


def _write_recipe(options: RuntimeOptions) -> None:
    """Write ``recipe.yaml``: every setting of the run, fit for ``--config``."""
    import yaml

    from ms_gpt.checkpoint.atomic import write_text

    # Whether a run went on is no setting of it: the file is to start new ones.
    values = {**options.to_dict(), "resume": False}
    write_text(options.output_dir / "recipe.yaml", yaml.safe_dump(values, sort_keys=False))


def _default_folder(name: str, resume: bool) -> Path:
    """Return ``runs/NAME``, or the next free ``runs/NAME-2`` for a new run."""
    name = Path(name).name.split(".")[0].replace(":", "-") or "data"
    first, number = Path("runs") / name, 2
    folder = first
    while (folder / "recipe.yaml").exists():
        following = first.with_name(f"{name}-{number}")
        if resume and not (following / "recipe.yaml").exists():
            break
        folder, number = following, number + 1
    return folder
