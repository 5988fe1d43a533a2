"""Tickets of trainings: with one, a client without AWS credentials takes part in all rounds.

A training's ticket has two presigned URLs: one reads the client's notice
(:mod:`gradshard_core.records.training_notice`), the other one asks for it to be written anew. The
notice has the ticket of the round to which the client is invited, and newer URLs of both kinds, so
that a client that goes on asking takes part in a training of any length.
"""

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from gradshard.aws.client_store import ClientStore
from gradshard.tickets.allowed_hosts import is_url, origin_of
from gradshard.tickets.ticket_file import TicketFile
from gradshard.utils.atomic_file import atomic_file
from gradshard_core.errors import TicketError
from gradshard_core.formats.object_keys import TrainingKeys, check_id
from gradshard_core.records.training_notice import Notice, NoticeUrls

VERSION: Final = 1
"""Version of the file's format."""


@dataclass(frozen=True)
class TrainingTicket(TicketFile):
    """The URLs with which one client takes part in one training.

    Parameters
    ----------
    training, client
        The training and the client.
    expires_at
        The time at which S3 rejects the ticket as it was made; earlier if the credentials that made
        it end.
    urls
        The newest URLs first; the last ones are those with which the ticket was made.
    """

    training: str
    client: str
    expires_at: datetime
    urls: tuple[NoticeUrls, ...] = field(repr=False)

    kind: ClassVar[str] = "a ticket of a training"
    made_by: ClassVar[str] = "gradshard train ticket"

    @classmethod
    def parse(cls, data: str | bytes) -> Self:
        """Read the content of a file; raise one of :data:`NOT_A_TICKET` if it is none."""
        record = json.loads(data)
        if record.pop("training_ticket") != VERSION:
            raise ValueError("another version of the format")
        expires_at = datetime.fromisoformat(record.pop("expires_at"))
        urls = tuple(NoticeUrls(**pair) for pair in record.pop("urls"))
        ticket = cls(expires_at=expires_at, urls=urls, **record)
        check_id("training", ticket.training)
        check_id("client", ticket.client)
        check_urls(urls)
        if expires_at.tzinfo is None:
            raise ValueError("no time zone")
        return ticket

    def dumps(self) -> str:
        """Return the ticket as the text of its file; it is a secret, as the file is."""
        record: dict[str, Any] = {
            "training_ticket": VERSION,
            "training": self.training,
            "client": self.client,
            "expires_at": self.expires_at.isoformat(timespec="seconds"),
            "urls": [urls._asdict() for urls in self.urls],
        }
        return json.dumps(record, separators=(",", ":"))

    def replace_in(self, path: Path) -> None:
        """Write the ticket over its own older file."""
        written = self.dumps().encode()
        with atomic_file(path, len(written)) as file:
            file.write(written)

    def renewed(self, urls: NoticeUrls) -> Self:
        """Return the ticket with newer URLs.

        Raises
        ------
        TicketError
            They are those of another host.
        """
        try:
            check_urls((urls, self.urls[-1]))
        except ValueError:
            raise TicketError(f"the notice names URLs of another host than {self.host}") from None
        return replace(self, urls=(urls, self.urls[-1]))

    @property
    def about(self) -> str:
        """The round or training of the ticket, in errors."""
        return f"training {self.training!r}"

    @property
    def signed_url(self) -> str:
        """One of its URLs; all name the same host."""
        return self.urls[-1].notice


def check_urls(pairs: tuple[NoticeUrls, ...]) -> None:
    """Check that there are URLs, all of one host; raise a ValueError otherwise."""
    urls = [url for pair in pairs for url in pair]
    if not urls or not all(is_url(url) for url in urls):
        raise ValueError("not a URL")
    if len({origin_of(url) for url in urls}) != 1:
        raise ValueError("several hosts")


def issue_training_ticket(
    store: ClientStore, keys: TrainingKeys, client: str, *, expires: int
) -> TrainingTicket:
    """Make a ticket with the credentials of a bucket's store, and the client's notice.

    Parameters
    ----------
    store, keys, client
        The bucket, the training, and the client that may take part.
    expires
        Seconds from now, at most seven days.
    """
    store.put_json(keys.notice(client), Notice(client).to_json(), replaces=None)
    urls = NoticeUrls(
        store.presign_read(keys.notice(client), expires),
        store.presign_empty(keys.renewal(client), expires),
    )
    expires_at = datetime.now(UTC) + timedelta(seconds=expires)
    return TrainingTicket(keys.name, client, expires_at, (urls,))
