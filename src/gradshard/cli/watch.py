"""``gradshard watch``: follow a round until it ends."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from gradshard.cli.options import connected, quiet_option, ticket_option
from gradshard.cli.output import cell, confirm, is_quiet
from gradshard.cli.show import STATE_STYLES, expected, render
from gradshard.cli.terminal_progress import waiting
from gradshard.cli.ticket import load, named
from gradshard.client.federation import Federation
from gradshard.client.round_by_ticket import TicketRound
from gradshard.client.round_eta import bytes_read, pace
from gradshard.client.round_status import AGGREGATING, AWAITING, StatusPoller
from gradshard.utils.text import escape_terminal, format_duration, format_size, listed, pluralize

REPORTS_PER_LOOK: Final = 32
"""Records of finished tasks that are read for a picture; the other tasks count as average."""

LATEST: Final = 5
"""This number of arrivals and rejections is shown."""

BAR_WIDTH: Final = 20
"""Columns of a bar at most: 80 columns also have room for the text beside it."""

REASON_CHARACTERS: Final = 200


@click.command()
@click.argument("name", metavar="[ROUND]", required=False)
@ticket_option
@click.option(
    "--json", "as_json", is_flag=True, help="Print a line of JSON whenever the round changes."
)
@quiet_option
@connected
def watch(federation: Federation, name: str | None, ticket: Path | None, as_json: bool) -> None:
    """Follow a round until it ends.

    Give ROUND, or a --ticket, which names it. On a terminal the command shows arrivals, rejections,
    tasks, throughput, time left and cost. Elsewhere it prints a line whenever the round changes.
    The exit code is 0 if the round completed and 3 if it failed. If you interrupt the command, the
    round goes on.
    """
    if ticket:
        _watch_ticket(load(ticket, name), as_json=as_json)
        return
    console = Console()
    round_ = federation.round(named(name))
    if as_json:
        round_.wait(progress=_JsonLines())
        return
    if is_quiet() or not console.is_terminal:
        round_.wait(progress=_Lines())
        confirm(_summary(round_.status()))
        return
    observer = round_.status_poller()
    view = View(observer, federation)
    with Live(console=console, transient=True) as live:
        round_.wait(
            progress=lambda status: live.update(view.render(status, datetime.now(UTC))),
            poller=observer,
        )
    status = round_.status()
    console.print(Group(*render(status), cell(_summary(status))))


def _watch_ticket(round_: TicketRound, *, as_json: bool) -> None:
    with waiting(f"waiting for round {round_.id} to end"):
        round_.wait()
    reason = round_.rejection()
    if as_json:
        document = {"round": round_.id, "client": round_.client, "state": "completed"}
        click.echo(json.dumps(document | {"reason": reason}, default=list))
        return
    confirm(
        "completed"
        if reason is None
        else f"completed without this update: {escape_terminal(reason)}"
    )


class _Lines:
    """Prints a line whenever something has changed."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, status: dict[str, Any]) -> None:
        line = f"{status['state']}: {_updates(status)}{_awaited(status)}"
        if status["plan"]:
            line += f", {_tasks(status)}, {format_size(bytes_read(status))} read"
        if line != self._last:
            confirm(escape_terminal(line))
            self._last = line


