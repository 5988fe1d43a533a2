"""abort_round: throw the unfinished result away, keep the cause, tell others."""

import os
from typing import Any

from gradshard_core.observability import powertools
from gradshard_core.rounds.abort_round import abort_round
from gradshard_core.s3.store import S3Store

store = S3Store(os.environ["GRADSHARD_BUCKET"])


def measures(event: dict[str, Any], outcome: dict[str, Any]) -> dict[str, float]:
    """Count a failed round once: each of its tasks may have aborted it before the machine does."""
    return {"RoundsFailed": 1} if outcome["status"] == "failed" and "task" not in event else {}


@powertools.handler(measures)
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """End the round with its cause."""
    return abort_round(
        store,
        event["round"],
        error=event["error"],
        cause=event["cause"],
        task=event.get("task"),
    )
