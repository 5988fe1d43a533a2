"""start_training: check a training's options, write them and its first state."""

from typing import Any

from gradshard_core.observability import embedded_metrics
from gradshard_core.rounds.keeper_exchange import has_keeper
from gradshard_core.s3.http_transport import function_store
from gradshard_core.trainings.start_training import start_training

store = function_store()


@embedded_metrics.handler()
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Start the training that an execution of the state machine stands for."""
    return start_training(
        store,
        event["training"],
        event["spec"],
        started=event["started"],
        has_keeper=has_keeper(),
    )
