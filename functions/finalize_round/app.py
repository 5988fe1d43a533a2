"""finalize_round: make the result appear, write the manifest, tell others."""

from typing import Any

from gradshard_core.observability import embedded_metrics
from gradshard_core.observability.log_fields import Context
from gradshard_core.rounds.finalize_round import finalize_round, tell_machine
from gradshard_core.s3.http_transport import function_store

store = function_store()


def measures(_event: dict[str, Any], outcome: dict[str, Any]) -> dict[str, float]:
    """Count a round that completed, or that is planned again without some clients."""
    if outcome["status"] == "completed":
        return {"RoundsCompleted": 1}
    if outcome["status"] == "replan" and outcome["rejected"]:
        return {"Replans": 1, "UpdatesRejected": outcome["rejected"]}
    return {}


@embedded_metrics.handler(measures)
def handler(event: dict[str, Any], context: Context) -> dict[str, Any]:
    """End the round well, or have it planned again without those who were rejected."""
    outcome = finalize_round(store, event["round"], event.get("next_level"))
    if "rejected" in outcome:
        embedded_metrics.rejected(event, context, outcome["rejected"])
        # A state takes 256 KiB: of thousands of rejections, their number.
        outcome["rejected"] = len(outcome["rejected"])
    # Without a token when it is called by hand.
    if "token" in event:
        tell_machine(event["token"], outcome)
    return outcome
