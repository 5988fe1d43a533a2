"""What is charged of a round is what its state machine does."""

import json
from pathlib import Path

from gradshard_core.costs import aws_prices
from gradshard_core.limits import aws_limits

ROOT = Path(__file__).parents[3]
MACHINE = ROOT / "statemachine" / "round.asl.json"


def test_transitions_are_those_of_the_state_machine() -> None:
    machine = json.loads(MACHINE.read_text())
    states = machine["States"]
    path = [machine["StartAt"]]
    while not (state := states[path[-1]]).get("End"):
        path.append(state["Next"])
    caught = {rule["ErrorEquals"][0]: rule["Next"] for rule in states["FinalizeRound"]["Catch"]}
    loop = path[path.index(caught["NextLevel"]) : path.index("FinalizeRound") + 1]
    assert loop == ["AggregateLevel", "FinalizeRound"]
    assert len(loop) == aws_prices.LEVEL_TRANSITIONS
    assert caught["Replan"] == "PlanAgain"
    between = [caught["Replan"], states[caught["Replan"]]["Next"]]
    assert between == ["PlanAgain", "PlanRound"]
    assert len(between) == aws_prices.REPLAN_TRANSITIONS
    # From the start to the first state, and from each to the next or the end.
    assert len(path) + 1 == aws_prices.ROUND_TRANSITIONS + aws_prices.LEVEL_TRANSITIONS
    assert [states[name]["Type"] for name in loop] == ["Map", "Task"]
    batches = states["AggregateLevel"]["ItemProcessor"]
    assert batches["ProcessorConfig"] == {"Mode": "DISTRIBUTED", "ExecutionType": "EXPRESS"}
    assert list(batches["States"]) == ["AggregateBatch"]


def test_the_documentation_of_quotas_has_the_machines_transitions() -> None:
    page = (ROOT / "docs" / "deploying.md").read_text()
    level = aws_prices.LEVEL_TRANSITIONS
    assert (
        f"| {aws_prices.ROUND_TRANSITIONS + level} for a round of one level, {level} more for each "
        f"further level, and 1 for each {aws_limits.INLINE_ITERATIONS} tasks"
    ) in page
