"""What a round that has failed says of its cause."""

import json

import numpy as np
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


def test_a_round_with_an_option_of_another_version_is_aborted_and_says_so(
    machine: Machine,
) -> None:
    """As after a deployment is taken back: the abort itself failed, and left the noise's key."""
    machine.open(clients=["a", "b"], dp={"clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-5})
    for client in ("a", "b"):
        machine.submit(client, {"w": np.ones(2, "f4")})
    machine.plan(machine.turn(OPENED))
    assert machine.store.head(machine.keys.noise_key) is not None
    for key in (machine.keys.spec, machine.keys.plan):
        record = machine.store.get_json(key)
        stated = record["spec"] if key == machine.keys.spec else record["dp"]
        stated["unheard_of"] = 1
        machine.store.put_json(key, record)
    with pytest.raises(BrokenObjectError) as failure:
        machine.step("finalize_round")
    answer = machine.step("abort_round", **wrapped(failure.value))
    assert answer["cause"].startswith("rounds/r/plan.json: JSON of another form than was written")
    assert answer["cause"].endswith(ADVICE)
    assert machine.store.head(machine.keys.noise_key) is None
    assert not machine.store.uploads


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
