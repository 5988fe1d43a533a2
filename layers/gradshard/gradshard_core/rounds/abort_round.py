"""Abort a round: delete its unfinished objects, and record the cause."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from gradshard_core.aggregation.server_optimizers import ServerOptimizer
from gradshard_core.errors import BrokenObjectError, SpecError, is_by_deploying, plain_failure
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.planning.output_objects import next_model_keys
from gradshard_core.planning.plan import Plan
from gradshard_core.privacy.privacy_mechanism import PrivacyMechanism
from gradshard_core.records import model_registry, privacy_ledger
from gradshard_core.records.manifest_status import COMPLETED, FAILED
from gradshard_core.records.noise_key import delete_noise_key
from gradshard_core.records.plan_and_manifest import read_manifest, read_plan
from gradshard_core.records.stored_spec import read_spec
from gradshard_core.records.training_state import keeps_noise_key
from gradshard_core.rounds import aws_requests
from gradshard_core.rounds.manifest_json import failed_manifest
from gradshard_core.rounds.waiting_record import end_waiting
from gradshard_core.s3.store import S3Store

_AFTER_DEPLOYING: Final = (
    ". Was another version of gradshard deployed during the round? Then run the round again"
)


def abort_round(
    store: S3Store, round_id: str, *, error: str, cause: str, task: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Record the cause of a round's failure and delete its unfinished result; safe to repeat.

    The first cause is kept. A failed task aborts the round itself, because the state machine learns
    only that one of its tasks failed.

    Parameters
    ----------
    store
        The bucket.
    round_id
        The round.
    error, cause
        The error that the state machine caught. For a function's exception, the cause is JSON with
        its ``errorType`` and ``errorMessage``.
    task
        The task that failed, if it was one: its ``level`` and ``number``.

    Returns
    -------
    dict
        ``status`` ``failed`` with ``error`` and ``cause``; or ``completed`` if the round had in
        fact ended well and only the answer was lost.
    """
    error, cause = _plain(error, cause, task)
    try:
        keys = RoundKeys(round_id)
    except SpecError:
        # No object can be named after such a round; the execution alone keeps the cause.
        return {"status": FAILED, "error": error, "cause": cause}
    begun = _read_begun(store, keys)
    manifest = failed_manifest(store, keys, error, cause, begun.plan)
    # Before the manifest is there, so that who arrives from now on looks for it. And after that: a
    # late call of open_round may have looked for it before.
    end_waiting(store, keys)
    is_first = store.put_json(keys.manifest, manifest, replaces=None)
    end_waiting(store, keys)
    server_optimizer = _apply_terms(store, keys, begun.plan)
    outputs = [
        keys.result,
        *(next_model_keys(server_optimizer, round_id) if server_optimizer else ()),
    ]
    # Of a round that ended well, too: finalize_round may have died between its manifest and this.
    for key in outputs:
        store.abort_open_uploads(key)
    if begun.has_partials:
        store.delete_versions(keys.partial_sums)
    is_completed = False
    try:
        if not is_first:
            manifest = read_manifest(store, keys) or manifest
        is_completed = manifest["status"] == COMPLETED
    finally:
        # A later round takes the noise of one that ended well out of the model again. If the
        # manifest cannot be read, nobody else would delete the key.
        if begun.is_private and not (is_completed and keeps_noise_key(store, round_id, begun.dp)):
            delete_noise_key(store, keys)
    if is_completed:
        return _tell_completed(store, keys, server_optimizer)
    _drop(store, outputs)
    _release(store, keys, server_optimizer)
    return _tell_failed(store, keys, manifest)


def _plain(error: str, cause: str, task: Mapping[str, int] | None) -> tuple[str, str]:
    """Return an error and its cause without JSON, not longer than AWS takes."""
    error, cause = plain_failure(error, cause)
    may_be_by_deploying = is_by_deploying(error)
    if may_be_by_deploying and error != BrokenObjectError.__name__:
        cause = f"{error}: {cause}"  # of Python's: KeyError's text is a name alone
    if task is not None:
        cause = f"task {task['number']} of level {task['level']}: {cause}"
    advice = _AFTER_DEPLOYING if may_be_by_deploying else ""
    return error, cause[: aws_requests.MAX_CAUSE - len(advice)] + advice


class _Begun(NamedTuple):
    """The objects that a round may have begun to write, by its plan."""

    plan: Plan | None
    has_partials: bool
    is_private: bool
    dp: PrivacyMechanism | None


def _read_begun(store: S3Store, keys: RoundKeys) -> _Begun:
    try:
        plan = read_plan(store, keys)
    except BrokenObjectError:
        # Maybe that is why the round is given up: what it would name is looked for.
        return _Begun(None, has_partials=True, is_private=True, dp=None)
    dp = None if plan is None else plan.computation.dp
    return _Begun(plan, plan is not None and len(plan.levels) > 1, dp is not None, dp)


def _tell_completed(
    store: S3Store, keys: RoundKeys, optimizer: ServerOptimizer | None
) -> dict[str, Any]:
    """Tell of a round that had in fact ended well."""
    if optimizer:
        model_registry.note_current(store, optimizer.model)
    aws_requests.publish("RoundCompleted", {"round": keys.round_id, "bucket": store.bucket})
    return {"status": COMPLETED}


def _tell_failed(store: S3Store, keys: RoundKeys, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Tell of a round that has failed, with the cause that its manifest keeps."""
    told = {"round": keys.round_id, "bucket": store.bucket, "cause": manifest["cause"]}
    aws_requests.publish("RoundFailed", told)
    return {"status": FAILED, "error": manifest["error"], "cause": manifest["cause"]}


def _apply_terms(store: S3Store, keys: RoundKeys, plan: Plan | None) -> ServerOptimizer | None:
    """Return the server optimizer of a round that makes a version of a model."""
    if plan is not None and plan.computation.has_outputs:
        return plan.next_model.server_optimizer if plan.next_model else None
    try:
        opened = read_spec(store, keys)
    except BrokenObjectError:
        return None
    return None if opened is None else opened[0].server_optimizer


def _release(store: S3Store, keys: RoundKeys, optimizer: ServerOptimizer | None) -> None:
    """Have a round cost no privacy if it failed before noise was drawn.

    The plan is read after the manifest is written: no later plan is answered.
    """
    if optimizer is None:  # no model, and no ledger
        return
    try:
        plan, opened = read_plan(store, keys), read_spec(store, keys)
    except BrokenObjectError:
        return
    if opened is not None and (plan is None or not plan.computation.has_outputs):
        at = opened[1]["opened_at"]
        privacy_ledger.release(store, optimizer.model, keys.round_id, at)


def _drop(store: S3Store, keys: Sequence[str]) -> None:
    """Delete what was completed before the round failed."""
    for key in keys:
        if store.head(key) is not None:
            store.delete(key)
