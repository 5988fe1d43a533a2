"""Give a round up: nothing half-written stays, and the cause is kept."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from gradshard.errors import BrokenObjectError, SpecError
from gradshard.keys import RoundKeys
from gradshard.rounds import services
from gradshard.rounds.finalize_round import COMPLETED, FAILED
from gradshard.store import Store

MAX_CAUSE = 8_000
"""Characters of a cause that are kept; Step Functions ends at 32,768 bytes."""


def abort_round(
    store: Store, round_id: str, *, error: str, cause: str, task: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Record why a round failed and throw its unfinished result away; safe to repeat.

    The first cause is the one that is kept: a failed task aborts the round itself, before the
    machine does, which learns only that one of its tasks failed.

    Parameters
    ----------
    store
        The bucket.
    round_id
        The round.
    error, cause
        As the state machine caught them: for a function's exception, the cause is JSON with its
        ``errorType`` and ``errorMessage``.
    task
        The task that failed, if it was one: its ``level`` and ``number``.

    Returns
    -------
    dict
        ``status`` ``failed`` with ``error`` and ``cause``; or ``completed`` if the round had in
        fact ended well and only the answer was lost.
    """
    error, cause = _plain(error, cause)
    if task is not None:
        cause = f"task {task['number']} of level {task['level']}: {cause}"
    cause = cause[:MAX_CAUSE]
    try:
        keys = RoundKeys(round_id)
    except SpecError:
        # No object can be named after such a round; the execution alone keeps the cause.
        return {"status": FAILED, "error": error, "cause": cause}
    try:
        plan = store.get_json(keys.plan) or {}
        has_partials = len(plan.get("levels", [])) > 1
    except BrokenObjectError:
        # Maybe that is why the round is given up: what it would name is looked for.
        plan, has_partials = {}, True
    manifest = {
        "round": round_id,
        "status": FAILED,
        "error": error,
        "cause": cause,
        "refused": plan.get("refused", []),
        "missing": plan.get("missing", []),
        "finished_at": datetime.now(UTC).isoformat(),
    }
    is_first = store.put_json(keys.manifest, manifest, replaces=None)
    # Of a round that ended well, too: finalize_round may have died between its manifest and this.
    store.abort_open_uploads(keys.result)
    if has_partials:
        store.delete_versions(keys.partials)
    if not is_first:
        manifest = store.get_json(keys.manifest)
    if manifest["status"] == COMPLETED:
        services.publish("RoundCompleted", {"round": round_id, "bucket": store.bucket})
        return {"status": COMPLETED}
    if store.head(keys.result) is not None:
        store.delete(keys.result)
    services.publish(
        "RoundFailed", {"round": round_id, "bucket": store.bucket, "cause": manifest["cause"]}
    )
    return {"status": FAILED, "error": manifest["error"], "cause": manifest["cause"]}


def _plain(error: str, cause: str) -> tuple[str, str]:
    """Take error and cause out of the JSON in which Lambda wraps an exception."""
    try:
        wrapped = json.loads(cause)
    except ValueError:
        return error, cause
    if not isinstance(wrapped, dict) or "errorMessage" not in wrapped:
        return error, cause
    return str(wrapped.get("errorType", error)), str(wrapped["errorMessage"])
