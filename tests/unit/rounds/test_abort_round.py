"""What a round that has failed says of its cause."""

import json

import pytest

from gradshard_core.errors import BrokenObjectError
from gradshard_core.rounds.aws_requests import MAX_CAUSE
from tests.unit.in_memory import OPENED, Machine

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

ADVICE = "Was another version of gradshard deployed during the round? Then run the round again"


def wrapped(error: Exception) -> dict[str, str]:
    """Return what the state machine catches of a function's exception."""
    cause = {"errorMessage": str(error), "errorType": type(error).__name__}
    return {"error": type(error).__name__, "cause": json.dumps(cause)}


def test_a_plan_of_another_version_is_said_to_be_one(machine: Machine) -> None:
    machine.open(clients=["a"])
    machine.submit("a", {})
    plan = {"round": "r", "attempt": 0}  # a plan that lacks what this version reads
    machine.store.put_json(machine.keys.plan, plan)
    with pytest.raises(BrokenObjectError) as failure:
        machine.plan(OPENED)
    machine.step("abort_round", **wrapped(failure.value))
    cause = machine.store.get_json(machine.keys.manifest)["cause"]
    assert cause == f"{failure.value}. {ADVICE}"
    assert "rounds/r/plan.json: JSON of another form than was written there: KeyError" in cause


def test_an_event_of_another_version_is_said_to_be_one(machine: Machine) -> None:
    """An execution keeps the definition of the state machine with which it began."""
    machine.open(clients=["a"])
    with pytest.raises(KeyError) as failure:
        machine.step("plan_round", reason="complete", attempt=0)
    machine.step("abort_round", **wrapped(failure.value))
    manifest = machine.store.get_json(machine.keys.manifest)
    assert manifest["error"] == "KeyError"
    assert manifest["cause"] == f"KeyError: 'entered_at'. {ADVICE}"


def test_the_advice_is_kept_of_a_long_cause(machine: Machine) -> None:
    machine.open(clients=["a"])
    machine.step("abort_round", **wrapped(ValueError("x" * 2 * MAX_CAUSE)))
    cause = machine.store.get_json(machine.keys.manifest)["cause"]
    assert cause.endswith(ADVICE)
    assert len(cause) == MAX_CAUSE


def test_other_errors_say_nothing_of_versions(machine: Machine) -> None:
    machine.open(clients=["a"])
    machine.step("abort_round", error="QuorumError", cause="too few")
    assert machine.store.get_json(machine.keys.manifest)["cause"] == "too few"
