"""open_round: check the round's terms, keep the callback token, schedule the deadline."""

from typing import Any

from gradshard_core.observability import embedded_metrics
from gradshard_core.rounds.keeper_exchange import has_keeper
from gradshard_core.rounds.open_round import open_round
from gradshard_core.s3.http_transport import function_store

store = function_store()


@embedded_metrics.handler()
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Open the round that an execution of the state machine stands for."""
    return open_round(
        store,
        event["round"],
        event["spec"],
        started=event["started"],
        token=event["token"],
        has_keeper=has_keeper(),
    )
