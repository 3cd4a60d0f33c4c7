"""Dataclasses as command-line flags and YAML settings: a field is a flag, its docstring line is the help."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from ms_gpt.errors import UserError, suggest

_RULES = {
    str: "text (in YAML, put it in quotes)",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    Path: "a path",
}
_PLACEHOLDERS = {str: "TEXT", int: "N", float: "X", Path: "PATH"}


@dataclass(kw_only=True)
class Options:
    """What every verb takes; a verb's options inherit from it.

    Args:
        config: YAML file with settings, keys named like the flags; a flag given on the command line wins.
        quiet: Print errors and results only.
        json: Print one JSON object on stdout, everything else on stderr.
        explicit: Names of the fields that were set by a flag or in the YAML file, not left at their default.
    """

    TITLE = "output and settings"

    config: Path | None = field(default=None, metadata={"shown_default": "none"})
    quiet: bool = False
    json: bool = False
    explicit: frozenset[str] = field(default=frozenset(), repr=False, compare=False, metadata={"flag": False})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values that ``--config`` reads back; those left at ``None`` are absent."""
        left_out = {"config", "quiet", "json", "explicit"}
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {name: _plain(value) for name, value in values.items() if name not in left_out and value is not None}


@dataclass(kw_only=True)
class RuntimeOptions(Options):
    """What every verb that runs a model takes.

    Args:
        device: Where the model runs; auto takes Ascend, then GPU, then CPU.
        mode: Compile the whole step into one graph, or run operator by operator for debugging.
        dtype: Number format of the computation; float16 needs Ascend or a GPU, bfloat16 Ascend.
        seed: Seed of everything that is random.
    """

    TITLE = "where and how it runs"

    device: Literal["auto", "cpu", "gpu", "ascend"] = "auto"
    mode: Literal["graph", "pynative"] = "graph"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    seed: int = 0


@dataclass(kw_only=True)
class TrainingRuntimeOptions(RuntimeOptions):
    """What every verb that trains takes besides.

    Args:
        flash_attention: Use Ascend's fused attention, in half precision; needs attention dropout 0. Untested.
        dataset_sink_mode: Queue batches of one shape on the device, Ascend or GPU. Untested.
    """

    TITLE = "where and how it trains"

    flash_attention: bool = False
    dataset_sink_mode: bool = False


AnyOptions = TypeVar("AnyOptions", bound=Options)


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str | None = None,
    positional: bool = False,
    shown_default: str | None = None,
    metavar: str | None = None,
) -> Any:
    """Describe a field for which the annotation and the docstring line do not say everything.

    Args:
        default: Its default; left out, the option is required. Lists may be given as they are.
        help: Help text, instead of the docstring's line.
        positional: It is given by its place on the command line and not by a flag.
        shown_default: What ``--help`` shows as the default, such as ``"chosen by the recipe"`` for ``None``.
        metavar: What ``--help`` shows in place of the value.

    Returns:
        A dataclass field.
    """
    metadata = {"help": help, "positional": positional, "shown_default": shown_default, "metavar": metavar}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def flag_name(name: str) -> str:
    """Return the flag of a field: ``output_dir`` is ``--output-dir``."""
    return "--" + name.replace("_", "-")


def parse_options(options_type: type[AnyOptions], arguments: Sequence[str], parser: argparse.ArgumentParser,
                  verb: str) -> AnyOptions:
    """Read options from a command line and from the YAML file it may name.

    Args:
        options_type: The dataclass to fill.
        arguments: The words after the verb.
        parser: What ``build_parser`` returned for the same dataclass.
        verb: The verb's name, for messages.

    Returns:
        The filled dataclass; ``explicit`` tells which fields the user set.

    Raises:
        UserError: A flag or key is unknown, a value breaks its type, or a required option is missing.
        SystemExit: The arguments ask for help; it has been printed.
    """
    hints = _types(options_type)
    given, rest = parser.parse_known_intermixed_args(_normalise(arguments, parser, verb))
    if rest:
        raise UserError(f"{rest[0]!r} is one argument too many for {verb}: see {verb} --help")
    on_line = {
        name: _from_text(_label(options_type, name), raw, hints[name]) for name, raw in vars(given).items()
    }
    in_file = read_config(on_line["config"], options_type, verb) if "config" in on_line else {}
    values = {**in_file, **on_line}
    for item in _flag_fields(options_type):
        if item.name not in values and _is_required(item):
            what = _help_texts(options_type).get(item.name) or item.metadata.get("help") or "it has no default"
            raise UserError(f"{verb} needs {_label(options_type, item.name)}: {what.rstrip('.')}")
    return options_type(**values, explicit=frozenset(values))


