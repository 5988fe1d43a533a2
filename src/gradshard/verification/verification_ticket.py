"""Tickets to verify a masked round: its contributors read all masked updates, without credentials.

The masked updates of a round tell nothing to whoever has no mask, so they can be shown to all
contributors. Then none of them needs to trust the operator for the sum.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, ClassVar, Final, NamedTuple, Self

from gradshard.aws.client_store import ClientStore
from gradshard.tickets.allowed_hosts import is_url, origin_of
from gradshard.tickets.http_client import Response
from gradshard.tickets.issuer import check_in_range
from gradshard.tickets.lifetime import MAX_SECONDS
from gradshard.tickets.ticket_file import TicketFile
from gradshard.tickets.url_requests import ResponseBody, TicketRequests
from gradshard.updates.uploads import Progress
from gradshard.verification.round_claim import Claim, read_claim
from gradshard.verification.round_provenance import StatedRound
from gradshard.verification.round_verification import Verification, VerificationError, verify_claim
from gradshard_core.errors import RoundNotFoundError, TicketError
from gradshard_core.formats.object_keys import RoundKeys, StoredTensors, check_id
from gradshard_core.records.stored_spec import read_spec
from gradshard_core.s3.store import S3Store
from gradshard_core.s3.traffic import Meter
from gradshard_core.s3.transport import ResponseError, Transport
from gradshard_core.units import MIB

VERSION: Final = 1
"""Version of the file's format."""


class Readable(NamedTuple):
    """A version of an object that a ticket reads; ``version`` is empty for the newest one."""

    key: str
    version: str
    url: str


@dataclass(frozen=True)
class VerificationTicket(TicketFile):
    """The URLs with which a contributor verifies one masked round.

    Parameters
    ----------
    round_id, client
        The round, and whom the ticket is for.
    expires_at
        The time at which S3 rejects it; earlier if the credentials that made it end.
    objects
        The objects that it reads. Their URLs are secrets.
    """

    round_id: str
    client: str
    expires_at: datetime
    objects: tuple[Readable, ...] = field(repr=False)

    kind: ClassVar[str] = "a ticket to verify a round"
    made_by: ClassVar[str] = "gradshard ticket --verify"
    max_file_bytes: ClassVar[int] = 8 * MIB

    @classmethod
    def parse(cls, data: str | bytes) -> Self:
        """Read the content of a file; raise one of :data:`NOT_A_TICKET` if it is none."""
        record = json.loads(data)
        if record.pop("verification_ticket") != VERSION:
            raise ValueError("another version of the format")
        expires_at = datetime.fromisoformat(record.pop("expires_at"))
        objects = tuple(Readable(*map(str, entry)) for entry in record.pop("objects"))
        ticket = cls(expires_at=expires_at, objects=objects, **record)
        check_id("round", ticket.round_id)
        check_id("client", ticket.client)
        if not objects or not all(is_url(entry.url) for entry in objects):
            raise ValueError("not a URL")
        if len({origin_of(entry.url) for entry in objects}) != 1 or expires_at.tzinfo is None:
            raise ValueError("inconsistent")
        return ticket

    def dumps(self) -> str:
        """Return the ticket as the text of its file; it is a secret, as the file is."""
        record = {
            "verification_ticket": VERSION,
            "round_id": self.round_id,
            "client": self.client,
            "expires_at": self.expires_at.isoformat(timespec="seconds"),
            "objects": self.objects,
        }
        return json.dumps(record, separators=(",", ":"))

    @property
    def about(self) -> str:
        """The round of the ticket, in errors."""
        return f"round {self.round_id!r}"

    @property
    def signed_url(self) -> str:
        """One of its URLs; all name the same host."""
        return self.objects[0].url

    def verify(
        self, *, sample: float = 0.01, seed: str | None = None, progress: Progress | None = None
    ) -> Verification:
        """Verify the round, as :meth:`gradshard.client.round.Round.verify` does.

        Raises
        ------
        VerificationError
            A bit is not as published, or the manifest contradicts the spec or the updates.
        ChangedObjectError
            Updates are gone in the version that was averaged.
        TicketError
            S3 does not accept the ticket any more.
        """
        store = S3Store("", _UrlTransport(self))
        claim = read_round_claim(store, RoundKeys(self.round_id))
        return check_claim(store, claim, sample=sample, seed=seed, progress=progress)


def read_round_claim(store: S3Store, keys: RoundKeys) -> Claim:
    """Read what a completed round claims.

    Raises
    ------
    RoundNotFoundError
        Its spec or its manifest is not there.
    """
    opened = read_spec(store, keys)
    stated = store.get_json(keys.manifest, StatedRound.from_json)
    if opened is None or stated is None:
        raise RoundNotFoundError.of(keys.round_id)
    spec, record = opened
    return read_claim(store, keys, spec, record.get("model_version"), stated)


