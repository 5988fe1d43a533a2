"""``gradshard logs``: what the functions logged about a round."""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from gradshard.cli.options import connected, json_option
from gradshard.cli.output import print_json
from gradshard.cli.terminal_progress import waiting
from gradshard.client.round_logs import LogLine
from gradshard.utils.text import escape_terminal

if TYPE_CHECKING:
    from gradshard.client.federation import Federation

SHOWN_FIELDS: Final = ("contributor", "task", "status", "reason", "error", "cause")
"""Fields of a log record that a line shows; --json shows all."""


@click.command()
@click.argument("name", metavar="ROUND")
@json_option
@connected
def logs(federation: "Federation", name: str, as_json: bool) -> None:
    """Show what the functions logged about a round.

    Each line is one log record. The newest line comes last.
    """
    with waiting(f"reading the logs of round {name}"):
        lines = federation.round(name).log()
    if as_json:
        print_json([{"at": _iso(line), "function": line.function} | line.fields for line in lines])
        return
    for line in lines:
        click.echo(escape_terminal(f"{_iso(line)} {line.function} {_describe(line.fields)}"))


def _iso(line: LogLine) -> str:
    return datetime.fromtimestamp(line.at / 1000, UTC).isoformat(timespec="milliseconds")


def _describe(fields: dict[str, Any]) -> str:
    """Return the message of a log record and its most important fields."""
    outcome = fields.get("outcome")
    known = (outcome if isinstance(outcome, dict) else {}) | fields
    shown = (
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name in SHOWN_FIELDS
        if (value := known.get(name)) is not None
    )
    return " ".join((str(fields.get("message", "")), *shown))
