"""Find the updates that have arrived, and check their headers."""

from collections.abc import Callable, Collection
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from gradshard_core.errors import UnreadableObjectError, UpdateError
from gradshard_core.formats.compressed_updates import check_taken, parse_update
from gradshard_core.formats.headers import (
    FIRST_READ_BYTES,
    MAX_HEADER_BYTES,
    Header,
    header_length,
    parse_samples,
)
from gradshard_core.formats.masked_updates import Share
from gradshard_core.formats.object_keys import (
    UPDATE_SUFFIX,
    ObjectVersion,
    RoundKeys,
    is_client,
    parse_update_key,
    sender_of,
)
from gradshard_core.formats.tensor_layout import PREFIX_BYTES
from gradshard_core.planning.plan_parts import Rejection
from gradshard_core.rounds.buffered_round import Address
from gradshard_core.s3.parallel_reads import HEADER_READERS
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.round_spec import RoundSpec
from gradshard_core.units import MIB

ARRIVAL_HEADER_BYTES = 4 * MIB
"""A larger header is not checked when its update arrives, but when the round is planned: as bytes,
text and JSON one takes up to 25 times its size, and each arrival would pay for that memory."""


class Update(NamedTuple):
    """A good update; the share is that of a masked one, whose samples nobody sees."""

    client: str
    source: ObjectVersion
    header: Header
    samples: int
    share: Share | None = None


Found = Update | Rejection | None
"""The state of a client: a good update, a bad one, or none."""

T = TypeVar("T")


def sent_to(keys: RoundKeys, spec: RoundSpec) -> RoundKeys:
    """Return the names of the round whose updates are averaged: mostly the round's own."""
    return RoundKeys(spec.updates_from) if spec.updates_from else keys


def arrived(store: S3Store, keys: RoundKeys) -> list[str]:
    """List the clients that have sent an update, good or bad, sorted.

    Objects whose key has no valid client id are ignored: a client may be allowed to choose the key.
    """
    parsed = (parse_update_key(entry.key) for entry in store.list_objects(keys.updates))
    return sorted(key.client for key in parsed if key and is_client(key.client))


def newest_updates(
    store: S3Store, keys: RoundKeys, clients: Collection[str]
) -> dict[str, ObjectVersion]:
    """List the newest versions of clients' updates, sorted by client."""
    found = {
        key.client: source
        for source in store.list_newest(keys.updates)
        if (key := parse_update_key(source.key)) and key.client in clients
    }
    return dict(sorted(found.items()))


def progressed(store: S3Store, keys: RoundKeys) -> list[str]:
    """List the clients that have sent some layers of a partial update so far."""
    keys_there = (entry.key for entry in store.list_objects(keys.partial_updates))
    names = (
        key.removeprefix(keys.partial_updates).removesuffix(UPDATE_SUFFIX) for key in keys_there
    )
    return sorted(name for name in names if is_client(name))


def check_update(store: S3Store, keys: RoundKeys, client: str, spec: RoundSpec) -> Found:
    """Read and check the header of a client's newest upload, when it arrives.

    None if there is no upload, or if its header has more than ``ARRIVAL_HEADER_BYTES``.

    Parameters
    ----------
    store, keys, client
        The bucket, the round's keys, and the client.
    spec
        The round's spec. With a rule for partial updates, the round takes the layers that a client
        has sent so far, if that has sent no update.
    """
    first = _read_first(store, Address(keys), client, partial=spec.takes_partial)
    if not isinstance(first, _First):
        return first
    readable = min(MAX_HEADER_BYTES, first.source.nbytes - PREFIX_BYTES)
    if ARRIVAL_HEADER_BYTES < first.header_bytes <= readable:
        return None
    return _check(store, client, first, spec)


class _First(NamedTuple):
    """The first bytes of an update, and of which."""

    data: bytes
    source: ObjectVersion

    @property
    def header_bytes(self) -> int:
        """The length of the header, as they state it."""
        return int.from_bytes(self.data[:PREFIX_BYTES], "little")

    @property
    def has_header(self) -> bool:
        """Whether they have the whole header, or show that there is none."""
        length = self.header_bytes
        return PREFIX_BYTES + length <= len(self.data) or length > MAX_HEADER_BYTES


def _read_first(
    store: S3Store, address: Address, client: str, *, partial: bool
) -> _First | Rejection | None:
    keys, frozen = address.keys, address.source
    try:
        if frozen is not None:
            end = min(frozen.nbytes, FIRST_READ_BYTES)
            return _First(store.get_range(frozen, 0, end), frozen)
        head = store.get_head(keys.update(sender_of(client)), FIRST_READ_BYTES)
        if head is None and partial:
            head = store.get_head(keys.partial_update(client), FIRST_READ_BYTES)
    except UnreadableObjectError as error:
        return Rejection(client, str(error))
    return None if head is None else _First(*head)


def _check(store: S3Store, client: str, first: _First, spec: RoundSpec) -> Update | Rejection:
    """Read the rest of an update's header, and check all of it."""
    data, source = first
    try:
        end = PREFIX_BYTES + header_length(data, source.nbytes)
        if end <= len(data):
            text = data[PREFIX_BYTES:end]
        else:
            text = store.get_range(source, PREFIX_BYTES, end)
        header = parse_update(text, source.nbytes)
        check_taken(header.layout, spec.codecs or ())
        if spec.masked is not None:
            share = Share.of_metadata(header.metadata, spec.masked.ring_bits)
            return Update(client, source, header, 0, share)
        return Update(client, source, header, parse_samples(header.metadata))
    except UpdateError as error:
        return Rejection(client, f"{source.key}: {error}", source.etag)


def check_updates(
    store: S3Store,
    address_of: Callable[[str], Address],
    clients: list[str],
    spec: RoundSpec,
    *,
    look: Callable[[Update], T],
    large_headers: Executor,
) -> list[T | Rejection | None]:
    """Check several clients' updates side by side, and keep of each what ``look`` makes of it.

    Parameters
    ----------
    store, clients, spec
        As for :func:`check_update`.
    address_of
        Returns where a client's update is.
    look
        Called in several threads. Return little: there may be thousands of updates.
    large_headers
        One thread, in which large headers are read and looked at, one after another: as bytes, text
        and JSON one takes up to 20 times its size, and the allocator keeps what is freed for the
        thread that had it.
    """

    def check(client: str, first: _First) -> T | Rejection:
        update = _check(store, client, first, spec)
        return look(update) if isinstance(update, Update) else update

    def read(client: str) -> T | Rejection | None:
        partial = spec.takes_partial
        first = _read_first(store, address_of(client), client, partial=partial)
        if not isinstance(first, _First):
            return first
        if first.has_header:
            return check(client, first)
        return large_headers.submit(check, client, first).result()

    with ThreadPoolExecutor(HEADER_READERS) as pool:
        return list(pool.map(read, clients))
