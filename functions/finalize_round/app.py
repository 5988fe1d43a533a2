"""finalize_round: make the result appear, write the manifest, tell others."""

import os
from typing import Any

from gradshard import observe
from gradshard.rounds.finalize_round import finalize_round
from gradshard.store import Store
from gradshard.wire import Wire

store = Store(os.environ["GRADSHARD_BUCKET"])
wire = Wire(os.environ["GRADSHARD_BUCKET"], os.environ["GRADSHARD_BUCKET_HOST"])


def measures(_event: dict[str, Any], outcome: dict[str, Any]) -> dict[str, float]:
    """Count a round that completed, or that is planned again without some."""
    if outcome["status"] == "completed":
        return {"RoundsCompleted": 1}
    if outcome["status"] == "replan":
        return {"Replans": 1, "UpdatesRefused": outcome["refused"]}
    return {}


@observe.handler(measures)
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """End the round well, or have it planned again without those who were refused."""
    outcome = finalize_round(store, wire, event["round"])
    if "refused" in outcome:
        observe.refused(outcome["refused"])
        # A state takes 256 KiB: of thousands of refusals, their number.
        outcome["refused"] = len(outcome["refused"])
    return outcome
