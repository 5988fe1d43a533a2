"""aggregate_shard: add some inputs over one byte range."""

import os
from typing import Any

from gradshard import observe
from gradshard.plan import Task
from gradshard.rounds.aggregate_shard import aggregate_shard
from gradshard.wire import Wire

wire = Wire(os.environ["GRADSHARD_BUCKET"], os.environ["GRADSHARD_BUCKET_HOST"])


@observe.handler
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Do one task of the plan."""
    report = aggregate_shard(
        wire, event["round"], attempt=event["attempt"], task=Task(**event["task"])
    )
    observe.count("Tasks")
    observe.count("BytesRead", report.get("bytes_read", 0))
    return report
