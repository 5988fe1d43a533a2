"""Output of commands: JSON, confirmations, progress bars, cells of tables."""

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from gradshard.utils.text import escape_terminal, format_size

if TYPE_CHECKING:
    from rich.text import Text

QUIET: Final = "gradshard.quiet"
"""The key in a context's ``meta`` that suppresses confirmations and progress."""

PROGRESS_DELAY_SECONDS: Final = 1.0
"""Work that takes longer gets a progress bar."""

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


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that takes the bytes done and the total.

    On a terminal a bar shows them, after a second.
    """
    if not sys.stderr.isatty() or is_quiet():
        yield lambda _done, _total: None
        return
    # rich takes a tenth of a short command's time to load, so only terminals load it.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(escape_terminal(title), total=None)
    # A timer, since it may take a while until the first part of a slow upload is reported.
    timer = threading.Timer(PROGRESS_DELAY_SECONDS, bar.start)
    timer.start()
    try:
        yield lambda done, total: bar.update(task, completed=done, total=total)
    finally:
        timer.cancel()
        timer.join()
        bar.stop()


@contextlib.contextmanager
def waiting(title: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal what the command waits for; yield a function that changes the text."""
    if not sys.stderr.isatty() or is_quiet():
        yield lambda _line: None
        return
    from rich.console import Console

    with Console(stderr=True).status(cell(title)) as status:
        yield lambda line: status.update(cell(line))


def dollars(amount: float) -> str:
    """Return a price per thousand rounds, because the price of one round is far below a cent."""
    return f"${1000 * amount:.2f} per 1000 rounds"
