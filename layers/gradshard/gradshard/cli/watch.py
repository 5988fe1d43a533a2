"""``gradshard watch``: a round as it happens."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from gradshard.cli.common import cell, connected, waiting
from gradshard.cli.show import expected, render
from gradshard.cli.ticket import load, named, ticket_option
from gradshard.federation import Federation
from gradshard.tickets import Ticket
from gradshard.wording import megabytes, plain


@click.command()
@click.argument("name", metavar="[ROUND]", required=False)
@ticket_option
@connected
def watch(federation: Federation, name: str | None, ticket: Path | None) -> None:
    """Watch a round until it ends; the exit code says how."""
    if ticket:
        _watch_ticket(load(ticket, name))
        return
    console = Console()
    round_ = federation.round(named(name))
    if console.is_terminal:
        with Live(console=console, transient=True) as live:
            round_.wait(progress=lambda status: live.update(_bars(status)))
        console.print(Group(*render(round_.status())))
    else:
        round_.wait(progress=_Lines())


def _watch_ticket(ticket: Ticket) -> None:
    with waiting(f"waiting for round {ticket.round_id} to end"):
        ticket.wait()
    reason = ticket.rejection()
    click.echo("completed" if reason is None else f"completed without this update: {plain(reason)}")


class _Lines:
    """Prints a line whenever something has changed."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, status: dict[str, Any]) -> None:
        line = f"{status['state']}: {_updates(status)}"
        if status["plan"]:
            line += f", {_tasks(status)}, {megabytes(_bytes_read(status))} read"
        if line != self._last:
            click.echo(plain(line))
            self._last = line


def _bars(status: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("round", cell(f"{status['round']}, {status['state']}"))
    table.add_row(_bar(len(status["arrived"]), expected(status)), cell(_updates(status)))
    plan = status["plan"]
    if plan:
        total = plan["nbytes"] * len(plan["contributors"])
        read = _bytes_read(status)
        table.add_row(_bar(status["tasks_done"], plan["tasks"]), cell(_tasks(status)))
        table.add_row(_bar(read, total), cell(f"{megabytes(read)} of {megabytes(total)} read"))
    return table


def _bar(done: int, total: int) -> ProgressBar:
    return ProgressBar(total=total, completed=done, width=30)


def _updates(status: dict[str, Any]) -> str:
    text = f"{len(status['arrived'])} of {expected(status)} updates in"
    if status["refused"]:
        text += f" ({len(status['refused'])} refused)"
    return text


def _tasks(status: dict[str, Any]) -> str:
    return f"{status['tasks_done']} of {status['plan']['tasks']} tasks done"


def _bytes_read(status: dict[str, Any]) -> int:
    """Return what the finished tasks have read of the updates; shards are of nearly equal size."""
    plan = status["plan"]
    whole = plan["nbytes"] * len(plan["contributors"])
    return int(whole * status["tasks_done"] / plan["tasks"])
