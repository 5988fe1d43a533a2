"""Taking part in a training with a ticket, without AWS credentials."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from gradshard.client.rejection_watch import OnRejection
from gradshard.client.round_by_ticket import TicketRound
from gradshard.client.training_loop import (
    DEFAULT_PATIENCE_SECONDS,
    Evaluate,
    Participation,
    Train,
    participate,
)
from gradshard.tickets.http_client import Response
from gradshard.tickets.round_ticket import ticket_of
from gradshard.tickets.ticket_file import NOT_A_TICKET
from gradshard.tickets.training_ticket import TrainingTicket
from gradshard.tickets.url_requests import TicketRequests
from gradshard.updates.compression import Compression
from gradshard.updates.mask import Mask
from gradshard.utils.polling import poll
from gradshard_core.errors import (
    RoundNotFoundError,
    ServiceError,
    TicketError,
    TicketUnansweredError,
    TrainingNotFoundError,
)
from gradshard_core.formats.object_keys import TrainingKeys
from gradshard_core.records.training_notice import Notice, NoticeUrls
from gradshard_core.records.training_state import ENDED, Invitation, TrainingState

logger = logging.getLogger("gradshard")

RENEW_SECONDS: Final = 1800.0
"""Age at which a notice is asked for anew: credentials of functions last for hours, and nobody says
for how many."""

FRESH_SECONDS: Final = 60.0
"""Age up to which a rejection is none of a notice's age."""

ANSWER_SECONDS: Final = 120.0
"""How long a new notice is waited for after a request; a cold start and an event take seconds."""


