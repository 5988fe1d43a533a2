"""``gradshard cancel``: stop rounds, and clean up."""

from typing import TYPE_CHECKING

import click

from gradshard.cli.options import connected, quiet_option
from gradshard.cli.output import confirm
from gradshard.utils.text import escape_terminal, pluralize

if TYPE_CHECKING:
    from gradshard.client.federation import Federation


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