def read_config(path: Path, options_type: type[Options], verb: str) -> dict[str, Any]:
    """Read a YAML file of settings.

    Args:
        path: The file: one mapping from setting to value; keys may be written ``output_dir`` or ``output-dir``.
        options_type: The dataclass that says which keys and types there are.
        verb: The verb's name, for messages.

    Returns:
        Field names and values of the dataclass's types. A ``null`` for a setting that is ``None`` by default is
        the same as leaving it out.

    Raises:
        UserError: The file cannot be read, is no mapping, or holds an unknown key or a value of another type.
    """
    hints = _types(options_type)
    known = {item.name: item for item in _flag_fields(options_type) if item.name != "config"}
    values: dict[str, Any] = {}
    for key, value in _load_yaml(path).items():
        name = str(key).replace("-", "_")
        if name not in known:
            spelling = [item.replace("_", "-") if "-" in str(key) else item for item in known]
            raise UserError(f"{path}: {key!r} is not a setting of {verb}.{suggest(str(key), spelling)}")
        if name in values:
            raise UserError(f"{path}: {key!r} is set twice, with - and with _: keep one")
        if value is None and known[name].default is None:
            continue
        values[name] = _from_yaml(f"{path}: {key}", value, hints[name])
    return values


def build_parser(options_type: type[Options], program: str, description: str,
                 epilog: str = "") -> argparse.ArgumentParser:
    """Build the parser of a verb: a group of flags for each dataclass, the verb's own first.

    Args:
        options_type: The dataclass whose fields are the flags.
        program: What the user types in front of the flags.
        description: What the verb does.
        epilog: Printed after the flags, such as examples.

    Returns:
        The parser. It converts nothing: ``parse_options`` checks the types, of flags and YAML alike.
    """
    fields = _flag_fields(options_type)
    places = "".join(_place(item, options_type) for item in fields if item.metadata.get("positional"))
    parser = _Parser(prog=program, usage=f"{program} [flags]{places}", description=description, epilog=epilog,
                     formatter_class=_formatter, allow_abbrev=False, add_help=False)
    help_texts = _help_texts(options_type)
    for owner in options_type.__mro__:
        owned = [item for item in fields if _owner(options_type, item.name) is owner]
        if owned:
            group = parser.add_argument_group(vars(owner).get("TITLE", "flags"))
            for item in owned:
                _add_argument(group, item, options_type, item.metadata.get("help") or help_texts.get(item.name, ""))
    group.add_argument("-h", "--help", action="help", help="Show this page.")
    return parser


class _Parser(argparse.ArgumentParser):
    """argparse with its complaints as ``UserError``."""

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(message[0].lower() + message[1:].replace("argument ", "", 1))


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=32)


def _add_argument(group: Any, item: dataclasses.Field, options_type: type[Options], text: str) -> None:
    hint = _types(options_type)[item.name]
    settings: dict[str, Any] = {"default": argparse.SUPPRESS}
    if _base(hint) is bool:
        action = group.add_argument(flag_name(item.name), action=argparse.BooleanOptionalAction, **settings)
    elif item.metadata.get("positional"):
        nargs = "*" if _is_list(hint) else "?"
        action = group.add_argument(item.name, nargs=nargs, metavar=_metavar(item, options_type), **settings)
    else:
        nargs = "+" if _is_list(hint) else None
        action = group.add_argument(flag_name(item.name), nargs=nargs, metavar=_metavar(item, options_type), **settings)
    # Set afterwards: BooleanOptionalAction adds a default of its own to the text on some Pythons.
    action.help = f"{text} ({_shown_default(item)})".strip().replace("%", "%%")


def _shown_default(item: dataclasses.Field) -> str:
    if item.metadata.get("shown_default"):
        return f"default: {item.metadata['shown_default']}"
    if _is_required(item):
        return "required"
    default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
    if isinstance(default, bool):
        return f"default: {'on' if default else 'off'}"
    if isinstance(default, list):
        return f"default: {' '.join(map(str, default)) or 'none'}"
    return f"default: {'none' if default is None else default}"


def _place(item: dataclasses.Field, options_type: type[Options]) -> str:
    text = _metavar(item, options_type) + (" ..." if _is_list(_types(options_type)[item.name]) else "")
    return f" {text}" if _is_required(item) else f" [{text}]"


def _metavar(item: dataclasses.Field, options_type: type[Options]) -> str:
    if item.metadata.get("metavar"):
        return item.metadata["metavar"]
    if item.metadata.get("positional"):
        return item.name.upper()
    base = _base(_types(options_type)[item.name])
    return "{" + ",".join(map(str, typing.get_args(base))) + "}" if _is_literal(base) else _PLACEHOLDERS.get(base, "X")


