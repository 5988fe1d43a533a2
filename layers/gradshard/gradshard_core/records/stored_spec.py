"""A round's spec as it was opened with, and the record of its opening."""

import json
from dataclasses import replace
from typing import Any, Final

from gradshard_core.errors import BrokenObjectError, SpecError
from gradshard_core.formats.list_pieces import StoredList, is_in_pieces
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


def check_source(store: S3Store, spec: RoundSpec) -> None:
    """Check that no updates are averaged which were sent to a private round.

    The other round has to be open before, or to have failed without opening. Otherwise it could
    become a private one after its updates were averaged without noise. Each planning checks again.

    Raises
    ------
    SpecError
        ``updates_from`` names a private round, or none.
    """
    if spec.updates_from is None:
        return
    keys = RoundKeys(spec.updates_from)
    try:
        opened = read_spec(store, keys)
    except BrokenObjectError:
        # Only who may write this object can break it, and can read the updates as well.
        return
    if opened is None and store.head(keys.manifest) is not None:
        return  # it has ended, so it makes no average any more
    if opened is None:
        raise SpecError(
            f"updates_from: there is no round {spec.updates_from!r}. Open it first: until then it "
            "may become a private one, whose updates serve for that round alone"
        )
    if opened[0].dp is not None:
        raise SpecError(
            f"updates_from: round {spec.updates_from!r} is private, and its updates serve for that "
            "round alone: two averages of them would reveal more than its ε says"
        )
