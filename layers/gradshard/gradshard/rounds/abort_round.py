"""Give a round up: nothing half-written stays, and the cause is kept."""

import json
from datetime import UTC, datetime
from typing import Any

from gradshard.errors import SpecError
from gradshard.keys import RoundKeys
from gradshard.rounds import services
from gradshard.rounds.finalize_round import COMPLETED, FAILED
from gradshard.store import Store


def abort_round(store: Store, round_id: str, *, error: str, cause: str) -> dict[str, Any]:
    """Record why a round failed and throw its unfinished result away; safe to repeat.

    Parameters
    ----------
    store
        The bucket.
    round_id
        The round.
    error, cause
        As the state machine caught them: for a function's exception, the cause is JSON with its
        ``errorType`` and ``errorMessage``.

    Returns
    -------
    dict
        ``status`` ``failed`` with ``error`` and ``cause``; or ``completed`` if the round had in
        fact ended well and only the answer was lost.
    """
    error, cause = _plain(error, cause)
    try:
        keys = RoundKeys(round_id)
    except SpecError:
        # No object can be named after such a round; the execution alone keeps the cause.
        return {"status": FAILED, "error": error, "cause": cause}
    plan = store.get_json(keys.plan) or {}
    cause = _first_failed_task(store, keys, plan) or cause
    manifest = {
        "round": round_id,
        "status": FAILED,
        "error": error,
        "cause": cause,
        "refused": plan.get("refused", []),
        "missing": plan.get("missing", []),
        "finished_at": datetime.now(UTC).isoformat(),
    }
    if not store.put_json(keys.manifest, manifest, replaces=None):
        manifest = store.get_json(keys.manifest)
        if manifest["status"] == COMPLETED:
            return {"status": COMPLETED}
    for upload_id in store.open_uploads(keys.result):
        store.abort_upload(keys.result, upload_id)
    if store.head(keys.result) is not None:
        store.delete(keys.result)
    services.publish(
        "RoundFailed", {"round": round_id, "bucket": store.bucket, "cause": manifest["cause"]}
    )
    return {"status": FAILED, "error": manifest["error"], "cause": manifest["cause"]}


def _first_failed_task(store: Store, keys: RoundKeys, plan: dict[str, Any]) -> str | None:
    """Say why the first failed task failed; the Map that ran it says only that one did."""
    for entry in store.list_objects(keys.reports):
        report = store.get_json(entry.key)
        if report and report["attempt"] == plan.get("attempt") and report["error"]:
            return f"shard {report['shard']}: {report['error']}"
    return None


def _plain(error: str, cause: str) -> tuple[str, str]:
    """Take error and cause out of the JSON in which Lambda wraps an exception."""
    try:
        wrapped = json.loads(cause)
    except ValueError:
        return error, cause
    if not isinstance(wrapped, dict) or "errorMessage" not in wrapped:
        return error, cause
    return str(wrapped.get("errorType", error)), str(wrapped["errorMessage"])