class TicketTraining:
    """A training that the holder of a ticket takes part in.

    Parameters
    ----------
    ticket
        The ticket.
    path
        Its file, in which newer URLs are kept; without it they last as long as this object.
    """

    def __init__(self, ticket: TrainingTicket, path: Path | None = None) -> None:
        self.ticket = ticket
        self._path = path
        self._notice: Notice | None = None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a ticket's file, in which newer URLs will be kept.

        Raises
        ------
        TicketError
            The file is not a ticket of a training.
        """
        return cls(TrainingTicket.load(path), Path(path))

    def participate(
        self,
        train: Train,
        evaluate: Evaluate | None = None,
        *,
        on_rejection: OnRejection | None = None,
        codec: str | Compression | None = None,
        mask: Mask | None = None,
        patience: float = DEFAULT_PATIENCE_SECONDS,
    ) -> Participation:
        """Take part in the training until it has ended, as a client with AWS credentials does.

        Parameters
        ----------
        train, evaluate, on_rejection, codec, mask, patience
            As in :meth:`gradshard.client.federation.Federation.participate`.

        Raises
        ------
        TicketError
            S3 does not accept the ticket any more, or cannot be reached for longer than
            ``patience``.
        TrainingNotFoundError
            The ticket was revoked, or the training's objects were removed.
        UpdateError
            The value that ``train`` or ``evaluate`` returned could not be averaged.
        """
        return participate(
            self,
            train,
            evaluate,
            on_rejection=on_rejection,
            codec=codec,
            mask=mask,
            patience=patience,
        )

    @property
    def client(self) -> str:
        """The client that the ticket is for."""
        return self.ticket.client

    def poll_interval(self) -> float:
        """Return the seconds between two looks at the state."""
        return self._read().poll_interval

    def updates(self) -> str:
        """Return what updates hold: ``models`` or ``deltas``."""
        return self._read().updates

    def join(self) -> None:
        """Do nothing: who made the ticket has let the client join."""

    def state(self) -> TrainingState:
        """Return how far the training is, as far as the client may know.

        Raises
        ------
        TicketError
            S3 does not accept the ticket any more.
        TrainingNotFoundError
            The ticket was revoked, or the training's objects were removed.
        ServiceError
            No function has written the notice.
        """
        state = self._read().state
        assert state is not None  # noqa: S101 - for mypy: _read has looked
        return state

    def is_invited(self, invitation: Invitation) -> bool:
        """Return whether the client is invited; to train in a buffered training, everybody is."""
        return invitation.invites(self.client)

    def round(self, invitation: Invitation) -> TicketRound:
        """Return the round of an invitation.

        Raises
        ------
        RoundNotFoundError
            Its ticket is not in the notice.
        """
        record = None if self._notice is None else self._notice.ticket
        round_id = invitation.answered_to(TrainingKeys(self.ticket.training))
        if record is None:
            raise RoundNotFoundError(f"the notice has no ticket of round {round_id!r}")
        try:
            ticket = ticket_of(dict(record))
        except NOT_A_TICKET:
            raise TicketError(f"the notice of {self.ticket.about} has no valid ticket") from None
        if (ticket.round_id, ticket.client) != (round_id, self.client):
            raise RoundNotFoundError(f"the notice has no ticket of round {round_id!r}")
        if ticket.host != self.ticket.host:
            raise TicketError(f"the notice names URLs of another host than {self.ticket.host}")
        return TicketRound(ticket)

    def assigned(self, invitation: Invitation) -> Invitation:
        """Return the invitation: the notice has the client's own assignment among the settings."""
        return invitation

    def renew(self) -> bool:
        """Ask for the notice to be written anew, and wait until it is.

        Returns
        -------
        bool
            False if it has just been written, so that other URLs would not help.

        Raises
        ------
        TicketError
            S3 accepts none of the ticket's URLs any more.
        ServiceError
            No function has written the notice.
        """
        if (
            self._notice is not None
            and self._notice.signed_at
            and _age(self._notice) < FRESH_SECONDS
        ):
            return False
        before = self._fetch().signed_at
        self._first_accepted("PUT")
        for _ in poll(ANSWER_SECONDS):
            if self._keep(self._fetch()).signed_at != before:
                return True
        raise ServiceError(
            f"nothing was written for client {self.client!r} in {self.ticket.about} "
            f"for {ANSWER_SECONDS:g} s: its operator can see why in the log of write_notices"
        )

    def _read(self) -> Notice:
        """Return the notice, which is renewed first if it is old."""
        notice = self._keep(self._fetch())
        is_last = notice.state is not None and notice.state.status == ENDED
        if not is_last and (notice.state is None or _age(notice) > RENEW_SECONDS):
            self.renew()
        assert self._notice is not None  # noqa: S101 - for mypy: it was kept
        return self._notice

    def _fetch(self) -> Notice:
        response = self._first_accepted("GET")
        if response is None:
            raise TrainingNotFoundError(
                f"client {self.client!r} has no notice in {self.ticket.about}: the ticket was "
                "revoked, or the training was removed; ask its operator"
            )
        try:
            return Notice.from_json(json.loads(response.content))
        except (*NOT_A_TICKET, AssertionError):
            raise TicketError(f"the notice of {self.ticket.about} is not one") from None

    def _keep(self, notice: Notice) -> Notice:
        """Keep a notice, and the ticket with its URLs."""
        if notice.client != self.client:
            raise TicketError(f"the notice of {self.ticket.about} is that of another client")
        is_new = self._notice is None or notice.signed_at != self._notice.signed_at
        self._notice = notice
        if is_new and notice.urls is not None and notice.urls != self.ticket.urls[0]:
            self.ticket = self.ticket.renewed(notice.urls)
            if self._path is not None:
                self.ticket.replace_in(self._path)
        return notice

    def _first_accepted(self, method: str) -> Response | None:
        """Read the notice, or ask for a new one, with the newest URLs that S3 accepts."""
        requests = TicketRequests(self.ticket)
        for number, urls in enumerate(self.ticket.urls):
            try:
                return requests.ask(method, _url(urls, method), _headers(method))
            except TicketUnansweredError:
                raise
            except TicketError:
                if number == len(self.ticket.urls) - 1:
                    raise
                logger.info("newer URLs of %s have ended", self.ticket.about)
        raise AssertionError("a ticket has URLs")


def _url(urls: NoticeUrls, method: str) -> str:
    return urls.notice if method == "GET" else urls.renewal


def _headers(method: str) -> dict[str, str]:
    return {} if method == "GET" else {"Content-Length": "0"}


def _age(notice: Notice) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(notice.signed_at)).total_seconds()
