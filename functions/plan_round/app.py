"""plan_round: freeze the contributors, cut the shards, start the result's upload."""

import os
from typing import Any

from gradshard_core.observability import powertools
from gradshard_core.planning.planner import LambdaConfig
from gradshard_core.rounds.plan_round import Call, plan_round
from gradshard_core.s3.store import S3Store

store = S3Store(os.environ["GRADSHARD_BUCKET"])
aggregator = LambdaConfig(
    memory_mb=int(os.environ["GRADSHARD_AGGREGATOR_MEMORY"]),
    architecture=os.environ["GRADSHARD_ARCHITECTURE"],
    concurrency=int(os.environ["GRADSHARD_MAP_CONCURRENCY"]),
)


@powertools.handler()
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Plan the round, its next groups, or the round again without those who were rejected."""
    call = Call(visit=event["visit"], reason=event["reason"], attempt=event["attempt"])
    return plan_round(store, event["round"], call, aggregator=aggregator)
