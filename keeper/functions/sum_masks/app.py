"""sum_masks: add the key streams of some seeds over one byte range."""

import os
from typing import Any

from gradshard_core.mask_keeper.sum_masks import sum_masks
from gradshard_core.observability import embedded_metrics
from gradshard_core.s3.http_transport import function_store
from gradshard_core.s3.task_client import TaskS3Client

store = function_store()
s3 = TaskS3Client(
    os.environ["GRADSHARD_AGGREGATOR_BUCKET"], os.environ["GRADSHARD_AGGREGATOR_BUCKET_HOST"]
)


@embedded_metrics.handler()
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Do one task of an answer."""
    return sum_masks(store, s3, event["round"], event["task"]["number"])
