"""pause_training: record why a training cannot go on."""

from typing import Any

from gradshard_core.observability import embedded_metrics
from gradshard_core.s3.http_transport import function_store
from gradshard_core.trainings.pause_training import pause_training

store = function_store()


def measures(_event: dict[str, Any], outcome: dict[str, Any]) -> dict[str, float]:
    """Count a training that has paused."""
    return {"TrainingsPaused": 1} if outcome["status"] == "paused" else {}


@embedded_metrics.handler(measures)
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Pause a training, with its cause."""
    return pause_training(
        store, event["training"], run=event["run"], error=event["error"], cause=event["cause"]
    )
