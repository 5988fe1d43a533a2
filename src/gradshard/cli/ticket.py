"""``gradshard ticket``, and the other commands' ``--ticket``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from gradshard.cli.common import Seconds, Size, connected, json_option, output_option, print_json
from gradshard.client.federation import Federation
from gradshard.client.ticket_issuer import DEFAULT_SECONDS
from gradshard.client.ticket_round import TicketRound
from gradshard.client.tickets import Ticket
from gradshard.utils.text import escape_terminal, format_size
from gradshard_core.errors import TicketError

Command = TypeVar("Command", bound=Callable[..., Any])


@click.command()
@click.argument("name", metavar="ROUND")
@click.argument("client")
@output_option("Where to write it; ROUND-CLIENT.ticket by default.", required=False)
@click.option(
    "--expires",
    type=Seconds(),
    default=DEFAULT_SECONDS,
    show_default=True,
    metavar="TIME",
    help="Until when it opens anything: 90 (seconds), 30m, 2h, 7d at most.",
)
@click.option(
    "--max-size",
    type=Size(),
    metavar="SIZE",
    help="Of the update: 512MB, 1GiB. Needed unless the round was opened with a layout.",
)
@json_option
@connected
def ticket(
    federation: Federation,
    name: str,
    client: str,
    file: Path | None,
    expires: int,
    max_size: int | None,
    as_json: bool,
) -> None:
    """Make a ticket for a client without credentials.

    The client takes part in one round with it. The file is a secret: whoever has it is that client.
    """
    made = federation.round(name).ticket(client, expires=expires, max_bytes=max_size)
    file = file or Path(f"{name}-{client}.ticket")
    made.save(file)
    until = made.expires_at.isoformat(timespec="seconds")
    if as_json:
        print_json(
            {
                "round": name,
                "client": client,
                "file": str(file),
                "expires_at": until,
                "max_bytes": made.max_bytes,
                "temporary": made.is_temporary,
            }
        )
        return
    click.echo(
        f"wrote {escape_terminal(file)}: one update of at most {format_size(made.max_bytes)} "
        f"by {client} to round {name}, until {until}"
    )
    if made.is_temporary:
        click.echo("it was made with temporary credentials: if they end earlier, so does it")


def ticket_option(command: Command) -> Command:
    """Add ``--ticket``, given as ``ticket``."""
    return click.option(
        "--ticket",
        "ticket",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="With a ticket instead of AWS credentials.",
    )(command)


def load(path: Path, name: str | None = None, client: str | None = None) -> TicketRound:
    """Read a ticket and say where it goes; what was said of its round and client must agree."""
    found = Ticket.load(path)
    for kind, said, meant in (("round", name, found.round_id), ("client", client, found.client)):
        if said is not None and said != meant:
            raise TicketError(
                f"{path} is a ticket of {kind} {meant!r}, not {said!r}: leave the {kind} out, or "
                "give its ticket"
            )
    click.echo(f"with a ticket of {escape_terminal(found.host)}", err=True)
    return TicketRound(found)


def named(name: str | None) -> str:
    """Return the round's id, which only a ticket could say instead."""
    if name is None:
        raise click.UsageError("Give the ROUND, or a --ticket.")
    return name
