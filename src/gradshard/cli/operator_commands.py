"""Commands of an operator: ``gradshard list``, ``close``, ``cancel``, ``rm`` and ``logs``."""

import itertools
from datetime import datetime
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console
from rich.table import Table

from gradshard.cli.option_types import WholeNumberType
from gradshard.cli.options import connected, json_option, option, quiet_option
from gradshard.cli.output import cell, confirm, print_json
from gradshard.cli.show import STATE_STYLES, expected
from gradshard.cli.terminal_progress import waiting
from gradshard.client.operator_actions import STATES
from gradshard.utils.text import escape_terminal, pluralize
from gradshard_core.errors import RoundStateError

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


@click.command()
@click.argument("name", metavar="ROUND")
@quiet_option
@connected
def close(federation: "Federation", name: str) -> None:
    """Stop waiting, and average the updates that have arrived.

    The round goes on now, as it does at its deadline. It fails if fewer good updates have arrived
    than its --min-clients.
    """
    round_ = federation.round(name)
    was_waiting = round_.close()
    status = round_.status()
    if was_waiting:
        updates = f"{len(status['arrived'])} of {pluralize(expected(status), 'update')}"
        confirm(f"round {escape_terminal(name)} goes on with {updates}")
    else:
        confirm(f"round {escape_terminal(name)} was not waiting; it is {status['state']}")


@click.command()
@click.argument("name", metavar="[ROUND]", required=False)
@click.option("--all", "is_all", is_flag=True, help="Cancel every round that has not ended.")
@click.option(
    "--reason",
    metavar="TEXT",
    required=True,
    help="Record this text as the cause of the failure. Clients can read it.",
)
@quiet_option
@connected
def cancel(federation: "Federation", name: str | None, is_all: bool, reason: str) -> None:
    """Stop a round, or all rounds, and clean up.

    The round then counts as failed, with the --reason as its cause. Give ROUND, or --all.
    """
    if is_all == (name is not None):
        raise click.UsageError("Give the ROUND, or --all.")
    if name is not None:
        cause = federation.round(name).cancel(reason)
        confirm(f"round {escape_terminal(name)} has failed: {escape_terminal(cause)}")
        return
    count = 0
    for round_ in federation.cancel_all(reason):
        confirm(f"cancelled round {escape_terminal(round_.id)}")
        count += 1
    confirm(f"cancelled {pluralize(count, 'round')}")


@click.command("rm")
@click.argument("name", metavar="ROUND")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@quiet_option
@connected
def remove(federation: "Federation", name: str, yes: bool) -> None:
    """Delete the objects of a round that has ended.

    This deletes all versions of the updates, the average and the records, for good. The name of the
    round stays taken.
    """
    if not yes:
        _ask_whether_to_delete(name)
    with waiting(f"deleting round {name}"):
        federation.round(name).remove()
    confirm(f"deleted all objects of round {escape_terminal(name)}")


def _ask_whether_to_delete(name: str) -> None:
    question = f"Delete all objects of round {escape_terminal(name)}, updates and average included?"
    try:
        is_wanted = click.confirm(question, err=True)
    except click.Abort as abort:
        click.echo(err=True)  # ends the line of the question
        if isinstance(abort.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise RoundStateError(
            f"round {name!r} was left as it is, because standard input has no answer: answer in a "
            "terminal, or give --yes"
        ) from None
    if not is_wanted:
        raise RoundStateError(f"round {name!r} was left as it is")
