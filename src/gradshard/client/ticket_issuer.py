"""Making tickets: presigned URLs for one client's part in one round, signed with credentials.

A signature holds for one length only, so a ticket has one for each of up to a thousand lengths.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from gradshard.aws.client_store import ClientStore
from gradshard.client.signed_urls import add_url
from gradshard.client.ticket_parts import (
    MAX_BYTES,
    MAX_UPDATE_BYTES,
    NUMBER_PARAMETER,
    PartUrls,
    cut,
)
from gradshard.client.tickets import MAX_FILE_BYTES, Ticket
from gradshard_core.errors import TicketError
from gradshard_core.formats.keys import ObjectVersion, RoundKeys
from gradshard_core.formats.layout import Layout, encode_header
from gradshard_core.planning.transfers import SINGLE_PUT_BYTES
from gradshard_core.units import MIB

DEFAULT_SECONDS: Final = 24 * 3600

MAX_SECONDS: Final = 7 * 24 * 3600
"""The most seconds for which S3 accepts a presigned URL,
https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-presigned-url.html (2026-11)."""

MAX_LENGTHS: Final = 1024
"""The most lengths that a ticket has a URL for.

Padding then adds at most a thousandth of the largest update, and the file has 100 kB."""

MIN_STEP_BYTES: Final = 64 * 1024
"""Smaller steps would save no request, because this much is read for an update's header."""

METADATA_ROOM_BYTES: Final = 64 * 1024
"""For a client's metadata, where the size of updates is derived from a layout."""

PARTS: Final = 32
"""Part lengths in the largest update. Each part costs a request, and four are sent at once, so an
interruption costs at most an eighth of the upload."""

MIN_PART_BYTES: Final = 16 * MIB

FIRST_PART_STEPS: Final = 512
"""Signed lengths of the first part for each length of the other parts."""


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
    max_bytes, min_bytes
        The lengths that an update may have, its header included. Each length takes a millisecond
        to sign.
    layout, allow_nonfinite, codecs, model
        As in :class:`~gradshard.client.tickets.Ticket`.
    single_put_bytes
        The largest update that is sent in one PUT.

    Raises
    ------
    TicketError
        S3 takes no such time or size.
    StoreError
        S3 begins no upload.
    """
    _check_in_range("expires", expires, MAX_SECONDS)
    _check_in_range("max_bytes", max_bytes, MAX_UPDATE_BYTES)
    expires_at = datetime.now(UTC) + timedelta(seconds=expires)
    key = keys.update(client)
    is_cut = max_bytes > single_put_bytes
    terms = (expires, max_bytes, min_bytes)
    return Ticket(
        round_id=keys.round_id,
        client=client,
        expires_at=expires_at,
        max_bytes=max_bytes,
        upload={} if is_cut else _put_urls(store, key, *terms),
        uploaded_url=store.presign_read(key, expires, head=True),
        rejection_url=store.presign_read(keys.rejection(client), expires),
        ended_url=store.presign_read(keys.manifest, expires, head=True),
        result_url=store.presign_read(keys.result, expires),
        parts=issue_part_urls(store, key, *terms) if is_cut else None,
        layout=_layout_if_small(layout),
        allow_nonfinite=allow_nonfinite,
        codecs=codecs,
        model=None if model is None else _model_record(store, model, expires),
    )


def issue_download_ticket(
    store: ClientStore, keys: RoundKeys, client: str, key: str, *, expires: int
) -> Ticket:
    """Make a ticket that uploads nothing and fetches the object ``key`` once it exists.

    Raises
    ------
    TicketError
        S3 takes no such time.
    """
    _check_in_range("expires", expires, MAX_SECONDS)
    return Ticket(
        round_id=keys.round_id,
        client=client,
        expires_at=datetime.now(UTC) + timedelta(seconds=expires),
        max_bytes=0,
        upload={},
        uploaded_url=store.presign_read(keys.update(client), expires, head=True),
        rejection_url=store.presign_read(keys.rejection(client), expires),
        ended_url=store.presign_read(key, expires, head=True),
        result_url=store.presign_read(key, expires),
    )


def _put_urls(
    store: ClientStore, key: str, expires: int, max_bytes: int, min_bytes: int
) -> dict[str, dict[str, str]]:
    """Sign an upload in one request, for updates of these lengths."""
    urls: dict[str, dict[str, str]] = {}
    for length in signed_lengths(max_bytes, min_bytes):
        add_url(urls, length, store.presign_new(key, length, expires))
    return urls


def issue_part_urls(
    store: ClientStore, key: str, expires: int, max_bytes: int, min_bytes: int
) -> PartUrls:
    """Begin a multipart upload and sign its requests, for updates of these lengths.

    The longest signed length of the first part and the others' lengths add up to ``max_bytes``.
    """
    upload_id = store.create_upload(key)
    lengths = max(2, min(PARTS, max_bytes // MIN_PART_BYTES), -(-max_bytes // MAX_BYTES))
    size = -(-max_bytes // lengths)
    count = lengths - 2
    longest = max_bytes - count * size
    needed, shortest = cut(min_bytes, longest, size)
    if needed < count:
        shortest = min(shortest, longest - size + 1)
    step = -(-size // FIRST_PART_STEPS)
    first: dict[str, dict[str, str]] = {}
    for length in range(longest, shortest - 1, -step):
        add_url(first, length, store.presign_part(key, upload_id, 1, length, expires))
    others: dict[str, dict[str, str]] = {}
    for number in range(2, count + 2):
        url = store.presign_part(key, upload_id, number, size, expires)
        add_url(others, number, url.replace(f"{NUMBER_PARAMETER}{number}", NUMBER_PARAMETER, 1))
    return PartUrls(
        nbytes=size,
        first=first,
        others=others,
        listing=store.presign_parts(key, upload_id, expires),
        completion=store.presign_completion(key, upload_id, expires),
    )


def max_update_bytes(layout: Layout) -> int:
    """Return how long an update of a layout may be, its header and metadata included."""
    return len(encode_header(layout, {})) + METADATA_ROOM_BYTES + layout.nbytes


def signed_lengths(max_bytes: int, min_bytes: int = 1) -> range:
    """Return the lengths to which an update of ``min_bytes`` or more may be padded, longest first.

    They are in equal steps.
    """
    step = max(MIN_STEP_BYTES, -(-max_bytes // MAX_LENGTHS))
    return range(max_bytes, min_bytes - 1, -step)


def _model_record(store: ClientStore, model: ObjectVersion, expires: int) -> dict[str, Any]:
    url = store.presign_read(model.key, expires)
    return {"url": url, "etag": model.etag, "nbytes": model.nbytes}


def _layout_if_small(layout: Layout | None) -> dict[str, Any] | None:
    """Return a layout as JSON; None if the ticket's file would become too large with it."""
    record = None if layout is None else layout.to_json()
    return record if len(json.dumps(record)) <= MAX_FILE_BYTES // 2 else None


def _check_in_range(name: str, value: Any, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise TicketError(
            f"{name} is {value!r}, not a whole number from 1 to {most}, the most that S3 takes"
        )
