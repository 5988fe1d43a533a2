"""An execution of a training ends before its history is full, and before a year has passed."""

import json
from pathlib import Path
from typing import Any

from gradshard_core.limits.aws_limits import MAX_EVENTS, MAX_EXECUTION_SECONDS
from gradshard_core.specs.option_kinds import Duration
from gradshard_core.specs.training_spec import OPTIONS
from gradshard_core.trainings.advance_training import STEPS_PER_RUN

FUNCTIONS = ("AdvanceTraining", "SettleRound")
MAX_FUNCTION_SECONDS = 900
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
    assert most < MAX_EVENTS


def test_the_longest_execution_is_below_step_functions_quota() -> None:
    """A training may have 99,999 rounds, each of which waits for a week or more."""
    repeat_after = OPTIONS["repeat_after"].kind
    assert isinstance(repeat_after, Duration)
    longest = max(STATES["RunRound"]["TimeoutSeconds"], repeat_after.high)
    # advance_training and abort_round, each tried again as long as Lambda lets them.
    tries = [1 + sum(r["MaxAttempts"] for r in STATES[name]["Retry"]) for name in FUNCTIONS]
    most = (STEPS_PER_RUN + 1) * (longest + 2 * MAX_FUNCTION_SECONDS * sum(tries))
    assert most < MAX_EXECUTION_SECONDS
