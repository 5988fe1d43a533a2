"""``gradshard close``: stop waiting for updates."""

from typing import TYPE_CHECKING

import click

from gradshard.cli.options import connected, quiet_option
from gradshard.cli.output import confirm
from gradshard.cli.show import expected
from gradshard.utils.text import escape_terminal, pluralize

if TYPE_CHECKING:
    from gradshard.client.federation import Federation


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
