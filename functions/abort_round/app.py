"""abort_round: throw the unfinished result away, keep the cause, tell others."""

from typing import Any

from gradshard_core.observability import embedded_metrics
from gradshard_core.rounds.abort_round import abort_round
from gradshard_core.s3.http_transport import function_store

store = function_store()


def measures(event: dict[str, Any], outcome: dict[str, Any]) -> dict[str, float]:
    """Count a failed round once: each of its tasks may have aborted it before the machine does."""
    return {"RoundsFailed": 1} if outcome["status"] == "failed" and "task" not in event else {}


@embedded_metrics.handler(measures)
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """End the round with its cause."""
    return abort_round(
        store,
        event["round"],
        error=event["error"],
        cause=event["cause"],
        task=event.get("task"),
    )
