"""collect_update: an update arrived (S3's notification), or the deadline passed (schedule)."""

import re
from typing import Any

from gradshard_core.formats.s3_notifications import parse_notifications
from gradshard_core.observability import embedded_metrics
from gradshard_core.rounds.collect_update import collect_update
from gradshard_core.rounds.resume_round import deadline_passed
from gradshard_core.rounds.waiting_record import Seen
from gradshard_core.s3.http_transport import function_store

store = function_store()
seen = Seen()

WATCHED = re.compile(r"rounds/.*/(updates/.*\.safetensors|keeper/.*)", re.DOTALL)
"""S3 filters by the beginning and the end of keys, so that it also tells of results."""


def measures(_event: dict[str, Any], outcome: dict[str, Any]) -> dict[str, float]:
    """Count an update by what became of it."""
    if "status" not in outcome:  # a deadline's, or of no update
        return {}
    status = "late" if outcome.get("late") else outcome["status"]
    counted: dict[str, float] = {f"Updates{status.capitalize()}": 1}
    return counted | ({"UpdatesCompressed": 1} if "codec" in outcome else {})


@embedded_metrics.handler(measures)
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Take note of what happened, and let the round go on when it can."""
    if "deadline" in event:
        # Not told when it is delivered by hand.
        return deadline_passed(store, event["round"], event.get("tokens", ()))
    outcome: dict[str, Any] = {}
    for uploaded in parse_notifications(event):
        if WATCHED.fullmatch(uploaded.key):
            outcome = collect_update(store, uploaded.key, uploaded.etag, seen)
    return outcome
