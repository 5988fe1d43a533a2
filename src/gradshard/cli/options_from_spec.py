"""The options of a round as options of commands, made from the table in RoundSpec."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from gradshard.cli.option_types import DurationType, JsonType, NumberType, format_seconds
from gradshard.cli.options import Command, option, with_options
from gradshard_core.specs.option_kinds import (
    REQUIRED,
    Choice,
    Duration,
    Flag,
    Option,
    Parsed,
    WholeNumber,
)
from gradshard_core.specs.round_spec import DEFAULTS, OPTIONS

NO_OPTIONS: Final = ("clients", "inbox")
"""Commands define the first one for themselves, as --client and --clients; the second one is for
trainings."""


def round_options(*names: str) -> Callable[[Command], Command]:
    """Add options of a round; a command gets None for those that are not given.

    Parameters
    ----------
    names
        The names of the options; all but :data:`NO_OPTIONS` if none is given.
    """

    def decorate(command: Command) -> Command:
        added = names or [name for name in OPTIONS if name not in NO_OPTIONS]
        options = [declared_option(name, OPTIONS[name], DEFAULTS.get(name)) for name in added]
        return with_options(command, options)

    return decorate


def declared_option(name: str, declared: Option, value: Any) -> Callable[[Command], Command]:
    """Return the command's option for a declared one.

    Parameters
    ----------
    name, declared
        The option.
    value
        Its value where it is not given.
    """
    settings, bounds = _settings(declared)
    text = declared.help
    if isinstance(declared.kind, Duration):
        text = f"{text.removesuffix('.')}, for example 90s, 30m or 2h."
    if settings.get("metavar") == "FILE":
        text = f"{text} FILE is a .safetensors file with such tensors."
    if isinstance(declared.kind, Flag):
        default = ""
    else:
        if isinstance(declared.kind, Duration) and value is not None:
            value = format_seconds(value)
        default = "; ".join(filter(None, (declared.default or str(value), bounds)))
    if declared.default == REQUIRED:
        text, default = f"{text} [{default}]", ""
    return option(f"--{name.replace('_', '-')}", name, help=text, default_text=default, **settings)


def _settings(declared: Option) -> tuple[dict[str, Any], str]:
    """Return what click is to know about an option, and its bounds in words."""
    match declared.kind:
        case Flag():
            return {"is_flag": True}, ""
        case Choice(choices):
            return {"type": click.Choice(choices)}, ""
        case WholeNumber(low, high):
            return {"type": int, "metavar": "N"}, f"{low} to {high}"
        case Duration(high, high_text):
            bounds = f"at most {high_text}" if high_text else ""
            return {"type": DurationType(high), "metavar": "DURATION"}, bounds
        case Parsed(metavar="FILE"):
            return {"type": click.Path(path_type=Path), "metavar": "FILE"}, ""
        case Parsed(metavar=metavar, is_number=True):
            return {"type": NumberType(), "metavar": metavar}, ""
        case Parsed(metavar=metavar, is_json=is_json):
            return {"type": JsonType() if is_json else str, "metavar": metavar}, ""
        case _:
            raise NotImplementedError(f"{declared.kind!r} has no form on the command line")
