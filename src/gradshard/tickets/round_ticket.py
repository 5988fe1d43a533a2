"""Tickets of rounds: with one, a client without AWS credentials takes part in one round.

A ticket is a file of presigned URLs. S3 checks the signature of each, and with it the object's key,
the method, the time, and for the upload its length and that there is no object yet. This module has
the ticket and its file; :mod:`gradshard.tickets.issuer` makes tickets, and
:mod:`gradshard.client.round_by_ticket` takes part in a round with one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from gradshard.tickets.allowed_hosts import is_url, origin_of
from gradshard.tickets.part_urls import MAX_UPDATE_BYTES, PartUrls
from gradshard.tickets.ticket_file import TicketFile
from gradshard_core.formats.object_keys import check_id
from gradshard_core.formats.presigned_urls import UrlTable, find_url, numbers_of, urls_of
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.records.ticket_urls import VERSION
from gradshard_core.specs.masking_options import Agreement


@dataclass(frozen=True)
class Ticket(TicketFile):
    """The URLs with which one client takes part in one round.

    Parameters
    ----------
    round_id, client
        The round and the client.
    expires_at
        The time at which S3 rejects the ticket; earlier if the credentials that made it end.
    max_bytes
        The bytes that an update may have, with its header.
    upload
        URLs for a PUT of the update, by its length; none if there are ``parts``.
    uploaded_url
        The URL for a HEAD of the update.
    rejection_url
        The URL for a GET of the reason why the update was rejected.
    ended_url
        The URL for a HEAD of the manifest, which exists when the round has ended. The manifest
        names the other clients, so the ticket cannot read it.
    result_url, result_head_url
        The URLs for GETs of the average, and for a HEAD of it with its checksum.
    parts
        URLs for an update that may be too large for one PUT.
    layout
        The layout that the update must have, if it is known. It is checked before the upload,
        because a ticket uploads once.
    model
        The model to train, if the round has one: ``url`` and ``head_url``, ``etag`` and ``nbytes``.
    allow_nonfinite
        Whether the round takes NaN and infinities. If not, they are found before the upload.
    codecs
        The codecs of compressed updates that the round takes.
    masked
        What the clients of a masked round agree to, as JSON.
    """

    round_id: str
    client: str
    expires_at: datetime
    max_bytes: int
    upload: UrlTable = field(repr=False)
    uploaded_url: str = field(repr=False)
    rejection_url: str = field(repr=False)
    ended_url: str = field(repr=False)
    result_url: str = field(repr=False)
    result_head_url: str = field(repr=False)
    parts: PartUrls | None = field(default=None, repr=False)
    layout: Mapping[str, Any] | None = field(default=None, repr=False)
    model: Mapping[str, Any] | None = field(default=None, repr=False)
    allow_nonfinite: bool = True
    codecs: tuple[str, ...] = ()
    masked: Mapping[str, Any] | None = field(default=None, repr=False)

    kind: ClassVar[str] = "a ticket"
    made_by: ClassVar[str] = "gradshard ticket"

    @classmethod
    def parse(cls, data: str | bytes) -> "Ticket":
        """Read the content of a file; raise one of :data:`NOT_A_TICKET` if it is none."""
        return ticket_of(json.loads(data))

    def dumps(self) -> str:
        """Return the ticket as the text of its file; it is a secret, as the file is."""
        record = asdict(self)
        record |= {"ticket": VERSION, "expires_at": self.expires_at.isoformat(timespec="seconds")}
        if self.masked is None:
            del record["masked"]
        return json.dumps(record, separators=(",", ":"))

    @property
    def about(self) -> str:
        """The round or training of the ticket, in errors."""
        return f"round {self.round_id!r}"

    @property
    def signed_url(self) -> str:
        """One of its URLs; all name the same host."""
        return self.result_url

    @property
    def upload_lengths(self) -> set[int]:
        """The lengths that an update may have in one PUT."""
        return numbers_of(self.upload)

    def upload_url(self, nbytes: int) -> str:
        """Return the URL for a PUT of an update of this length."""
        return "".join(find_url(self.upload, nbytes))

    def padded_length(self, nbytes: int) -> int:
        """Return the shortest length that the ticket takes for an update of ``nbytes``."""
        if self.parts:
            return self.parts.padded_length(nbytes)
        return min(length for length in self.upload_lengths if length >= nbytes)

    def required_layout(self) -> Layout | None:
        """Return the layout that the update must have; None if that is not known."""
        return None if self.layout is None else _parse_layout(self.layout)

    def agreement(self) -> Agreement | None:
        """Return what the clients of the round agree to; None if it is not masked."""
        return None if self.masked is None else Agreement.from_json(self.masked)


def ticket_of(record: Mapping[str, Any]) -> Ticket:
    """Read a ticket's JSON; raise one of :data:`NOT_A_TICKET` if it is not one."""
    ticket = own_ticket(record)
    check_id("round", ticket.round_id)
    check_id("client", ticket.client)
    _check_urls(ticket)
    _check_consistent(ticket)
    return ticket


def own_ticket(record: Mapping[str, Any]) -> Ticket:
    """Read a ticket's JSON that this program has made, without looking whether it is valid."""
    fields = dict(record)
    if fields.pop("ticket") != VERSION:
        raise ValueError("another version of the format")
    parts = None if fields["parts"] is None else PartUrls(**fields["parts"])
    fields |= {"expires_at": datetime.fromisoformat(fields["expires_at"]), "parts": parts}
    return Ticket(**fields | {"codecs": tuple(fields.get("codecs", ()))})


def _check_urls(ticket: Ticket) -> None:
    urls = [ticket.uploaded_url, ticket.rejection_url, ticket.ended_url]
    urls += [ticket.result_url, ticket.result_head_url, *urls_of(ticket.upload)]
    if ticket.parts:
        urls += ticket.parts.urls()
    if ticket.model is not None:
        urls += [ticket.model["url"], ticket.model["head_url"]]
    if not all(is_url(url) for url in urls):
        raise ValueError("not a URL")
    if len({origin_of(url) for url in urls}) != 1:
        raise ValueError("several hosts")


def _check_consistent(ticket: Ticket) -> None:
    ticket.required_layout()
    ticket.agreement()
    if ticket.model is not None and not (
        type(ticket.model["nbytes"]) is int
        and 0 < ticket.model["nbytes"] <= MAX_UPDATE_BYTES
        and isinstance(ticket.model["etag"], str)
    ):
        raise ValueError("not a model")
    if ticket.parts and ticket.upload:
        raise ValueError("two ways to upload")
    if type(ticket.allow_nonfinite) is not bool:
        raise ValueError("allow_nonfinite is not a boolean")
    if not all(isinstance(codec, str) for codec in ticket.codecs):
        raise ValueError("codecs are not names")
    longest = max(ticket.upload_lengths, default=0)
    most = ticket.max_bytes
    takes_most = ticket.parts.is_for(most) if ticket.parts else longest == most
    if not takes_most or ticket.expires_at.tzinfo is None:
        raise ValueError("inconsistent")


def _parse_layout(tensors: Mapping[str, Any]) -> Layout:
    return Layout.pack((name, of["dtype"], of["shape"]) for name, of in tensors.items())
