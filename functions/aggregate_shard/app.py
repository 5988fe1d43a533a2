"""aggregate_shard: add some inputs over one byte range."""

import os
from typing import Any

from gradshard_core.observability import embedded_metrics
from gradshard_core.planning.plan_parts import Task
from gradshard_core.rounds.aggregate_shard import aggregate_shard
from gradshard_core.s3.task_client import TaskS3Client

s3 = TaskS3Client(os.environ["GRADSHARD_BUCKET"], os.environ["GRADSHARD_BUCKET_HOST"])


def measures(_event: dict[str, Any], report: dict[str, Any]) -> dict[str, float]:
    """Measure a task, unless its plan was given up meanwhile."""
    if "superseded_by" in report:
        return {}
    return {
        "Tasks": 1,
        "TaskSeconds": report["seconds"],
        "BytesRead": report["bytes_read"],
        "BytesWritten": report["bytes_written"],
        "Retries": report["retries"],
    }


@embedded_metrics.handler(measures)
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Do one task of the plan."""
    return aggregate_shard(s3, event["round"], attempt=event["attempt"], task=Task(**event["task"]))