def _normalise(arguments: Sequence[str], parser: argparse.ArgumentParser, verb: str) -> list[str]:
    """Accept ``--output_dir`` for ``--output-dir`` and refuse unknown flags before anything else is checked."""
    known = [text for action in parser._actions for text in action.option_strings]
    words = list(arguments)
    for index, word in enumerate(words):
        if word == "--":
            break
        name, equals, value = word.partition("=")
        # argparse, too, takes a word with a space for a value.
        if not re.match(r"--\w", name) or " " in name:
            continue
        kebab = name.replace("_", "-")
        if kebab not in known:
            alike = [flag for flag in known if flag.startswith("--no-") == kebab.startswith("--no-")]
            raise UserError(f"{name} is not a flag of {verb}.{suggest(kebab, alike)}")
        words[index] = kebab + equals + value
    return words


def _from_text(label: str, raw: Any, hint: Any) -> Any:
    if isinstance(raw, list):
        return [_from_text(label, one, _base(hint)) for one in raw]
    base = _base(hint)
    if isinstance(raw, bool) or base is str:
        return raw
    if _is_literal(base):
        choices = {str(choice): choice for choice in typing.get_args(base)}
        if raw in choices:
            return choices[raw]
    elif base is Path:
        if raw:
            return Path(raw)
    else:
        try:
            value = base(raw)
        except ValueError:
            value = math.nan
        if math.isfinite(value):
            return value
    raise _wrong(f"{label}={raw!r}", base, raw)


def _from_yaml(label: str, value: Any, hint: Any) -> Any:
    base = _base(hint)
    if value is None and type(None) in typing.get_args(hint):
        return None
    if _is_list(hint):
        if not isinstance(value, list):
            raise UserError(f"{label}={value!r} is not a list: write [{value}]")
        return [_from_yaml(label, one, base) for one in value]
    if _is_literal(base):
        if value in typing.get_args(base):
            return value
    elif base is float and (isinstance(value, int | float | str) and not isinstance(value, bool)):
        # YAML 1.1 reads 1e-4 as text.
        return _from_text(label, str(value), float)
    elif base is Path and isinstance(value, str) and value:
        return Path(value)
    elif type(value) is base:
        return value
    raise _wrong(f"{label}={value!r}", base, value)


def _wrong(what: str, base: Any, value: Any) -> UserError:
    if _is_literal(base):
        choices = [str(choice) for choice in typing.get_args(base)]
        return UserError(f"{what} is not one of {', '.join(choices)}.{suggest(str(value), choices)}")
    return UserError(f"{what} is not {_RULES[base]}")


def _load_yaml(path: Path) -> dict[Any, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--config={path} does not exist: give a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config={path} cannot be read: {getattr(error, 'strerror', error)}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark else ""
        raise UserError(f"{path}:{where} not YAML: {getattr(error, 'problem', None) or error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}: write one 'setting: value' a line")
    for key, value in values.items():
        if isinstance(value, dict):
            raise UserError(f"{path}: {key!r} holds a mapping: settings are not nested, write 'setting: value' lines")
    return values


def _flag_fields(options_type: type[Options]) -> list[dataclasses.Field]:
    return [item for item in dataclasses.fields(options_type) if item.metadata.get("flag", True)]


def _is_required(item: dataclasses.Field) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _types(options_type: type[Options]) -> dict[str, Any]:
    return typing.get_type_hints(options_type)


def _base(hint: Any) -> Any:
    """Return what is left of a type without ``| None`` and ``list[...]``."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return typing.get_args(hint)[0] if typing.get_origin(hint) is list else hint


def _is_list(hint: Any) -> bool:
    return any(typing.get_origin(part) is list for part in (hint, *typing.get_args(hint)))


def _is_literal(base: Any) -> bool:
    return typing.get_origin(base) is Literal


def _label(options_type: type[Options], name: str) -> str:
    item = next(item for item in dataclasses.fields(options_type) if item.name == name)
    return _metavar(item, options_type) if item.metadata.get("positional") else flag_name(name)


def _owner(options_type: type[Options], name: str) -> type:
    """Return the class furthest down that declares the field, so that an override moves to the verb's own group."""
    return next(cls for cls in options_type.__mro__ if name in vars(cls).get("__annotations__", {}))


def _help_texts(options_type: type[Options]) -> dict[str, str]:
    """Collect the ``Args:`` lines of a dataclass and of those it inherits from."""
    texts: dict[str, str] = {}
    for cls in reversed(options_type.__mro__):
        _, _, section = (inspect.cleandoc(cls.__doc__ or "")).partition("\nArgs:\n")
        section = re.split(r"\n(?=\S)", section)[0]
        for entry in re.split(r"\n(?=    \S)", "\n" + section)[1:]:
            name, colon, text = entry.strip().partition(":")
            if colon:
                texts[name] = " ".join(text.split()).replace("``", "")
    return texts


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
