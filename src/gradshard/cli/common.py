"""What commands share: options, progress bars, text that is safe on a terminal."""

import contextlib
import functools
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.text import Text

from gradshard.cli.group import DEBUG
from gradshard.client.federation import Federation
from gradshard.deployment.local_engine import DEFAULT_PORT
from gradshard.utils.text import escape_terminal
from gradshard_core.aggregation.topologies import AUTO, MAX_FAN_IN, TOPOLOGIES

PATIENCE_SECONDS: Final = 1.0
"""What takes longer gets a progress bar."""

WIDE: Final = 136
"""Characters of a table that has more columns than most terminals."""

_SECONDS: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?) *(?P<unit>[smhd]?)")
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

_SIZE: Final = re.compile(
    r"(?P<number>\d+(?:\.\d*)?(?:e\+?\d+)?) *(?:(?P<prefix>[kmgt])?(?P<binary>i)?b)?", re.IGNORECASE
)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}

Command = TypeVar("Command", bound=Callable[..., Any])


class Seconds(click.ParamType):
    """A time: 90, 90s, 1.5m, 2h or 1d."""

    name = "seconds"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the seconds, as a whole number where they are one."""
        match = _SECONDS.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a time such as 90, 90s, 1.5m or 2h.", param, ctx)
        seconds = float(match["number"]) * _UNITS[match["unit"]]
        return int(seconds) if seconds.is_integer() else seconds


class Size(click.ParamType):
    """A number of bytes: 512MB, 1GiB, 43.5MB or 5e9."""

    name = "size"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        text = str(value).strip()
        if text.isdecimal():
            self.fail(f"{value!r} has no unit: write {text}MB, {text}MiB or {text}B.", param, ctx)
        match = _SIZE.fullmatch(text)
        if match is None or (match["binary"] and not match["prefix"]):
            self.fail(f"{value!r} is not a size such as 512MB, 1GiB or 5e9.", param, ctx)
        unit: int = (1024 if match["binary"] else 1000) ** _POWERS[(match["prefix"] or "").lower()]
        nbytes = float(match["number"]) * unit
        if not 1 <= nbytes <= 2**50:
            self.fail(f"{value!r} is not between 1 byte and 1 PiB.", param, ctx)
        return round(nbytes)


class Stated(click.ParamType):
    """A name, or JSON where it begins as JSON does."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the JSON, or the text itself."""
        if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            self.fail(f"{value[:80]!r} is not JSON: {error}.", param, ctx)


def cell(text: object, style: str = "") -> Text:
    """Return text for rich, in which square brackets mean nothing; none of it is cut off."""
    return Text(escape_terminal(text), style, overflow="fold")


def print_json(document: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(document, indent=2))


def debuggable(command: Command) -> Command:
    """Add ``--debug``."""

    def remember(context: click.Context, _option: click.Parameter, debug: bool) -> None:
        context.meta[DEBUG] = debug

    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=remember,
        help="Show the traceback of an error.",
    )(command)


def connected(command: Command) -> Command:
    """Add ``--stack``, ``--local`` and ``--port``, given as one ``federation``."""

    @functools.wraps(command)
    def connecting(*, stack: str, local: bool, port: int, **arguments: Any) -> Any:
        return command(federation=Federation(stack, local=local, port=port), **arguments)

    local_option = click.option("--local", is_flag=True, help="Use the local engine, not AWS.")
    stack_option = click.option(
        "--stack", default="gradshard", show_default=True, help="The deployed application."
    )
    # Shown in the opposite order.
    return stack_option(local_option(port_option(debuggable(connecting))))  # type: ignore[return-value]


def aggregation_options(command: Command) -> Command:
    """Add ``--topology``, ``--fan-in`` and ``--order``."""
    options = (
        click.option(
            "--topology",
            type=click.Choice((AUTO, *TOPOLOGIES)),
            default=AUTO,
            show_default=True,
            help=f"Who adds up whose updates: shards up to {MAX_FAN_IN} clients, else a grid.",
        ),
        click.option(
            "--fan-in", type=int, metavar="K", help="Size of the topology's groups; its own rule."
        ),
        click.option(
            "--order",
            metavar="ORDER",
            help="Of the additions: sequential or tree:K,K,…; the topology's own.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def port_option(command: Command) -> Command:
    """Add ``--port``."""
    return click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=DEFAULT_PORT,
        show_default=True,
        help="The local engine's port.",
    )(command)


def output_option(
    what: str, *, required: bool = True, **settings: Any
) -> Callable[[Command], Command]:
    """Add ``-o``, the file to write, given as ``file``."""

    def check(_context: click.Context, _option: click.Parameter, file: Path | None) -> Path | None:
        if file == Path("-"):
            raise click.BadParameter(
                "- is not a file: what is written takes its name when it is whole, and cannot go "
                "to standard output. Name a file."
            )
        return file

    return click.option(
        "-o",
        "--output",
        "file",
        type=click.Path(path_type=Path),
        required=required,
        show_default=True,
        metavar="FILE",
        callback=check,
        help=what,
        **settings,  # newer clicks take a default of None for one
    )


def json_option(command: Command) -> Command:
    """Add ``--json``, given as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")(command)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function to tell of bytes done; a bar shows them on a terminal, after a second."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _done, _total: None
        return
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
    )
    task = bar.add_task(escape_terminal(title), total=None)
    # A timer, since the first part of a slow upload may take a while to be told of.
    timer = threading.Timer(PATIENCE_SECONDS, bar.start)
    timer.start()
    try:
        yield lambda done, total: bar.update(task, completed=done, total=total)
    finally:
        timer.cancel()
        timer.join()
        bar.stop()


@contextlib.contextmanager
def waiting(title: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal what is being waited for; give a function to change it."""
    with Console(stderr=True).status(cell(title)) as status:
        yield lambda line: status.update(cell(line))


def dollars(amount: float) -> str:
    """Return a price per thousand rounds, which is what shows in cents."""
    return f"${1000 * amount:.2f} per 1000 rounds"
