"""Operating rounds: list, close, cancel and remove them, and read their logs."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from gradshard.client.executions import Execution, ListedExecution
from gradshard.client.round_status import AGGREGATING, AWAITING
from gradshard.client.stack import Stack
from gradshard.utils.polling import poll
from gradshard_core.errors import RoundNotFoundError, RoundStateError, SpecError
from gradshard_core.formats.object_keys import RoundKeys, is_id
from gradshard_core.records.manifest_status import COMPLETED, FAILED
from gradshard_core.records.plan_and_manifest import read_manifest

STATES: Final = (AWAITING, AGGREGATING, COMPLETED, FAILED)

CANCELLED: Final = "Cancelled"
"""The error in the manifest of a round that was cancelled."""

RUNNING: Final = "RUNNING"

SETTLING_SECONDS: Final = 20.0
"""Seconds that closing a round waits while it is just being opened or planned."""


class ListedRound(NamedTuple):
    """A round in a list; times are ISO 8601, ``ended_at`` is None while it runs."""

    round: str
    state: str
    opened_at: str
    ended_at: str | None


def list_rounds(stack: Stack, state: str | None) -> Iterator[ListedRound]:
    """Yield the rounds that run or have run in the last 90 days, the newest first.

    Parameters
    ----------
    stack
        The deployed stack.
    state
        List only rounds in this state, one of :data:`STATES`; None for all.

    Raises
    ------
    SpecError
        There is no such state.
    """
    if state is not None and state not in STATES:
        raise SpecError(f"state {state!r} is not one of {', '.join(STATES)}")
    only = RUNNING if state in {AWAITING, AGGREGATING} else None
    for execution in _rounds(stack, only):
        found = _state(stack, execution)
        if state in {None, found}:
            ended = execution.stopped or None
            yield ListedRound(execution.round_id, found, execution.started, ended)


def _state(stack: Stack, execution: ListedExecution) -> str:
    if execution.status == "SUCCEEDED":
        return COMPLETED
    keys = RoundKeys(execution.round_id)
    if execution.status == RUNNING:
        return AGGREGATING if stack.store.head(keys.plan) else AWAITING
    if execution.status == "ABORTED":
        # It may have been stopped after it had written its manifest.
        manifest = read_manifest(stack.store, keys)
        return FAILED if manifest is None else str(manifest["status"])
    return FAILED


def close_round(stack: Stack, keys: RoundKeys) -> bool:
    """Stop waiting and aggregate the updates that have arrived; safe to repeat.

    Returns
    -------
    bool
        Whether it was waiting; False if it goes on already.

    Raises
    ------
    RoundNotFoundError
        There is no such round.
    RoundStateError
        The round has ended, or neither opening nor planning it ends; or its clients were drawn in
        secret, and it lasts for its timeout: what others add must not depend on who was drawn.
    """
    for _ in poll(SETTLING_SECONDS):
        is_settled = _waits_or_goes_on(stack, keys)
        # After that: the spec, which is written before, may not have been there yet.
        _check_is_closable(stack, keys)
        if is_settled:
            event = {"round": keys.round_id, "deadline": True}
            return bool(stack.invoke("CollectUpdateFunctionName", event)["resumed"])
    raise RoundStateError(
        f"round {keys.round_id!r} is just being opened or planned, for {SETTLING_SECONDS:g} s by "
        "now; try again"
    )


def _waits_or_goes_on(stack: Stack, keys: RoundKeys) -> bool:
    """Whether a round can be resumed, or is planned.

    Opening writes the token after the spec. Planning deletes it, and writes the plan when all
    updates are read. A bad update that comes meanwhile is noted in a record without tokens.
    """
    has_token = stack.store.get_json(keys.callback, lambda record: bool(record["tokens"]))
    return bool(has_token) or stack.store.head(keys.plan) is not None


def _check_is_closable(stack: Stack, keys: RoundKeys) -> None:
    manifest = read_manifest(stack.store, keys)
    if manifest is not None:
        raise RoundStateError(f"round {keys.round_id!r} has ended ({manifest['status']})")
    from gradshard_core.records.stored_spec import read_spec  # it needs numpy

    opened = read_spec(stack.store, keys)
    if opened is not None and opened[0].is_drawn:
        raise RoundStateError(
            f"round {keys.round_id!r} lasts for its timeout, whoever has answered: its clients "
            "were drawn in secret. Wait for it, or cancel it"
        )
    execution = _execution(stack, keys)
    if execution is not None and execution.has_ended:
        raise RoundStateError(
            f"round {keys.round_id!r} has ended without a manifest ({execution.reason}); cancel "
            "it to clean up"
        )


def running(stack: Stack) -> set[str]:
    """Return the ids of the rounds that have not ended."""
    return {execution.round_id for execution in _rounds(stack, RUNNING)}


def _rounds(stack: Stack, status: str | None) -> Iterator[ListedExecution]:
    """Yield the executions whose names can be rounds; others were started by hand and failed."""
    return (found for found in stack.list_executions(status) if is_id("round", found.round_id))


def check_reason(reason: str) -> None:
    """Check that there is a reason for cancelling a round.

    Raises
    ------
    SpecError
        There is none.
    """
    if not reason.strip():
        raise SpecError("give a reason for cancelling the round; its clients can read it")


def cancel_round(stack: Stack, keys: RoundKeys, reason: str) -> str:
    """Stop a round and clean up; safe to repeat.

    The execution is stopped first, so that nothing new begins. Then ``abort_round`` writes the
    manifest, unless the round has completed.

    Returns
    -------
    str
        The cause in its manifest, which the first request to end the round wrote.

    Raises
    ------
    SpecError
        There is no reason.
    RoundNotFoundError
        There is no such round.
    RoundStateError
        The round was completed, maybe just now, and stays so.
    """
    check_reason(reason)
    manifest = read_manifest(stack.store, keys)
    if manifest is None:
        execution = _execution(stack, keys)
    elif manifest["status"] == COMPLETED:
        raise RoundStateError(f"round {keys.round_id!r} was completed; it cannot be cancelled")
    else:
        execution = stack.execution(keys.round_id)
    cause = f"cancelled: {reason.strip()}"
    if execution is not None and not execution.has_ended:
        stack.stop(keys.round_id, CANCELLED, cause)
    event = {"round": keys.round_id, "error": CANCELLED, "cause": cause}
    outcome = stack.invoke("AbortRoundFunctionName", event)
    if outcome["status"] == COMPLETED:
        raise RoundStateError(
            f"round {keys.round_id!r} was completed before it could be cancelled; it stays so"
        )
    return str(outcome["cause"])


def remove_round(stack: Stack, keys: RoundKeys) -> None:
    """Delete all versions of the objects of a round that has ended; safe to repeat.

    Versions of a model that it made stay. Its name stays taken.

    Raises
    ------
    RoundNotFoundError
        There is no such round.
    RoundStateError
        The round has not ended.
    """
    has_manifest = stack.store.head(keys.manifest) is not None
    execution = stack.execution(keys.round_id)
    if execution is None and not any(True for _ in stack.store.list_objects(keys.root)):
        raise RoundNotFoundError.of(keys.round_id)
    is_running = execution is not None and not execution.has_ended
    if is_running and has_manifest:
        raise RoundStateError(f"round {keys.round_id!r} is just ending; try again")
    if is_running or (not has_manifest and stack.state_machine is None):
        raise RoundStateError(
            f"round {keys.round_id!r} has not ended: wait for it, or cancel it first"
        )
    # First: if this is interrupted, a round with a spec and no plan would be taken for one that
    # revealed nothing, and cancelling it would refund its privacy.
    stack.store.delete_versions(keys.spec)
    stack.store.delete_versions(keys.root)


def _execution(stack: Stack, keys: RoundKeys) -> Execution | None:
    """Return the execution of a round that has no manifest; None if only its objects are left."""
    execution = stack.execution(keys.round_id)
    has_spec = stack.store.head(keys.spec) is not None
    if execution is None and not has_spec:
        raise RoundNotFoundError.of(keys.round_id)
    if execution is not None and execution.succeeded and not has_spec:
        raise RoundNotFoundError.deleted(keys.round_id, execution.dates)
    return execution
