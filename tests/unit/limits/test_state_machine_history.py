"""An execution's history stays below what Step Functions takes, whatever is tried again."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradshard_core.errors import PlanError
from gradshard_core.limits import aws_limits, state_machine_history
from gradshard_core.limits.own_limits import MAX_CLIENTS
from gradshard_core.records.stored_spec import read_spec
from gradshard_core.rounds import resume_round
from gradshard_core.rounds.waiting_record import Seen
from tests.unit.in_memory import OPENED, Machine

ROOT = Path(__file__).parents[3]
STATES: dict[str, Any] = json.loads((ROOT / "statemachine" / "round.asl.json").read_text())[
    "States"
]
MOST_LEVELS = math.ceil(math.log2(MAX_CLIENTS))

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")


def events(state: dict[str, Any]) -> int:
    """Count the most events of one passage through a state, by the API reference's HistoryEvent."""
    if state["Type"] == "Task":
        tries: int = 1 + sum(retrier["MaxAttempts"] for retrier in state["Retry"])
        # Scheduled, started, maybe submitted, and failed or succeeded; entered and left.
        each = 4 if state["Resource"].endswith(".waitForTaskToken") else 3
        return 2 + each * tries
    # A distributed map's children are executions of their own.
    return 6 if state["Type"] == "Map" else 2


def turn(levels: int) -> int:
    """Count the most events from a planning to what follows its finalizing."""
    once = ("PlanRound", "PlanAgain")
    each = ("AggregateLevel", "FinalizeRound")
    return sum(events(STATES[name]) for name in once) + levels * sum(
        events(STATES[name]) for name in each
    )


def test_a_level_passes_the_states_that_are_counted() -> None:
    assert STATES["PlanRound"]["Next"] == "AggregateLevel"
    assert STATES["AggregateLevel"]["Next"] == "FinalizeRound"
    assert STATES["FinalizeRound"]["End"]
    caught = {rule["ErrorEquals"][0]: rule["Next"] for rule in STATES["FinalizeRound"]["Catch"]}
    assert (caught["Replan"], caught["Awaiting"]) == ("PlanAgain", "OpenRound")
    assert caught["NextLevel"] == "AggregateLevel"
    assert STATES["PlanAgain"]["Next"] == "PlanRound"


def test_the_longest_history_is_below_step_functions_quota() -> None:
    stage = events(STATES["OpenRound"]) + turn(1)
    ends = ("RoundForgotten", "AbortRound", "HasAborted", "Failed", "Done")
    end = 2 + sum(events(STATES[name]) for name in ends)
    attempts = max(
        state_machine_history.most_attempts(levels) * turn(levels)
        for levels in range(1, MOST_LEVELS + 1)
    )
    most = state_machine_history.MAX_STAGES * stage + attempts + end
    assert 10_000 < most < aws_limits.MAX_EVENTS


@pytest.mark.parametrize("groups", [1, 2, 47, 48, 49, 64, 700, 2048])
def test_groups_that_come_one_after_the_other_make_a_bounded_number_of_waves(groups: int) -> None:
    size = state_machine_history.stage_size(groups)
    assert size == 1 or groups > state_machine_history.STAGES
    assert -(-groups // size) <= state_machine_history.STAGES < state_machine_history.MAX_STAGES


def eager(machine: Machine, clients: int) -> list[str]:
    names = [f"c{number:04}" for number in range(clients)]
    machine.open(
        clients=names,
        topology="grid",
        fan_in=2,
        eager=True,
        weights="counts",
        layout={"w": {"dtype": "F32", "shape": [1]}},
    )
    return names


def is_due(machine: Machine) -> bool:
    opened = read_spec(machine.store, machine.keys)
    assert opened is not None
    return resume_round._is_due(machine.store, machine.keys, opened[0], "", Seen())


@pytest.mark.slow
def test_an_eager_round_of_many_groups_is_planned_in_stages_of_several_groups(
    machine: Machine,
) -> None:
    names = eager(machine, 2 * 100)
    planned = []
    for number, name in enumerate(names):
        machine.submit(name, {"w": np.full(1, number, "f4")})
        if is_due(machine):
            machine.aggregate(machine.plan(OPENED))
            planned.append(number + 1)
            outcome = machine.step("finalize_round")
    # Stages of three groups, and the hundredth alone.
    assert planned == [*range(6, 199, 6), 200]
    assert len(planned) <= state_machine_history.STAGES
    assert outcome == {"status": "completed"}
    assert machine.store.get_json(machine.keys.plan)["stage"] == len(planned)


def test_an_eager_round_that_is_resumed_for_ever_fails_and_says_so(machine: Machine) -> None:
    names = eager(machine, 6)
    for name in names[:2]:
        machine.submit(name, {"w": np.ones(1, "f4")})
    for _ in range(state_machine_history.MAX_STAGES):
        machine.plan(OPENED)
    with pytest.raises(PlanError, match=r"'r' was resumed 64 times, and 2 groups are .* awaited"):
        machine.plan(OPENED)


def reject_one_after_the_other(machine: Machine, names: list[str]) -> None:
    """Plan a round as often as it may be, as if each attempt had found one more bad update."""
    for name in names:
        machine.submit(name, {"w": np.ones(1, "f4")})
    outcome: dict[str, Any] = OPENED
    for attempt in range(state_machine_history.most_attempts(1)):
        machine.plan(outcome)
        found = [{"client": names[attempt], "reason": "its tensor 'w' holds a NaN", "etag": "e"}]
        machine.store.put_json(machine.keys.replan(attempt), found)
        outcome = {"reason": "replan", "attempt": attempt + 1}
    machine.plan(outcome)


def test_clients_rejected_one_after_the_other_end_the_round_with_a_cause(machine: Machine) -> None:
    names = [f"c{number:02}" for number in range(60)]
    machine.open(clients=names, min_clients=1)
    cause = (
        r"'r' was planned 50 times, .* 50 in all: c00, .* and 30 more; the last: its tensor 'w' "
        r"holds a NaN\. Average the 10 others"
    )
    with pytest.raises(PlanError, match=cause):
        reject_one_after_the_other(machine, names)


def test_updates_to_a_private_round_are_not_advised_to_be_averaged_by_another(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"c{number:02}" for number in range(9)]
    dp = {"clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-5}
    machine.open(clients=names, min_clients=2, dp=dp)
    monkeypatch.setattr(state_machine_history, "most_attempts", lambda _levels: 3)
    with pytest.raises(PlanError, match=r"Open another round for the 6 others") as failure:
        reject_one_after_the_other(machine, names)
    assert "--updates-from" not in str(failure.value)
