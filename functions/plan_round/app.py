"""plan_round: freeze the contributors, cut the shards, start the result's upload."""

import os
from typing import Any

from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.observability import embedded_metrics
from gradshard_core.rounds.keeper_exchange import has_keeper
from gradshard_core.rounds.plan_context import PlanRequest
from gradshard_core.rounds.plan_round import plan_round
from gradshard_core.s3.http_transport import function_store

store = function_store()
keeper = function_store("GRADSHARD_KEEPER_BUCKET") if has_keeper() else None
aggregator = LambdaConfig(
    memory_mb=int(os.environ["GRADSHARD_AGGREGATOR_MEMORY"]),
    architecture=os.environ["GRADSHARD_ARCHITECTURE"],
    concurrency=int(os.environ["GRADSHARD_MAP_CONCURRENCY"]),
)


@embedded_metrics.handler()
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Plan the round, its next stage, or the round again without rejected contributors."""
    # Not told when it is called by hand.
    is_repeated = event.get("retries", 0) > 0
    request = PlanRequest(event["entered_at"], event["reason"], event["attempt"], is_repeated)
    return plan_round(store, event["round"], request, aggregator=aggregator, keeper=keeper)
