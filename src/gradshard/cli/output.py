"""Output of commands: JSON, confirmations, cells of tables."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from gradshard.utils.text import escape_terminal, format_size

if TYPE_CHECKING:
    from rich.text import Text

QUIET: Final = "gradshard.quiet"
"""The key in a context's ``meta`` that suppresses confirmations and progress."""

WIDE: Final = 136
"""Characters of a table that has more columns than most terminals."""


def cell(text: object, style: str = "") -> "Text":
    """Return text for rich: square brackets mean nothing, and long text wraps."""
    from rich.text import Text

    return Text(escape_terminal(text), style, overflow="fold")


def print_json(document: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(document, indent=2, default=list))  # lists in pieces


def confirm(text: str) -> None:
    """Print what a command did, unless it is to be quiet."""
    if not is_quiet():
        click.echo(text)


def confirm_file(file: Path, record: dict[str, object], *, as_json: bool) -> None:
    """Say that a command wrote a file; as JSON, add its name and size to the ``record``."""
    nbytes = file.stat().st_size
    if as_json:
        print_json(record | {"file": str(file), "nbytes": nbytes})
    else:
        confirm(f"wrote {escape_terminal(file)} ({format_size(nbytes)})")


def is_quiet() -> bool:
    """Return whether the running command was given ``--quiet``."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(QUIET))


def dollars(amount: float) -> str:
    """Return a price per thousand rounds, because the price of one round is far below a cent."""
    return f"${1000 * amount:.2f} per 1000 rounds"
