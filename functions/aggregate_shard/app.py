"""aggregate_shard: average one shard of all contributors."""

import os
from typing import Any

from gradshard import observe
from gradshard.planning import Shard
from gradshard.rounds.aggregate_shard import aggregate_shard
from gradshard.wire import Wire

wire = Wire(os.environ["GRADSHARD_BUCKET"], os.environ["GRADSHARD_BUCKET_HOST"])


@observe.handler
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Do one task of the plan."""
    report = aggregate_shard(
        wire, event["round"], attempt=event["attempt"], shard=Shard(**event["shard"])
    )
    observe.count("Shards")
    observe.count("BytesRead", report.get("bytes_read", 0))
    return report
