"""plan_round: freeze the contributors, cut the shards, start the result's upload."""

import os
from typing import Any

from gradshard import observe
from gradshard.planning import Aggregator
from gradshard.rounds.plan_round import Call, plan_round
from gradshard.store import Store

store = Store(os.environ["GRADSHARD_BUCKET"])
aggregator = Aggregator(
    memory_mb=int(os.environ["GRADSHARD_AGGREGATOR_MEMORY"]),
    architecture=os.environ["GRADSHARD_ARCHITECTURE"],
    concurrency=int(os.environ["GRADSHARD_MAP_CONCURRENCY"]),
)


@observe.handler()
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Plan the round, its next groups, or the round again without those who were refused."""
    call = Call(visit=event["visit"], reason=event["reason"], attempt=event["attempt"])
    return plan_round(store, event["round"], call, aggregator=aggregator)