class _JsonLines:
    """Prints a line of JSON whenever something has changed."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}

    def __call__(self, status: dict[str, Any]) -> None:
        document = {
            "round": status["round"],
            "state": status["state"],
            "expected": expected(status),
            "arrived": [update["client"] for update in status["arrived"]],
            "missing": status["missing"],
            "rejected": status["rejected"],
            "tasks": status["plan"]["tasks"] if status["plan"] else None,
            "tasks_done": status["tasks_done"] if status["plan"] else None,
            "bytes_read": bytes_read(status) if status["plan"] else None,
        }
        if document != self._last:
            click.echo(json.dumps(document, default=list))
            self._last = document


class View:
    """The picture of a running round on a terminal.

    Parameters
    ----------
    observer
        Polls the round.
    federation
        The application that runs it.
    """

    def __init__(self, observer: StatusPoller, federation: Federation) -> None:
        self._observer, self._federation = observer, federation
        self._rejections: dict[str, str] = {}

    def render(self, status: dict[str, Any], now: datetime) -> RenderableType:
        """Return the view of a status."""
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(max_width=BAR_WIDTH)
        state = status["state"]
        table.add_row(cell(status["round"]), cell(_since(status, now), STATE_STYLES.get(state, "")))
        table.add_row(_bar(len(status["arrived"]), expected(status)), cell(_updates(status)))
        if awaited := _awaited(status):
            table.add_row("", cell(awaited.removeprefix(", ")))
        if status["plan"]:
            self._add_tasks(table, status, now)
        return Group(table, *self._latest(status))

    def _add_tasks(self, table: Table, status: dict[str, Any], now: datetime) -> None:
        plan = status["plan"]
        levels = list(zip(status["tasks_done_by_level"], plan["tasks_by_level"], strict=True))
        for level, (done, total) in enumerate(levels):
            of_level = f" of level {level}" if len(levels) > 1 else ""
            table.add_row(_bar(done, total), cell(f"{done} of {total} tasks{of_level} done"))
        architecture = self._federation.stack.output("Architecture")
        tasks = self._observer.tasks(REPORTS_PER_LOOK)
        going = pace(status, tasks, now=now, architecture=architecture)
        whole = plan["nbytes"] * len(plan["contributors"])
        text = f"{format_size(going.bytes_read)} of {format_size(whole)} read"
        if going.bytes_read:
            text += f", {format_size(going.bytes_per_second)}/s"
        table.add_row(_bar(going.bytes_read, whole), cell(text))
        if going.seconds_left is not None and status["state"] == AGGREGATING:
            table.add_row("time left", cell(f"about {format_duration(going.seconds_left)}"))
        if going.dollars is not None:
            table.add_row("cost so far", cell(f"about ${going.dollars:.6f}"))

    def _latest(self, status: dict[str, Any]) -> list[RenderableType]:
        """Return the last arrivals and rejections, the newest first."""
        for rejection in (*status["rejected"], *status["late"]):
            # A client that was rejected may also come too late: the newer reason is shown.
            if self._rejections.get(rejection["client"]) != rejection["reason"]:
                self._rejections.pop(rejection["client"], None)
                self._rejections[rejection["client"]] = rejection["reason"]
        found: list[RenderableType] = []
        arrivals = sorted(status["arrived"], key=lambda update: str(update["arrived_at"]))
        if arrivals:
            table = Table("last arrivals", "size", "at", box=None, pad_edge=False)
            for update in reversed(arrivals[-LATEST:]):
                at = datetime.fromisoformat(update["arrived_at"]).astimezone()
                table.add_row(
                    cell(update["client"]), cell(format_size(update["nbytes"])), f"{at:%H:%M:%S}"
                )
            found += ["", table]
        if self._rejections:
            table = Table("last rejections", "reason", box=None, pad_edge=False)
            for client, reason in reversed(list(self._rejections.items())[-LATEST:]):
                table.add_row(cell(client), cell(reason[:REASON_CHARACTERS], "red"))
            found += ["", table]
        return found


def _since(status: dict[str, Any], now: datetime) -> str:
    text = str(status["state"])
    if status["opened_at"]:
        text += f", open for {format_duration(_passed(status['opened_at'], now))}"
    if status["state"] == "awaiting" and status["deadline_at"]:
        text += (
            f", {format_duration(max(0.0, -_passed(status['deadline_at'], now)))} to the deadline"
        )
    return text


def _passed(since: str, now: datetime) -> float:
    return (now - datetime.fromisoformat(since)).total_seconds()


def _bar(done: int, total: int) -> ProgressBar:
    return ProgressBar(total=total, completed=done)


def _updates(status: dict[str, Any]) -> str:
    text = f"{len(status['arrived'])} of {expected(status)} updates in"
    if status["rejected"]:
        text += f" ({len(status['rejected'])} rejected)"
    return text


def _awaited(status: dict[str, Any]) -> str:
    """Return the clients that a round waits for: their ids, or how many if it has no ids."""
    if status["state"] != AWAITING:
        return ""
    if status["missing"]:
        return f", waiting for {listed(status['missing'], LATEST)}"
    left = expected(status) - len(status["arrived"])
    return f", waiting for {pluralize(left, 'more client')}" if left > 0 else ""


def _summary(status: dict[str, Any]) -> str:
    """Return how many clients of an ended round were averaged, rejected and missing."""
    averaged = len((status["manifest"] or {}).get("contributors", []))
    rejected = len(status["rejected"])
    is_named = isinstance(status["spec"].get("clients"), list)
    missing = len(status["missing"]) if is_named else expected(status) - averaged - rejected
    return f"{averaged} averaged, {rejected} rejected, {max(0, missing)} missing"


def _tasks(status: dict[str, Any]) -> str:
    return f"{status['tasks_done']} of {status['plan']['tasks']} tasks done"
