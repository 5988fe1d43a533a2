"""Shared parts of the two programs: options, progress, and files written."""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from stragglers.curves import Panel, svg


def add_engine(options: argparse.ArgumentParser, more: str = "") -> None:
    """Add ``--engine``, the port for :func:`stragglers.backends.chosen`."""
    options.add_argument(
        "--engine",
        type=int,
        nargs="?",
        const=0,
        metavar="PORT",
        help="average in rounds of about 2 s, not in memory: on the local engine at this port, or "
        f"on a new engine if no port is given{more}",
    )


def parser(
    description: str | None, *, clients: int, seeds: int, rounds: int | None = None
) -> argparse.ArgumentParser:
    """Return the options that the programs have, with these defaults; rounds only if given."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument(
        "-o", "--output", type=Path, default=Path(), help="folder for the plot and the numbers"
    )
    for name, default, text in (
        ("clients", clients, "number of clients"),
        ("rounds", rounds, "rounds of each training"),
        ("seeds", seeds, "trainings of each kind, each with a seed of its own"),
    ):
        if default is not None:
            options.add_argument(f"--{name}", type=_positive, default=default, help=text)
    return options


class Ticker:
    """A bar that moves on with every training."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total)

    def done(self, what: str) -> None:
        """Tell that one more training has ended."""
        self._progress.update(self._task, advance=1, description=what)


@contextmanager
def ticker(total: int) -> Iterator[Ticker]:
    """Show how far the trainings are."""
    with Progress(transient=True) as progress:
        yield Ticker(progress, total)


def write(
    folder: Path,
    name: str,
    title: str,
    settings: dict[str, Any],
    panels: Sequence[Panel],
    numbers: Sequence[Panel] | None = None,
) -> None:
    """Write the plot of panels and the numbers behind it, or those of more, and say where."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {panel.title: panel.to_json() for panel in numbers or panels}
    for suffix, text in (
        ("svg", svg(title, panels)),
        ("json", json.dumps({"settings": settings, "panels": written}) + "\n"),
    ):
        path = folder / f"{name}.{suffix}"
        path.write_text(text)
        print(f"wrote {path}")


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column is text and whose others are figures."""
    drawn = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for index, head in enumerate(heads):
        drawn.add_column(head, justify="left" if index == 0 else "right")
    for row in rows:
        drawn.add_row(*row)
    Console(highlight=False).print(drawn)


def percent(shares: Sequence[float]) -> str:
    """Return mean and spread in percent."""
    spread = np.std(shares, ddof=1) if len(shares) > 1 else 0.0
    return f"{100 * np.mean(shares):.1f} ± {100 * spread:.1f}"


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above zero")
    return number
