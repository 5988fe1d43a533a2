"""An execution of a training ends before its history is full, whatever is tried again."""

import json
from pathlib import Path
from typing import Any

from gradshard_core.limits.state_machine_history import MAX_EVENTS
from gradshard_core.trainings.advance_training import STEPS_PER_RUN

ROOT = Path(__file__).parents[3]
STATES: dict[str, Any] = json.loads((ROOT / "statemachine" / "federation.asl.json").read_text())[
    "States"
]


def events(name: str) -> int:
    """Count the most events of one passage through a state, by the API reference's HistoryEvent."""
    state = STATES[name]
    if state["Type"] != "Task":
        return 2
    tries: int = 1 + sum(retrier["MaxAttempts"] for retrier in state["Retry"])
    # Scheduled, started, maybe submitted, and failed or succeeded; entered and left.
    return 2 + (4 if ".sync" in state["Resource"] else 3) * tries


def test_the_longest_history_is_below_step_functions_quota() -> None:
    step = events("AdvanceTraining") + events("WhatIsNext")
    # A round that is lost is settled, and asked for again; else it is a wait.
    longest = 2 * step + max(events("RunRound") + events("SettleRound"), events("Wait"))
    ends = ("IsGoingOn", "StartTraining", "StartSuccessor", "PauseTraining", "HasPaused", "Paused")
    most = 2 + (STEPS_PER_RUN + 1) * longest + step + sum(map(events, ends))
    assert 10_000 < most < MAX_EVENTS
