"""Making tickets: presigned URLs for one client's part in one round, signed with credentials.

A signature holds for one length only, so a ticket has one for each of up to a thousand lengths.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from gradshard.aws.client_store import ClientStore
from gradshard.tickets.lifetime import MAX_SECONDS
from gradshard.tickets.part_urls import MAX_UPDATE_BYTES, issue_part_urls
from gradshard.tickets.round_ticket import Ticket, own_ticket
from gradshard_core.errors import TicketError
from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.records.ticket_urls import build_ticket
from gradshard_core.s3.client_transfers import SINGLE_PUT_BYTES
from gradshard_core.specs.masking_options import Agreement


def issue_ticket(
    store: ClientStore,
    keys: RoundKeys,
    client: str,
    *,
    expires: int,
    max_bytes: int,
    min_bytes: int = 1,
    layout: Layout | None = None,
    allow_nonfinite: bool = True,
    codecs: tuple[str, ...] = (),
    model: ObjectVersion | None = None,
    agreement: Agreement | None = None,
    single_put_bytes: int = SINGLE_PUT_BYTES,
) -> Ticket:
    """Make a ticket with the credentials of a bucket's store.

    This sends no request to S3, unless ``max_bytes`` is over ``single_put_bytes``: then it begins
    a multipart upload, whose id is signed.

    Parameters
    ----------
    store, keys, client
        The bucket, the round, and the client that may take part.
    expires
        Seconds from now.
    max_bytes, min_bytes, layout, allow_nonfinite, codecs, model, agreement
        As in ``ticket_urls.build_ticket``. An agreement needs the layout.
    single_put_bytes
        The largest update that is sent in one PUT.

    Raises
    ------
    TicketError
        S3 takes no such time or size.
    StoreError
        S3 begins no upload.
    """
    check_in_range("expires", expires, MAX_SECONDS)
    check_in_range("max_bytes", max_bytes, MAX_UPDATE_BYTES)
    key = keys.update(client)
    is_cut = max_bytes > single_put_bytes
    record = build_ticket(
        store,
        keys,
        client,
        seconds=expires,
        expires_at=_after(expires),
        max_bytes=0 if is_cut else max_bytes,
        min_bytes=min_bytes,
        layout=layout,
        allow_nonfinite=allow_nonfinite,
        codecs=codecs,
        model=model,
        agreement=agreement,
    )
    ticket = own_ticket(record)
    if agreement is not None and ticket.layout is None:
        raise TicketError(
            f"round {keys.round_id!r} is masked, and the names of its tensors are too long for a "
            "ticket, which must have the layout: shorten them, or give the client credentials "
            "(docs/clients.md)"
        )
    if not is_cut:
        return ticket
    parts = issue_part_urls(store, key, expires, max_bytes, min_bytes)
    return replace(ticket, max_bytes=max_bytes, parts=parts)


def issue_download_ticket(
    store: ClientStore, keys: RoundKeys, client: str, key: str, *, expires: int
) -> Ticket:
    """Make a ticket that uploads nothing and fetches the object ``key`` once it exists.

    Raises
    ------
    TicketError
        S3 takes no such time.
    """
    check_in_range("expires", expires, MAX_SECONDS)
    ticket = own_ticket(
        build_ticket(store, keys, client, seconds=expires, expires_at=_after(expires), max_bytes=0)
    )
    return replace(
        ticket,
        ended_url=store.presign_read(key, expires, head=True),
        result_url=store.presign_read(key, expires),
        result_head_url=store.presign_checksum(key, expires),
    )


def _after(seconds: int) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def check_in_range(name: str, value: Any, most: int) -> None:
    """Check a ticket's time or size; raise a :class:`TicketError` if S3 does not take it."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise TicketError(
            f"{name} is {value!r}, not a whole number from 1 to {most}, the most that S3 takes"
        )
