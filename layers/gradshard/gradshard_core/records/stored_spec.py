"""A round's spec as it was opened with, and the record of its opening."""

import json
from dataclasses import replace
from typing import Any, Final

from gradshard_core.formats.long_lists import StoredList, is_in_pieces
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.limits import aws_limits
from gradshard_core.records.plan_and_manifest import piece_reader, store_expected
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.round_spec import RoundSpec
from gradshard_core.specs.round_spec_checks import parse_spec

PAYLOAD_ROOM_BYTES: Final = 4096
"""The state machine adds these to a round's spec: its name, a time and a callback token."""

MOST_BYTES: Final = aws_limits.MAX_PAYLOAD_BYTES - PAYLOAD_ROOM_BYTES
"""The most bytes of a round's spec."""


def with_room(spec: RoundSpec, store: S3Store, keys: RoundKeys, *, further: int = 0) -> RoundSpec:
    """Return a round's spec, whose clients are stored in pieces if its input has no room for them.

    Parameters
    ----------
    spec
        The terms.
    store, keys
        The bucket, and the keys of the round in it.
    further
        The bytes that are to be left beside the spec.
    """
    nbytes = len(json.dumps(spec.to_json(), separators=(",", ":")))
    if isinstance(spec.clients, int) or nbytes <= MOST_BYTES - further:
        return spec
    written = store_expected(store, keys, spec.clients)
    if not is_in_pieces(written):  # a few clients: other terms are long
        return spec
    return replace(spec, clients=StoredList[str](written, piece_reader(store, keys.expected)))


def read_spec(store: S3Store, keys: RoundKeys) -> tuple[RoundSpec, dict[str, Any]] | None:
    """Return the terms of a round and its record of times; None if it was never opened."""
    get = piece_reader(store, keys.expected)
    return store.get_json(keys.spec, lambda record: (parse_spec(record["spec"], get), record))
