"""A ticket as JSON: the presigned URLs with which one client takes part in one round.

A coordinator makes tickets of rounds (:mod:`gradshard.tickets.issuer`), and a function those
of a training's rounds (:mod:`gradshard_core.trainings.write_notices`).
"""

import json
from datetime import datetime
from typing import Any, Final, Protocol

from gradshard_core.formats.masked_updates import masked_layout
from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys
from gradshard_core.formats.presigned_urls import add_url
from gradshard_core.formats.tensor_layout import Layout, encode_header
from gradshard_core.specs.masking_options import Agreement
from gradshard_core.units import MIB

VERSION: Final = 1
"""Version of the format."""

MAX_LENGTHS: Final = 1024
"""The most lengths that a ticket has a URL for.

Padding then adds at most a thousandth of the largest update, and the file has 100 kB."""

MIN_STEP_BYTES: Final = 64 * 1024
"""Smaller steps would save no request, because this much is read for an update's header."""

METADATA_ROOM_BYTES: Final = 64 * 1024
"""For a client's metadata, where the size of updates is derived from a layout."""

MAX_LAYOUT_BYTES: Final = MIB // 2
"""Of the layout in a ticket, as JSON; a larger one is left out."""


class Presigner(Protocol):
    """Signs URLs of a bucket's objects, each for a number of seconds."""

    def presign_new(self, key: str, nbytes: int, seconds: int, /) -> str:
        """Return a URL with which anyone may PUT an object of just this length, if there is none.

        The request must have both in its headers, ``Content-Length`` and ``If-None-Match: *``: they
        are signed.
        """

    def presign_empty(self, key: str, seconds: int, /) -> str:
        """Return a URL with which anyone may PUT an empty object, whether or not there is one."""

    def presign_read(self, key: str, seconds: int, /, *, head: bool = False) -> str:
        """Return a URL with which anyone may GET an object's newest version, or only HEAD it."""

    def presign_checksum(self, key: str, seconds: int, /) -> str:
        """Return a URL with which anyone may HEAD an object and its checksum.

        The request must have the header ``x-amz-checksum-mode: ENABLED``: it is signed.
        """


def build_ticket(
    signer: Presigner,
    keys: RoundKeys,
    client: str,
    *,
    seconds: int,
    expires_at: datetime,
    max_bytes: int,
    min_bytes: int = 1,
    layout: Layout | None = None,
    allow_nonfinite: bool = True,
    codecs: tuple[str, ...] = (),
    model: ObjectVersion | None = None,
    agreement: Agreement | None = None,
) -> dict[str, Any]:
    """Return a ticket whose update goes in one PUT.

    Parameters
    ----------
    signer, keys, client
        The signer, the round, and the client that may take part.
    seconds, expires_at
        For how long the URLs hold, and the time at which they end.
    max_bytes, min_bytes
        The lengths that an update may have, its header included; 0 for a ticket that uploads
        nothing.
    layout, allow_nonfinite, codecs, model
        As in :class:`gradshard.tickets.round_ticket.Ticket`.
    agreement
        What the clients of a masked round agree to.
    """
    key = keys.update(client)
    urls: dict[str, dict[str, str]] = {}
    for length in signed_lengths(max_bytes, min_bytes):
        add_url(urls, length, signer.presign_new(key, length, seconds))
    return {
        "ticket": VERSION,
        "round_id": keys.round_id,
        "client": client,
        "expires_at": expires_at.isoformat(timespec="seconds"),
        "max_bytes": max_bytes,
        "upload": urls,
        "uploaded_url": signer.presign_checksum(key, seconds),
        "rejection_url": signer.presign_read(keys.rejection(client), seconds),
        "ended_url": signer.presign_read(keys.manifest, seconds, head=True),
        "result_url": signer.presign_read(keys.result, seconds),
        "result_head_url": signer.presign_checksum(keys.result, seconds),
        "parts": None,
        "layout": _layout_if_small(layout),
        "allow_nonfinite": allow_nonfinite,
        "codecs": codecs,
        "model": None if model is None else _model_record(signer, model, seconds),
        # Only where it says something: clients of before have not heard of it.
        **({} if agreement is None else {"masked": agreement.to_json()}),
    }


def sent_layout(layout: Layout, agreement: Agreement | None) -> Layout:
    """Return the layout of an update as it is sent: masked, if the round is."""
    return layout if agreement is None else masked_layout(layout, agreement.terms.ring_bits)


def max_update_bytes(layout: Layout) -> int:
    """Return how long an update of a layout may be, its header and metadata included."""
    return len(encode_header(layout, {})) + METADATA_ROOM_BYTES + layout.nbytes


def signed_lengths(max_bytes: int, min_bytes: int = 1) -> range:
    """Return the lengths to which an update of ``min_bytes`` or more may be padded, longest first.

    They are in equal steps.
    """
    step = max(MIN_STEP_BYTES, -(-max_bytes // MAX_LENGTHS))
    return range(max_bytes, min_bytes - 1, -step)


def _model_record(signer: Presigner, model: ObjectVersion, seconds: int) -> dict[str, Any]:
    return {
        "url": signer.presign_read(model.key, seconds),
        "head_url": signer.presign_checksum(model.key, seconds),
        "etag": model.etag,
        "nbytes": model.nbytes,
    }


def _layout_if_small(layout: Layout | None) -> dict[str, Any] | None:
    """Return a layout as JSON; None if the ticket's file would become too large with it."""
    record = None if layout is None else layout.to_json()
    return record if len(json.dumps(record)) <= MAX_LAYOUT_BYTES else None
