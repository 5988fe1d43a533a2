"""What plan_round hands to the state machine, read as the machine reads it."""

from collections.abc import Iterator
from typing import Any


def levels_of(planned: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield where each level's tasks are, as the machine's loop comes to them."""
    while "tasks" in planned:
        yield planned["tasks"]
        planned = planned["next"]
