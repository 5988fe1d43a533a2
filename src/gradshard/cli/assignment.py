"""``gradshard assignment``: show the settings with which a client should train."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from gradshard.cli.options import connected, json_option
from gradshard.cli.output import print_json
from gradshard.utils.text import escape_terminal

if TYPE_CHECKING:
    from gradshard.client.federation import Federation


@click.command()
@click.argument("name", metavar="ROUND")
@click.argument("client")
@json_option
@connected
def assignment(federation: "Federation", name: str, client: str, as_json: bool) -> None:
    """Show the batch size, epochs and learning rate for a client.

    CLIENT should train with them for ROUND, which was opened with --assignments.
    """
    settings = federation.round(name).assignment(client)
    if as_json:
        print_json({"round": name, "client": client, **asdict(settings)})
        return
    predicted = "" if settings.seconds is None else f", predicted to take {settings.seconds:.3g} s"
    click.echo(
        f"{escape_terminal(client)} for round {escape_terminal(name)}: "
        f"batch size {settings.batch_size}, epochs {settings.epochs}, "
        f"learning rate {settings.learning_rate:g}{predicted}"
    )
