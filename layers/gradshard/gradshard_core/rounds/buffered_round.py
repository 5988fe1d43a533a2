"""The source of a buffered training's rounds: which updates a round takes, and whether it can.

A round takes as many of the updates that wait as make a version, in the order in which they
arrived. Its plan freezes them, as that of any round. If the round fails after that, the next one
takes the same updates.
"""

from collections import Counter
from typing import NamedTuple

from gradshard_core.errors import PlanError
from gradshard_core.formats.object_keys import (
    ObjectVersion,
    RoundKeys,
    TrainingKeys,
    base_version,
    entry_id,
    sender_of,
)
from gradshard_core.planning.plan_parts import Contributor
from gradshard_core.records.inbox import list_waiting
from gradshard_core.records.plan_and_manifest import read_plan, read_replan
from gradshard_core.records.training_state import TrainingState, read_state, read_training_spec
from gradshard_core.rounds.plan_context import PlanContext
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.inbox_spec import InboxSpec
from gradshard_core.specs.round_spec import RoundSpec


class Address(NamedTuple):
    """Where an update is.

    Parameters
    ----------
    keys
        The round, or the inbox, that it was sent to.
    source
        The version of the object that counts; None for the newest.
    staleness
        The number of versions of the model that were made since it began.
    """

    keys: RoundKeys
    source: ObjectVersion | None = None
    staleness: int = 0


def is_full(store: S3Store, spec: RoundSpec) -> bool:
    """Return whether so many updates wait that a round of a buffered training can go on."""
    assert spec.inbox is not None  # noqa: S101 - for mypy: the caller has looked
    state = _state(store, spec.inbox)
    newest = state.version or spec.inbox.oldest
    return len(_taken(store, spec, state, newest)) >= _needed(store, spec, newest)


def addresses(context: PlanContext) -> dict[str, Address] | None:
    """Return which updates a round of a buffered training takes; None if it is none."""
    spec, model = context.spec, context.model
    if spec.inbox is None or model is None:
        return None
    found = _taken(context.store, spec, _state(context.store, spec.inbox), model.number)
    return dict(list(found.items())[: spec.expected])


def _state(store: S3Store, inbox: InboxSpec) -> TrainingState:
    state = read_state(store, TrainingKeys(inbox.training))
    if state is None:
        raise PlanError(f"training {inbox.training!r}, whose updates the round takes, is gone")
    return state


def _needed(store: S3Store, spec: RoundSpec, newest: int) -> int:
    """Return how many updates a round needs to go on; a repetition has them."""
    frozen = len(_frozen(store, spec, newest))
    return frozen if frozen >= spec.min_clients else spec.expected


def _taken(
    store: S3Store, spec: RoundSpec, state: TrainingState, newest: int
) -> dict[str, Address]:
    """Return the updates that a round takes, in their order: there may be more than it needs.

    They have the names of their clients, or of client and version if a client may have several.
    """
    assert spec.inbox is not None  # noqa: S101 - for mypy: the callers have looked
    frozen = _frozen(store, spec, newest)
    if len(frozen) >= spec.min_clients:
        return frozen
    keys = TrainingKeys(spec.inbox.training)
    training = read_training_spec(store, keys)
    each = training.updates_per_client if training else 1
    arrived = list_waiting(
        store,
        keys,
        state.counted,
        range(spec.inbox.oldest, newest + 1),
        members=training.clients if training else (),
        each=each,
    )
    found, of_client = dict(frozen), Counter(map(sender_of, frozen))
    for arrival in sorted(arrived, key=lambda found: found.client in state.suspects):
        name = arrival.client if each == 1 else entry_id(arrival.client, arrival.version)
        if name not in found and of_client[arrival.client] < each:
            inbox = keys.inbox(arrival.version)
            found[name] = Address(inbox, None, newest - arrival.version)
            of_client[arrival.client] += 1
    return found


def _frozen(store: S3Store, spec: RoundSpec, newest: int) -> dict[str, Address]:
    """Return the updates of the round that is repeated, without those that were found bad."""
    assert spec.inbox is not None  # noqa: S101 - for mypy: the callers have looked
    if spec.inbox.repeated_round is None:
        return {}
    keys, found = TrainingKeys(spec.inbox.training), dict[str, Address]()
    for contributor in planned(store, RoundKeys(spec.inbox.repeated_round)):
        version = base_version(contributor.source.key)
        if version is not None and version >= spec.inbox.oldest:
            inbox = keys.inbox(version)
            found[contributor.client] = Address(inbox, contributor.source, newest - version)
    return found


def planned(store: S3Store, keys: RoundKeys) -> list[Contributor]:
    """Return whom a round's plan has taken, left out or not, without those found to be bad.

    This is not what clients read: a better upload withdraws the rejection of the one that was
    planned.
    """
    plan = read_plan(store, keys)
    if plan is None:
        return []
    bad = {found.client for found in read_replan(store, keys, plan.attempt) or ()}
    return [contributor for contributor in plan.good if contributor.client not in bad]
