"""Take a training one step further: record the round that has ended, decide, invite to the next."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.errors import TrainingNotFoundError
from gradshard_core.formats.object_keys import RoundKeys, TrainingKeys
from gradshard_core.records.stored_spec import with_room
from gradshard_core.records.training_state import (
    ENDED,
    PAUSED,
    RUNNING,
    TrainingState,
    change_state,
    read_training_spec,
)
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.training_spec import TrainingSpec
from gradshard_core.trainings.next_round import next_round, training_round
from gradshard_core.trainings.record_round import (
    delete_dropped_keys,
    dropping_keys,
    record_ended_round,
)
from gradshard_core.trainings.reject_stale_updates import (
    reject_stale_updates,
    reject_waiting_updates,
)
from gradshard_core.trainings.round_outcome import read_outcome
from gradshard_core.trainings.training_events import publish_if_stopped

STEPS_PER_RUN: Final = 30
"""Steps of an execution, each a round at most, before a successor takes over. Step Functions fails
an execution after a year and at its 25,000th event, and a step may take ten days;
``unit/trainings/test_history.py`` counts both."""

ROOM_BYTES: Final = 8 * 1024
"""An answer has less beside a round's terms and a space after each of their ids."""

ROUND: Final = "round"
WAIT: Final = "wait"
SETTLE: Final = "settle"
SUCCESSOR: Final = "successor"
SUPERSEDED: Final = "superseded"
"""The next actions of the state machine, besides ending because the training has ``paused`` or
``ended``."""


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def advance_training(
    store: S3Store, name: str, *, run: int, step: int, aggregator: LambdaConfig
) -> dict[str, Any]:
    """Take a training one step further; safe to repeat.

    Parameters
    ----------
    store
        The bucket.
    name
        The training.
    run, step
        The number of the execution that asks, and the number of answers it has got.
    aggregator
        The functions that do the rounds' tasks, for prices.

    Returns
    -------
    dict
        ``status`` says what the state machine does next: ``round`` with ``round`` and ``spec``,
        ``wait`` with ``seconds``, ``settle`` a ``round`` that has no manifest, start the
        ``successor`` ``execution``, or end. ``training``, ``run`` and ``step`` are what the next
        call gets.

    Raises
    ------
    TrainingNotFoundError
        There is no such training, or not any more.
    """
    keys = TrainingKeys(name)
    spec = read_training_spec(store, keys)
    if spec is None:
        raise TrainingNotFoundError.of(name)
    is_pending = False

    def change(state: TrainingState) -> TrainingState:
        nonlocal is_pending
        is_pending = False
        if (state.run, state.step) != (run, step) or state.status != RUNNING:
            return state
        delete_dropped_keys(store, state)
        now = utc_now()
        if state.invitation is not None:
            optimizer = None if state.invitation.is_evaluation else spec.server_optimizer
            outcome = read_outcome(
                store, state.invitation.round_id, aggregator=aggregator, optimizer=optimizer
            )
            if outcome is None:
                is_pending = True
                return state
            closed = record_ended_round(store, keys, spec, state, outcome, now)
        else:
            closed = state
        if closed.status == RUNNING and step - state.first_step >= STEPS_PER_RUN:
            following = replace(closed, run=run + 1, first_step=step + 1)
        else:
            following = next_round(store, keys, spec, closed, now, aggregator)
        if spec.is_buffered:
            following = reject_stale_updates(store, keys, spec, state, following)
        following = dropping_keys(state, following)
        return replace(following, step=step + 1, changed_at=now.isoformat())

    state = change_state(store, keys, change)
    _clean_up(store, keys, spec, state)
    asked = {"training": name, "run": run, "step": step}
    if is_pending and state.invitation is not None:
        return asked | {"status": SETTLE, "round": state.invitation.round_id}
    answer = _answer(store, keys, spec, state, run, step)
    if answer["status"] == state.status:
        publish_if_stopped(store, name, state)
    return asked | answer


def _clean_up(store: S3Store, keys: TrainingKeys, spec: TrainingSpec, state: TrainingState) -> None:
    """Do what follows from a state once it is written: before, another call may write another."""
    delete_dropped_keys(store, state)
    if spec.is_buffered and state.status == ENDED:
        reject_waiting_updates(store, keys, spec, state)


def _answer(
    store: S3Store,
    keys: TrainingKeys,
    spec: TrainingSpec,
    state: TrainingState,
    run: int,
    step: int,
) -> dict[str, Any]:
    """Return what the machine does by a state; the same whenever it asks."""
    following: dict[str, Any] = {"step": state.step}
    if (state.run, state.step) == (run + 1, step + 1):
        execution = keys.execution(state.run)
        return following | {"status": SUCCESSOR, "run": state.run, "execution": execution}
    if state.run != run or state.step not in {step, step + 1}:
        return {"status": SUPERSEDED}
    if state.status in {PAUSED, ENDED}:
        return following | {"status": state.status, "cause": state.cause}
    invitation = state.invitation
    if invitation is None:
        until = datetime.fromisoformat(state.waits_until or state.changed_at)
        seconds = math.ceil((until - utc_now()).total_seconds())
        return following | {"status": WAIT, "seconds": max(1, seconds)}
    round_keys = RoundKeys(invitation.round_id)
    further = ROOM_BYTES + len(invitation.clients)
    terms = with_room(training_round(keys, spec, state), store, round_keys, further=further)
    return following | {"status": ROUND, "round": invitation.round_id, "spec": terms.to_json()}
