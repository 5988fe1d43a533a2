"""Progress of uploads and downloads, and of waits, on a terminal."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final

from gradshard.cli.output import cell, is_quiet
from gradshard.utils.text import escape_terminal

PROGRESS_DELAY_SECONDS: Final = 1.0
"""Work that takes longer gets a progress bar."""


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
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

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
