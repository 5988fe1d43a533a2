"""Resume a round when it waits for no more updates, or at its deadline."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from gradshard_core.costs.request_counts import HEADS_BEFORE_LIST, LOOKS_OF_A_LIST
from gradshard_core.formats.long_lists import StoredList
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.limits import state_machine_history
from gradshard_core.rounds import buffered_round, waiting_record
from gradshard_core.rounds.arrival_record import count_arrivals, record_arrivals, record_parts
from gradshard_core.rounds.arrivals import arrived
from gradshard_core.rounds.waiting_record import Seen
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.round_spec import RoundSpec


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
    return waiting_record.resume(store, keys, waiting_record.COMPLETE)


def deadline_passed(store: S3Store, round_id: str, tokens: Sequence[str] = ()) -> dict[str, Any]:
    """Resume the round with the updates that have arrived; planning checks the quorum.

    Parameters
    ----------
    store, round_id
        The round.
    tokens
        The callback tokens that were stored with the deadline.
    """
    keys = RoundKeys(round_id)
    # An eager round that is aggregating a stage reads this before it waits again.
    store.put_json(keys.deadline, {"passed_at": datetime.now(UTC).isoformat()})
    resumed = waiting_record.resume(store, keys, waiting_record.DEADLINE, tokens)
    return {"round": round_id, "resumed": resumed}


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
    return 0 < ready >= min(state_machine_history.stage_size(groups), left)


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
