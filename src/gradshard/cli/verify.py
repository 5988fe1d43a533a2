"""``gradshard verify``: check a sample of a round's result bit by bit."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradshard.cli.option_types import FractionType
from gradshard.cli.options import connected, json_option, option, quiet_option, ticket_option
from gradshard.cli.output import print_json
from gradshard.cli.terminal_progress import progress_bar
from gradshard.cli.ticket import named
from gradshard.utils.text import escape_terminal
from gradshard_core.errors import TicketError

if TYPE_CHECKING:
    from gradshard.client.federation import Federation
    from gradshard.verification.round_verification import Verification
    from gradshard.verification.verification_ticket import VerificationTicket


@click.command()
@click.argument("name", metavar="[ROUND]", required=False)
@option(
    "--sample",
    type=FractionType(),
    default=0.01,
    metavar="PART",
    help="Recompute this part of the result, for example 1%, 0.05 or 100%.",
    default_text="1%, and at least one range",
)
@option(
    "--seed",
    metavar="TEXT",
    help="Draw the ranges with this seed. The same seed draws the same ranges.",
    default_text="random; it is printed",
)
@ticket_option
@json_option
@quiet_option
@connected
def verify(
    federation: "Federation",
    name: str | None,
    sample: float,
    seed: str | None,
    ticket: Path | None,
    as_json: bool,
) -> None:
    """Check a sample of a round's result bit by bit.

    The command draws byte ranges of the result at random, computes them from the updates that were
    averaged, and compares every bit with the published average, and with the version of the model
    if the round made one. You need permission to read the updates, or a --ticket of
    `gradshard ticket --verify`, which names the round.
    """
    from gradshard.verification.round_verification import VerificationError

    held = federation.round(named(name)) if ticket is None else _held(ticket, name)
    with progress_bar(f"verifying {name or ticket}") as progress:
        try:
            found = held.verify(sample=sample, seed=seed, progress=progress)
        except VerificationError as error:
            if as_json:
                print_json(error.verification.to_json())
            raise
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)


def _held(path: Path, name: str | None) -> "VerificationTicket":
    """Read a ticket, which must be that of the round if one is given, and print its host."""
    from gradshard.verification.verification_ticket import VerificationTicket

    held = VerificationTicket.load(path)
    if name not in {None, held.round_id}:
        raise TicketError(f"{path} is a ticket to verify round {held.round_id!r}, not {name!r}")
    click.echo(f"with a ticket of {escape_terminal(held.host)}", err=True)
    return held


def _print(found: "Verification") -> None:
    """Print the outcome; it is the command's result, so --quiet does not silence it."""
    click.echo(f"round {escape_terminal(found.round_id)} is correct, as far as it was checked")
    click.echo(f"  {found.extent}, with seed {escape_terminal(found.seed)}")
    for key in found.objects:
        click.echo(f"  {escape_terminal(key)}: every bit of these ranges is as published")
    for statement in found.confidence:
        click.echo(f"  {statement}")
    for note in found.notes:
        click.echo(f"  note: {escape_terminal(note)}")