def check_claim(
    store: S3Store, claim: Claim, *, sample: float, seed: str | None, progress: Progress | None
) -> Verification:
    """Recompute a sample of a claim; raise a :class:`VerificationError` if it is not true."""
    found = verify_claim(
        store,
        claim,
        fraction=sample,
        seed=secrets.token_hex(16) if seed is None else seed,
        progress=progress,
    )
    if not found.is_correct:
        raise VerificationError(found)
    return found


def issue_verification_ticket(
    store: ClientStore, keys: RoundKeys, client: str, *, expires: int
) -> VerificationTicket:
    """Make a ticket with the credentials of a bucket's store, for a completed round.

    The round's claim is read, and the ticket is for the objects that this reads.

    Parameters
    ----------
    store, keys, client
        The bucket, the round, and the client that may verify it.
    expires
        Seconds from now.

    Raises
    ------
    TicketError
        The round is not masked, S3 takes no such time, or it has more objects than fit in a file.
    """
    check_in_range("expires", expires, MAX_SECONDS)
    noted = _NotingTransport(store.transport)
    claim = read_round_claim(S3Store(store.bucket, noted), keys)
    plan = claim.plan
    if plan.masking is None:
        raise TicketError(
            f"round {keys.round_id!r} is not masked: with the ticket {client!r} would read the "
            "updates of all others. Give the verifier's policy to whom they trust (docs/verifying)"
        )
    tensors: list[StoredTensors | None] = [claim.next_model, *claim.state]
    if plan.next_model is not None:
        tensors += [plan.next_model.model, *plan.next_model.state]
    sources = [stored.source for stored in tensors if stored is not None]
    for source in sources:
        noted.read[source.key, source.version] = None
    objects = tuple(
        Readable(key, version, store.presign_version(key, version, expires))
        for key, version in noted.read
    )
    expires_at = datetime.now(UTC) + timedelta(seconds=expires)
    ticket = VerificationTicket(keys.round_id, client, expires_at, objects)
    if len(ticket.dumps()) > ticket.max_file_bytes:
        raise TicketError(
            f"round {keys.round_id!r} has {len(objects)} objects to read, and the URLs of so many "
            f"are more than the {ticket.max_file_bytes // MIB} MiB of a ticket: verify it with the "
            "verifier's policy (docs/verifying)"
        )
    return ticket


class _NotingTransport:
    """Another transport, whose reads are noted: by key and version, in order."""

    def __init__(self, transport: Transport) -> None:
        self._transport, self.meter = transport, transport.meter
        self.close = transport.close
        self.read: dict[tuple[str, str], None] = {}

    def call(self, operation: str, /, **parameters: Any) -> dict[str, Any]:
        """Send a request."""
        if operation == "get_object":
            self.read[parameters["Key"], parameters.get("VersionId", "")] = None
        return self._transport.call(operation, **parameters)


class _UrlTransport:
    """Reads a ticket's objects by their URLs; there are no others."""

    def __init__(self, ticket: VerificationTicket) -> None:
        self.meter = Meter()
        self._ticket = ticket
        self._urls = {(entry.key, entry.version): entry.url for entry in ticket.objects}

    def close(self) -> None:
        """Do nothing: the connections end with the object."""

    @cached_property
    def _requests(self) -> TicketRequests:
        return TicketRequests(self._ticket)

    def call(self, operation: str, /, **parameters: Any) -> dict[str, Any]:
        """Read an object; anything else is denied."""
        key, version = parameters["Key"], parameters.get("VersionId", "")
        url = self._urls.get((key, version))
        if operation != "get_object" or url is None:
            raise ResponseError("NoSuchKey", operation, f"the ticket does not read {key}")
        names = {"Range": "Range", "IfMatch": "If-Match"}
        headers = {names[name]: parameters[name] for name in names if name in parameters}
        response = self._requests.send("GET", url, headers, stream=True)
        if response.status_code in {404, 412, 416}:
            response.raw.close()
            codes = {404: "NoSuchKey", 412: "PreconditionFailed", 416: "InvalidRange"}
            raise ResponseError(codes[response.status_code], operation, f"{key} is gone")
        if response.status_code >= 300:
            self._requests.reject(response)
        self._requests.check_is_s3(response)
        return _fields(response)


def _fields(response: Response) -> dict[str, Any]:
    """Return the fields of an answer to a GET, with boto3's names."""
    headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}
    return {
        "Body": ResponseBody(response),
        "ETag": headers.get("etag", ""),
        "ContentRange": headers.get("content-range"),
        "ContentLength": int(headers.get("content-length", "0")),
    }
