"""finalize_round: make the result appear, write the manifest, tell others."""

import os
from typing import Any

from gradshard import observe
from gradshard.rounds.finalize_round import finalize_round
from gradshard.store import Store

store = Store(os.environ["GRADSHARD_BUCKET"])


@observe.handler
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """End the round well, or have it planned again without those who were refused."""
    outcome = finalize_round(store, event["round"])
    if outcome["status"] == "completed":
        observe.count("RoundsCompleted")
    return outcome
