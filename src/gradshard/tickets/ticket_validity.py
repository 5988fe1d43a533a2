"""Tickets that S3 does not take any more, and why."""

from datetime import UTC, datetime
from typing import Protocol

from gradshard_core.errors import TicketError


class AnyTicket(Protocol):
    """A ticket, as far as its requests are concerned."""

    @property
    def client(self) -> str:
        """The client that it is for."""

    @property
    def about(self) -> str:
        """The round or training of the ticket, in errors."""

    @property
    def expires_at(self) -> datetime:
        """The time at which S3 rejects it."""

    @property
    def host(self) -> str:
        """The host of its requests."""


def invalid(ticket: AnyTicket, answer: str) -> TicketError:
    """Return the error that says why S3 does not take a ticket.

    Parameters
    ----------
    ticket
        The ticket.
    answer
        The code of S3's error, or its status. It is plain text, unlike the rest of the response.
    """
    if datetime.now(UTC) >= ticket.expires_at:
        why = f"it expired at {ticket.expires_at.isoformat(timespec='seconds')}"
    else:
        why = (
            f"S3 answered {answer}: the credentials it was made with have ended, or may not do this"
        )
    return TicketError(
        f"the ticket of client {ticket.client!r} in {ticket.about} is not valid: "
        f"{why}; ask its operator for another"
    )
