"""``gradshard assignment``: with which settings a client should train for a round."""

from dataclasses import asdict

import click

from gradshard.cli.common import connected, json_option, print_json
from gradshard.client.federation import Federation
from gradshard.utils.text import escape_terminal


@click.command()
@click.argument("name", metavar="ROUND")
@click.argument("client")
@json_option
@connected
def assignment(federation: Federation, name: str, client: str, as_json: bool) -> None:
    """Show what a client should train next.

    That is a batch size, a number of epochs and a learning rate, for a round opened with
    --assignments.
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
