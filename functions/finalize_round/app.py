"""finalize_round: make the result appear, write the manifest, tell others."""

import os
from typing import Any

from gradshard_core.observability import powertools
from gradshard_core.rounds.finalize_round import finalize_round
from gradshard_core.s3.store import S3Store
from gradshard_core.s3.task_client import TaskS3Client

store = S3Store(os.environ["GRADSHARD_BUCKET"])
wire = TaskS3Client(os.environ["GRADSHARD_BUCKET"], os.environ["GRADSHARD_BUCKET_HOST"])


def measures(_event: dict[str, Any], outcome: dict[str, Any]) -> dict[str, float]:
    """Count a round that completed, or that is planned again without some clients."""
    if outcome["status"] == "completed":
        return {"RoundsCompleted": 1}
    if outcome["status"] == "replan" and outcome["rejected"]:
        return {"Replans": 1, "UpdatesRejected": outcome["rejected"]}
    return {}


@powertools.handler(measures)
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """End the round well, or have it planned again without those who were rejected."""
    outcome = finalize_round(store, wire, event["round"])
    if "rejected" in outcome:
        powertools.rejected(outcome["rejected"])
        # A state takes 256 KiB: of thousands of rejections, their number.
        outcome["rejected"] = len(outcome["rejected"])
    return outcome
