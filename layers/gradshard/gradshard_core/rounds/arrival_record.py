"""The record of who has arrived in a round that is too large to list at each arrival.

A listing shows up to 1,000 updates in one request, so the updates themselves are the record of a
round of up to that many. In a larger one each arrival adds a mark of 16 bytes to one of up to 1,000
objects, which one the digest of its client's id says. Their sizes tell how many have arrived, and
one listing shows all of them.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.limits import aws_limits
from gradshard_core.s3.retries import conditional_write_attempts
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.round_spec import RoundSpec

MARK_BYTES: Final = 16

MARKS: Final = 100
"""Marks of an object, on the average: few, so that two arrivals seldom write the same one."""

MAX_BYTES: Final = 64 * 1024
"""No object grows further. By chance none gets near to that before the round is complete."""

WRITERS: Final = 8


def record_parts(spec: RoundSpec) -> int:
    """Return the number of objects of a round's record; 0 if the updates are the record."""
    if spec.expected <= aws_limits.LISTED_ENTRIES or spec.eager or spec.inbox or spec.updates_from:
        return 0
    return min(aws_limits.LISTED_ENTRIES, -(-spec.expected // MARKS))


def record_arrivals(
    store: S3Store, keys: RoundKeys, spec: RoundSpec, clients: Iterable[str]
) -> None:
    """Mark clients as arrived; safe to repeat.

    Raises
    ------
    StoreError
        Others wrote an object in between, each time.
    """
    parts, marks = record_parts(spec), defaultdict[int, set[bytes]](set)
    for client in clients:
        mark = hashlib.sha256(client.encode()).digest()[:MARK_BYTES]
        marks[int.from_bytes(mark[:8], "big") % parts].add(mark)
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda part: _add(store, keys.arrivals(part), marks[part]), marks))


def count_arrivals(store: S3Store, keys: RoundKeys) -> int:
    """Return how many clients are marked as arrived."""
    return sum(entry.nbytes for entry in store.list_objects(keys.arrived)) // MARK_BYTES


def _add(store: S3Store, key: str, marks: set[bytes]) -> None:
    for _ in conditional_write_attempts(key):
        head = store.get_head(key, MAX_BYTES)
        kept, replaces = (head[0], head[1].etag) if head else (b"", None)
        there = {kept[at : at + MARK_BYTES] for at in range(0, len(kept), MARK_BYTES)}
        new = b"".join(sorted(marks - there))
        if not new or len(kept) + len(new) > MAX_BYTES:
            return
        if store.put_bytes(
            key, kept + new, content_type="application/octet-stream", replaces=replaces
        ):
            return
