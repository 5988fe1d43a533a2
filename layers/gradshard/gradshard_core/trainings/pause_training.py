"""Pause a training that cannot go on, with the cause; maybe end it if it is asked to stop."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from gradshard_core.errors import BrokenObjectError, is_by_deploying, plain_failure
from gradshard_core.formats.object_keys import TrainingKeys
from gradshard_core.records.training_state import (
    ENDED,
    RUNNING,
    STOP,
    TrainingState,
    change_state,
    read_training_spec,
)
from gradshard_core.rounds.aws_requests import MAX_CAUSE
from gradshard_core.s3.store import S3Store
from gradshard_core.trainings.pause_or_end import paused, stopped
from gradshard_core.trainings.record_round import delete_dropped_keys, dropping_keys
from gradshard_core.trainings.reject_stale_updates import reject_waiting_updates
from gradshard_core.trainings.training_events import publish_if_stopped

_AFTER_DEPLOYING: Final = (
    ". Was another version of gradshard deployed? Then resume the training, or deploy that version "
    "again and resume it"
)


def pause_training(
    store: S3Store, name: str, *, run: int, error: str, cause: str
) -> dict[str, Any]:
    """Record why a training cannot go on, or end it if it is asked to stop; safe to repeat.

    A buffered training pauses in any case; if it is asked to stop, it ends when it is resumed.

    Parameters
    ----------
    store
        The bucket.
    name
        The training.
    run
        The execution that asks. A training that goes on in another one is left alone.
    error, cause
        As the state machine caught them.

    Returns
    -------
    dict
        ``status``, ``error`` and ``cause``, as the training has them now.
    """
    error, cause = plain_failure(error, cause)
    advice = _AFTER_DEPLOYING if is_by_deploying(error) else ""
    cause = f"{error}: {cause}"[: MAX_CAUSE - len(advice)] + advice
    keys = TrainingKeys(name)
    try:
        spec = read_training_spec(store, keys)
        may_be_buffered = spec is not None and spec.is_buffered
    except BrokenObjectError:
        spec, may_be_buffered = None, True

    def change(state: TrainingState) -> TrainingState:
        if state.run != run or state.status != RUNNING:
            return state
        delete_dropped_keys(store, state)
        # Which updates of a buffered training have counted, and which wait in vain, is found out
        # when it is resumed, or stopped once more: it ends then.
        if state.request == STOP and not may_be_buffered:
            # As when it is stopped later: its round is given up.
            after = replace(stopped(state), invitation=None)
        else:
            after = paused(state, cause)
        return dropping_keys(state, replace(after, changed_at=datetime.now(UTC).isoformat()))

    state = change_state(store, keys, change)
    delete_dropped_keys(store, state)
    if state.run == run:
        if spec is not None and spec.is_buffered and state.status == ENDED:
            # advance_training has ended it, and may have died before that.
            reject_waiting_updates(store, keys, spec, state)
        publish_if_stopped(store, name, state)
    return {"training": name, "status": state.status, "error": error, "cause": state.cause or ""}
