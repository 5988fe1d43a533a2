"""abort_round: throw the unfinished result away, keep the cause, tell others."""

import os
from typing import Any

from gradshard import observe
from gradshard.rounds.abort_round import abort_round
from gradshard.store import Store

store = Store(os.environ["GRADSHARD_BUCKET"])


@observe.handler
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """End the round with its cause."""
    outcome = abort_round(
        store,
        event["round"],
        error=event["error"],
        cause=event["cause"],
        task=event.get("task"),
    )
    if outcome["status"] == "failed":
        observe.count("RoundsFailed")
    return outcome
