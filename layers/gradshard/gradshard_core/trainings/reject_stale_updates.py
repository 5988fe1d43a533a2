"""Reject updates of a buffered training that are too old to count; each sender reads why."""

from dataclasses import replace
from functools import partial

from gradshard_core.formats.object_keys import RoundKeys, TrainingKeys
from gradshard_core.planning.plan_parts import Rejection
from gradshard_core.records import model_registry
from gradshard_core.records.inbox import list_uncounted
from gradshard_core.records.training_state import ENDED, TrainingState
from gradshard_core.rounds.rejections import reject_all
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.training_spec import TrainingSpec


def reject_stale_updates(
    store: S3Store,
    keys: TrainingKeys,
    spec: TrainingSpec,
    state: TrainingState,
    following: TrainingState,
) -> TrainingState:
    """Reject the updates that can count no more; return the state after that.

    An update may arrive while the state changes, and be accepted by the state before. So these are
    the updates that are too old for the state as it is written already: whoever looks at one of
    them later rejects it.

    Parameters
    ----------
    store, keys, spec
        The training.
    state
        As it is written.
    following
        As it will be.
    """
    oldest = state.oldest_version(spec.staleness)
    if following.status == ENDED:
        return following  # once that is written
    versions = range(state.settled_before, oldest)
    if not versions:
        return following
    _reject(store, keys, following, versions, f"takes updates from version {oldest} on by now")
    for version in versions:
        # For late events: the state is to name the updates of a few versions only.
        store.put_json(keys.inbox(version).counted, following.counted.get(str(version), {}))
    kept = {v: clients for v, clients in following.counted.items() if int(v) >= oldest}
    return replace(following, settled_before=oldest, counted=kept)


def reject_waiting_updates(
    store: S3Store, keys: TrainingKeys, spec: TrainingSpec, state: TrainingState
) -> None:
    """Reject the updates that wait in a training that has ended; safe to repeat.

    Parameters
    ----------
    store, keys, spec
        The training.
    state
        As it is written. A late call may want to end a training that goes on.
    """
    # The state names none if the training was resumed and has ended before it looked.
    newest = model_registry.read_current(store, spec.server_optimizer.model).number
    versions = range(state.settled_before, newest + 1)
    _reject(store, keys, state, versions, f"has ended: {state.cause}")


def _reject(
    store: S3Store, keys: TrainingKeys, following: TrainingState, versions: range, why: str
) -> None:
    uncounted = list_uncounted(store, keys, following.counted, versions)
    for version in sorted({arrival.version for arrival in uncounted}):
        inbox = keys.inbox(version)
        found = [
            Rejection(
                a.client, f"{inbox.update(a.client)}: training {keys.name!r} {why}", a.entry.etag
            )
            for a in uncounted
            if a.version == version
        ]
        reject_all(store, found, partial(_same, inbox))


def _same(inbox: RoundKeys, _client: str) -> RoundKeys:
    return inbox
