"""Find the updates that have arrived, check their headers, and resume the round in time."""

import random
from collections.abc import Callable, Collection, Sequence
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
from gradshard_core.formats.keys import (
    UPDATE_SUFFIX,
    ObjectVersion,
    RoundKeys,
    is_client,
    parse_inbox_id,
    parse_update_key,
    sender_of,
)
from gradshard_core.formats.layout import PREFIX_BYTES
from gradshard_core.formats.list_pieces import StoredList
from gradshard_core.formats.masked_updates import Share
from gradshard_core.planning import history_limits
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import Rejection
from gradshard_core.planning.pricing import HEADS_BEFORE_LIST, LOOKS_OF_A_LIST
from gradshard_core.planning.round_spec import RoundSpec
from gradshard_core.rounds import buffered_round, waiting
from gradshard_core.rounds.arrival_record import count_arrivals, record_arrivals, record_parts
from gradshard_core.rounds.buffered_round import Address
from gradshard_core.rounds.waiting import Seen
from gradshard_core.s3.store import S3Store
from gradshard_core.units import MIB

ARRIVAL_HEADER_BYTES = 4 * MIB
"""A larger header is not checked when its update arrives, but when the round is planned: as bytes,
text and JSON one takes up to 25 times its size, and each arrival would pay for that memory."""

READERS = 8


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

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(read, clients))


def reject(store: S3Store, keys: RoundKeys, rejection: Rejection) -> None:
    """Write the reason where its client can read it."""
    store.put_json(keys.rejection(sender_of(rejection.client)), vars(rejection))


def withdraw_rejection(store: S3Store, keys: RoundKeys, client: str, etag: str) -> None:
    """Take back the rejection of an upload that this one replaced."""
    rejection = store.head(keys.rejection(client))
    if rejection is None:
        return
    rejected = store.get_json(keys.rejection(client)) or {}
    if rejected.get("etag", "").strip('"') != etag.strip('"') and not rejected.get("late"):
        # Planning may be rejecting this very upload at the same time, so delete only the version
        # of the rejection that was read.
        store.delete(keys.rejection(client), only=rejection.etag)


def reject_all(
    store: S3Store, rejections: Sequence[Rejection], keys_of: Callable[[str], RoundKeys]
) -> None:
    """Write several clients' reasons side by side: there may be thousands.

    ``keys_of`` returns the round under which a client reads of its update's rejection.
    """
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(lambda found: reject(store, keys_of(found.client), found), rejections))


def reject_overlooked(store: S3Store, keys: RoundKeys, spec: RoundSpec, plan: Plan) -> None:
    """Reject the updates that have arrived and that a plan does not know.

    They were uploaded while the round was being planned, after its updates were listed, or in the
    place of a bad one after that was read. The function that their events have called may have
    found no plan yet: it told nobody, and withdrew the rejection of the bad one.

    Parameters
    ----------
    store, keys, spec
        The round.
    plan
        Its plan, which is written.
    """
    bad = {found.client: found.etag for found in plan.participants.rejected if found.etag}

    def look(client: str) -> None:
        head = store.head(keys.update(client))
        if head is None or head.etag.strip('"') == bad.get(client, "").strip('"'):
            return
        reason = (
            f"{head.key}: uploaded while the round was being planned; the client takes no part in "
            "this round"
        )
        reject(store, keys, Rejection(client, reason, head.etag, late=True))

    replaced = [*bad]
    if len(bad) > HEADS_BEFORE_LIST:
        newest = newest_updates(store, keys, bad)
        replaced = [c for c in newest if newest[c].etag.strip('"') != bad[c].strip('"')]
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(look, [*_perhaps_overlooked(store, keys, spec, plan), *replaced]))


def _perhaps_overlooked(
    store: S3Store, keys: RoundKeys, spec: RoundSpec, plan: Plan
) -> Sequence[str]:
    """Return the clients that a plan misses; of many, or of unnamed ones, those that are there."""
    missing = plan.participants.missing
    if not isinstance(spec.clients, int):
        if len(missing) <= HEADS_BEFORE_LIST:
            return missing
        return sorted({*missing} & {*arrived(store, keys)})
    if spec.inbox is not None or spec.updates_from is not None:
        return ()
    known = {c.client for c in plan.contributors} | {c.client for c in plan.participants.rejected}
    return sorted({*arrived(store, keys)} - known)


def rejection_keys(keys: RoundKeys, update_key: str) -> RoundKeys:
    """Return the round under which a client reads of its update's rejection.

    It is the round that takes the update; of a buffered training it is the inbox that the client
    has sent it to.
    """
    parsed = parse_update_key(update_key)
    if parsed is None or parse_inbox_id(parsed.round_id) is None:
        return keys
    return RoundKeys(parsed.round_id)


