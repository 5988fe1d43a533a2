"""``gradshard list``: list rounds."""

import itertools
from datetime import datetime
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console
from rich.table import Table

from gradshard.cli.option_types import WholeNumberType
from gradshard.cli.options import connected, json_option, option
from gradshard.cli.output import cell, print_json
from gradshard.cli.show import STATE_STYLES
from gradshard.cli.terminal_progress import waiting
from gradshard.client.operator_actions import STATES

if TYPE_CHECKING:
    from gradshard.client.federation import Federation

DEFAULT_LIMIT: Final = 20


@click.command("list")
@option(
    "--state",
    type=click.Choice(STATES),
    help="List only rounds in this state.",
    default_text="any state",
)
@click.option(
    "--limit",
    type=WholeNumberType(1),
    metavar="N",
    default=DEFAULT_LIMIT,
    show_default=True,
    help="List at most this number of rounds.",
)
@json_option
@connected
def list_(federation: "Federation", state: str | None, limit: int, as_json: bool) -> None:
    """List the rounds of the last 90 days.

    The newest round comes first.
    """
    with waiting("listing rounds"):
        found = list(itertools.islice(federation.rounds(state), limit))
    if as_json:
        print_json([round_._asdict() for round_ in found])
        return
    if not found:
        click.echo("there are no rounds" if state is None else f"there are no rounds {state}")
        return
    table = Table("round", "state", "opened", "ended", box=None, pad_edge=False)
    for round_ in found:
        style = STATE_STYLES.get(round_.state, "yellow")
        times = (_local(round_.opened_at), _local(round_.ended_at))
        table.add_row(cell(round_.round), cell(round_.state, style), *map(cell, times))
    Console().print(table)


def _local(at: str | None) -> str:
    return f"{datetime.fromisoformat(at).astimezone():%Y-%m-%d %H:%M:%S}" if at else ""
