"""advance_training: record the round that has ended, decide, invite to the next one."""

import os
from typing import Any

from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.observability import embedded_metrics
from gradshard_core.s3.http_transport import function_store
from gradshard_core.trainings.advance_training import advance_training

store = function_store()
aggregator = LambdaConfig(
    memory_mb=int(os.environ["GRADSHARD_AGGREGATOR_MEMORY"]),
    architecture=os.environ["GRADSHARD_ARCHITECTURE"],
    concurrency=int(os.environ["GRADSHARD_MAP_CONCURRENCY"]),
)


def measures(_event: dict[str, Any], outcome: dict[str, Any]) -> dict[str, float]:
    """Count a training that has ended or paused."""
    counted = {"ended": "TrainingsEnded", "paused": "TrainingsPaused"}
    return {counted[outcome["status"]]: 1} if outcome["status"] in counted else {}


@embedded_metrics.handler(measures)
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Take a training one step further."""
    return advance_training(
        store, event["training"], run=event["run"], step=event["step"], aggregator=aggregator
    )