def resume_if_due(
    store: S3Store, keys: RoundKeys, spec: RoundSpec, arriving: str = "", seen: Seen | None = None
) -> bool:
    """Resume the round if no more clients are awaited.

    That is when every expected client has answered, with a good or a bad update. In an eager round
    it is when all clients of enough groups for a stage have answered.

    Both open_round and collect_update end with this check, after they have written what the other
    function reads. So the one that comes last sees everything.

    Parameters
    ----------
    store, keys, spec
        The round.
    arriving
        The client whose update has arrived.
    seen
        The clients that this process has seen there; it notes those that it finds.
    """
    if not _is_due(store, keys, spec, arriving, Seen() if seen is None else seen):
        return False
    return waiting.resume(store, keys, waiting.COMPLETE)


def _is_due(store: S3Store, keys: RoundKeys, spec: RoundSpec, arriving: str, seen: Seen) -> bool:
    if spec.updates_from is not None:
        return True
    if spec.inbox is not None:
        return buffered_round.is_full(store, spec)
    if spec.is_drawn:
        return False  # its length would tell who was drawn
    if record_parts(spec):
        return _is_enough_recorded(store, keys, spec, arriving)
    if not spec.eager:
        is_complete = _is_everybody_there(store, keys, spec, arriving, seen)
        return spec.is_complete(arrived(store, keys)) if is_complete is None else is_complete
    group = next((clients for clients in spec.groups() if arriving in clients), ())
    looked_for = _draw([client for client in group if client != arriving])
    if not _are_there(store, keys, looked_for, set()):
        return False
    there = arrived(store, keys)
    awaited = store.get_json(keys.plan, lambda plan: tuple(plan["awaited"]))
    groups = len(spec.groups())
    left = groups if awaited is None else len(awaited)
    ready = len(ready_groups(spec, there, awaited))
    return 0 < ready >= min(history_limits.stage_size(groups), left)


def _is_enough_recorded(store: S3Store, keys: RoundKeys, spec: RoundSpec, arriving: str) -> bool:
    """Record an arrival, or all that came before the round was open; whether they are enough.

    Nobody is remembered as seen: there may be too many for the memory of a process.
    """
    clients = [arriving] if arriving else arrived(store, keys)
    record_arrivals(store, keys, spec, filter(spec.expects, clients))
    if _is_everybody_there(store, keys, spec, arriving, Seen()) is False:
        return False
    return count_arrivals(store, keys) >= (spec.enough_clients or spec.expected)


def _is_everybody_there(
    store: S3Store, keys: RoundKeys, spec: RoundSpec, arriving: str, seen: Seen
) -> bool | None:
    """Look for a few of the expected clients, at random; None if only a listing can tell.

    A listing costs as much as a dozen looks, and while many are missing one or two looks do. Those
    that this process has seen are looked for last: somebody may have deleted them. Of ids in
    pieces, those in the piece of the arriving client are looked for: it has been loaded.
    """
    if isinstance(spec.clients, int) or spec.enough_clients is not None:
        return None
    drawn = spec.clients.near(arriving) if isinstance(spec.clients, StoredList) else spec.clients
    there = seen.of(keys.round_id)
    if arriving in drawn:
        there.add(arriving)  # its update is looked for last
    others = [client for client in drawn if client not in there]
    looked_for = _draw(others)
    if not _are_there(store, keys, looked_for, there):
        return False
    again = [client for client in drawn if client in there and client not in looked_for]
    if len(looked_for) < len(others) or drawn is not spec.clients or len(again) > LOOKS_OF_A_LIST:
        return None
    # The event may be late, and its update deleted.
    return _are_there(store, keys, again, there)


def _draw(clients: Sequence[str]) -> list[str]:
    """Draw a few clients at random, to look for before all updates are listed."""
    return random.sample(clients, min(HEADS_BEFORE_LIST, len(clients)))


def _are_there(store: S3Store, keys: RoundKeys, clients: Sequence[str], there: set[str]) -> bool:
    """Look for the updates of clients until one is missing, and note what is found."""
    for client in clients:
        if store.head(keys.update(client)) is None:
            there.discard(client)
            return False
        there.add(client)
    return True


def ready_groups(spec: RoundSpec, there: Sequence[str], awaited: Sequence[int] | None) -> list[int]:
    """Return the groups of an eager round that are awaited and whose clients have all answered.

    Parameters
    ----------
    spec
        The round's terms.
    there
        The clients that have answered.
    awaited
        The groups that are not planned yet; None for all.
    """
    answered = set(there)
    return [
        number
        for number, clients in enumerate(spec.groups())
        if (awaited is None or number in awaited) and answered.issuperset(clients)
    ]
