"""``gradshard ticket``, and functions for commands that take a ticket."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradshard.cli.option_types import SizeType
from gradshard.cli.options import (
    connected,
    expires_option,
    json_option,
    option,
    output_option,
    quiet_option,
)
from gradshard.cli.output import confirm, print_json
from gradshard.utils.text import escape_terminal, format_size
from gradshard_core.errors import TicketError

if TYPE_CHECKING:
    from gradshard.client.federation import Federation
    from gradshard.client.round_by_ticket import TicketRound
    from gradshard.tickets.round_ticket import Ticket
    from gradshard.tickets.training_ticket import TrainingTicket
    from gradshard.verification.verification_ticket import VerificationTicket


@click.command()
@click.argument("name", metavar="ROUND")
@click.argument("client")
@output_option("Write the ticket to this file.", required=False, default_text="ROUND-CLIENT.ticket")
@expires_option
@option(
    "--max-size",
    type=SizeType(),
    metavar="SIZE",
    help="Accept an update of at most this size, for example 512MB or 1GiB.",
    default_text="the size of the layout with which the round was opened; required without one",
)
@click.option(
    "--verify",
    "to_verify",
    is_flag=True,
    help="Make a ticket with which CLIENT can verify ROUND, a completed masked round, instead of "
    "taking part in it.",
)
@json_option
@quiet_option
@connected
def ticket(
    federation: "Federation",
    name: str,
    client: str,
    file: Path | None,
    expires: int,
    max_size: int | None,
    to_verify: bool,
    as_json: bool,
) -> None:
    """Make a ticket for a client without AWS credentials.

    With it, CLIENT can take part in ROUND. Keep the file secret: anyone who has it can act as that
    client.
    """
    if to_verify:
        _make_for_verifier(federation, name, client, file, expires, as_json=as_json)
        return
    made = federation.round(name).ticket(client, expires=expires, max_bytes=max_size)
    file = file or Path(f"{name}-{client}.ticket")
    about = {"round": name, "client": client, "max_bytes": made.max_bytes}
    if not write_ticket(made, file, about, as_json=as_json):
        return
    confirm(
        f"wrote {escape_terminal(file)}: one update of at most {format_size(made.max_bytes)} "
        f"by {client} to round {name}, until {made.expires_at.isoformat(timespec='seconds')}"
    )
    if made.is_temporary:
        confirm("it was made with temporary credentials: if they end earlier, so does it")


def _make_for_verifier(
    federation: "Federation",
    name: str,
    client: str,
    file: Path | None,
    expires: int,
    *,
    as_json: bool,
) -> None:
    """Make a ticket with which a client verifies a masked round."""
    made = federation.round(name).verification_ticket(client, expires=expires)
    file = file or Path(f"{name}-{client}.verify-ticket")
    if write_ticket(made, file, {"round": name, "client": client}, as_json=as_json):
        until = made.expires_at.isoformat(timespec="seconds")
        confirm(f"wrote {escape_terminal(file)}: {client} can verify round {name}, until {until}")


def write_ticket(
    made: "Ticket | TrainingTicket | VerificationTicket",
    file: Path,
    about: dict[str, Any],
    *,
    as_json: bool,
) -> bool:
    """Write a ticket's file, and what it is as JSON; return whether it is to be told in words."""
    made.save(file)
    if as_json:
        print_json(
            {
                **about,
                "file": str(file),
                "expires_at": made.expires_at.isoformat(timespec="seconds"),
                "temporary": made.is_temporary,
            }
        )
    return not as_json


def load(path: Path, name: str | None = None, client: str | None = None) -> "TicketRound":
    """Read a ticket and print the host that it names; a given round or client must match it."""
    from gradshard.client.round_by_ticket import TicketRound
    from gradshard.tickets.round_ticket import Ticket

    found = Ticket.load(path)
    for kind, given, own in (("round", name, found.round_id), ("client", client, found.client)):
        if given is not None and given != own:
            raise TicketError(
                f"{path} is a ticket of {kind} {own!r}, not {given!r}: leave the {kind} out, or "
                "give its ticket"
            )
    click.echo(f"with a ticket of {escape_terminal(found.host)}", err=True)
    return TicketRound(found)


def named(name: str | None) -> str:
    """Return the id of the round, which has to be given without a ticket."""
    if name is None:
        raise click.UsageError("Give the ROUND, or a --ticket.")
    return name
