"""Check an update that has arrived in a buffered training, and let its round go on."""

from typing import Any

from gradshard_core.formats.compressed_updates import EncodedLayout
from gradshard_core.formats.object_keys import InboxId, RoundKeys, TrainingKeys
from gradshard_core.planning.plan_parts import Rejection
from gradshard_core.records import model_registry
from gradshard_core.records.inbox import read_counted, short_etag
from gradshard_core.records.model_registry import Version
from gradshard_core.records.stored_spec import read_spec
from gradshard_core.records.training_state import (
    ENDED,
    TrainingState,
    read_state,
    read_training_spec,
)
from gradshard_core.rounds import arrivals, rejections, resume_round
from gradshard_core.rounds.arrivals import Found, Update
from gradshard_core.rounds.buffered_round import planned
from gradshard_core.rounds.layout_vote import difference
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.training_spec import TrainingSpec


def collect_buffered_update(
    store: S3Store, inbox: InboxId, client: str, etag: str
) -> dict[str, Any]:
    """Check an update of a buffered training; safe to repeat.

    Parameters
    ----------
    store
        The bucket.
    inbox
        The training, and the version from which the update began.
    client
        The client that sent it.
    etag
        The ETag of the uploaded version, without quotes.

    Returns
    -------
    dict
        As :func:`gradshard_core.rounds.collect_update.collect_update`.
    """
    training = TrainingKeys(inbox.training)
    keys = training.inbox(inbox.version)
    spec, state = read_training_spec(store, training), read_state(store, training)
    outcome: dict[str, Any] = {"training": training.name, "client": client}
    if spec is None or state is None or not spec.is_buffered:
        missing = f"{keys.update(client)}: there is no buffered training {training.name!r}"
        return outcome | {"status": "ignored", "reason": missing}
    settled = _counted_etag(store, training, state, inbox.version, client)
    if settled is not None:
        return outcome | _too_late(store, keys, client, etag, settled)
    model = model_registry.read_current(store, spec.server_optimizer.model)
    reason = _unacceptable(store, training, spec, state, inbox.version, client, model.number)
    update = None if reason else _check(store, keys, spec, model, client)
    if reason is not None:
        update = Rejection(client, f"{keys.update(client)}: {reason}", etag)
    if isinstance(update, Rejection):
        replaced_by = rejections.reject_arrival(store, keys, update)
        if replaced_by:
            return collect_buffered_update(store, inbox, client, replaced_by)
        return outcome | {"status": "rejected", "reason": update.reason}
    rejections.withdraw_rejection(store, keys, client, update.source.etag if update else etag)
    if update is not None and isinstance(update.header.layout, EncodedLayout):
        outcome |= {"codec": update.header.layout.codec}
    return outcome | {"status": "accepted", "resumed": _resume(store, state)}


def _counted_etag(
    store: S3Store, training: TrainingKeys, state: TrainingState, version: int, client: str
) -> str | None:
    """Return the short ETag of the client's update that has counted, or is being added."""
    counted = read_counted(store, training, state, client, version)
    if counted is not None:
        return counted
    key = training.inbox(version).update(client)
    # The round that is under way, and one that failed, whose updates it takes.
    under_way = state.invitation.round_id if state.invitation else None
    for round_id in (under_way, state.repeated_round):
        for contributor in planned(store, RoundKeys(round_id)) if round_id else ():
            if contributor.source.key == key:
                return short_etag(contributor.source.etag)
    return None


def _too_late(
    store: S3Store, keys: RoundKeys, client: str, etag: str, settled: str
) -> dict[str, Any]:
    """Reject an upload on top of one that counts; ignore the late event of that one."""
    newest = store.head(keys.update(client))
    # The event may also be the late one of an upload that was replaced before planning.
    if newest is not None and settled == short_etag(newest.etag):
        # Of a bad upload that this one replaced before its event came.
        rejections.withdraw_rejection(store, keys, client, newest.etag)
        return {"status": "ignored", "reason": "counted already"}
    if settled == short_etag(etag):
        return {"status": "ignored", "reason": "counted already"}
    reason = (
        f"{keys.update(client)}: an earlier update of this client from the same version counts; "
        "train the current version"
    )
    rejections.reject(store, keys, Rejection(client, reason, etag, late=True))
    return {"status": "ignored", "reason": reason, "late": True}


def _unacceptable(
    store: S3Store,
    training: TrainingKeys,
    spec: TrainingSpec,
    state: TrainingState,
    version: int,
    client: str,
    newest: int,
) -> str | None:
    """Say why nobody may send such an update now; None if the client may."""
    if state.status == ENDED:
        return f"training {training.name!r} has ended: {state.cause}"
    if spec.clients is not None and client not in spec.clients:
        return f"training {training.name!r} has a fixed list of clients, without {client!r}"
    if spec.clients is None and store.head(training.member(client)) is None:
        return f"client {client!r} has not joined training {training.name!r}: join it first"
    if version > newest:
        return f"version {version} of the model does not exist; the newest is {newest}"
    current = state.version or newest
    if version < state.first_version:
        return (
            f"it began from version {version}, and others have changed the model since: the "
            f"training takes updates from version {state.first_version} on"
        )
    if version < current - spec.staleness:
        return (
            f"it began from version {version}, {current - version} versions before the current "
            f"one, over max_staleness {spec.staleness}; train version {current}"
        )
    return None


def _check(
    store: S3Store, keys: RoundKeys, spec: TrainingSpec, model: Version, client: str
) -> Found:
    """Check the header and the layout of a client's newest upload."""
    update = arrivals.check_update(store, keys, client, spec.buffered_round_spec("any", 1, None))
    if not isinstance(update, Update):
        return update
    layout = model_registry.layout_of(store, model.tensors)
    whose = f"that of version {model.number} of model {model.model!r}"
    differs = difference(update.header.layout, layout, whose, partial=False)
    if differs is None:
        return update
    return Rejection(client, f"{update.source.key}: {differs}", update.source.etag)


def _resume(store: S3Store, state: TrainingState) -> bool:
    """Resume the training's round if it waits and enough updates are there."""
    if state.invitation is None or state.invitation.is_evaluation:
        return False  # the next round looks when it is opened
    round_ = RoundKeys(state.invitation.round_id)
    opened = read_spec(store, round_)
    if opened is None or store.head(round_.plan) is not None:
        return False
    return resume_round.resume_if_due(store, round_, opened[0])
